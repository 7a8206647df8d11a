"""Which of timm's recipes pay in a fit on photos? Held-out errors beside the recipe as it is.

    python -m bench.recipes [NAME ...] [--seeds 0 1 2] [--device cuda]

`t1` of tasks.py: pretrained tf_efficientnet_lite0, photos of 112 px, half of the multiply-adds. One
option is changed at a time. `balanced` is for classes of unequal size: there, and in the row beside
it, half of the classes have a fifth of their training images. Errors are of held-out images, the
mean of the candidates and the winner; the test images are not looked at. Appends a row for each
fit to docs/data/recipes.jsonl.
"""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import about, one_checkout, ranked
from bench.figures import (
    DATA,
    Row,
    append,
    latest,
    over_seeds,
    percent,
    prose,
    read,
    table,
    taken,
)
from bench.tasks import task_of
from pgnas_cli import Target, drop_probabilities, find_machine, fit_network
from pgnas_cli.data import ImageData, placed
from pgnas_cli.machine import Machine
from pgnas_cli.sampling.draw import draw_candidates
from pgnas_cli.training import gated

PATH = DATA / "recipes.jsonl"
AS_IT_IS, UNEQUAL, BALANCED = "as it is", "unequal classes", "--class-weights balanced"
RECIPES: dict[str, dict[str, Any]] = {
    AS_IT_IS: {},
    "--smoothing 0.1": {"label_smoothing": 0.1},
    "--aa rand-m6-mstd0.5-inc1": {"aa": "rand-m6-mstd0.5-inc1"},
    "--mixup 0.2": {"mixup": 0.2},
    "--cutmix 1": {"cutmix": 1.0},
    "--reprob 0.25": {"reprob": 0.25},
    "--model-ema": {"model_ema": True},
    "--warmup-epochs 1": {"warmup_epochs": 1.0},
    "--layer-decay 0.8": {"layer_decay": 0.8},
    UNEQUAL: {},
    BALANCED: {"class_weights": "balanced"},
}
LR, SHARE, CANDIDATES = 1e-3, 0.5, 20


def unequal(data: ImageData) -> ImageData:
    """A fifth of the training images of every second class."""
    seen = torch.zeros(len(data.classes), dtype=torch.int64)
    kept = []
    for place, label in enumerate(data.fit.labels.tolist()):
        seen[label] += 1
        if label % 2 or int(seen[label]) % 5 == 1:
            kept.append(place)
    return dataclasses.replace(data, fit=data.fit.subset(kept))


def row(name: str, seed: int, machine: Machine, options: argparse.Namespace) -> Row:
    """A fit with one option changed, and its errors on held-out images."""
    began = time.perf_counter()
    backbone, data = task_of("t1", seed, options, probe=True)
    if name in (UNEQUAL, BALANCED):
        data = unequal(data)
    recipe = dataclasses.replace(backbone.recipe, lr=LR, **RECIPES[name])
    network = placed(gated(backbone, recipe), machine.device)
    target = Target("macs", SHARE)
    *_, last = fit_network(network, data, recipe, seed=seed, machine=machine, target=target)
    network.eval()
    keep = draw_candidates(drop_probabilities(network), network, CANDIDATES, seed)
    race = ranked(network, keep, data, machine=machine)
    errors = race.errors.double() / len(race.order)
    return {
        "recipe": name, "seed": seed, "loss": last.loss, "macs": last.expected_macs_share,
        "mean": float(errors.mean()), "best": float(errors.min()), "images": len(race.order),
        "seconds": round(time.perf_counter() - began), **about(machine),
    }  # fmt: skip


def differences(rows: Sequence[Row], name: str, key: str) -> list[float]:
    """Of the recipe from the one it is compared with, seed by seed; below 0: it errs less."""
    beside = UNEQUAL if name == BALANCED else AS_IT_IS
    values = {(r["recipe"], r["seed"]): r[key] for r in rows}
    return [values[name, s] - values[beside, s] for n, s in values if n == name]


def figures(rows: Sequence[Row]) -> str:
    """Sentence and table."""
    rows, columns, won = latest(rows, "recipe", "seed"), [], []
    for name in RECIPES:
        own = [row for row in rows if row["recipe"] == name]
        if not own:
            continue
        cells = [
            name if name in (AS_IT_IS, UNEQUAL) else f"`{name}`", len(own),
            percent(float(np.mean([r["mean"] for r in own]))),
            percent(float(np.mean([r["best"] for r in own]))),
        ]  # fmt: skip
        if name in (AS_IT_IS, UNEQUAL):
            columns.append([*cells, ""])
            continue
        change = differences(rows, name, "mean")
        low, high = over_seeds(change) or (float("nan"),) * 2
        if high < 0:
            won.append(f"`{name}`")
        mean = 100 * float(np.mean(change))
        columns.append([*cells, f"{mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"])
    verdict = f"Better beyond the interval over seeds: {', '.join(won) or 'none'}."
    head = ["recipe", "seeds", "mean candidate", "winner", "mean candidate, difference in points"]
    return f"{prose(taken(rows), verdict)}\n\n{table(head, columns)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the weights")
    parser.add_argument("--photos", type=Path, default=Path("data/photos"))
    parser.add_argument("--cifar", type=Path, default=Path("data/cifar"))
    parser.add_argument("--results", type=Path, default=PATH)
    options = parser.parse_args()
    one_checkout()
    machine = find_machine(options.device, 0)
    done = {(r["recipe"], r["seed"]) for r in read(options.results)}
    for seed in options.seeds:
        for name in options.names:
            if (name, seed) in done:
                continue
            found = row(name, seed, machine, options)
            append(options.results, found)
            print(found, flush=True)


if __name__ == "__main__":
    main()
