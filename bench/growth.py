"""How a search grows: with images, width, classes and candidates; with processes; beside timm.

    python -m bench.growth sizes [--images 400]
    python -m bench.growth processes --epochs 4
    python -m bench.growth script --script TRAIN_PY --photos FOLDER --epochs 4

`sizes`: multibranch-tiny on CIFAR images. Epochs of a fit and of one that is larger in one respect
take turns in one process (medians); then both draw and rank. *work*: multiply-adds times images, or
candidates, of the larger side beside the other. `processes`: `pgnas fit` under torchrun, one thread
a process, with one process and with two in turns; seconds of an epoch. `script`: the train script
that timm's repository holds, on the same photos with the same network, optimizer, batch, epochs and
workers, beside `pgnas fit` to half of the multiply-adds; seconds of the whole command.
Appends to docs/data/growth.jsonl.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgnas_backbones.multibranch import MultiBranch
from torch import nn

from bench import CPU, about, one_checkout, ranked
from bench.figures import DATA, Row, append, latest, prose, table, taken
from bench.presets import subset
from bench.speed import seconds, some_images
from pgnas_cli import Target, drop_probabilities, fit_network
from pgnas_cli.data import ImageData, cut_data, find_data, held_out_decoded
from pgnas_cli.registry import Recipe
from pgnas_cli.registry.build import build_backbone
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.sizes import whole_macs
from pgnas_cli.training import gated

PATH = DATA / "growth.jsonl"
HALF = Target("macs", 0.5)
WEIGHTS = "tf_efficientnet_lite0"


# --- one process ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """Of a search, in multiples of the smallest."""

    images: int = 1
    width: int = 1
    classes: int = 10
    candidates: int = 60


LARGER = (
    ("images", Size(images=2)), ("images", Size(images=4)), ("width", Size(width=2)),
    ("classes", Size(classes=1000)), ("candidates", Size(candidates=600)),
)  # fmt: skip


def searched(size: Size, options: argparse.Namespace) -> tuple[nn.Module, ImageData, Recipe]:
    backbone = build_backbone("multibranch-tiny", classes=size.classes, channels=3, size=32)
    widths = [size.width * w for w in (16, 32, 64)]
    network = MultiBranch(tuple(widths), 1, 16 * size.width, backbone.input_shape, size.classes)
    backbone = dataclasses.replace(backbone, network=network)
    source = find_data(str(options.cifar))
    data = cut_data(
        source, seed=0, held_out=0.2, preprocessing=backbone.images, size=backbone.input_shape[1]
    )
    data = held_out_decoded(some_images(data, size.images * options.images), 0)
    recipe = dataclasses.replace(backbone.recipe, epochs=options.epochs)
    return gated(backbone, recipe), data, recipe


def sizes_row(what: str, larger: Size, options: argparse.Namespace) -> Row:
    """Times of the larger search beside the smallest."""
    pair = (larger, Size())
    built = [searched(size, options) for size in pair]
    fits = [
        fit_network(network, data, recipe, seed=0, machine=CPU, target=HALF)
        for network, data, recipe in built
    ]
    epochs: list[list[float]] = [[], []]
    for _ in range(options.epochs):
        for fit, found in zip(fits, epochs, strict=True):
            found.append(seconds(lambda fit=fit: next(fit)))
    for fit in fits:
        fit.close()
    keeps: list[Any] = []

    def drawn(network: nn.Module, number: int) -> None:
        keeps.append(draw_candidates(drop_probabilities(network), network, number, 0))

    draws = [
        seconds(lambda one=one, size=size: drawn(one[0], size.candidates))
        for one, size in zip(built, pair, strict=True)
    ]
    ranks = [
        seconds(lambda one=one, keep=keep: ranked(one[0], keep, one[1], 1))
        for one, keep in zip(built, keeps, strict=True)
    ]
    macs = [whole_macs(network) for network, _, _ in built]
    images = [len(data.fit) for _, data, _ in built]
    row = dataclasses.asdict(larger)
    return {
        "part": "sizes", "what": what, **row, "images": images[0],
        "work": macs[0] * images[0] / (macs[1] * images[1]) * larger.candidates / 60,
        "epoch": statistics.median(a / b for a, b in zip(*epochs, strict=True)),
        "draw": draws[0] / draws[1], "rank": ranks[0] / ranks[1],
        "seconds": {"epochs": epochs, "draw": draws, "rank": ranks},
    }  # fmt: skip


# --- whole commands ------------------------------------------------------------------------------


def epochs_of(line: Sequence[str], run: Path) -> list[float]:
    """Seconds of the epochs of a fit that a command line makes."""
    subprocess.run(
        line, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    rows = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["seconds"] for row in rows]


def processes_rows(options: argparse.Namespace) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as place:
        photos = subset(options.cifar, Path(place) / "photos", options.images // 10)
        found: dict[int, list[float]] = {1: [], 2: []}
        for turn in range(options.turns):
            for number, taken_ in found.items():
                run = Path(place) / f"{turn}-{number}"
                fit = ["fit", "--backbone", "multibranch-tiny", "--data", str(photos), "--run",
                       str(run), "--epochs", str(options.epochs), "--batch-size", "64",
                       "--target-macs", "50%", "--workers", "0"]  # fmt: skip
                torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
                line = [sys.executable, "-m", *(torchrun if number == 2 else ())]
                line += ["pgnas_cli", *(("--",) if number == 2 else ()), *fit]
                taken_ += epochs_of(line, run)[1:]
        ratio = statistics.median(found[1]) / statistics.median(found[2])
        yield {"part": "processes", "net": "multibranch-tiny", "images": options.images,
               "processes": 2, "faster": ratio, "seconds": found}  # fmt: skip


def script_rows(options: argparse.Namespace) -> Iterator[Row]:
    weights = options.data / f"{WEIGHTS}.safetensors"
    with tempfile.TemporaryDirectory() as place:
        photos = subset(options.photos, Path(place) / "photos", options.images // 10)
        (photos / "validation").symlink_to(photos / "val")  # as timm calls it
        said = ["--opt", "adamw", "--lr", "0.001", "--weight-decay", "1e-4", "--epochs",
                str(options.epochs), "--batch-size", "40", "--img-size", "112"]  # fmt: skip
        theirs = [sys.executable, str(options.script), "--data-dir", str(photos), "--model",
                  WEIGHTS, "--pretrained", "--pretrained-path", str(weights), "--num-classes",
                  "10", "--device", "cpu", "-j", "1", "--warmup-epochs", "0", "--cooldown-epochs",
                  "0", "--output", f"{place}/timm", *said]  # fmt: skip
        ours = [sys.executable, "-m", "pgnas_cli", "fit", "--backbone", f"timm/{WEIGHTS}",
                "--weights", str(weights), "--data", str(photos), "--workers", "1",
                "--target-macs", "50%", "--force", "--run", f"{place}/run", *said]  # fmt: skip
        found: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(options.turns):
            for side, line in (("ours", ours), ("theirs", theirs)):
                began = time.perf_counter()
                subprocess.run(
                    line, check=True, capture_output=True, cwd=place,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )  # fmt: skip
                found[side].append(time.perf_counter() - began)
        pairs = zip(found["ours"], found["theirs"], strict=True)
        yield {"part": "script", "net": WEIGHTS, "px": 112, "batch": 40, "epochs": options.epochs,
               "images": options.images, "ratio": statistics.median(a / b for a, b in pairs),
               "seconds": found}  # fmt: skip


# --- tables --------------------------------------------------------------------------------------


def figures(rows: Sequence[Row]) -> str:
    """Sentences and table of the newest rows."""
    sizes = latest((r for r in rows if r["part"] == "sizes"), "what", "images", "width")
    columns = [
        [{"images": f"{row['images']} images", "width": f"width x {row['width']}",
          "classes": f"{row['classes']} classes", "candidates": f"{row['candidates']} candidates",
          }[row["what"]], *(f"{row[key]:.2f}" for key in ("work", "epoch", "draw", "rank"))]
        for row in sizes
    ]  # fmt: skip
    said = [
        f"Two processes of one thread fit {row['faster']:.2f} times as fast as one"
        f" ({row['net']}, {row['images']} images)."
        for row in latest((r for r in rows if r["part"] == "processes"), "net")
    ] + [
        f"`pgnas fit` of {row['net']} to half of the MACs ({row['images']} photos, {row['px']} px,"
        f" {row['epochs']} epochs) takes {row['ratio']:.2f} of the time of timm's train script."
        for row in latest((r for r in rows if r["part"] == "script"), "net")
    ]
    head = ["larger", "work", "epoch", "draw", "rank"]
    return f"{prose(taken(rows), *said)}\n\n{table(head, columns)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("sizes", "processes", "script"))
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--script", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the weights")
    parser.add_argument("--photos", type=Path, default=Path("data/photos"))
    parser.add_argument("--cifar", type=Path, default=Path("data/cifar"))
    options = parser.parse_args()
    one_checkout()
    if options.part == "sizes":
        rows: Iterator[Row] = (sizes_row(*larger, options) for larger in LARGER)
    else:
        rows = {"processes": processes_rows, "script": script_rows}[options.part](options)
    for row in rows:
        append(PATH, row | about())
        print({k: v for k, v in row.items() if k != "seconds"}, flush=True)


if __name__ == "__main__":
    main()
