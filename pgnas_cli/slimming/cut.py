"""Cut a network down to a candidate: smaller tensors, same outputs.

The work is done on the modules of a copy (layers.py); the network's own forward stays.

A constant input of a convolution is folded into it. Without padding it is a bias. Behind zero
padding it is not (near the border fewer taps see it): there one plane of ones becomes an extra
input channel whose weights are the sum over channels of constant times kernel, which is exact.

Constants are read off the masked network itself, running its traced program once: they carry the
very rounding that they replace.
"""

import contextlib
import copy
import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from ..errors import PgnasError
from ..gates import Gated, check_keep, gates, masked
from ..graph import Graph, Node, evaluating, plain_twin
from ..machine import full_float32
from ..tensors import restore_
from .arrange import Layout, arranged
from .layers import Cut, reshape_
from .wiring import Wiring, wire

ROUNDING = 10  # times a network's own rounding that one of other order of sums may differ by
ROUNDING_MOST = 1e-2  # of the largest logit, whatever the rounding


def slim(
    network: nn.Module, keep: Tensor, layout: Layout = "small", *, round_to: int = 1
) -> nn.Module:
    """The candidate `keep`, bool (gates,), as a network of its own, in evaluation mode.

    Same logits as `masked(network, keep)` in evaluation mode. Layout "small" stores and multiplies
    only what is kept; "fast" (in torch) and "onnx" (in ONNX Runtime) are arranged for inference:
    batch-norm folded, numbers and orders of channels that are fast. `round_to` makes numbers of
    channels multiples of it where the network is wide enough, with zero weights for what was
    dropped.
    """
    check_keep(network, keep, axes=(1,))
    wiring = wire(network, keep[None], round_to=round_to)
    cuts = plan(network, wiring)
    tensors = _tensors(network, keep, wiring, cuts)
    smaller = reshape_(ungated_copy(network), cuts)
    restore_(smaller, tensors)
    return arranged(smaller.eval(), layout, wiring.graph)


def ungated_copy(network: nn.Module) -> nn.Module:
    """A copy of a super-network without its gates: the classes it had before."""
    twin = copy.deepcopy(network, {id(gates(network)): None})
    del twin.gates
    for name in getattr(twin, "training_only", ()):
        setattr(twin, name, None)
    for module in twin.modules():
        if isinstance(module, Gated):
            module.__dict__.pop("keep", None)
            module.__class__ = cast(Any, type(module)).ungated
    return twin


# --- from wiring to shapes ----------------------------------------------------------------------


def plan(network: nn.Module, wiring: Wiring) -> dict[str, Cut]:
    """What becomes of each module of the first candidate in `wiring`."""
    modules = dict(network.named_modules())
    cuts: dict[str, Cut] = {}
    for position, node in enumerate(wiring.graph.nodes):
        if node.layer and node.layer not in cuts:
            cut = _cut(modules.get(node.layer, network), node, position, wiring)
            if cut is not None:
                cuts[node.layer] = cut
    return cuts


def _cut(module: nn.Module, node: Node, position: int, wiring: Wiring) -> Cut | None:
    live = wiring.live[position][0]
    outputs = int(live.sum())
    if node.kind == "parameter":
        return Cut("parameter", outputs) if outputs < node.channels else None
    if node.kind == "switch" and node.layer in wiring.closed:
        return Cut("idle", outputs) if bool(wiring.closed[node.layer][0]) else None
    if node.kind == "slice":
        ahead = int(wiring.live[node.inputs[0]][0, : node.first].sum())
        return Cut("slice", outputs, first=ahead)
    if not node.cuttable:
        return None
    if not bool(wiring.varies(node.layer)):
        return Cut("constant" if bool(wiring.wanted(node.layer)) else "idle", outputs)
    source, wanted = wiring.live[node.inputs[0]][0], wanted_inputs(wiring, position)
    picks = 0 if torch.equal(wanted, source) else int(source.sum())
    inputs = int(wanted.sum())
    if node.kind == "norm":
        return Cut("norm", outputs, inputs, picks)
    bias = cast(Any, module).bias is not None
    plain = isinstance(module, nn.Conv2d) and plain_twin(module) is not module
    if node.kind == "grouped":
        groups = outputs * node.groups // node.channels
        return Cut("grouped", outputs, inputs, picks, bias=bias, groups=groups, plain=plain)
    folds = bool(wiring.folds[node.layer].any())
    plane = folds and node.borders
    bias = bias or (folds and not plane)
    return Cut("mix", outputs, inputs + plane, picks, plane, bias, plain=plain)


def wanted_inputs(wiring: Wiring, position: int) -> Tensor:
    """Which channels of its input the layer at `position` multiplies, bool (channels,)."""
    node = wiring.graph.nodes[position]
    if node.kind == "mix":
        return wiring.reads[node.layer][0]
    live = wiring.live[position][0]
    per_group = live.view(node.groups if node.kind == "grouped" else len(live), -1).any(1)
    width = wiring.graph.nodes[node.inputs[0]].channels
    return per_group.repeat_interleave(width // len(per_group))


# --- from wiring to tensors ---------------------------------------------------------------------


def _tensors(
    network: nn.Module, keep: Tensor, wiring: Wiring, cuts: dict[str, Cut]
) -> dict[str, Tensor]:
    """The state dict of the slim network."""
    state = {k: v for k, v in network.state_dict().items() if not k.startswith("gates.")}
    calls = wiring.graph.calls()
    fixed = any(cut.kind == "constant" or cut.plane for cut in cuts.values()) or any(
        bool(folds.any()) for folds in wiring.folds.values()
    )
    values = _constants(network, keep, wiring) if fixed else []
    modules = dict(network.named_modules())
    for path, cut in cuts.items():
        own = {k[len(path) + 1 :]: state.pop(k) for k in list(state) if k.startswith(f"{path}.")}
        if cut.plain:
            own = dict(cast(nn.Module, plain_twin(cast(nn.Conv2d, modules[path]))).state_dict())
        position = calls[path][0]
        node = wiring.graph.nodes[position]
        rows = wiring.live[position][0]
        if cut.kind == "parameter":
            kept = state[path].movedim(node.axis, 0)[rows.to(state[path].device)]
            state[path] = kept.movedim(0, node.axis).contiguous()
        elif cut.kind == "constant":
            own = {"value": values[position][rows.to(values[position].device)]}
        elif cut.kind in ("idle", "slice"):
            own = {}
        else:
            rows = rows.to(next(iter(own.values())).device)
            if cut.kind == "mix":
                given = values[node.inputs[0]] if values else None
                own = _mix_tensors(own, rows, wiring, node, cut, given)
            else:
                own = {k: v[rows] if v.dim() else v for k, v in own.items()}
            if cut.picks:
                wanted = wanted_inputs(wiring, position)
                source = wiring.live[node.inputs[0]][0]
                own["read"] = wanted[source].nonzero().flatten().to(rows.device)
        state.update({f"{path}.{k}": v.contiguous() for k, v in own.items()})
    return state


def _mix_tensors(
    own: dict[str, Tensor],
    rows: Tensor,  # bool (outputs,)
    wiring: Wiring,
    node: Node,
    cut: Cut,
    given: Tensor | None,  # (inputs,), values of the inputs where they are constant
) -> dict[str, Tensor]:
    weight = own["weight"][rows]
    reads = wiring.reads[node.layer][0].to(weight.device)
    folds = wiring.folds[node.layer][0].to(weight.device)
    smaller = {"weight": weight[:, reads]}
    smaller["weight"][:, wiring.spare[node.layer][0].to(weight.device)[reads]] = 0
    if cut.bias:
        smaller["bias"] = own["bias"][rows] if "bias" in own else weight.new_zeros(len(weight))
    if bool(folds.any()):
        assert given is not None
        level = given[folds].view(1, -1, *[1] * (weight.dim() - 2))
        extra = (weight[:, folds].double() * level.double()).sum(1, keepdim=True)
        if cut.plane:
            smaller["weight"] = torch.cat([smaller["weight"], extra.to(weight.dtype)], 1)
        else:
            smaller["bias"] = smaller["bias"] + extra.flatten(1).sum(1).to(weight.dtype)
    return smaller


class _Values(fx.Interpreter):
    """Runs the program on one image and notes the level of every constant channel."""

    def __init__(self, network: nn.Module, graph: Graph, constant: tuple[Tensor, ...]) -> None:
        super().__init__(network, graph=graph.program, garbage_collect_values=True)
        self.positions = {node.name: at for at, node in enumerate(graph.nodes)}
        self.axes = [node.axis for node in graph.nodes]
        self.constant = constant
        self.levels: list[Tensor] = [torch.empty(0)] * len(graph.nodes)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        at = self.positions[n.name]
        if isinstance(value, Tensor) and bool(self.constant[at][0].any()):
            whole = value.movedim(self.axes[at], 1)[0] if value.dim() > 1 else value
            flat = whole.reshape(len(whole), -1)
            level = flat[:, 0].clone()
            fixed = self.constant[at][0].to(flat.device)
            if not torch.allclose(flat[fixed], level[fixed, None], rtol=1e-3, atol=1e-5):
                raise PgnasError(
                    f"step '{n.name}' is not constant, as analysed; please report this"
                )
            self.levels[at] = level
        return value


def _constants(network: nn.Module, keep: Tensor, wiring: Wiring) -> list[Tensor]:
    """Per node (channels,): the value of each channel that is constant; others are meaningless."""
    run = _Values(network, wiring.graph, wiring.constant)
    like = next(network.parameters())
    with torch.no_grad(), evaluating(network), masked(network, keep):
        run.run(like.new_ones(2, *wiring.graph.input_shape))  # as traced
    return run.levels


# --- exactness ----------------------------------------------------------------------------------


@full_float32()
@torch.no_grad()
def largest_difference(
    network: nn.Module, keep: Tensor, smaller: nn.Module, batches: list[Tensor]
) -> float:
    """Largest difference of masked and slim logits as a share of the largest; infinite for NaN."""
    network.eval()
    worst = 0.0
    for batch in batches:
        with masked(network, keep):
            expected = network(batch)
        worst = max(worst, difference(smaller(batch), expected))
    return worst


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference as a share of the largest expected number; infinite for NaN."""
    largest = float((found - expected).abs().max()) / (float(expected.abs().max()) or 1.0)
    return largest if math.isfinite(largest) else math.inf


@full_float32()
@torch.no_grad()
def agree(
    differs: float,  # largest difference of logits on `batches`, as a share of the largest
    tolerance: float,
    network: nn.Module,
    batches: Iterable[Tensor],
    keep: Tensor | None = None,  # of a super-network, bool (gates,)
) -> bool:
    """Whether two networks that should compute the same do, but for rounding.

    Rounding grows with depth, and with sums that cancel: above `tolerance`, `network` is computed
    in float64 as well, and `ROUNDING` times its own rounding is allowed, up to `ROUNDING_MOST`.
    """
    if differs <= tolerance or not differs <= ROUNDING_MOST:
        return differs <= tolerance
    exact = copy.deepcopy(network).double()
    found = []
    for batch in batches:
        logits = []
        for model, images in ((network, batch), (exact, batch.double())):
            with contextlib.nullcontext() if keep is None else masked(model, keep):
                try:
                    logits.append(model(images).double())
                except RuntimeError:  # a forward with tensors of its own has one dtype
                    return False
        found.append(difference(logits[0], logits[1]))
    return differs <= ROUNDING * max(found)
