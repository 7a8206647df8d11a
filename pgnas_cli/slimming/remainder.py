"""What is left of a super-network once some gates are closed for good, to be trained further.

The remainder computes what the whole network computes while those gates are closed, in training as
in evaluation: same logits, same gradients, same batch-norm statistics. Channels that no layer can
read any more are gone from it, with all that made them; gates stay on the inputs that are left. It
shares p with the whole network, and every `keep` stays in terms of the whole network's gates.

The whole network remains the place where candidates are counted and cut out: `write_back` brings
what was trained back into it, with zeros for what has left.
"""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..gates import Gated, gates, remaining
from ..tensors import shapes
from .arrange import pays
from .cut import plan, wanted_inputs
from .layers import Cut, reshape_
from .wiring import Wiring, wire

# Convolutions are fast on multiples of this: closed channels stay until a layer has one.
ROUND = 8


@dataclass(frozen=True)
class Place:
    """Where a tensor of the remainder lies in the whole network."""

    name: str  # in the state dict of the whole network
    axes: tuple[tuple[int, Tensor], ...] = ()  # axis, int64 positions; others are whole

    def part_of(self, whole: Tensor) -> Tensor:
        """The entries that are left."""
        for axis, positions in self.axes:
            whole = whole.index_select(axis, positions.to(whole.device))
        return whole.contiguous()

    def write_(self, part: Tensor, whole: Tensor) -> None:
        """The inverse of `part_of`, into `whole`."""
        _write_(part, whole, self.axes)


def _write_(part: Tensor, whole: Tensor, axes: tuple[tuple[int, Tensor], ...]) -> None:
    if not axes:
        whole.copy_(part)
        return
    (axis, positions), *rest = axes
    positions = positions.to(whole.device)
    inner = whole.index_select(axis, positions)
    _write_(part, inner, tuple(rest))
    whole.index_copy_(axis, positions, inner)


@dataclass(frozen=True)
class Remainder:
    """What is left of a super-network: a network with gates, and where its tensors come from."""

    network: nn.Module
    places: Mapping[str, Place]  # of each entry of its state dict

    @torch.no_grad()
    def write_back(self, whole: nn.Module) -> None:
        """Give the whole network the tensors of what is left of it, and zeros elsewhere."""
        if self.network is whole:
            return
        state, own = whole.state_dict(), self.network.state_dict()
        intact = {place.name for place in self.places.values() if not place.axes}
        for name, tensor in state.items():
            if name not in intact and not name.startswith("gates."):
                tensor.fill_(1 if name.endswith("running_var") else 0)
        for name, place in self.places.items():
            place.write_(own[name], state[place.name])


def everything(network: nn.Module) -> Remainder:
    """The remainder of a network that has lost nothing: itself."""
    names = (name for name in network.state_dict() if not name.startswith("gates."))
    return Remainder(network, {name: Place(name) for name in names})


def stored(whole: nn.Module, state: Mapping[str, Tensor]) -> Remainder:
    """What of `whole` a state dict is of, by its p and its shapes; gives `whole` that p."""
    own, logits = gates(whole).drop_logit.data, state.get("gates.drop_logit")
    left = None
    if logits is not None and logits.shape == own.shape:
        own.copy_(logits)
        left = remainder(whole)
    if left is None or shapes(state) == shapes(whole.state_dict()):
        return everything(whole)
    return left


def remainder(whole: nn.Module) -> Remainder | None:
    """What is left of a super-network whose gates of p = 1 stay closed; None: all of it."""
    keep = remaining(whole).cpu()
    if bool(keep.all()):
        return None
    wiring = wire(whole, keep[None], round_to=ROUND, training=True)
    _read_wide_(whole, wiring)
    cuts = _cuts(whole, wiring)
    bank = gates(whole)
    network = copy.deepcopy(whole, {id(bank): None})
    reshape_(network, cuts)
    for path, cut in cuts.items():
        _set_picks_(network, path, cut, wiring)
    network.gates = bank.part(_gate_places(whole, network, cuts, wiring))
    first = {id(module): path for path, module in network.named_modules()}
    places = {}
    for name in network.state_dict():
        path, dot, leaf = name.rpartition(".")
        if path != "gates":  # a module may be registered under several names
            places[name] = _place(first[id(network.get_submodule(path))] + dot + leaf, cuts, wiring)
    state = whole.state_dict()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name in places:
                tensor.copy_(places[name].part_of(state[places[name].name]))
    if not any(place.axes for place in places.values()) and len(places) == len(state) - 1:
        return None
    return Remainder(network, places)


def _read_wide_(network: nn.Module, wiring: Wiring) -> None:
    """Let layers read closed channels that are there anyway, where picking would take longer."""
    modules = dict(network.named_modules())
    for layer, calls in wiring.graph.calls().items():
        node = wiring.graph.nodes[calls[0]]
        if node.kind != "mix" or not bool(wiring.varies(layer)):
            continue
        reads, source = wiring.reads[layer][0], wiring.live[node.inputs[0]][0]
        weight: Any = modules[layer].weight
        weights = int(wiring.live[calls[0]][0].sum()) * weight[0, 0].numel()
        if not pays(int(source.sum()), int(reads.sum()), weights):
            wiring.reads[layer][0] = source


def _cuts(network: nn.Module, wiring: Wiring) -> dict[str, Cut]:
    """The plan, where a layer without inputs is its bias, or zeros."""
    modules = dict(network.named_modules())
    cuts = plan(network, wiring)
    for path, cut in cuts.items():
        if cut.kind == "constant" and getattr(modules[path], "bias", None) is None:
            cuts[path] = dataclasses.replace(cut, kind="idle")
    return cuts


def _gate_places(
    whole: nn.Module, network: nn.Module, cuts: dict[str, Cut], wiring: Wiring
) -> dict[str, Tensor]:
    """For each layer that still has gates, which of the whole network's they are."""
    modules, found = dict(network.named_modules()), {}
    for layer, (first, last) in gates(whole).spans.items():
        if not isinstance(modules[layer], Gated):
            continue
        if layer in cuts and cuts[layer].kind == "mix":
            found[layer] = first + wiring.reads[layer][0].nonzero().flatten()
        else:
            found[layer] = torch.arange(first, last)
    return found


def _place(name: str, cuts: dict[str, Cut], wiring: Wiring) -> Place:
    """Where a tensor of the remainder lies in the whole network."""
    path, _, leaf = name.rpartition(".")
    cut = cuts.get(name) or cuts.get(path)
    if cut is None or leaf == "num_batches_tracked":
        return Place(name)
    layer = name if name in cuts else path
    position = wiring.graph.calls()[layer][0]
    node, live = wiring.graph.nodes[position], wiring.live[position][0]
    if cut.kind == "parameter":
        return Place(name, _axes((node.axis, live)))
    if cut.kind == "constant":
        return Place(f"{path}.bias", _axes((0, live)))
    if cut.kind == "mix" and leaf == "weight":
        return Place(name, _axes((0, live), (1, wiring.reads[layer][0])))
    return Place(name, _axes((0, live)))


def _axes(*kept: tuple[int, Tensor]) -> tuple[tuple[int, Tensor], ...]:
    """Axes of which something has left."""
    return tuple((axis, mask.nonzero().flatten()) for axis, mask in kept if not bool(mask.all()))


def _set_picks_(network: nn.Module, path: str, cut: Cut, wiring: Wiring) -> None:
    """Tell a layer which channels it reads; they follow from p, so that no file keeps them."""
    if not cut.picks:
        return
    layer: Any = network.get_submodule(path)
    position = wiring.graph.calls()[path][0]
    source = wiring.live[wiring.graph.nodes[position].inputs[0]][0]
    layer.read.copy_(wanted_inputs(wiring, position)[source].nonzero().flatten())
    layer._non_persistent_buffers_set.add("read")
