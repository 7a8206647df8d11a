"""Sub-networks as rows of bits: drawing them, packing them, and counting what they cost.

Nothing is built to count. Two sizes are given everywhere:

    paper   kept input slices of every gated layer, plus all that has no gate (Tables 3, 4, 7)
    file    the tensors of the slim network, where channels that nobody reads are gone as well
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from .concrete import hard_keep
from .errors import PgnasError
from .graph import Node
from .operation import OperationGate
from .randomness import generator
from .supernet import gates
from .wiring import Wiring, wire


@dataclass(frozen=True)
class Sizes:
    """What candidates cost; each a tensor (candidates,) of whole numbers."""

    params: Tensor  # of the file: parameters of the slim network
    paper_params: Tensor  # the paper's count
    macs: Tensor  # multiply-adds of convolutions and linear layers, one image

    def part(self, rows: slice | Tensor) -> "Sizes":
        """Those of some of the candidates."""
        return Sizes(self.params[rows], self.paper_params[rows], self.macs[rows])


def joined(parts: Sequence[Sizes]) -> Sizes:
    """The sizes of several lists of candidates, one after the other."""
    return Sizes(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Sizes)))


def draw_candidates(drop_probability: Tensor, network: nn.Module, count: int, seed: int) -> Tensor:
    """Draw `count` candidates, bool (count, gates); the i-th is the same for every `count`."""
    per_gate = drop_probability.cpu()[gates(network).group.cpu()]
    rows = [
        hard_keep(per_gate, generator=generator(seed, "candidate", index)) for index in range(count)
    ]
    return torch.stack(rows)


def pack(keep: Tensor) -> Tensor:
    """Eight gates in a byte: bool (candidates, gates) -> uint8 (candidates, ceil(gates / 8))."""
    return torch.from_numpy(np.packbits(keep.cpu().numpy(), axis=1))


def unpack(packed: Tensor, count: int) -> Tensor:
    """The inverse of `pack`, for `count` gates."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=1, count=count)).bool()


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
    aside = {id(p) for name in apart for p in _parameters_of(getattr(network, name, None))}
    return sum(p.numel() for p in network.parameters() if id(p) not in aside)


def _parameters_of(module: object) -> Iterator[nn.Parameter]:
    return module.parameters() if isinstance(module, nn.Module) else iter(())


def count(network: nn.Module, keep: Tensor, *, rows: int = 256, round_to: int = 1) -> Sizes:
    """Sizes of the candidates `keep`, bool (candidates, gates), `rows` at a time."""
    parts = [_count(network, wire(network, block, round_to=round_to)) for block in keep.split(rows)]
    paper = parameter_count(network) - (~keep.cpu()).long() @ slice_sizes(network)
    return Sizes(torch.cat([p for p, _ in parts]), paper, torch.cat([m for _, m in parts]))


def whole_macs(network: nn.Module) -> int:
    """Multiply-adds of the whole network for one image."""
    everything = torch.ones(1, gates(network).count, dtype=torch.bool)
    return int(count(network, everything).macs)


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
    """Multiply-adds of a convolution or linear layer that the analysis keeps whole."""
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
    """Parameters of a cut layer and multiply-adds at one pixel, each (candidates,)."""
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


def baseline_probabilities(
    network: nn.Module, drop_probability: Tensor, baseline: str, *, generator: torch.Generator
) -> Tensor:  # (groups,)
    """What to draw from to see what the posterior is worth, at the mean size of its own draws.

    "permuted" deals the learned probabilities out among groups by chance: if its candidates do as
    well, the posterior taught nothing but how much to drop. "fixed" gives every group one rate.
    The drop logits are shifted together until the mean candidate is as large (the file's count).
    """
    learned = drop_probability.cpu()
    noise = torch.rand(64, gates(network).count, generator=generator)
    target = mean_params(network, learned, noise)
    if baseline == "permuted":
        start = learned[torch.randperm(len(learned), generator=generator)]
    elif baseline == "fixed":
        start = torch.full_like(learned, 0.5)
    else:
        raise PgnasError(f"no baseline '{baseline}'; possible: permuted, fixed")
    return shifted_to_size(network, start, target, noise)


def shifted_to_size(
    network: nn.Module,
    drop_probability: Tensor,  # (groups,)
    params: float,  # wanted mean of the file's count
    noise: Tensor,  # uniform (candidates, gates); the mean is over these draws
) -> Tensor:  # (groups,)
    """Add one number to all drop logits so that the mean candidate has `params` parameters."""
    logits = drop_probability.double().cpu().clamp(1e-9, 1 - 1e-9).logit()
    low, high = -40.0, 40.0
    for _ in range(24):  # bisection; a larger shift drops more
        middle = (low + high) / 2
        if mean_params(network, torch.sigmoid(logits + middle), noise) > params:
            low = middle
        else:
            high = middle
    return torch.sigmoid(logits + (low + high) / 2).float()


def mean_params(network: nn.Module, drop_probability: Tensor, noise: Tensor) -> float:
    """Mean of the file's count over the draws that `noise`, uniform (candidates, gates), makes."""
    keep = noise >= drop_probability[gates(network).group.cpu()]
    return float(count(network, keep).params.double().mean())
