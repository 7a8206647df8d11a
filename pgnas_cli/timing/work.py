"""How much each step of a forward has to do: the numbers that its time depends on.

A step multiplies `inputs` channels into `outputs` channels, or reads and writes that many. A layer
that reads some channels of a wider tensor either picks them or, with zero weights, reads all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import Graph
from ..slimming import BLOCK, Constant, Wiring, filled

WEIGHED = ("mix", "grouped")  # kinds of steps that multiply channels


@dataclass(frozen=True)
class Work:
    """Of one step of some networks; each a tensor (networks,), float64."""

    runs: Tensor  # 1 where the step depends on the image, else 0
    inputs: Tensor  # channels that it reads
    outputs: Tensor  # channels that it writes
    picked: Tensor  # channels that it first picks out of a wider tensor


@dataclass(frozen=True)
class Sample:
    """A network that was timed, step by step."""

    work: tuple[Work, ...]  # of its steps, each of one network
    steps: tuple[float | None, ...]  # milliseconds of each, where it is timed on its own
    whole: float  # milliseconds of its forward
    rest: float = 0.0  # milliseconds of the steps that are not timed one by one


def planned_work(wiring: Wiring, block: int = BLOCK) -> list[tuple[Work, Work]]:
    """What the steps of candidates will do, (candidates,): reading by picking, and reading all.

    In the order of `wiring.graph.nodes`; both are equal where nothing is picked. Tensors have a
    multiple of `block` channels, as in layout "fast"; 1: as many as are kept.
    """
    widths = [
        filled(live.sum(1).double(), node.channels, block)
        for live, node in zip(wiring.live, wiring.graph.nodes, strict=True)
    ]
    return [_planned(position, wiring, widths) for position in range(len(widths))]


def _planned(position: int, wiring: Wiring, widths: list[Tensor]) -> tuple[Work, Work]:
    node, outputs = wiring.graph.nodes[position], widths[position]
    none, always = torch.zeros_like(outputs), torch.ones_like(outputs)
    if not node.cuttable:
        sources = [widths[i] for i in node.inputs]
        read = torch.stack(sources).sum(0) if sources else none
        work = Work(always, read, outputs, none)
        return work, work
    runs, source = wiring.varies(node.layer).double(), wiring.live[node.inputs[0]]
    there = widths[node.inputs[0]]
    if node.kind == "mix":
        reads = wiring.reads[node.layer]
        plane = (wiring.folds[node.layer].any(1) & node.borders).double()
        wanted = reads.sum(1).double()
        picked = torch.where((reads != source).any(1), wanted, none)
        return (
            Work(runs, wanted + plane, outputs, picked), Work(runs, there + plane, outputs, none)
        )  # fmt: skip
    wanted = torch.minimum(there, outputs * _per_output(wiring, position))
    picked = torch.where(wanted < there, wanted, none)
    work = Work(runs, wanted, outputs, picked)
    return work, work


def _per_output(wiring: Wiring, position: int) -> float:
    """Inputs of a grouped convolution or a norm for each of its outputs."""
    node = wiring.graph.nodes[position]
    return wiring.graph.nodes[node.inputs[0]].channels / node.channels


def built_work(network: nn.Module, graph: Graph, widths: Sequence[int]) -> tuple[Work, ...]:
    """What the steps of one slim network do, (1,), from its modules and its outputs' `widths`."""
    found = []
    for node, width in zip(graph.nodes, widths, strict=True):
        inputs, picked, runs = sum(widths[i] for i in node.inputs), 0, True
        if node.cuttable:
            module: Any = network.get_submodule(node.layer)
            runs, read = not isinstance(module, Constant), getattr(module, "read", None)
            picked = 0 if read is None else len(read)
            inputs = picked or inputs
            if runs and node.kind in WEIGHED:
                inputs = module.weight.shape[1] * getattr(module, "groups", 1)
        numbers = (runs, inputs, width, picked)
        found.append(Work(*(torch.tensor([n], dtype=torch.float64) for n in numbers)))
    return tuple(found)
