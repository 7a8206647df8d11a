"""Parameters, MACs and time of candidates, counted exactly but for time, which is predicted.

Nothing is built to count. Two sizes are given everywhere:

    paper   kept input slices of every gated layer, plus all that has no gate (Tables 3, 4, 7)
    file    the tensors of the slim network, where channels that nobody reads are gone as well
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import cast

import torch
from torch import Tensor, nn

from ..gates import check_keep, gates
from ..graph import Node, OperationGate
from ..slimming import Wiring, wire
from ..timing import TimeTable, milliseconds, time_table

ROWS = 64  # candidates that are counted at a time
NANOSECONDS = 1e6  # of a millisecond


@dataclass(frozen=True)
class Sizes:
    """What candidates cost; each a tensor (candidates,) of whole numbers."""

    params: Tensor  # of the file: parameters of the slim network
    paper_params: Tensor  # the paper's count
    macs: Tensor  # of convolutions and linear layers, one image
    time: Tensor  # nanoseconds of a forward by the network's time table; 0 where it has none

    def part(self, rows: slice | Tensor) -> "Sizes":
        """Those of some of the candidates."""
        return Sizes(*(getattr(self, f.name)[rows] for f in fields(Sizes)))


def joined(parts: Sequence[Sizes]) -> Sizes:
    """The sizes of several lists of candidates, one after the other."""
    return Sizes(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Sizes)))


def slice_sizes(network: nn.Module) -> Tensor:
    """Weights behind each gate, int64 (gates,): outputs x kernel area, of all layers it gates."""
    modules = dict(network.named_modules())
    sizes = torch.zeros(gates(network).count, dtype=torch.int64)
    for name, (first, last) in gates(network).spans.items():
        if isinstance(modules[name], OperationGate):
            continue
        weight = cast(Tensor, modules[name].weight)
        sizes[first:last] += weight.numel() // weight.shape[1]
    return sizes


def parameter_count(network: nn.Module) -> int:
    """Parameters of the whole network; gates, and what serves in training only, not counted."""
    apart = ("gates", *getattr(network, "training_only", ()))
    modules = (getattr(network, name, None) for name in apart)
    aside = {id(p) for m in modules if isinstance(m, nn.Module) for p in m.parameters()}
    return sum(p.numel() for p in network.parameters() if id(p) not in aside)


def count(network: nn.Module, keep: Tensor, *, round_to: int = 1) -> Sizes:
    """Sizes of the candidates `keep`, bool (candidates, gates)."""
    check_keep(network, keep, axes=(2,))
    whole, slices, parts = parameter_count(network), slice_sizes(network), []
    table = time_table(network)
    for block in keep.split(ROWS):
        wiring = wire(network, block, round_to=round_to)
        params, macs = _count(network, wiring)
        time = nanoseconds(table, wiring) if table else torch.zeros_like(params)
        parts.append(Sizes(params, whole - (~block.cpu()).long() @ slices, macs, time))
    return joined(parts)


def whole_time(network: nn.Module) -> int:
    """Nanoseconds of a forward of the whole network by its time table; 0 where it has none."""
    table = time_table(network)
    return round(NANOSECONDS * table.whole) if table else 0


def nanoseconds(table: TimeTable, wiring: Wiring) -> Tensor:
    """What the candidates of `wiring` take, int64 (candidates,)."""
    return (NANOSECONDS * milliseconds(table, wiring)).round().long()


def whole_macs(network: nn.Module) -> int:
    """MACs of the whole network for one image."""
    everything = torch.ones(1, gates(network).count, dtype=torch.bool)
    return int(count(network, everything).macs)


# What a size can be counted in: its name in sentences, and the whole network's count.
KINDS: dict[str, tuple[str, Callable[[nn.Module], int]]] = {
    "params": ("parameters", parameter_count),
    "macs": ("MACs", whole_macs),
    "time": ("time", whole_time),
}


def whole_sizes(network: nn.Module) -> dict[str, int]:
    """The whole network's size in each kind; in time only where it has a time table."""
    sizes = {kind: whole(network) for kind, (_, whole) in KINDS.items()}
    return {kind: size for kind, size in sizes.items() if kind != "time" or size}


def _count(network: nn.Module, wiring: Wiring) -> tuple[Tensor, Tensor]:
    modules = dict(network.named_modules())
    counted = set()
    params = torch.zeros(len(wiring.live[0]), dtype=torch.int64)
    macs = torch.zeros_like(params)
    for position, node in enumerate(wiring.graph.nodes):
        out = wiring.live[position].sum(1)
        if node.kind == "parameter":
            own, multiplied = out, torch.zeros_like(out)
        elif node.cuttable:
            own, multiplied = _layer_cost(modules[node.layer], node, out, wiring)
        else:
            macs += whole_layer_macs(modules.get(node.layer), node)
            continue
        macs += multiplied * math.prod(node.size)
        if node.layer not in counted:
            params += own
            counted.add(node.layer)
    return params + untouched_params(network), macs


def whole_layer_macs(module: nn.Module | None, node: Node) -> int:
    """MACs of a convolution or linear layer that the analysis keeps whole."""
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
        return 0
    weight = module.weight
    return node.channels * math.prod(node.size) // len(weight) * weight.numel()


def untouched_params(network: nn.Module) -> int:
    """Parameters of the whole network that no candidate makes fewer."""
    modules = dict(network.named_modules())
    cut = 0
    for layer in gates(network).graph.cut():
        module = modules.get(layer)
        own = [network.get_parameter(layer)] if module is None else module.parameters(recurse=False)
        cut += sum(parameter.numel() for parameter in own)
    return parameter_count(network) - cut


def _layer_cost(
    module: nn.Module, node: Node, out: Tensor, wiring: Wiring
) -> tuple[Tensor, Tensor]:
    """Parameters of a cut layer and MACs at one pixel, each (candidates,)."""
    varies, wanted = wiring.varies(node.layer), wiring.wanted(node.layer)
    fixed = out * (wanted & ~varies)  # the numbers of a constant
    if node.kind == "norm":
        per_channel = sum(p.numel() for p in module.parameters(recurse=False)) // node.channels
        return out * varies * per_channel + fixed, torch.zeros_like(out)
    weight = cast(Tensor, module.weight)
    has_bias = module.bias is not None
    if node.kind == "grouped":
        weights = out * varies * weight[0].numel()
        return weights + out * varies * has_bias + fixed, weights
    folds = wiring.folds[node.layer].any(1)
    inputs = wiring.reads[node.layer].sum(1) + (folds if node.borders else 0)
    weights = out * inputs * varies * weight[0, 0].numel()
    bias = out * varies * (folds | has_bias) if not node.borders else out * varies * has_bias
    return weights + bias + fixed, weights
