"""Each of the paper's super-networks by its published preset, for 20 steps, to an exported file.

    python -m bench.presets --cifar FOLDER --photos FOLDER [--names ...]

The batch is small (a step costs what it costs per image); everything else is the preset's. Prints
one row for each network and kind of image: parameters, gates, groups, seconds a step and an image,
peak memory of the fit, and what the checked export says.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = (
    "multibranch-m", "multibranch-mi", "enas-e", "enas-ei", "resnet50", "densenet121",
    "densenet121-inflated",
)  # fmt: skip
STEPS = 20
PEAK = "import resource, sys; from pgnas_cli.cli import main\ntry: main(sys.argv[1:])\nfinally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"  # noqa: E501


def subset(folder: Path, into: Path, each: int) -> Path:
    """The first `each` training images and two test images of every class, as links."""
    for source, target, count in (("train", "train", each), ("val", "val", 2), ("test", "val", 2)):
        for place in sorted((folder / source).glob("*")) if (folder / source).exists() else ():
            own = into / target / place.name
            own.mkdir(parents=True, exist_ok=True)
            for image in sorted(place.iterdir())[:count]:
                (own / image.name).symlink_to(image.resolve())
    return into


def pgnas(*arguments: str) -> tuple[dict[str, Any], int]:
    """The JSON of a command, and its peak memory in KiB."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *arguments, "--json"], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout), int(done.stderr.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--names", nargs="*", default=NAMES)
    options = parser.parse_args()
    print("| network | images | parameters | gates | groups | s/step | s/image | MiB | exported |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.names:
        for kind, folder, pixels, batch in (
            ("cifar", options.cifar, 32, 4), ("photos", options.photos, 224, 2)
        ):  # fmt: skip
            with tempfile.TemporaryDirectory() as where:
                here = Path(where)
                classes = sum(1 for _ in (folder / "train").iterdir())
                each = -(-STEPS * batch * 5 // (4 * classes))
                data = str(subset(folder, here / "data", each))
                run = ["--run", str(here / "run")]
                start = time.perf_counter()
                fitted, peak = pgnas(
                    "fit", "--backbone", name, "--preset", "published", "--data", data, "--epochs",
                    "1", "--batch-size", str(batch), "--img-size", str(pixels), "-j", "0", *run,
                )  # fmt: skip
                metrics = json.loads((here / "run" / "metrics.jsonl").read_text().splitlines()[-1])
                pgnas("sample", "-n", "8", *run)
                pgnas("rank", "-j", "0", *run)
                file = here / "best.safetensors"
                written, _ = pgnas("export", str(file), "-j", "0", *run)
                step = batch / metrics["images_per_second"]
                print(f"| {name} | {kind}, {pixels} px | {fitted['params'] / 1e6:.2f} M |"
                      f" {fitted['gates']} | {fitted['groups']} | {step:.2f} | {step / batch:.2f} |"
                      f" {peak / 1024:.0f} | {written['params'] / 1e6:.2f} M,"
                      f" {time.perf_counter() - start:.0f} s in all |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
