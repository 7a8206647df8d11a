"""Photos in a second: our training batches beside a plain torchvision pipeline, and scanning.

    python -m bench.loader FOLDER [--workers 2] [--width 500] [--images 2048] [--turns 5]
    python -m bench.loader --scan FOLDER

FOLDER has train/<class>/. `--width` and `--height` make copies of that size first (JPEG, quality
90), as ImageNet's are; without them the photos are read as they are. The plain pipeline: Pillow,
RandomResizedCrop, RandomHorizontalFlip, ToTensor, Normalize, in a DataLoader of as many workers.
Ours ends where it does: float32, normalised, in batches. Sides take turns; median of the turns.
Appends a row to docs/data/loader.jsonl.

`--scan` lists and cuts a folder, twice, the second time with every image known by its check.
"""

import argparse
import itertools
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from bench import about, machine_line
from bench.figures import DATA, Row, append
from pgnas_cli.data import ImageData, cut_data, find_data, training_batches
from pgnas_cli.data.dataset import IMAGENET_MEAN, IMAGENET_STD

PIXELS, BATCH, SCALE = 224, 64, (0.08, 1.0)
WARM = 4  # batches before the clock runs: workers start, and files come into memory


def copies(folder: Path, into: Path, width: int, height: int, stride: int) -> Path:
    """The photos of train/, each resized to `width` x `height` or upright, `height` x `width`."""
    for path in sorted((folder / "train").glob("*/*"))[::stride]:
        place = into / "train" / path.parent.name / f"{path.stem}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            size = (width, height) if image.width >= image.height else (height, width)
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(place, quality=90)
    return into


def plain(folder: Path, workers: int) -> Iterator[Tensor]:
    """Batches of the plain pipeline, for ever."""
    torch.manual_seed(0)
    photos = ImageFolder(
        str(folder / "train"),
        transforms.Compose([
            transforms.RandomResizedCrop(PIXELS, scale=SCALE), transforms.RandomHorizontalFlip(),
            transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]),
    )  # fmt: skip
    loader = DataLoader(
        photos, BATCH, shuffle=True, num_workers=workers, drop_last=True, pin_memory=False,
        persistent_workers=workers > 0,
    )  # fmt: skip
    while True:
        yield from (images for images, _ in loader)


def ours(data: ImageData, workers: int) -> Iterator[Tensor]:
    """Ours, normalised as in a training step."""
    batches = training_batches(
        data, batch=BATCH, seed=0, first_step=0, steps=10**9, workers=workers, scale=SCALE
    )
    with closing(batches):
        for images, _ in batches:
            yield data.preprocessing.normalised(images)


def rates(batches: Iterator[Tensor], images: int) -> tuple[float, float]:
    """Images in a second, and in a second of the processor, workers included.

    On a machine that others use as well only the second tells the sides apart.
    """
    for _ in itertools.islice(batches, WARM):
        pass
    began, cpu, seen = time.perf_counter(), _processor(), 0
    while seen < images:
        seen += len(next(batches))
    spent = time.perf_counter() - began
    batches.close()  # type: ignore[attr-defined] # and its workers' time is known
    return seen / spent, (seen + WARM * BATCH) / (_processor() - cpu)


def _processor() -> float:
    """Seconds of the processor that this process took, and workers that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)


def measured(folder: Path, options: argparse.Namespace) -> Row:
    """Both sides in turn, each in a loader of its own: idle workers of one would disturb none."""
    data = cut_data(find_data(str(folder)), seed=0, held_out=0.02, size=PIXELS)
    found: dict[str, list[tuple[float, float]]] = {"plain": [], "ours": []}
    for _ in range(options.turns):
        for side, batches in (("plain", plain(folder, options.workers)),
                              ("ours", ours(data, options.workers))):  # fmt: skip
            found[side].append(rates(batches, options.images))
    row: Row = {"images": len(data.fit)}
    for place, key in enumerate(("", "_per_cpu_second")):
        both = {side: [pair[place] for pair in turns] for side, turns in found.items()}
        row |= {f"{side}{key}": statistics.median(turns) for side, turns in both.items()}
        ratios = [a / b for a, b in zip(both["ours"], both["plain"], strict=True)]
        row[f"ratio{key}"] = statistics.median(ratios)
    return row


def scanned(folder: Path) -> None:
    """Time, and memory that it takes, of listing and cutting; what the process had is not told."""
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began, cpu = time.perf_counter(), time.process_time()
        data = cut_data(find_data(str(folder)), seed=0, size=PIXELS)
        took = time.perf_counter() - began, time.process_time() - cpu
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(f"{len(data.fit)} + {len(data.held_out)} images: {took[0]:.1f} s, {took[1]:.1f} s of"
              f" the CPU, {peak:.0f} MiB at the peak", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--width", type=int)
    parser.add_argument("--height", type=int)
    parser.add_argument("--stride", type=int, default=1, help="copy every so manieth photo")
    parser.add_argument("--images", type=int, default=2048, help="for each side in each turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--scan", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.scan:
        scanned(options.folder)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = options.folder
        if options.width:
            height = options.height or 3 * options.width // 4
            folder = copies(folder, Path(place), options.width, height, options.stride)
        found = measured(folder, options)
    row = {"width": options.width, "workers": options.workers, "pixels": PIXELS, "batch": BATCH,
           "turns": options.turns, **found, **about()}  # fmt: skip
    append(DATA / "loader.jsonl", row)
    for key, what in (("", "a second"), ("_per_cpu_second", "a second of the processor")):
        print(f"{machine_line()}: plain {row['plain' + key]:.0f}, ours {row['ours' + key]:.0f}"
              f" images in {what}, ratio {row['ratio' + key]:.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
