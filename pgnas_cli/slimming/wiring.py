"""Which channels a candidate still needs, for many candidates at once.

Three passes over the graph, all on bool tensors with a row per candidate:

1. forward, what is **constant**: a layer whose inputs are all dropped yields its bias, whatever the
   image; batch-norm and activation make another constant of it. A layer that keeps a constant input
   need not read it (its contribution is folded into the layer, see slimming.py).
2. backward, what is **needed**: a gated layer asks for its kept inputs that are not constant, if
   any of its own outputs is needed. Constants that a sum or an opaque step needs are made by the
   batch-norm or the layer itself, which then reads nothing.
3. until nothing changes, what is **live**: operands of a sum must agree in width, a concatenation
   is as wide as its parts, an activation as its input. Convolutions, linear layers and batch-norms
   are free: each picks its inputs from a wider tensor. One channel stays where none is needed.

There are no coupling groups: what one consumer drops stays for the others.

A network that goes on being trained (`training`) has no constants but the outputs of a layer
without inputs: what its batch-norm makes of them changes from step to step.

`round_to` then brings dropped channels back until every layer's number of outputs and inputs is a
multiple, as some hardware likes it; they are multiplied by zero weights (`spare`).
"""

import dataclasses
import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..fields import check_range
from ..gates import gates
from ..graph import Graph, Node, plain_twin
from ..naming import ROUND_TO


@dataclass(frozen=True)
class Wiring:
    """The three answers for every node, and what each convolution and linear layer reads."""

    graph: Graph
    constant: tuple[Tensor, ...]  # per node, bool (candidates, channels)
    needed: tuple[Tensor, ...]  # per node, bool (candidates, channels)
    live: tuple[Tensor, ...]  # per node, bool (candidates, channels)
    reads: dict[str, Tensor]  # per mix layer, bool (candidates, inputs): what it multiplies
    folds: dict[str, Tensor]  # per mix layer, bool (candidates, inputs): kept, but constant
    spare: dict[str, Tensor]  # per mix layer, bool (candidates, inputs): read with zero weights
    closed: dict[str, Tensor]  # per gated operation, bool (candidates,): taken out

    def varies(self, layer: str) -> Tensor:
        """Whether an output of `layer` is needed that depends on the image, bool (candidates,)."""
        calls = self.graph.calls()[layer]
        return ~torch.stack([is_fixed(self.needed[c], self.constant[c]) for c in calls]).all(0)

    def wanted(self, layer: str) -> Tensor:
        """Whether any output of `layer` is needed, bool (candidates,)."""
        return torch.stack([self.needed[c].any(1) for c in self.graph.calls()[layer]]).any(0)


def wire(network: nn.Module, keep: Tensor, *, round_to: int = 1, training: bool = False) -> Wiring:
    """Trace the candidates `keep`, bool (candidates, gates), through the network's graph.

    With `training` the answers hold while the network is trained, not in evaluation alone.
    """
    check_range("round_to", round_to, *ROUND_TO)
    bank = gates(network)
    graph = _trainable(bank.graph, network) if training else bank.graph
    keep = keep.cpu()
    kept = {name: keep[:, first:last] for name, (first, last) in bank.spans.items()}
    for node in graph.nodes:
        if node.kind == "mix" and node.layer not in kept:
            kept[node.layer] = keep.new_ones(len(keep), graph.nodes[node.inputs[0]].channels)
    shared = graph.shared()
    constant = _closed(graph, kept) if training else _constant(graph, kept, shared, len(keep))
    folding = [] if training else [layer for layer in kept if layer not in shared]
    needed, reads, folds, spare = _needed(graph, kept, constant, set(folding))
    known = _Known(graph, kept, shared, constant, needed)
    live = _live(known)
    if round_to > 1:
        while _round_outputs(graph, live, round_to):
            _settle(known, live)
        _round_reads(graph, live, reads, folds, spare, round_to)
    operations = [node.layer for node in graph.nodes if node.kind == "switch"]
    closed = {layer: ~kept[layer][:, 0] for layer in operations if layer in kept}
    return Wiring(graph, tuple(constant), tuple(needed), tuple(live), reads, folds, spare, closed)


def is_fixed(needed: Tensor, constant: Tensor) -> Tensor:
    """Whether no output is needed that depends on the image, bool (candidates,)."""
    return ~(needed & ~constant).any(1)


def _constant(
    graph: Graph, kept: dict[str, Tensor], shared: dict[str, list[int]], candidates: int
) -> list[Tensor]:
    aliased = _aliased(graph)
    constant: list[Tensor] = []
    for position, node in enumerate(graph.nodes):
        operands = [constant[source] for source in node.inputs]
        value = torch.zeros(candidates, node.channels, dtype=torch.bool)
        if node.kind == "mix":
            varying = kept[node.layer]
            if not node.borders and node.layer not in shared:
                varying = varying & ~operands[0]
            value = (~varying.any(1, keepdim=True)).expand(-1, node.channels)
        elif node.kind == "parameter":
            value = ~value
        elif node.borders or (node.cuttable and node.layer in shared):
            pass  # a cut module has one value for all of its calls
        elif node.kind == "grouped":
            value = spread(_all_of_group(operands[0], node.groups), node.channels)
        elif node.kind in ("norm", "channelwise", "elementwise"):
            value = functools.reduce(torch.logical_and, operands).expand(-1, node.channels)
        elif node.kind == "switch":
            value = operands[0] | ~kept.get(node.layer, value.new_ones(1, 1))
        elif node.kind == "concatenate":
            value = torch.cat(operands, 1)
        elif node.kind == "slice":
            value = operands[0].narrow(1, node.first, node.channels)
        elif node.kind == "flatten":
            value = spread(operands[0], node.channels)
        constant.append(torch.zeros_like(value) if position in aliased else value)
    return constant


def _closed(graph: Graph, kept: dict[str, Tensor]) -> list[Tensor]:
    """Constant in training: the outputs of layers without inputs."""
    aliased, rows = _aliased(graph), len(next(iter(kept.values())))
    found = []
    for position, node in enumerate(graph.nodes):
        value = torch.zeros(rows, node.channels, dtype=torch.bool)
        if node.kind == "mix" and position not in aliased:
            value |= ~kept[node.layer].any(1, keepdim=True)
        found.append(value)
    return found


def _trainable(graph: Graph, network: nn.Module) -> Graph:
    """`graph` where layers that apply other weights than they store are kept whole."""
    modules = dict(network.named_modules())

    def whole(node: Node) -> Node:
        module = modules.get(node.layer)
        if not isinstance(module, nn.Conv2d) or not node.cuttable or plain_twin(module) is module:
            return node
        return dataclasses.replace(node, kind="opaque")

    return dataclasses.replace(graph, nodes=tuple(map(whole, graph.nodes)))


def _aliased(graph: Graph) -> set[int]:
    """Nodes whose memory an in-place step overwrites before a later step reads them again."""
    consumers = graph.consumers()
    found = set()
    for writer, node in enumerate(graph.nodes):
        if not node.in_place:
            continue
        memory = {graph.nodes[source].memory for source in node.inputs}
        for at in range(writer):
            if graph.nodes[at].memory in memory and any(r > writer for r in consumers[at]):
                found.add(at)
    return found


def _needed(  # noqa: C901 - one rule per kind of node
    graph: Graph,
    kept: dict[str, Tensor],
    constant: list[Tensor],
    folding: set[str],  # layers that may fold constant inputs
) -> tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    needed = [torch.zeros_like(value) for value in constant]
    reads = {layer: torch.zeros_like(mask) for layer, mask in kept.items()}
    folds = {layer: torch.zeros_like(mask) for layer, mask in kept.items()}
    spare = {layer: torch.zeros_like(mask) for layer, mask in kept.items()}
    for position in range(len(graph.nodes) - 1, -1, -1):
        node, wanted = graph.nodes[position], needed[position]
        varies = ~is_fixed(wanted, constant[position])[:, None]
        if node.kind in ("output", "opaque"):
            for operand in node.inputs:
                needed[operand][:] = True
        elif node.kind == "mix":
            source = node.inputs[0]
            fold = torch.zeros_like(kept[node.layer])
            if node.layer in folding:
                fold = kept[node.layer] & constant[source]
            reads[node.layer] |= kept[node.layer] & ~fold & varies
            folds[node.layer] |= fold & varies
            needed[source] |= kept[node.layer] & ~fold & varies
            # Its output is overwritten and read again: it stays, with a zero weight.
            plane = folds[node.layer].any(1, keepdim=True) & node.borders
            blank = (varies & ~reads[node.layer].any(1, keepdim=True) & ~plane)[:, 0]
            for mask in (spare[node.layer], reads[node.layer], needed[source]):
                mask[:, 0] |= blank
        elif node.kind == "grouped":
            source = node.inputs[0]
            group = _any_of_group(wanted & varies, node.groups)
            needed[source] |= spread(group, graph.nodes[source].channels)
        elif node.kind == "norm":
            needed[node.inputs[0]] |= wanted & varies
        elif node.kind == "switch":
            needed[node.inputs[0]] |= wanted & kept.get(node.layer, wanted.new_ones(1, 1))
        elif node.kind == "concatenate":
            widths = [graph.nodes[i].channels for i in node.inputs]
            for operand, part in zip(node.inputs, wanted.split(widths, 1), strict=True):
                needed[operand] |= part
        elif node.kind == "slice":
            needed[node.inputs[0]].narrow(1, node.first, node.channels).logical_or_(wanted)
        elif node.kind == "flatten":
            source = node.inputs[0]
            needed[source] |= _any_of_group(wanted, graph.nodes[source].channels)
        elif node.kind in ("channelwise", "elementwise"):
            for operand in node.inputs:
                alike = graph.nodes[operand].channels == node.channels
                needed[operand] |= wanted if alike else wanted.any(1, keepdim=True)
    return needed, reads, folds, spare


@dataclass(frozen=True)
class _Known:
    """What the first two passes found, for the third."""

    graph: Graph
    kept: dict[str, Tensor]
    shared: dict[str, list[int]]
    constant: list[Tensor]
    needed: list[Tensor]


def _live(known: _Known) -> list[Tensor]:
    live = [mask.clone() for mask in known.needed]
    for position, node in enumerate(known.graph.nodes):
        if node.kind in ("input", "output", "opaque"):
            live[position][:] = True
        if node.kind in ("output", "opaque"):
            for source in node.inputs:
                live[source][:] = True
        if node.channels:
            live[position][~live[position].any(1), 0] = True
    _settle(known, live)
    return live


def _settle(known: _Known, live: list[Tensor]) -> None:
    """Widen `live` in place until the operands of every node agree."""
    nodes = known.graph.nodes
    order = [*range(len(nodes)), *range(len(nodes) - 1, -1, -1)]
    while True:
        before = sum(int(mask.sum()) for mask in live)
        for position in order:
            _agree(known, position, live)
        for calls in known.shared.values():
            if nodes[calls[0]].cuttable:
                _unite(live, [nodes[call].inputs[0] for call in calls])
            _unite(live, calls)
        if sum(int(mask.sum()) for mask in live) == before:
            return


def _round_outputs(graph: Graph, live: list[Tensor], multiple: int) -> bool:
    """Bring dropped outputs back, the first ones first; returns whether any came."""
    came = False
    for position, node in enumerate(graph.nodes):
        if node.cuttable:
            more = _missing(live[position], ~live[position], multiple)
            live[position] |= more
            came = came or bool(more.any())
    return came


def _round_reads(
    graph: Graph,
    live: list[Tensor],
    reads: dict[str, Tensor],
    folds: dict[str, Tensor],
    spare: dict[str, Tensor],
    multiple: int,
) -> None:
    """Let each mix layer read more of the channels that are there anyway."""
    calls = graph.calls()
    for layer, mask in reads.items():
        node = graph.nodes[calls[layer][0]]
        if node.kind != "mix":
            continue
        plane = folds[layer].any(1, keepdim=True) & node.borders
        more = _missing(torch.cat([mask, plane], 1), live[node.inputs[0]] & ~mask, multiple)
        more &= mask.any(1, keepdim=True)
        spare[layer] |= more
        mask |= more


def _missing(present: Tensor, absent: Tensor, multiple: int) -> Tensor:
    """The first of `absent` that bring the number of `present` up to a multiple, if enough."""
    lacking = -present.sum(1, keepdim=True) % multiple
    return absent & (absent.cumsum(1) <= lacking)


def _agree(known: _Known, position: int, live: list[Tensor]) -> None:
    """Make the operands of one node as wide as its forward demands."""
    node, out = known.graph.nodes[position], live[position]
    if node.kind in ("norm", "grouped"):
        source = live[node.inputs[0]]
        varies = ~is_fixed(known.needed[position], known.constant[position])[:, None]
        if node.kind == "grouped":
            group = _any_of_group(out, node.groups)
            out |= spread(group, node.channels) & varies  # a group is cut whole
            source |= spread(group, source.shape[1]) & varies
        else:
            source |= out & varies
    elif node.kind == "switch":  # what is taken out makes its zeros itself
        source, opened = live[node.inputs[0]], known.kept.get(node.layer, out.new_ones(1, 1))
        out |= source & opened
        source |= out & opened
    elif node.kind in ("channelwise", "elementwise"):
        alike = [i for i in node.inputs if live[i].shape == out.shape]
        _unite(live, [position, *alike])
    elif node.kind == "concatenate":
        out |= torch.cat([live[source] for source in node.inputs], 1)
        widths = [live[source].shape[1] for source in node.inputs]
        for operand, part in zip(node.inputs, out.split(widths, 1), strict=True):
            live[operand] |= part
    elif node.kind == "slice":
        part = live[node.inputs[0]].narrow(1, node.first, node.channels)
        part |= out
        out |= part
    elif node.kind == "flatten":
        features = live[node.inputs[0]]
        features |= _any_of_group(out, features.shape[1])
        out |= spread(features, node.channels)


def _unite(live: list[Tensor], positions: list[int]) -> None:
    union = torch.stack([live[position] for position in positions]).any(0)
    for position in positions:
        live[position] |= union


def spread(values: Tensor, width: int) -> Tensor:
    """(..., groups) -> (..., width), each group's entry for all of its members."""
    groups = values.shape[-1]
    return values if groups == width else values.repeat_interleave(width // groups, -1)


def _any_of_group(mask: Tensor, groups: int) -> Tensor:
    return mask.view(len(mask), groups, -1).any(2)


def _all_of_group(mask: Tensor, groups: int) -> Tensor:
    return mask.view(len(mask), groups, -1).all(2)
