"""What should a fit aim at for a network of a given time: at time, MACs or parameters?

    python -m bench.aims tables --share 0.6                  (time tables of this CPU)
    python -m bench.aims fit TASK AIM SHARE --seed 0 [--device cuda] [--final]
    python -m bench.aims times                               (measures the winners on this CPU)

Tasks: t1 and t4 of tasks.py. Aims: time (torch, batch 16), onnx (ONNX Runtime, batch 1), macs,
params; and magnitude and group-norm of Torch-Pruning (rivals.py) at a share of the MACs. SHARE is
of the whole network's; for macs and params it is one whose fits of another seed take as long.
`fit` appends a row to docs/data/aims.jsonl with the winner's gates; `times` measures each winner
in turns with the whole network, one thread, and appends a row for it.
"""

import argparse
import base64
import copy
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench import CPU, about, one_checkout, ranked, rivals
from bench.figures import (
    DATA,
    Row,
    append,
    latest,
    over_seeds,
    packed,
    percents,
    prose,
    read,
    table,
    taken,
)
from bench.tasks import backbone_of, task_of
from pgnas_cli import Target, count, drop_probabilities, find_machine, fit_network
from pgnas_cli.data import ImageData, placed, steps_per_epoch, training_batches
from pgnas_cli.formats import OnnxNetwork, quick_onnx
from pgnas_cli.gates import gates, make_concrete_
from pgnas_cli.latency import latencies
from pgnas_cli.machine import Machine
from pgnas_cli.profiling import profiled, read_table, write_table
from pgnas_cli.registry import Backbone
from pgnas_cli.sampling.draw import draw_candidates
from pgnas_cli.sizes import parameter_count, whole_macs
from pgnas_cli.slimming import Layout, arranged, slim, ungated_copy, wire
from pgnas_cli.timing import Forward, milliseconds, timed_by
from pgnas_cli.training import gated, score

PATH = DATA / "aims.jsonl"
FORWARDS = {"time": Forward("torch", 16, 1), "onnx": Forward("onnxruntime", 1, 1)}
RATES = {  # of learning, chosen at other seeds on held-out images (docs/log.md)
    "t1": {"pgnas": 1e-3, "magnitude": 2e-3, "group-norm": 2e-3},
    "t4": {"pgnas": 1e-3, "magnitude": 1e-3, "group-norm": 1e-3},
}
CANDIDATES = 20
KEYS = ("task", "aim", "share", "groups", "seed")
SECONDS = 4.0  # of timing, for each network


def network_of(task: str, seed: int, options: argparse.Namespace) -> tuple[Backbone, ImageData]:
    """Backbone and images of a task."""
    backbone, data = task_of(task, seed, options, probe=task == "t1")
    recipe = dataclasses.replace(
        backbone.recipe, lr=RATES[task]["pgnas"], groups=options.groups or backbone.recipe.groups
    )
    return dataclasses.replace(backbone, recipe=recipe), data


def table_path(options: argparse.Namespace, task: str, aim: str) -> Path:
    return Path(options.tables) / f"{task}-{aim}.json"


def fit(options: argparse.Namespace) -> None:
    machine, task, aim = find_machine(options.device, 0), options.task, options.aim
    began = time.perf_counter()
    make = pruned if aim in rivals.PRUNERS else aimed
    row = make(*network_of(task, options.seed, options), machine, options)
    own = {"task": task, "aim": aim, "share": options.share, "seed": options.seed,
           "groups": options.groups, "final": options.final}  # fmt: skip
    row = {**own, **row, "seconds": round(time.perf_counter() - began), **about(machine)}
    append(options.results, row)
    print({k: v for k, v in row.items() if k not in ("keep", "wrong", "network")}, flush=True)


def aimed(
    backbone: Backbone, data: ImageData, machine: Machine, options: argparse.Namespace
) -> Row:
    """A fit that aims at a size, and its winner."""
    aim, task, found = options.aim, options.task, {}
    tables = {name: read_table(table_path(options, task, name)) for name in FORWARDS}
    network = placed(gated(backbone, backbone.recipe), machine.device)
    network = timed_by(network, tables[aim if aim in FORWARDS else "time"])
    kind = "time" if aim in FORWARDS else aim
    records = fit_network(
        network, data, backbone.recipe, seed=options.seed, machine=machine,
        target=Target(kind, options.share),
    )  # fmt: skip
    for record in records:
        found = {"loss": round(record.loss, 3), "soft": record.soft_error}
    network.eval()
    keep = draw_candidates(drop_probabilities(network), network, CANDIDATES, options.seed)
    sizes, race = count(network, keep), ranked(network, keep, data, machine=machine)
    winner, wiring = int(race.best()[0]), wire(network, keep)
    for name, of in tables.items():
        predicted = milliseconds(of, wiring) / of.whole
        found |= {f"mean_{name}": float(predicted.mean()), name: float(predicted[winner])}
    found |= {
        "params": int(sizes.params[winner]) / parameter_count(network),
        "macs": int(sizes.macs[winner]) / whole_macs(network),
        "held_out": float(race.errors[winner]) / len(race.order),
        "keep": base64.b64encode(np.packbits(keep[winner].cpu().numpy())).decode(),
    }
    if options.final:
        found |= outcome(slim(network, keep[winner]), data, machine)
    return found


def pruned(
    backbone: Backbone, data: ImageData, machine: Machine, options: argparse.Namespace
) -> Row:
    """The same budget for Torch-Pruning."""
    network = placed(backbone.network, machine.device)
    epochs, batch = backbone.recipe.epochs, backbone.recipe.batch_size
    steps = epochs * steps_per_epoch(len(data.fit), batch)
    batches = training_batches(
        data, batch=batch, seed=options.seed, first_step=0, steps=steps, workers=0,
        device=machine.device,
    )  # fmt: skip
    head = network.get_submodule(backbone.heads[0])
    example = torch.zeros(1, *backbone.input_shape, device=machine.device)
    whole = {kind: rivals.size_of(network, kind, example) for kind in ("params", "macs")}
    rate = RATES[options.task][options.aim]
    found = rivals.torch_pruned(
        options.aim, network, batches, steps, data.preprocessing, rate, head=head,
        share=options.share, kind="macs",
    )  # fmt: skip
    row = {kind: rivals.size_of(found, kind, example) / size for kind, size in whole.items()}
    row["held_out"] = score(found, data.held_out, data.preprocessing, machine=machine).error
    row |= outcome(found, data, machine) if options.final else {}
    return {**row, "shapes": shapes_of(found)}


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in KEYS)


def outcome(network: nn.Module, data: ImageData, machine: Machine) -> Row:
    assert data.test is not None
    found = score(network, data.test, data.preprocessing, machine=machine)
    return {"test": found.error, "wrong": packed(found.wrong, found.images)}


def shapes_of(network: nn.Module) -> dict[str, list[int]]:
    """The shapes of the tensors of a network: its time depends on nothing else of it."""
    return {name: list(value.shape) for name, value in network.state_dict().items()}


def of_shapes(network: nn.Module, shapes: dict[str, list[int]]) -> nn.Module:
    """A copy of `network` whose layers have tensors of other shapes, with random weights."""
    found = copy.deepcopy(network)
    for name, layer in found.named_modules():
        shape = shapes.get(f"{name}.weight")
        if isinstance(layer, nn.Conv2d) and shape is not None:
            depthwise = layer.groups > 1  # one input for each output
            layer.out_channels, layer.groups = shape[0], shape[0] if depthwise else 1
            layer.in_channels = shape[1] * layer.groups
        elif isinstance(layer, nn.BatchNorm2d) and shape is not None:
            layer.num_features = shape[0]
        elif isinstance(layer, nn.Linear) and shape is not None:
            layer.out_features, layer.in_features = shape
        for kind, tensors in (("parameter", layer._parameters), ("buffer", layer._buffers)):
            for key, value in tensors.items():
                if value is not None and value.dim():
                    new = torch.ones(shapes[f"{name}.{key}"]).normal_(1.0, 0.1)
                    tensors[key] = nn.Parameter(new) if kind == "parameter" else new
    return found


# --- times on this CPU ---------------------------------------------------------------------------


def tables(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    for aim, forward in FORWARDS.items():
        backbone = backbone_of(options.task, 0, options)
        made = profiled(gated(backbone, backbone.recipe), forward)
        write_table(table_path(options, options.task, aim), made)
        print(aim, f"{made.whole:.2f} ms, off by {made.error:.1%}, {made.worst:.1%}", flush=True)


def as_timed(network: nn.Module, forward: Forward, input_shape: tuple[int, int, int]) -> nn.Module:
    """A slim network ready to be timed."""
    if forward.runtime == "torch":
        return network
    return OnnxNetwork(quick_onnx(network, torch.zeros(forward.batch, *input_shape)))


def times(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    rows = [row for row in read(options.results) if row.get("final")]
    known = {_key(row) for row in read(options.times)}
    for row in rows:
        if _key(row) in known:
            continue
        backbone = backbone_of(row["task"], 0, options)
        network = gated(backbone, backbone.recipe)
        graph, found = gates(network).graph, {}
        for name, forward in FORWARDS.items():
            layout: Layout = "fast" if forward.runtime == "torch" else "onnx"
            whole = arranged(ungated_copy(network).eval(), layout, graph)
            if "keep" in row:
                bits = np.unpackbits(np.frombuffer(base64.b64decode(row["keep"]), np.uint8))
                keep = torch.from_numpy(bits[: gates(network).count].astype(bool))
                smaller = slim(network, keep, layout)
            else:
                without_gates = backbone_of(row["task"], 0, options).network
                plain = make_concrete_(of_shapes(without_gates, row["shapes"]), graph.input_shape)
                smaller = arranged(ungated_copy(plain).eval(), layout, gates(plain).graph)
            pair = [as_timed(one.eval(), forward, graph.input_shape) for one in (whole, smaller)]
            before, after = latencies(
                pair, [graph.input_shape] * 2, batch=forward.batch, device=CPU.device,
                seconds=SECONDS,
            )  # fmt: skip
            found[f"measured_{name}"] = after / before
        own = dict(zip(KEYS, _key(row), strict=True))
        append(options.times, {**own, **found, **about()})
        print(own, found, flush=True)


# --- figures -------------------------------------------------------------------------------------


def figures(rows: Sequence[Row], measured: Sequence[Row], task: str) -> str:
    """Errors of winners that take as long, by what their fits aimed at."""
    rows = [row for row in latest(rows, *KEYS) if row["final"] and row["task"] == task]
    clock = {_key(row): row for row in latest(measured, *KEYS)}
    columns = []
    order = [*FORWARDS, "macs", "params", *rivals.PRUNERS]
    rows.sort(key=lambda row: (order.index(row["aim"]), -row["share"], row["seed"]))
    kinds = dict.fromkeys((row["aim"], row["share"], row.get("groups")) for row in rows)
    for aim, share, groups in kinds:
        own = [row for row in rows if _key(row)[1:4] == (aim, share, groups)]
        took = [clock[_key(row)] for row in own]
        tests = [row["test"] for row in own]
        bounds = over_seeds(tests) if len(tests) > 1 else None
        columns.append([
            f"{aim} {100 * share:.3g} %" + (f", a p for each {groups}" if groups else ""),
            len(own), percents(tests),
            f"{100 * np.mean(tests):.1f}"
            + (f" ({100 * max(0.0, bounds[0]):.1f} to {100 * bounds[1]:.1f})" if bounds else ""),
            *(f"{np.mean([row[f'measured_{name}'] for row in took]):.2f}" for name in FORWARDS),
            f"{np.mean([row['macs'] for row in own]):.2f}",
            f"{np.mean([row['params'] for row in own]):.2f}",
        ])  # fmt: skip
    head = ["aim", "seeds", "test error, %", "mean, 95 %", "time, torch, 16", "ONNX Runtime, 1",
            "MACs", "params"]  # fmt: skip
    return f"{prose(taken(rows), *_beside_time(rows))}\n\n{table(head, columns)}"


ALIKE = {"time": 0.6, "macs": 0.42, "params": 0.15}  # of t1: winners take as long


def _beside_time(rows: Sequence[Row]) -> list[str]:
    """How much less winners err that were aimed at time, seed by seed."""
    of = {aim: {r["seed"]: r["test"] for r in rows if (r["aim"], r["share"]) == (aim, share)}
          for aim, share in ALIKE.items()}  # fmt: skip
    found = []
    for aim, words in (("macs", "MACs"), ("params", "parameters")):
        seeds = sorted(of["time"].keys() & of[aim].keys())
        change = [of["time"][seed] - of[aim][seed] for seed in seeds]
        bounds = over_seeds(change)
        if bounds:
            mean, low, high = (100 * value for value in (np.mean(change), *bounds))
            found.append(
                f"Aimed at {ALIKE['time']:.0%} of the time instead of {ALIKE[aim]:.0%} of the"
                f" {words}: {mean:+.1f} points of test error ({low:+.1f} to {high:+.1f} over"
                f" {len(seeds)} seeds)."
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the weights")
    parser.add_argument("--photos", type=Path, default=Path("data/photos"))
    parser.add_argument("--cifar", type=Path, default=Path("data/cifar"))
    parser.add_argument("--tables", type=Path, default=Path("data"))
    parser.add_argument("--results", type=Path, default=PATH)
    parser.add_argument("--times", type=Path, default=DATA / "aims_times.jsonl")
    parser.add_argument("--epochs", type=int)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("fit")
    one.add_argument("task", choices=("t1", "t4"))
    one.add_argument("aim", choices=(*FORWARDS, "macs", "params", *rivals.PRUNERS))
    one.add_argument("share", type=float)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--device", default="cpu")
    one.add_argument("--groups", help="gates that share one p, not as the backbone has it")
    one.add_argument("--final", action="store_true")
    one.set_defaults(run=fit)
    made = commands.add_parser("tables")
    made.add_argument("task", choices=("t1", "t4"))
    made.set_defaults(run=tables)
    commands.add_parser("times").set_defaults(run=times)
    options = parser.parse_args()
    one_checkout()
    options.run(options)


if __name__ == "__main__":
    main()
