"""What a fit costs beside plain training of the whole network, and what its parts cost.

    python -m bench.speed steps [--nets lite0 resnet50 2x32d] [--precision bfloat16]
    python -m bench.speed fit [--nets lite0] [--target macs] [--share 0.5] [--epochs 8]
    python -m bench.speed memory [--nets resnet50]

Ratios, of two sides that take turns on the same batches in one process; medians. Plain training is
a loop of its own: cross-entropy, the same optimizer of timm, the same loader. `steps` takes single
steps, while p learns and on hard gates behind the cut, and the share of what p costs beside the
network. `fit` takes whole epochs of a fit, its judging included, and then ranks 300 candidates with
and without the cut. `memory` is the peak of a process that takes five steps, less what it had.
Appends to docs/data/speed.jsonl.
"""

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from pgnas_backbones.multibranch import MultiBranch
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from bench import about, one_checkout, ranked
from bench.figures import DATA, Row, append, latest, prose, table, taken
from bench.tasks import task_of
from pgnas_cli import Target, drop_probabilities, find_machine, fit_network
from pgnas_cli.data import (
    ImageData,
    cut_data,
    find_data,
    held_out_decoded,
    placed,
    steps_per_epoch,
    training_batches,
)
from pgnas_cli.machine import computing
from pgnas_cli.ranking import evaluator
from pgnas_cli.registry import Backbone, Recipe, Start
from pgnas_cli.registry.build import build_backbone
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.training import gated, prior_of, score
from pgnas_cli.training.fitting import supernet_loop
from pgnas_cli.training.loop import Loop

PATH = DATA / "speed.jsonl"
CANDIDATES, WARM = 300, 2


def task(net: str, options: argparse.Namespace) -> tuple[Backbone, ImageData]:
    """A network, as it is fitted, and images for it."""
    if net == "lite0":
        backbone, data = task_of("t1", 0, options, probe=False)
    elif net == "multibranch-tiny":
        backbone, data = task_of("t2", 0, options, probe=False)
    elif net == "2x32d":
        backbone = build_backbone("multibranch-tiny", classes=10, channels=3, size=32)
        wide = MultiBranch((32, 64, 128), 4, 16, (3, 32, 32), 10)
        backbone = dataclasses.replace(backbone, network=wide)
        data = task_of("t2", 0, options, probe=False)[1]
    else:
        with tempfile.TemporaryDirectory() as folder:  # weights as if they were trained
            weights = Path(folder) / "weights.safetensors"
            save_file(timm.create_model(net).state_dict(), weights)
            backbone = build_backbone(
                f"timm/{net}", classes=10, size=options.size, start=Start(weights=weights)
            )
        source = find_data(str(options.photos))
        data = cut_data(
            source, seed=0, held_out=0.2, preprocessing=backbone.images, size=options.size
        )
        data = held_out_decoded(data, options.machine.workers)
    recipe = dataclasses.replace(
        backbone.recipe,
        epochs=options.epochs,
        batch_size=options.batch or backbone.recipe.batch_size,
    )
    return dataclasses.replace(backbone, recipe=recipe), some_images(data, options.images)


def some_images(data: ImageData, number: int) -> ImageData:
    """The first `number` images to fit on, and a quarter of that held out; all that there are."""
    fit, held_out = data.fit, data.held_out
    fit = fit.subset(list(range(min(number, len(fit)))))
    held_out = held_out.subset(list(range(min(number // 4, len(held_out)))))
    return dataclasses.replace(data, fit=fit, held_out=held_out)


class Plain:
    """Plain training of a whole network."""

    def __init__(
        self, network: nn.Module, data: ImageData, recipe: Recipe, options: argparse.Namespace
    ) -> None:
        self.machine, self.precision = options.machine, options.precision
        self.network, self.data, self.recipe = network, data, recipe
        placed(network, self.machine.device).train()
        self.optimizer = create_optimizer_v2(
            network, opt=recipe.opt, lr=recipe.lr, weight_decay=1e-5, momentum=recipe.momentum
        )
        self.forward = torch.compile(network) if options.compile else network

    def step(self, images: Tensor, labels: Tensor) -> None:
        inputs = self.data.preprocessing.normalised(images)
        with computing(self.machine.device, self.precision):
            loss = F.cross_entropy(self.forward(inputs), labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def epochs(self) -> Iterator[None]:
        """One after the other, each with its validation."""
        size = min(self.recipe.batch_size, len(self.data.fit))
        steps = self.recipe.epochs * steps_per_epoch(len(self.data.fit), size)
        batches = training_batches(
            self.data, batch=size, seed=0, first_step=0, steps=steps, scale=self.recipe.scale,
            workers=self.machine.workers, device=self.machine.device,
        )  # fmt: skip
        for step, batch in enumerate(batches, 1):
            self.step(*batch)
            if step % steps_per_epoch(len(self.data.fit), size) == 0:
                score(
                    self.network, self.data.held_out, self.data.preprocessing, machine=self.machine
                )
                self.network.train()
                yield


def seconds(work: Callable[[], Any]) -> float:
    waited()
    began = time.perf_counter()
    work()
    waited()
    return time.perf_counter() - began


def waited() -> None:
    """Until a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def loop_of(
    backbone: Backbone, data: ImageData, options: argparse.Namespace, network: nn.Module
) -> Loop:
    recipe = backbone.recipe
    target = Target(options.target, options.share) if options.target else None
    return supernet_loop(
        network, data, recipe, prior_of(recipe, len(data.fit)), seed=0,
        device=options.machine.device, target=target, bfloat16=options.precision == "bfloat16",
        compiled=options.compile,
    )  # fmt: skip


def plain_of(net: str, data: ImageData, options: argparse.Namespace) -> Plain:
    backbone = task(net, options)[0]
    return Plain(backbone.network, data, backbone.recipe, options)


def turns(loop: Loop, plain: Plain, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Median ratio of the steps of both sides; the first pairs warm up."""
    pairs = [
        (seconds(partial(loop.advance, *batch)), seconds(partial(plain.step, *batch)))
        for batch in batches
    ]
    return statistics.median(a / b for a, b in pairs[WARM:])


def steps_row(net: str, options: argparse.Namespace) -> Row:
    """Ratios of single steps: while p learns, behind the cut, and what p takes of the first."""
    backbone, data = task(net, options)
    plain = plain_of(net, data, options)
    loop = loop_of(backbone, data, options, gated(backbone, backbone.recipe))
    drops = loop.drops
    assert drops is not None
    assert drops.control is not None
    loop.network.train()
    size = min(backbone.recipe.batch_size, len(data.fit))
    batches = list(training_batches(
        data, batch=size, seed=0, first_step=0, steps=options.rounds, workers=0,
        device=options.machine.device,
    ))  # fmt: skip
    # The steps to the size take their share between the end of the delay and the freeze.
    loop.step = drops.phases.delay
    row: Row = {
        "part": "steps", "net": net, "batch": size, "px": data.preprocessing.size,
        "precision": options.precision, "compiled": options.compile, "rounds": len(batches),
        "target": options.target, "share": options.share, "learning": turns(loop, plain, batches),
    }  # fmt: skip

    def share(work: Callable[[], Any]) -> float:
        pairs = [(seconds(work), seconds(partial(plain.step, *batch))) for batch in batches]
        return statistics.median(a / b for a, b in pairs)

    row["divergence"] = share(drops.add_divergence)
    loop.weights.zero_grad()
    drops.optimizer.zero_grad()
    row["to_size"] = share(
        partial(drops.control.corrected, drops.drop_logit, drops.optimizer, loop.step)
    )
    learning = drops.phases.freeze - drops.phases.delay
    row["to_size_on_average"] = row["to_size"] * learning / loop.steps
    settle(loop)
    row["behind the cut"] = turns(loop, plain, batches)
    left, whole = (
        sum(p.numel() for p in network.parameters()) for network in (loop.network, loop.whole)
    )
    return row | {"left": left / whole}


def settle(loop: Loop) -> None:
    """Bring p to its size, as the steps until the freeze do, and cut."""
    drops = loop.drops
    assert drops is not None
    assert drops.control is not None
    for step in range(drops.phases.delay, drops.phases.freeze):
        noise = torch.randn(drops.drop_logit.shape, generator=torch.Generator().manual_seed(step))
        drops.drop_logit.grad = 1e-6 * noise.to(drops.drop_logit.device)
        drops.update(step)
    loop.step = drops.phases.freeze
    loop.cut()
    loop.network.train()


def fit_row(net: str, options: argparse.Namespace) -> Row:
    """Whole epochs of a fit and of plain training, in turns; then the ranking."""
    backbone, data = task(net, options)
    recipe = backbone.recipe
    plain = plain_of(net, data, options).epochs()
    network = gated(backbone, recipe)
    fit = fit_network(
        network, data, recipe, seed=0, machine=options.machine,
        target=Target(options.target, options.share), bfloat16=options.precision == "bfloat16",
    )  # fmt: skip
    ours, theirs, records = [], [], []
    for _ in range(recipe.epochs):
        ours.append(seconds(lambda: records.append(next(fit))))
        theirs.append(seconds(lambda: next(plain)))
        print(f"  {len(ours)}/{recipe.epochs} {ours[-1]:.1f} s, plain {theirs[-1]:.1f} s, trained"
              f" {100 * records[-1].trained_share:.0f} %", file=sys.stderr, flush=True)  # fmt: skip
    fit.close()
    keep = draw_candidates(drop_probabilities(network), network, CANDIDATES, 0)
    ranking: dict[str, list[float]] = {"cut": [], "whole": []}
    real = evaluator.remainder
    for side in ("cut", "whole") * 2:
        evaluator.remainder = real if side == "cut" else lambda _: None  # type: ignore[attr-defined]
        ranking[side].append(seconds(lambda: ranked(network, keep, data, 1, options.machine)))
    evaluator.remainder = real  # type: ignore[attr-defined]
    last = records[-1]
    return {
        "part": "fit", "net": net, "batch": recipe.batch_size, "px": data.preprocessing.size,
        "precision": options.precision, "epochs": recipe.epochs, "images": len(data.fit),
        "target": options.target, "share": options.share, "ratio": sum(ours) / sum(theirs),
        "ours": ours, "plain": theirs, "left": last.trained_share,
        "params": last.expected_share, "macs": last.expected_macs_share,
        "rank": min(ranking["cut"]) / min(ranking["whole"]), "rank_seconds": ranking,
    }  # fmt: skip


def peak(net: str, side: str, options: argparse.Namespace) -> None:
    """Print the bytes that five steps add to this process at their peak."""
    backbone, data = task(net, options)
    size = min(backbone.recipe.batch_size, len(data.fit))
    batches = list(training_batches(
        data, batch=size, seed=0, first_step=0, steps=5, workers=0, device=options.machine.device
    ))  # fmt: skip
    advance: Callable[..., None]
    if side == "plain":
        advance = Plain(backbone.network, data, backbone.recipe, options).step
    else:
        loop = loop_of(backbone, data, options, gated(backbone, backbone.recipe))
        if side == "cut":
            settle(loop)
        loop.network.train()
        advance = loop.advance
    if options.machine.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        for batch in batches:
            advance(*batch)
        print(json.dumps(torch.cuda.max_memory_allocated() - before))
        return
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")
    for batch in batches:
        advance(*batch)
    lines = Path("/proc/self/status").read_text().splitlines()
    high = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    print(json.dumps(high - before))


def memory_row(net: str, options: argparse.Namespace) -> Row:
    """Peaks of plain training, of a fit while p learns, and behind its cut."""
    found = {}
    for side in ("plain", "learning", "cut"):
        line = [sys.executable, "-m", "bench.speed", "peak", "--nets", net, "--side", side,
                "--epochs", str(options.epochs), "--images", str(options.images),
                "--target", options.target, "--share", str(options.share),
                "--batch", str(options.batch), "--size", str(options.size),
                "--precision", options.precision, "--device", options.device,
                "--data", str(options.data), "--photos", str(options.photos),
                "--cifar", str(options.cifar)]  # fmt: skip
        found[side] = json.loads(subprocess.run(line, check=True, capture_output=True).stdout)
    return {"part": "memory", "net": net, "batch": options.batch, "px": options.size,
            "precision": options.precision, "target": options.target,
            "share": options.share, "bytes": found, "learning": found["learning"] / found["plain"],
            "cut": found["cut"] / found["plain"]}  # fmt: skip


UNITS = {"macs": "MACs", "params": "parameters"}
HEADS = {
    "steps": (
        ["network", "device", "px", "batch", "precision", "p learns", "divergence",
         "step to the size", "on average", "behind the cut", "left"],
        ("px", "batch", "precision"),
        ("learning", "divergence", "to_size", "to_size_on_average", "behind the cut", "left"),
    ),
    "fit": (
        ["network", "device", "px", "batch", "target", "epochs", "images", "fit / plain", "left",
         "rank / without the cut"],
        ("px", "batch", "target", "epochs", "images"),
        ("ratio", "left", "rank"),
    ),
    "memory": (
        ["network", "device", "px", "batch", "p learns", "behind the cut"],
        ("px", "batch"), ("learning", "cut"),
    ),
}  # fmt: skip


def figures(rows: Sequence[Row], part: str) -> str:
    """Sentence and table of the newest rows."""
    rows = [
        row | {"target": f"{row['share']:.0%} of the {UNITS[row['target']]}",
               "device": row["on"].partition(", ")[2].removesuffix(" 80GB HBM3")}
        for row in rows
        if row["part"] == part
    ]  # fmt: skip
    found = latest(rows, "net", "device", "precision", "target")
    head, said, numbers = HEADS[part]
    columns = [
        [row["net"], row["device"], *(row.get(key) for key in said),
         *(f"{row[key]:.2f}" for key in numbers)]
        for row in found
    ]  # fmt: skip
    return f"{prose(taken(found))}\n\n{table(head, columns)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("steps", "fit", "memory", "peak"))
    parser.add_argument("--nets", nargs="+", default=["lite0", "resnet50", "multibranch-tiny"])
    parser.add_argument("--target", default="macs", choices=("params", "macs"))
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--batch", type=int, default=0, help="0: that of the recipe")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--size", type=int, default=96, help="of the images of a timm network")
    parser.add_argument("--compile", action="store_true", help="both sides")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--side", default="plain")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the weights")
    parser.add_argument("--photos", type=Path, default=Path("data/photos"))
    parser.add_argument("--cifar", type=Path, default=Path("data/cifar"))
    options = parser.parse_args()
    options.machine = find_machine(options.device, options.workers)
    one_checkout()
    if options.part == "peak":
        peak(options.nets[0], options.side, options)
        return
    rows = {"steps": steps_row, "fit": fit_row, "memory": memory_row}
    for net in options.nets:
        row = rows[options.part](net, options) | about(options.machine)
        append(PATH, row)
        print({k: v for k, v in row.items() if k not in ("ours", "plain", "code")}, flush=True)


if __name__ == "__main__":
    main()
