"""Arrange a network for speed (layouts "fast" and "onnx"): same logits, but for the order of sums.

1. A batch-norm is folded into the convolution or linear layer whose output it alone reads.
2. Numbers of channels become multiples of `BLOCK`: matrix products of odd sizes are slow. What is
   added repeats a channel that is there, so that no new value occurs, and is read by nobody.
3. The channels of a shared tensor are put in an order in which what a layer reads lies together:
   a slice costs less than picking. Channels between them may be read with zero weights.
4. A norm or depthwise convolution that picks its inputs computes all of them where that is faster.

Channels that a sum, a norm, an activation or a depthwise convolution ties together are one class,
and move together. The classes that an unknown step, the input or the logits touch stay as they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations, product
from math import prod
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..fields import check_choice
from ..graph import Graph, Node
from .folding import fold_, store_applied_
from .layers import Constant, Narrow, narrow_, parameter_like

Layout = Literal["small", "fast", "onnx"]
Way = Literal["whole", "slice", "pick"]


@dataclass(frozen=True)
class Costs:
    """What a runtime takes, in MACs that it does in the same time."""

    pick: float  # a channel at one pixel, read by picking
    slice: float  # the same, within a slice; half as much where the tensor is small
    touch: float  # the same, computed by a sum, an activation, a depthwise convolution
    step: float  # a pick or slice, besides its channels


COSTS = {  # measured on a CPU: bench/latency.py; "fast" is for torch, "onnx" for ONNX Runtime
    "fast": Costs(pick=45, slice=15, touch=15, step=0),
    "onnx": Costs(pick=45, slice=15, touch=15, step=2e6),
}
BLOCK = 8  # numbers of channels become multiples of it
MOST_READERS = 4  # whose channels are put together; the others make do with the order found
NEVER = 1e9  # MACs
_LAYERS = (nn.Conv2d, nn.Linear, _BatchNorm, Narrow)


@torch.no_grad()
def arranged(network: nn.Module, layout: Layout, graph: Graph) -> nn.Module:
    """A network in layout "small", or a whole one, in evaluation mode; changed in place.

    `graph` is that of the super-network. In layout "fast" (for torch) or "onnx" (for ONNX Runtime)
    it is for inference, not for training.
    """
    check_choice("layout", layout, get_args(Layout))
    if layout != "small":
        store_applied_(network, graph)
        fold_(network, graph)
        _order_(network, graph, COSTS[layout])
    for module in network.modules():
        if isinstance(module, Narrow):
            module.find_span()
            if layout != "small" and module.read is not None:
                module.read = module.read.int()  # faster than int64
    return network


def pays(picks: int, inputs: int, weights: float) -> bool:
    """Whether picking `inputs` of `picks` channels saves time, of so many weights behind each."""
    return COSTS["fast"].pick * inputs < (picks - inputs) * weights  # MACs at one pixel


# --- the order of channels ----------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """A layer that reads some channels of a shared tensor; others between them have no weight."""

    wanted: tuple[int, ...]  # channels
    weights: float  # MACs behind each channel, at one pixel of the tensor
    pixels: int  # of the tensor
    costs: Costs

    def way(self, width: int, span: int) -> tuple[float, Way]:
        """The cheapest way to read, where the wanted channels lie within `span`, and what it costs
        besides their own MACs."""
        wanted, step = len(self.wanted), self.costs.step / self.pixels
        ways: list[tuple[float, Way]] = [
            ((width - wanted) * self.weights, "whole"),
            (step + self.costs.slice * span + (span - wanted) * self.weights, "slice"),
            (step + self.costs.pick * wanted, "pick"),
        ]
        return min(ways)


def best_order(width: int, readers: Sequence[Reader]) -> list[int]:
    """An order of `width` channels in which the readers cost little; they as they come if none.

    Starts from the best order that puts the channels of two readers together, and moves blocks of
    channels that the same readers want, until no move saves anything.
    """
    readers = sorted(readers, key=lambda reader: -len(reader.wanted))[:MOST_READERS]
    wanted = [set(reader.wanted) for reader in readers]
    blocks: dict[tuple[bool, ...], list[int]] = {}
    for channel in range(width):
        blocks.setdefault(tuple(channel in some for some in wanted), []).append(channel)

    def cost(kinds: Sequence[tuple[bool, ...]]) -> float:
        total = 0.0
        for number, reader in enumerate(readers):
            inside = [at for at, kind in enumerate(kinds) if kind[number]]
            span = sum(len(blocks[kind]) for kind in kinds[inside[0] : inside[-1] + 1])
            total += reader.way(width, span)[0]
        return total

    natural = list(blocks)
    pairs = product(range(len(readers)), repeat=2)
    best = min([natural, *(_together(natural, a, b) for a, b in pairs)], key=cost)
    while True:
        moves = [_moved(best, a, b) for a, b in permutations(range(len(best)), 2)]
        better = min(moves, key=cost, default=best)
        if cost(better) >= cost(best):
            return [channel for kind in best for channel in blocks[kind]]
        best = better


def _together(kinds: list[tuple[bool, ...]], a: int, b: int) -> list[tuple[bool, ...]]:
    """What reader `a` alone wants, what both want, what `b` alone wants, the rest."""
    return sorted(kinds, key=lambda kind: kind[b] - 2 if kind[a] else 1 - kind[b])


def _moved(kinds: list[tuple[bool, ...]], first: int, last: int) -> list[tuple[bool, ...]]:
    rest = kinds[:first] + kinds[first + 1 :]
    return [*rest[:last], kinds[first], *rest[last:]]


def filled(widths: Tensor, room: int, block: int = BLOCK) -> Tensor:
    """Numbers of channels, up to multiples of `block`.

    As they are where that would add more than half, or go beyond `room`.
    """
    up = (widths / block).ceil() * block
    return torch.where((2 * (up - widths) > widths) | (up > room), widths, up)


class _Classes:
    """Which class each run of channels of each tensor belongs to, and the order of each class."""

    def __init__(self, network: nn.Module, graph: Graph, costs: Costs) -> None:
        self.graph, self.network, self.costs = graph, network, costs
        self.shared = graph.shared()
        self.modules = dict(network.named_modules())
        self.root: list[int] = []  # a class is known by its first member
        self.widths: list[int] = []
        self.room: list[int] = []  # in the whole network; a forward may count on no more
        self.fixed: set[int] = set()
        self.made: dict[int, int] = {}  # the norm or depthwise convolution that begins a class by
        # picking what it reads
        self.whole: set[int] = set()  # of these nodes, those that had better read all
        self.parts: list[tuple[int, ...]] = []  # of each node's tensor
        self.repeats: list[int] = []  # of each channel, behind a flattening
        for node in graph.nodes:
            sources = [self.parts[source] for source in node.inputs]
            repeat = max((self.repeats[source] for source in node.inputs), default=1)
            if node.kind == "flatten":
                repeat *= node.channels // graph.nodes[node.inputs[0]].channels
            known = len(self.root)
            found = self._tied(node, sources)
            if found is None:
                found_width = node.channels
                if node.kind == "concatenate":  # of parts that were cut
                    found_width = sum(
                        self.repeats[i] * sum(self.widths[m] for m in self.parts[i])
                        for i in node.inputs
                    )
                self.parts.append(self._new(node, found_width, fixed=True))
            else:
                self.parts.append(found)
            self.repeats.append(repeat if len(self.root) == known else 1)
            if found is None or node.layer in self.shared:
                self._fix(self.parts[-1], *sources)
        self.orders: dict[int, list[int]] = {}
        self._choose_orders()

    def _new(self, node: Node, width: int, *, fixed: bool = False) -> tuple[int, ...]:
        self.root.append(len(self.root))
        self.widths.append(width)
        self.room.append(node.channels)
        self.fixed |= {self.root[-1]} if fixed else set()
        return (self.root[-1],)

    def _find(self, member: int) -> int:
        while self.root[member] != member:
            member = self.root[member]
        return member

    def _fix(self, *parts: tuple[int, ...]) -> None:
        self.fixed |= {member for part in parts for member in part}

    def _tied(  # noqa: C901 - one rule per kind of node
        self, node: Node, sources: list[tuple[int, ...]]
    ) -> tuple[int, ...] | None:
        """The classes of the tensor that a node writes; None: nothing is known of it."""
        module: Any = self.modules.get(node.layer)
        if isinstance(module, Constant):
            return self._new(node, module.channels)
        if node.kind == "parameter":
            return self._new(node, self.network.get_parameter(node.layer).shape[node.axis])
        if node.kind == "slice":
            self._fix(sources[0])
            return self._new(node, module.last - module.first, fixed=True)
        if node.kind == "grouped" and not _is_depthwise(node, module):
            self._fix(sources[0])
            return self._new(node, module.out_channels, fixed=True)
        if node.kind == "mix":
            return self._new(node, len(module.weight))
        if node.cuttable and getattr(module, "read", None) is not None:
            self.made[len(self.root)] = len(self.parts)
            return self._new(node, len(module.read))
        if node.kind in ("norm", "grouped", "switch", "channelwise", "flatten"):
            return sources[0]
        inputs = node.inputs
        if node.kind == "concatenate" and len({self.repeats[i] for i in inputs}) == 1:
            return tuple(member for source in sources for member in source)
        if node.kind == "elementwise":
            alike = [self.graph.nodes[i].channels == node.channels for i in inputs]
            like = [source for source, same in zip(sources, alike, strict=True) if same]
            self._fix(*(source for source, same in zip(sources, alike, strict=True) if not same))
            runs = {(tuple(self.widths[m] for m in self.parts[i]), self.repeats[i])
                    for i, same in zip(inputs, alike, strict=True) if same}  # fmt: skip
            if len(runs) > 1:
                self._fix(*like)
            else:
                for members in zip(*like, strict=True):
                    first, *others = sorted({self._find(member) for member in members})
                    for other in others:
                        self.root[other] = first
            return like[0]
        return None

    def _choose_orders(self) -> None:
        """Give each class its channels in their new order; ~n stands for a repeat of channel n."""
        fixed = {self._find(member) for member in self.fixed}
        readers: dict[int, list[Reader]] = {}
        products = set()  # classes that a matrix product writes
        for at, node in enumerate(self.graph.nodes):
            source = self.parts[node.inputs[0]] if node.inputs else ()
            read = getattr(self.modules.get(node.layer), "read", None)
            alone = len(source) == 1 and self.repeats[node.inputs[0]] == 1
            if alone and read is not None and len(read):
                reader = self.reader(at, read.tolist())
                readers.setdefault(self._find(source[0]), []).append(reader)
            if node.kind == "mix":
                products |= {self._find(self.parts[at][0])}
        for member, width in enumerate(self.widths):
            if self._find(member) != member:
                continue
            picker = self.made.get(member)
            if member in fixed:
                self.orders[member] = list(range(width))
            elif picker is not None and self._reads_all(picker):
                self.orders[member] = self._as_read(picker, filled=True)
            else:
                order = list(range(width)) if picker is None else self._as_read(picker)
                if member in readers:
                    order = best_order(width, readers[member])
                room = min(room for m, room in enumerate(self.room) if self._find(m) == member)
                wanted = int(filled(torch.tensor(width), room)) if member in products else width
                missing = wanted - width
                self.orders[member] = order + [~order[-1]] * missing

    def _reads_all(self, at: int) -> bool:
        """Whether a norm or depthwise convolution that picks its inputs had better compute all."""
        node = self.graph.nodes[at]
        read, source = self.modules[node.layer].read, node.inputs[0]
        mine, extra, touch = self._find(self.parts[at][0]), 0.0, self.costs.touch
        for other, one in enumerate(self.graph.nodes):
            pixels, module = prod(one.size), self.modules.get(one.layer)
            mixes = one.kind == "mix" and isinstance(module, nn.Conv2d | nn.Linear)
            if mine in self._roots(other):
                extra += pixels * (cast(Any, module).weight[0].numel() if mixes else touch)
            if mixes and mine in self._roots(one.inputs[0]):
                extra += pixels * self.weights(other)
        more = len(self.labels(source)) - len(read)
        picking = self.costs.step + self.costs.pick * len(read) * prod(node.size)
        self.whole |= {at} if more * extra < picking else set()
        return at in self.whole

    def _roots(self, at: int) -> list[int]:
        return [self._find(part) for part in self.parts[at]]

    def _as_read(self, at: int, *, filled: bool = False) -> list[int]:
        """The order of the channels that a layer picks, as they come; filled: all that come."""
        node = self.graph.nodes[at]
        wanted = {channel: n for n, channel in enumerate(self.modules[node.layer].read.tolist())}
        # What is not wanted, and repeats, becomes -1: a repeat of channel 0.
        found = [wanted.get(label, -1) for label in self.labels(node.inputs[0])]
        return [n for n in found if filled or n >= 0]

    def weights(self, at: int) -> float:
        """MACs behind each channel that the layer at `at` reads, at one pixel of what it reads."""
        node, layer = self.graph.nodes[at], self.modules[self.graph.nodes[at].layer]
        if node.kind != "mix":
            return NEVER  # reads no more than it writes
        pixels = prod(node.size) / prod(self.graph.nodes[node.inputs[0]].size)
        weight: Any = layer.weight
        return float(len(weight) * prod(weight.shape[2:]) * pixels)

    def reader(self, at: int, wanted: Sequence[int]) -> Reader:
        """The layer at `at`, which reads the channels `wanted`."""
        pixels = prod(self.graph.nodes[self.graph.nodes[at].inputs[0]].size)
        return Reader(tuple(wanted), self.weights(at), pixels, self.costs)

    def labels(self, at: int) -> list[int]:
        """For each channel of a tensor as it will be: which one it was; ~n for a repeat of n."""
        found: list[int] = []
        first, times = 0, self.repeats[at]
        for part in self.parts[at]:
            for entry in self.orders[self._find(part)]:
                start = (first + max(entry, ~entry)) * times
                found += [n if entry >= 0 else ~n for n in range(start, start + times)]
            first += self.widths[part]
        return found


def _order_(network: nn.Module, graph: Graph, costs: Costs) -> None:
    classes = _Classes(network, graph, costs)
    for layer, calls in graph.calls().items():
        at, node = calls[0], graph.nodes[calls[0]]
        module: Any = classes.modules.get(layer)
        if layer in classes.shared:
            continue
        rows = [max(label, ~label) for label in classes.labels(at)]
        if node.kind == "parameter":
            owner, _, name = layer.rpartition(".")
            old = network.get_parameter(layer)
            kept = old.index_select(node.axis, _index(rows, old))
            setattr(network.get_submodule(owner), name, parameter_like(kept, old))
        elif isinstance(module, Constant):
            module.channels = len(rows)
            _take_rows_(module, rows)
        elif node.cuttable and isinstance(module, _LAYERS):
            given = classes.labels(node.inputs[0])
            if node.kind == "mix":
                _read_(module, given, partial(classes.reader, at))
            elif (read := getattr(module, "read", None)) is not None:
                place = {label: position for position, label in enumerate(given)}
                wanted = read.tolist()
                if node.kind == "norm" or _is_depthwise(node, module):  # a channel in, one out
                    wanted = [wanted[row] for row in rows]
                places = [] if at in classes.whole else [place[label] for label in wanted]
                narrow_(module, _index(places, read), len(given) if places else 0)
            depthwise = _is_depthwise(node, module)
            _take_rows_(module, rows)
            _count_(module, depthwise=depthwise)


def _index(positions: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(positions, dtype=torch.int64, device=like.device)


def _take_rows_(module: Any, rows: Sequence[int]) -> None:
    for name in ("weight", "bias", "running_mean", "running_var", "value"):
        old = getattr(module, name, None)
        if old is not None and list(rows) != list(range(len(old))):
            new = old[_index(rows, old)]
            learns = isinstance(old, nn.Parameter)
            setattr(module, name, parameter_like(new, old) if learns else new)


def _read_(layer: Any, labels: Sequence[int], reader: Callable[[list[int]], Reader]) -> None:
    """Let a convolution or linear layer find its inputs where they lie now, in the cheapest way."""
    old, plane, read = layer.weight, getattr(layer, "plane", False), getattr(layer, "read", None)
    inputs = range(old.shape[1] - plane) if read is None else read.tolist()
    column = {channel: at for at, channel in enumerate(inputs)}
    wanted = [at for at, label in enumerate(labels) if label in column]
    chosen: Sequence[int] = wanted
    if read is None:  # not picked before: neither now, for the sake of repeats
        chosen = range(len(labels))
    elif wanted:
        span = range(wanted[0], wanted[-1] + 1)
        way = reader(wanted).way(len(labels), len(span))[1]
        chosen = {"whole": range(len(labels)), "slice": span, "pick": wanted}[way]
    if read is None and [*labels] == [*inputs]:
        return
    weight = old.new_zeros(len(old), len(chosen) + plane, *old.shape[2:])
    place = {at: n for n, at in enumerate(chosen)}
    weight[:, [place[at] for at in wanted]] = old[:, [column[labels[at]] for at in wanted]]
    if plane:
        weight[:, -1] = old[:, -1]
    layer.weight = parameter_like(weight, old)
    if isinstance(layer, Narrow) or len(chosen) < len(labels):
        picks = len(labels) if len(chosen) < len(labels) else 0
        narrow_(layer, _index(chosen, old), picks, plane=plane)


def _count_(layer: Any, *, depthwise: bool) -> None:
    """Let a layer say how large it is."""
    if isinstance(layer, _BatchNorm):
        layer.num_features = len(cast(Tensor, layer.running_mean))
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.Conv2d):
        layer.out_channels = len(layer.weight)
        layer.groups = layer.out_channels if depthwise else layer.groups
        layer.in_channels = layer.groups * layer.weight.shape[1]


def _is_depthwise(node: Node, layer: Any) -> bool:
    channels = node.kind == "grouped" and {layer.in_channels, layer.out_channels}
    return channels == {getattr(layer, "groups", 0)}
