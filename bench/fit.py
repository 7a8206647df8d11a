"""How good is a posterior after an afternoon? One cell of the yardstick per call, resumable.

    python -m bench.fit TASK SIDE --data DIR [--seeds 0 1 2] [--set field=value ...] [--final]

Tasks: t1, t1c, t2, t3, of tasks.py. Sides: whole, pgnas, fixed (ramped, sizes as --set target),
random (one mask of that size, drawn before the fit and trained as long), narrow (t2: a uniformly
narrower network), and t1, t1c by others at the same sizes (rivals.py): magnitude, group-norm, oto.
`--set` changes fields of the recipe, and target, kind, width. A head starts as a linear probe on
every side, unless `--set probe=False`.

Every cell appends one JSON line to `--results`, with its recipe, versions and which test images it
gets wrong; a cell that is there is not run again, unless its recipe differs from that of its
neighbours: the tables leave such cells out. The test split is scored only with `--final`, for cells
whose settings were chosen on held-out images.
"""

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import CPU, about, one_checkout, ranked, rivals, tested
from bench.figures import DATA, Row, append, packed, read
from bench.fit_tables import accepted, identity
from bench.tasks import backbone_of, task_of
from pgnas_cli import Target, count, drop_probabilities, fit_network
from pgnas_cli.data import ImageData, placed, steps_per_epoch, training_batches
from pgnas_cli.gates import gates
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.sampling.baselines import shifted_to_size
from pgnas_cli.seeds import generator
from pgnas_cli.sizes import parameter_count, whole_macs
from pgnas_cli.storage import to_json
from pgnas_cli.training import gated, score
from pgnas_cli.training.scoring import Score
from pgnas_cli.training.size_control import DECIDED

RIVALS = (*rivals.PRUNERS, "oto")
SIDES = ("whole", "pgnas", "fixed", "random", "narrow", *RIVALS)
CANDIDATES = {"t1": 20, "t1c": 20, "t2": 60, "t3": 100}


def outcome(found: Score) -> Row:
    """The error on the test split, and which images are wrong."""
    return {"test": found.error, "wrong": packed(found.wrong, found.images)}


@dataclasses.dataclass
class Jury:
    """Draws candidates of one network and says what they are worth."""

    network: nn.Module
    data: ImageData
    seed: int
    number: int
    final: bool
    whole: tuple[int, int]  # parameters and multiply-adds of the network of usual width

    def row(self, probability: Tensor) -> Row:
        """Shares of errors and of the whole network's size, mean candidate and winner."""
        keep = draw_candidates(probability, self.network, self.number, self.seed)
        sizes, race = count(self.network, keep), ranked(self.network, keep, self.data)
        errors, winner = race.errors.double() / len(race.order), int(race.best()[0])
        whole = self.whole
        row: Row = {
            "mean": float(errors.mean()), "best": float(errors[winner]),
            "mean_params": float(sizes.params.double().mean()) / whole[0],
            "params": int(sizes.params[winner]) / whole[0],
            "mean_macs": float(sizes.macs.double().mean()) / whole[1],
            "macs": int(sizes.macs[winner]) / whole[1],
            "distinct": len({bytes(k.numpy()) for k in keep}),
        }  # fmt: skip
        if self.final:
            row |= outcome(tested(self.network, keep[winner], self.data))
        return row


def rival_cell(task: str, side: str, seed: int, options: argparse.Namespace) -> Row:
    """T1 by another tool, judged alike. Its learning rate is `--set lr`."""
    began = time.perf_counter()
    changes = dict(options.set)
    kind, share = str(changes.get("kind", "params")), float(changes["target"])
    backbone, data = task_of(task, seed, options, probe=changes.get("probe", True))
    network = placed(backbone.network, CPU.device)
    epochs, batch = options.epochs or backbone.recipe.epochs, backbone.recipe.batch_size
    steps = epochs * steps_per_epoch(len(data.fit), batch)
    batches = training_batches(data, batch=batch, seed=seed, first_step=0, steps=steps, workers=0)
    example = torch.zeros(1, *backbone.input_shape)
    whole = {kind: rivals.size_of(network, kind, example) for kind in ("params", "macs")}
    plan = (network, batches, steps, data.preprocessing, float(changes["lr"]))
    if side == "oto":
        found = rivals.only_trained_once(*plan, share=share, kind=kind)
    else:
        head = network.get_submodule(backbone.heads[0])
        found = rivals.torch_pruned(side, *plan, head=head, share=share, kind=kind)
    row: Row = {k: rivals.size_of(found, k, example) / whole[k] for k in whole}
    row["mean"] = row["best"] = score(found, data.held_out, data.preprocessing).error
    if options.final:
        assert data.test is not None
        row |= outcome(score(found, data.test, data.preprocessing))
    drawn = {**row, "mean_params": row["params"], "mean_macs": row["macs"], "distinct": 1}
    return {"drawn": drawn, "seconds": time.perf_counter() - began}


def rate_of_size(network: nn.Module, share: float, seed: int) -> float:
    """The drop rate of all gates whose candidates have `share` of the parameters on average."""
    noise = torch.rand(64, gates(network).count, generator=generator(seed, "size"))
    start = torch.full((len(gates(network).groups),), 0.5)
    return float(shifted_to_size(network, start, share * parameter_count(network), noise)[0])


def cell(task: str, side: str, seed: int, options: argparse.Namespace) -> Row:
    """One fit and what came of it."""
    if side in RIVALS:
        return rival_cell(task, side, seed, options)
    changes = dict(options.set)
    share = float(changes.pop("target", 0)) or None
    kind = str(changes.pop("kind", "params"))
    width = float(changes.pop("width", 1))
    began = time.perf_counter()
    backbone, data = task_of(task, seed, options, probe=changes.get("probe", True), width=width)
    changes = {k: str(v) if k == "groups" else v for k, v in changes.items()}
    if options.epochs:
        changes["epochs"] = options.epochs
    recipe = dataclasses.replace(backbone.recipe, **changes)
    network = gated(backbone, recipe)
    fixed: float | None = None
    if side in ("whole", "narrow"):
        fixed = 0.0
    elif side in ("fixed", "random"):
        assert share is not None and kind == "params"
        rate = rate_of_size(network, share, seed)
        if side == "fixed":
            fixed = rate
        else:  # p nearly 0 or 1 from the first step on
            recipe = dataclasses.replace(recipe, drop_lr=0.0)
            groups = len(gates(network).groups)
            closed = torch.rand(groups, generator=generator(seed, "mask")) < rate
            gates(network).drop_logit.data.copy_(DECIDED * (2.0 * closed - 1))
    target = Target(kind, share) if share and side == "pgnas" else None
    history = []
    for record in fit_network(network, data, recipe, seed=seed, fixed_drop=fixed, target=target):
        if record.epoch == record.epochs or record.epoch % max(1, record.epochs // 8) == 0:
            row = [record.epoch, round(record.loss, 3), round(record.hard_error, 4),
                   round(record.expected_share, 3), list(record.drop_histogram)]  # fmt: skip
            history.append(row)
    network.eval()
    usual = gated(backbone_of(task, seed, options), recipe) if width != 1 else network
    whole = parameter_count(usual), whole_macs(usual)
    jury = Jury(network, data, seed, options.candidates or CANDIDATES[task], options.final, whole)
    probability = drop_probabilities(network)
    if fixed == 0:
        jury.number = 1
        probability = torch.zeros_like(probability)
    found: Row = {"drawn": jury.row(probability)}
    if options.final and side == "pgnas":
        noise = torch.rand(64, gates(network).count, generator=generator(seed, "permuted"))
        order = torch.randperm(len(probability), generator=generator(seed, "order"))
        size = found["drawn"]["mean_params"] * parameter_count(network)
        found["permuted"] = jury.row(shifted_to_size(network, probability[order], size, noise))
    found["recipe"] = to_json(recipe)
    return {**found, "history": history, "seconds": time.perf_counter() - began}


def value(text: str) -> tuple[str, Any]:
    key, _, given = text.partition("=")
    for kind in (int, float):
        try:
            return key, kind(given)
        except ValueError:
            continue
    return key, {"True": True, "False": False, "None": None}.get(given, given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("t1", "t1c", "t2", "t3"))
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the weights")
    parser.add_argument("--photos", type=Path, default=Path("data/photos"))
    parser.add_argument("--cifar", type=Path, default=Path("data/cifar"))
    parser.add_argument("--results", type=Path, default=DATA / "fit.jsonl")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--candidates", type=int)
    parser.add_argument("--set", type=value, nargs="*", default=[])
    parser.add_argument("--final", action="store_true")
    options = parser.parse_args()
    one_checkout()
    settings = {"task": options.task, "side": options.side, "set": sorted(map(list, options.set)),
                "epochs": options.epochs, "final": options.final}  # fmt: skip
    done, _ = accepted(read(options.results))
    there = {(identity(row), row["seed"], row["final"]) for row in done}
    taken_with = about()
    for seed in options.seeds:
        if (identity(settings), seed, options.final) in there:
            continue
        found = cell(options.task, options.side, seed, options)
        append(options.results, {**settings, "seed": seed, **found, **taken_with})
        drawn = found["drawn"]
        print(options.task, options.side, seed, " ".join(f"{k}={v}" for k, v in options.set),
              f"| params {drawn['mean_params']:.3f} macs {drawn['mean_macs']:.3f} mean"
              f" {drawn['mean']:.2%} best {drawn['best']:.2%} distinct {drawn['distinct']}",
              f"test {drawn['test']:.2%}" if "test" in drawn else "",
              f"{found['seconds']:.0f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
