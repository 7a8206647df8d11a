"""A network with gates in place.

`make_concrete_` turns chosen layers of an ordinary network into gated ones. All gates of a network
live in one `Gates` module, registered as `network.gates`: one vector of drop logits, so that a
training step draws all its gates in one call. Three contexts say how the gates act:

    with relaxed(network, batch=64, generator=g, temperature=0.2): ...   one draw per image
    with masked(network, keep): ...                                      one candidate
    with opened(network): ...                                            the whole network

Outside of them the gates are open. An infinite drop logit is a p of exactly 0 or 1.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import PgnasError
from ..fields import check_range
from ..graph import Graph, OperationGate, contiguous_, trace
from .layers import Gated, gated_class, hard_keep, logistic_noise, relaxed_keep
from .placement import followers, gateable, reads_hidden_channels, segments


@dataclass(frozen=True)
class GateGroup:
    """Gates with a common drop probability: input channels [start, stop) of one layer."""

    layer: str
    start: int
    stop: int


class Gates(nn.Module):
    """All gates of a network, layer after layer, and the drop logit of each group."""

    drop_logit: nn.Parameter  # (groups,), log-odds of being dropped
    channels: Tensor  # float (groups,), gates in each
    group: Tensor  # int64 (gates,), the group of each gate
    places: Tensor | None  # int64: where the inputs of a part have their gates; None: all in order

    def __init__(self, groups: Iterable[GateGroup], graph: Graph, initial_drop: float) -> None:
        super().__init__()
        self.groups = tuple(groups)
        self.graph = graph
        sizes = torch.tensor([group.stop - group.start for group in self.groups])
        self.register_buffer("channels", sizes.float(), persistent=False)
        self.register_buffer(
            "group", torch.arange(len(sizes)).repeat_interleave(sizes), persistent=False
        )
        start = torch.full((len(sizes),), initial_drop).logit()
        self.drop_logit = nn.Parameter(start)
        spans: dict[str, tuple[int, int]] = {}
        at = 0
        for group, size in zip(self.groups, sizes.tolist(), strict=True):
            spans[group.layer] = (spans.get(group.layer, (at, at))[0], at + size)
            at += size
        self.spans = spans  # layer -> its gates [first, last); a squeeze has those of another
        self.register_buffer("places", None)

    def part(self, places: dict[str, Tensor]) -> "Gates":
        """These gates for what is left of their network: for each layer, those of its inputs.

        `places` are int64 positions among these gates. Groups, p and every `keep` stay those of
        the whole network, and `drop_logit` is the same parameter.
        """
        left = Gates.__new__(Gates)
        nn.Module.__init__(left)
        left.groups, left.graph, left.drop_logit = self.groups, self.graph, self.drop_logit
        left.register_buffer("channels", self.channels, persistent=False)
        left.register_buffer("group", self.group, persistent=False)
        joined = torch.cat([torch.empty(0, dtype=torch.int64), *places.values()])
        left.register_buffer("places", joined.to(self.group.device), persistent=False)
        ends = [0, *accumulate(len(own) for own in places.values())]
        left.spans = dict(zip(places, pairwise(ends), strict=True))
        return left

    def places_of(self, layer: str) -> Tensor:
        """Positions of the gates on the inputs of `layer`, int64 (inputs,)."""
        places = self.places
        if places is None:
            places = positions(self.count, self.group.device)
        return places[slice(*self.spans[layer])]

    def forward(self, input: Tensor) -> Tensor:
        """The input: where the network is an nn.Sequential, its gates are called last."""
        return input

    @property
    def count(self) -> int:
        """Number of gates."""
        return self.group.numel()


@cache
def positions(number: int, device: torch.device) -> Tensor:
    """0, 1, ... on a device; made once, since each kernel of a step counts. Not to be changed."""
    with torch.inference_mode(False):
        return torch.arange(number, device=device)


def gates(network: nn.Module) -> Gates:
    """The gates of a super-network."""
    bank = getattr(network, "gates", None)
    if not isinstance(bank, Gates):
        raise PgnasError(
            f"{type(network).__name__} has no gates; make a super-network of it first: see"
            " create_supernet"
        )
    return bank


def check_keep(network: nn.Module, keep: Tensor, *, axes: tuple[int, ...]) -> None:
    """Raise PgnasError unless `keep` is bool (gates,) or (candidates, gates) of this network.

    `axes` are the possible numbers of its axes.
    """
    count = gates(network).count
    if not isinstance(keep, Tensor):
        found = type(keep).__name__
    else:
        found = f"{keep.dtype} {tuple(keep.shape)}"
        shaped = keep.dim() in axes and keep.shape[-1] == count and keep.numel()
        if keep.dtype == torch.bool and shaped:
            return
    possible = " or ".join([f"({count},)", f"(candidates, {count})"][n - 1] for n in axes)
    raise PgnasError(f"`keep` is {found}; possible: a bool tensor {possible}")


def make_concrete_(
    network: nn.Module,
    input_shape: tuple[int, int, int],  # channels, height, width
    *,
    layers: str = "all",  # "all", or "hidden": only channels that die with their one consumer;
    # with "+operations" also the marked operations without weights
    groups: str = "layer",  # "layer", "channel", or a number of consecutive channels
    initial_drop: float = 0.1,
    operation_cost: float = 0.0,  # of keeping such an operation, in squared weights
    ungated: Iterable[str] = (),
) -> nn.Module:
    """Put gates on the inputs of convolutions and linear layers; changes and returns `network`.

    A group is one concatenated segment of a layer's input (the whole input as a rule), or pieces of
    it where `groups` says so. Weights are shared, not copied; state-dict keys stay.
    """
    inputs, _, operations = layers.partition("+")
    if inputs not in ("all", "hidden") or operations not in ("", "operations"):
        raise PgnasError(
            f"`gates` '{layers}' is not known; possible: all, hidden, all+operations,"
            " hidden+operations"
        )
    size = _group_size(groups)
    check_range("initial_drop", initial_drop, 0, 1, open=True)
    if hasattr(network, "gates"):
        raise PgnasError(
            f"{type(network).__name__} already has an attribute 'gates'; a network is gated once"
        )
    graph = trace(network, input_shape)
    if graph.contiguous:
        contiguous_(network)
    modules = dict(network.named_modules())

    def wanted(name: str) -> bool:
        if isinstance(modules[name], OperationGate):
            return bool(operations)
        return inputs == "all" or reads_hidden_channels(graph, name)

    possible = [name for name, reason in gateable(network, graph).items() if not reason]
    chosen = [name for name in possible if name not in set(ungated) and wanted(name)]
    if not chosen:
        raise PgnasError(
            f"{type(network).__name__} has no layer that can carry a gate; gates go on the inputs"
            " of convolutions and linear layers behind the first one"
        )
    found = []
    for name in chosen:
        modules[name].__class__ = gated_class(type(modules[name]))  # type: ignore[arg-type]
        if isinstance(modules[name], OperationGate):
            modules[name].cost = operation_cost
            found.append(GateGroup(name, 0, 1))
            continue
        start = 0
        for piece in segments(graph, name):
            step = size or piece
            bounds = [*range(start, start + piece, step), start + piece]
            found += [GateGroup(name, a, b) for a, b in pairwise(bounds)]
            start += piece
    bank = Gates(found, graph, initial_drop)
    for squeeze, main in followers(graph).items():
        if main in bank.spans:
            modules[squeeze].__class__ = gated_class(type(modules[squeeze]))  # type: ignore[arg-type]
            bank.spans[squeeze] = bank.spans[main]
    network.gates = bank
    return network


def _group_size(groups: str) -> int:
    """Channels in a group; 0 for a whole segment."""
    names = {"layer": 0, "channel": 1}
    if groups in names:
        return names[groups]
    if groups.isdecimal() and int(groups) > 0:
        return int(groups)
    raise PgnasError(f"`groups` '{groups}' is not known; possible: layer, channel, or a number")


@dataclass(frozen=True)
class LayerGates:
    """A convolution or linear layer of a super-network and the gates on its input."""

    layer: str
    inputs: int  # channels
    gates: int  # 0: none
    groups: int  # of its own
    remark: str  # why it has none, or whose it shares


def layer_gates(network: nn.Module) -> list[LayerGates]:
    """Every convolution and linear layer, in order of execution."""
    bank = gates(network)
    modules = dict(network.named_modules())
    rows = []
    for name, reason in gateable(network, bank.graph).items():
        first, last = bank.spans.get(name, (0, 0))
        own = sum(group.layer == name for group in bank.groups)
        remark = reason or ("" if last else "left open by the options")
        if isinstance(modules[name], OperationGate):
            calls = bank.graph.calls().get(name, [])
            width = bank.graph.nodes[calls[0]].channels if calls else 0
            rows.append(LayerGates(name, width, last - first, own, remark))
            continue
        weight = cast(Tensor, modules[name].weight)
        grouped = int(getattr(modules[name], "groups", 1))
        rows.append(LayerGates(name, weight.shape[1] * grouped, last - first, own, remark))
    return rows


# --- how the gates act --------------------------------------------------------------------------


@contextmanager
def _kept(network: nn.Module, keeps: Mapping[str, Tensor | None]) -> Iterator[None]:
    """Give each gated layer its part of the gates, or None; restore the former state after."""
    modules = dict(network.named_modules())
    layers = {name: cast(Gated, modules[name]) for name in gates(network).spans}
    before = {name: layer.keep for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.keep = keeps.get(name)
    try:
        yield
    finally:
        for name, layer in layers.items():
            layer.keep = before[name]


def _parts(network: nn.Module, keep: Tensor) -> dict[str, Tensor | None]:
    """The part of `keep` (..., gates) of each gated layer."""
    bank = gates(network)
    if bank.places is not None:
        keep = keep.index_select(-1, bank.places)
    # In one split: the gradient of a slice is as long as all gates.
    own = sorted(set(bank.spans.values()))
    pieces = keep.split([last - first for first, last in own], -1)
    parts = dict(zip(own, pieces, strict=True))
    return {name: parts[span] for name, span in bank.spans.items()}


def of_rows(network: nn.Module, rows: slice) -> AbstractContextManager[None]:
    """Context: the gates as they act now, for a part of the images that they were drawn for."""
    modules = dict(network.named_modules())
    acting = {name: cast(Gated, modules[name]).keep for name in gates(network).spans}
    return _kept(
        network,
        {
            name: keep[rows] if keep is not None and keep.dim() == 2 else keep
            for name, keep in acting.items()
        },
    )


def opened(network: nn.Module) -> AbstractContextManager[None]:
    """Context: all gates open, the whole network."""
    return _kept(network, {})


def masked(
    network: nn.Module, keep: Tensor, alike: Mapping[str, Tensor | None] | None = None
) -> AbstractContextManager[None]:
    """Context: hard gates; `keep` is bool (gates,), or (batch, gates) with a row per image.

    `alike` holds the layers that have the same gates in all rows (`decided`).
    """
    check_keep(network, keep, axes=(1, 2))
    parts = _parts(network, keep.to(gates(network).group.device))
    return _kept(network, parts | dict(alike or {}))


def decided(network: nn.Module) -> dict[str, Tensor | None]:
    """Layers whose gates are alike in all draws, since p is 0 or 1: their mask, bool (inputs,).

    None where all are open. Finding them waits for a device.
    """
    bank = gates(network)
    p = per_gate(network, drop_probabilities(network))
    fixed, opened_ = ((p == 0) | (p == 1)).cpu(), (p == 0).cpu()
    found: dict[str, Tensor | None] = {}
    for name in bank.spans:
        own = bank.places_of(name).cpu()
        if bool(fixed[own].all()):
            found[name] = None if bool(opened_[own].all()) else opened_[own].to(p.device)
    return found


def relaxed(
    network: nn.Module,
    *,
    batch: int,
    generator: torch.Generator,
    temperature: float,
    part: slice = slice(None),  # of the batch, where other processes have the rest
) -> AbstractContextManager[None]:
    """Context: relaxed gates, one draw per image and gate (Eq. 16), differentiable in p."""
    check_range("temperature", temperature, 0, open=True)
    bank = gates(network)
    noise = logistic_noise((batch, bank.count), generator=generator)[part]
    noise = noise.to(bank.drop_logit.device, non_blocking=True)
    logits = per_gate(network, bank.drop_logit)
    return _kept(network, _parts(network, relaxed_keep(logits, noise, temperature=temperature)))


# --- reading the gates --------------------------------------------------------------------------


def drop_probabilities(network: nn.Module) -> Tensor:
    """Learned drop probability of each group, float (groups,)."""
    return torch.sigmoid(gates(network).drop_logit.detach())


def remaining(network: nn.Module) -> Tensor:
    """Gates that a candidate can keep: all but those whose p is exactly 1; bool (gates,)."""
    return per_gate(network, ~gates(network).drop_logit.detach().isposinf())


def per_gate(network: nn.Module, values: Tensor) -> Tensor:
    """`values` (groups,) repeated for each gate of its group, (gates,), on their device."""
    return values[gates(network).group.to(values.device)]


def draw(
    network: nn.Module,
    *,
    generator: torch.Generator,
    drop_probability: Tensor | float | None = None,  # (groups,), or one for all; None: learned
) -> Tensor:  # bool (gates,), True stays
    """One candidate of the posterior, or of other drop probabilities."""
    groups = len(gates(network).groups)
    if drop_probability is None:
        drop_probability = drop_probabilities(network)
    elif isinstance(drop_probability, int | float):
        drop_probability = torch.full((groups,), float(drop_probability))
    sane = isinstance(drop_probability, Tensor) and drop_probability.shape == (groups,)
    if not sane or not bool(((drop_probability >= 0) & (drop_probability <= 1)).all()):
        raise PgnasError(f"`drop_probability` is a number, or a tensor ({groups},), from 0 to 1")
    return hard_keep(per_gate(network, drop_probability.cpu()), generator=generator)
