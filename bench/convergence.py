"""Do short fits end at the posterior of long ones? A proxy of the paper's networks for CIFAR.

    python -m bench.convergence --cifar FOLDER [--nets m mi mi100] [--epochs 40 80 160]
                                [--seeds 0 1] [--widths 16]
    python -m bench.convergence --print

Three blocks of widths 16, 32 and 64 in place of 96 to 640, 1,600 CIFAR images of 16 pixels, the
published preset shortened. `mi100` has 100 classes: each class cut into ten by brightness. A fit
appends one JSON line to `--results`; one that is there is not run again.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from pgnas_backbones.multibranch import MEMBERS, MultiBranch
from scipy.stats import spearmanr

from bench import CPU, machine_line, one_checkout
from bench.figures import DATA, Row, append, listed, prose, read, table
from bench.tasks import some_of
from pgnas_cli import PgnasError, drop_probabilities, fit_network
from pgnas_cli.data import ImageData, Part, Preprocessing, cut_data, evaluation_images, find_data
from pgnas_cli.errors import Interrupted
from pgnas_cli.registry import Backbone, Recipe, shortened
from pgnas_cli.seeds import derived_seed, seeded_globals
from pgnas_cli.storage import to_json
from pgnas_cli.training import gated

PIXELS = 16
NETS = {"m": ("m", "published", 10), "mi": ("mi", "published", 10),
        "mi100": ("mi", "published-cifar100", 100)}  # fmt: skip


SEEN = Preprocessing(3, PIXELS, (0.491, 0.482, 0.447), (0.247, 0.243, 0.262), crop=1.0)


def images(folder: Path, total: int, held_out: int, seed: int) -> ImageData:
    """So many CIFAR images of 16 pixels in memory, the same for every seed; the seed cuts them."""
    source, seen = some_of(find_data(str(folder)), total), SEEN
    data = cut_data(source, seed=seed, held_out=held_out / total, preprocessing=seen)

    def small(part: Part) -> Part:
        pixels = torch.cat(list(evaluation_images(part, seen)))
        return Part(part.labels, part.keys, pixels)

    return dataclasses.replace(data, fit=small(data.fit), held_out=small(data.held_out), test=None)


def by_brightness(data: ImageData) -> ImageData:
    """The same images in 100 classes: the deciles of brightness of each class."""

    def mean(part: Part) -> torch.Tensor:
        assert part.pixels is not None
        return part.pixels.float().mean((1, 2, 3))

    tenths = torch.arange(1, 10) / 10
    edges = [mean(data.fit)[data.fit.labels == c].quantile(tenths) for c in range(10)]

    def relabelled(part: Part) -> Part:
        places = [int(torch.bucketize(m, edges[c])) for m, c in zip(mean(part), part.labels)]  # noqa: B905
        return dataclasses.replace(part, labels=part.labels * 10 + torch.tensor(places))

    classes = tuple(f"{c} {i}" for c in data.classes for i in range(10))
    return dataclasses.replace(
        data, classes=classes, fit=relabelled(data.fit), held_out=relabelled(data.held_out)
    )


def fitted(net: str, epochs: int, seed: int, width: int, changes: Row, cifar: Path) -> Row:
    """One fit: its size, loss and drift by epoch, and the p at its end."""
    member, preset, classes = NETS[net]
    data = images(cifar, 2000, 400, seed)
    if classes == 100:
        data = by_brightness(data)
    published = Recipe(**{**MEMBERS[member].presets[preset], "cutout": PIXELS // 2})
    recipe = dataclasses.replace(shortened(published, epochs), **changes)
    shape = (3, PIXELS, PIXELS)
    with seeded_globals(derived_seed(seed, "initial weights")):
        network = MultiBranch((width, 2 * width, 4 * width), 1, 16, shape, classes, shake=True)
    network_with_gates = gated(Backbone(network, shape, recipe), recipe)
    began, history, ended = time.perf_counter(), [], ""
    try:
        for r in fit_network(network_with_gates, data, recipe, seed=seed, machine=CPU):
            history.append([round(v, 4) for v in (r.loss, r.expected_share, r.drift, r.hard_error)])
    except Interrupted:
        raise
    except PgnasError as error:
        ended = str(error)
    p = drop_probabilities(network_with_gates)
    return {"net": net, "epochs": epochs, "seed": seed, "width": width, "changes": changes,
            "recipe": to_json(recipe), "history": history, "ended": ended,
            "p": [round(float(v), 5) for v in p], "on": machine_line(),
            "seconds": round(time.perf_counter() - began)}  # fmt: skip


def identity(row: Row) -> tuple[Any, ...]:
    return (*(row[k] for k in ("net", "epochs", "seed", "width")), json.dumps(row["changes"]))


def figures(rows: Iterable[Row]) -> str:
    """Per net, width and seed: each length, and its agreement with the longest."""

    def group(row: Row) -> tuple[Any, ...]:
        return row["net"], row["width"], json.dumps(row["changes"]), row["seed"]

    rows, columns = sorted(rows, key=lambda r: (*group(r), r["epochs"])), []
    correlations = []
    for key, found in itertools.groupby(rows, group):
        same = list(found)
        for row in same:
            cells = [row["ended"].split(";")[0], "", "", ""]
            if not row["ended"]:
                first, last = row["history"][0], row["history"][-1]
                rho = float(spearmanr(row["p"], same[-1]["p"]).statistic)
                if row is not same[-1]:
                    correlations.append(rho)
                cells = [f"{first[0]:.2f} -> {last[0]:.2f}", f"{100 * last[1]:.1f}",
                         f"{last[2]:.3f}", f"{rho:.2f}"]  # fmt: skip
            columns.append([*key, row["epochs"], *cells])
    head = ["net", "width", "changes", "seed", "epochs", "loss first -> last", "size %", "drift",
            "rank correlation with the longest"]  # fmt: skip
    median = f"{statistics.median(correlations):.2f}" if correlations else "none yet"
    told = f"{listed(dict.fromkeys(row['on'] for row in rows))}; median rank correlation: {median}."
    return f"{prose(told)}\n\n{table(head, columns)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar", type=Path, default=Path("data/cifar"))
    parser.add_argument("--nets", nargs="*", default=list(NETS), choices=NETS)
    parser.add_argument("--epochs", type=int, nargs="*", default=[40, 80, 160])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--widths", type=int, nargs="*", default=[16])
    parser.add_argument("--set", type=json.loads, default={}, help="changes of the recipe, JSON")
    parser.add_argument("--results", type=Path, default=DATA / "convergence.jsonl")
    parser.add_argument("--print", action="store_true")
    options = parser.parse_args()
    rows = read(options.results)
    if options.print:
        print(figures(rows))
        return
    one_checkout()
    there = {identity(row) for row in rows}
    for seed, epochs, net, width in itertools.product(
        options.seeds, options.epochs, options.nets, options.widths
    ):
        if (net, epochs, seed, width, json.dumps(options.set)) in there:
            continue
        row = fitted(net, epochs, seed, width, options.set, options.cifar)
        append(options.results, row)
        print(
            net, epochs, seed, width, row["history"][-1:], row["ended"], row["seconds"], flush=True
        )


if __name__ == "__main__":
    main()
