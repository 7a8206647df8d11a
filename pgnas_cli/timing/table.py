"""Milliseconds of the steps of a network, fitted to measured ones, and what they predict.

A step that multiplies i inputs into o outputs, which are O up to a whole block, takes

    fixed + both x i x O + inputs x i + outputs x O + picked x (channels that are picked) + picking

milliseconds, the last where any channel is picked; no coefficient is negative. Kernels work on
blocks of outputs: the 33rd output costs as much as the 33rd to 64th together. Steps of one kind and
shape share coefficients.
`scale` and `constant` bring the sum of the steps to the time of a forward that is not stopped
between them.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from ..errors import PgnasError
from ..gates import gates
from ..graph import Graph, Node
from ..naming import check_forward
from ..slimming import Wiring, wire
from .work import WEIGHED, Sample, Work, planned_work

COEFFICIENTS = ("fixed", "both", "inputs", "outputs", "picked", "picking")  # of a step
BLOCKS = (8, 16, 32)  # outputs that kernels may compute at a time
LONGEST_STEP = 1e9  # milliseconds
SEEN = 1e-12  # milliseconds of picking that was timed and takes none: it may be counted on
SHORTEST = 1e-5  # of a whole network
UNLIKE = 4.0  # times the time that was measured, up to which a sum of steps is believed
BETTER = 0.98  # of the residual with smaller blocks, below which larger ones are believed


@dataclass(frozen=True)
class StepTime:
    """Coefficients of one step, in milliseconds; see above."""

    name: str  # of the step in the graph
    fixed: float = 0.0
    both: float = 0.0
    inputs: float = 0.0
    outputs: float = 0.0
    picked: float = 0.0
    picking: float = 0.0
    block: int = 1

    @property
    def picks(self) -> bool:
        """Whether its time with picked channels is known: no network that was timed did else."""
        return self.picked > 0 or self.picking > 0


@dataclass(frozen=True)
class Forward:
    """The forward that is timed."""

    runtime: str = "torch"  # or "onnxruntime"
    batch: int = 1  # images
    threads: int = 0  # 0: as many as this process uses
    precision: str = "float32"  # or, in torch, "bfloat16"

    def __post_init__(self) -> None:
        check_forward(self.runtime, self.precision)


@dataclass(frozen=True)
class TimeTable:
    """What a step of one network takes on one device, in one runtime."""

    runtime: str  # "torch" or "onnxruntime"
    device: str  # its name
    threads: int
    batch: int  # images of a forward
    precision: str
    input_shape: tuple[int, int, int]
    steps: tuple[StepTime, ...]
    scale: float
    constant: float  # milliseconds; below 0, since each step is stopped on its own
    whole: float  # milliseconds of the whole network, measured
    network: str  # its `fingerprint`
    classes: int = 0  # of the head that was timed; 0: not known
    error: float = 0.0  # median relative error on networks that the table was not fitted to
    worst: float = 0.0  # the largest of these errors


def terms(
    runs: Tensor, inputs: Tensor, rounded: Tensor, picked: Tensor, picking: Tensor
) -> dict[str, Tensor]:
    """What the coefficients of a step are multiplied with; `rounded` outputs fill whole blocks."""
    return {
        "fixed": runs, "both": runs * inputs * rounded, "inputs": runs * inputs,
        "outputs": runs * rounded, "picked": picked, "picking": picking,
    }  # fmt: skip


def terms_of(work: Work, block: int) -> dict[str, Tensor]:
    """The same, of a step whose kernel computes `block` outputs at a time."""
    rounded = (work.outputs / block).ceil() * block
    return terms(work.runs, work.inputs, rounded, work.picked, (work.picked > 0).double())


def step_time(step: StepTime, work: Work) -> Tensor:
    """Milliseconds of one step, float64 (networks,)."""
    parts = [getattr(step, name) * term for name, term in terms_of(work, step.block).items()]
    return torch.stack(parts).sum(0)


def milliseconds(table: TimeTable, wiring: Wiring) -> Tensor:
    """Milliseconds of the candidates of `wiring`, float64 (candidates,)."""
    works = planned_work(wiring)
    pairs = zip(table.steps, works, strict=True)
    best = [
        torch.minimum(step_time(s, picks), step_time(s, reads)) if s.picks else step_time(s, reads)
        for s, (picks, reads) in pairs
    ]
    return (table.constant + table.scale * torch.stack(best).sum(0)).clamp(min=0)


# --- fitting -------------------------------------------------------------------------------------


def fitted(
    network: nn.Module, graph: Graph, samples: Sequence[Sample]
) -> tuple[tuple[StepTime, ...], float, float]:
    """Coefficients of each step of `graph`, the scale and the constant (milliseconds)."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for position, node in enumerate(graph.nodes):
        alike.setdefault(signature(network, graph, node), []).append(position)
    steps: list[StepTime] = [StepTime(node.name) for node in graph.nodes]
    for kind in dict.fromkeys(node.kind for node in graph.nodes):
        of_kind = [
            places
            for places in alike.values()
            if graph.nodes[places[0]].kind == kind and samples[0].steps[places[0]] is not None
        ]
        tried = []
        for block in BLOCKS if kind in WEIGHED else (1,):
            solved = [_solved(kind, block, places, samples) for places in of_kind]
            tried.append((sum(residual for _, residual in solved), block, solved))
        best = tried[0]
        for one in tried[1:]:
            best = one if one[0] < BETTER * best[0] else best
        for places, (coefficients, _) in zip(of_kind, best[2], strict=True):
            for place in places:
                step = StepTime(graph.nodes[place].name, **coefficients, block=best[1])
                steps[place] = step
    if None in samples[0].steps:
        steps = _with_rest(steps, graph, samples)
    sums = [
        float(sum(step_time(s, w) for s, w in zip(steps, sample.work, strict=True)))
        for sample in samples
    ]
    measured = np.array([sample.whole for sample in samples])
    design = np.stack([np.array(sums), np.ones(len(sums))], 1) / measured[:, None]
    scale, constant = np.linalg.lstsq(design, np.ones(len(sums)), rcond=None)[0]
    if scale <= 0:  # noise alone: all networks take about as long
        scale, constant = np.linalg.lstsq(design[:, :1], np.ones(len(sums)), rcond=None)[0][0], 0
    return tuple(steps), float(scale), float(constant)


def _solved(
    kind: str, block: int, places: Iterable[int], samples: Sequence[Sample]
) -> tuple[dict[str, float], float]:
    """Nonnegative coefficients of steps that are alike, and the weighted squared residual."""
    rows, times = [], []
    for sample in samples:
        for place in places:
            rows.append(terms_of(sample.work[place], block))
            times.append(sample.steps[place])
    without = {"both"} if kind != "mix" else set()
    if None in samples[0].steps:  # picking is a step of its own
        without |= {"picked", "picking"}
    names = [name for name in rows[0] if name not in without]
    design = np.array([[float(row[name]) for name in names] for row in rows])
    found, residual = _nonnegative(design, np.array(times, dtype=float))
    coefficients = dict(zip(names, found, strict=True))
    if any(float(row["picked"]) for row in rows) and "picking" in coefficients:
        coefficients["picking"] = max(coefficients["picking"], SEEN)
    return coefficients, residual


def _nonnegative(design: Any, wanted: Any) -> tuple[list[float], float]:
    """Nonnegative coefficients of the columns of `design`, and the weighted squared residual."""
    weight = 1 / np.sqrt(np.maximum(wanted, 1e-4))  # errors grow with the root of the time
    size = np.abs(design).max(0)
    size[size == 0] = 1
    found, residual = nnls(design / size * weight[:, None], wanted * weight)
    return [float(value) for value in found / size], float(residual) ** 2


def _with_rest(
    steps: Sequence[StepTime], graph: Graph, samples: Sequence[Sample]
) -> list[StepTime]:
    """Steps that a runtime does not time one by one share a law: per step, by what they read and
    write, and by what is picked."""
    nodes = graph.nodes
    written = [prod(node.size) for node in nodes]
    read = [prod(nodes[node.inputs[0]].size) if node.inputs else 0 for node in nodes]
    rows = []
    for sample in samples:
        row = np.zeros(5)
        for at, work in enumerate(sample.work):
            picked = float(work.picked)
            row[3:] += (picked * read[at], picked > 0)
            if sample.steps[at] is None:
                inputs, outputs = float(work.inputs) * read[at], float(work.outputs) * written[at]
                row[:3] += float(work.runs) * np.array([1, inputs, outputs])
        rows.append(row)
    rest = np.array([sample.rest for sample in samples])
    fixed, inputs, outputs, picked, picking = _nonnegative(np.array(rows), rest)[0]
    found = []
    for at, step in enumerate(steps):
        if samples[0].steps[at] is None:
            step = replace(
                step, fixed=fixed, inputs=inputs * read[at], outputs=outputs * written[at]
            )
        if any(float(sample.work[at].picked) for sample in samples):
            step = replace(step, picked=picked * read[at], picking=max(picking, SEEN))
        found.append(step)
    return found


def fingerprint(network: nn.Module) -> str:
    """Digest of what the steps of a super-network are, but for its number of classes."""
    graph = gates(network).graph
    head = max(at for at, node in enumerate(graph.nodes) if node.kind == "mix")
    body = [signature(network, graph, node) for node in graph.nodes[:head]]
    rest = [node.kind for node in graph.nodes[head:]]
    return hashlib.blake2b(repr((body, rest)).encode(), digest_size=16).hexdigest()


def signature(network: nn.Module, graph: Graph, node: Node) -> tuple[Any, ...]:
    """Steps of one signature take the same time for the same work."""
    module = network.get_submodule(node.layer) if node.layer and node.cuttable else None
    sizes = tuple((graph.nodes[i].channels, graph.nodes[i].size) for i in node.inputs)
    own = getattr(type(module), "ungated", type(module)).__name__
    shape = (node.kind, node.channels, node.size, sizes, node.groups, own)
    if isinstance(module, nn.Conv2d):
        return (*shape, module.kernel_size, module.stride, module.dilation)
    return (*shape, node.name.rstrip("_0123456789"))


# --- the table of a network ----------------------------------------------------------------------


def timed_by(network: nn.Module, table: TimeTable | None) -> nn.Module:
    """The network, in place, with a table that its candidates are timed by.

    Raises PgnasError where it is the table of another network.
    """
    if table is not None:
        graph = gates(network).graph
        if table.input_shape != graph.input_shape:
            then, now = ("x".join(map(str, g)) for g in (table.input_shape, graph.input_shape))
            raise PgnasError(
                f"the time table is for images of {then} (channels, height, width), not {now}; make"
                " one for these: pgnas profile"
            )
        names = tuple(step.name for step in table.steps)
        known = names == tuple(node.name for node in graph.nodes)
        if not known or table.network != fingerprint(network):
            raise PgnasError(
                "the time table is of another network; make one for this backbone and this version"
                " of it: pgnas profile"
            )
        everything = torch.ones(1, gates(network).count, dtype=torch.bool)
        whole = float(milliseconds(table, wire(network, everything)))
        same = table.classes in (0, graph.nodes[-1].channels)
        if same and not table.whole / UNLIKE <= whole <= table.whole * UNLIKE:
            raise PgnasError(
                f"the time table contradicts itself: the whole network takes {table.whole:.3g} ms,"
                f" its steps {whole:.3g}; measure again while nothing else runs"
            )
        # Shares are of what the table says of this network: its head may have other classes.
        table = replace(table, whole=max(whole, SHORTEST))
    network.__dict__["time_table"] = table
    return network


def check_table(table: TimeTable, path: Path) -> None:
    """Raise PgnasError for numbers that no profile writes."""
    numbers = [getattr(step, name) for step in table.steps for name in COEFFICIENTS]
    sane = (
        min(numbers, default=0) >= 0
        and max(numbers, default=0) < LONGEST_STEP
        and all(step.block in (1, *BLOCKS) for step in table.steps)
        and SHORTEST < table.whole < LONGEST_STEP
        and min(table.batch, table.threads) >= 1
        and 0 <= table.error <= table.worst < LONGEST_STEP
        and 0 <= table.scale < LONGEST_STEP
        and abs(table.constant) < LONGEST_STEP
    )
    if not sane:
        raise PgnasError(f"'{path}' is damaged: its times cannot be")


def time_table(network: nn.Module) -> TimeTable | None:
    """The table that `network` was given by `timed_by`."""
    found: TimeTable | None = network.__dict__.get("time_table")
    return found
