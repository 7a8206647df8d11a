"""Give the modules of a network the shapes of a candidate; the values come from elsewhere.

A `Cut` says what shape a module gets, and `reshape_` makes it so, for a network in memory as for
one that is rebuilt from a file. Three kinds of module come out:

    narrow     the layer's own class with smaller tensors, picking its inputs from a wider one
    constant   an operation whose inputs are all dropped: what it contributed, and nothing else
    idle       an operation that nobody reads: zeros of the right size
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import PgnasError
from ..graph import plain_shell, window_of


@dataclass(frozen=True)
class Cut:
    """The shape that one module gets."""

    kind: Literal["mix", "grouped", "norm", "parameter", "constant", "idle", "slice"]
    outputs: int  # channels that it writes
    inputs: int = 0  # channels that it multiplies, a plane of ones included (mix)
    picks: int = 0  # channels of the tensor it picks its inputs from; 0: takes all as they come
    plane: bool = False  # its last input is a plane of ones
    bias: bool = False  # it has a bias
    groups: int = 1  # of a convolution
    plain: bool = False  # its standardised weights are stored as they are applied
    first: int = 0  # channel that a slice begins with


class Narrow:
    """Mixed into a layer's own class: picks the channels that the layer reads."""

    read: Tensor | None  # (inputs,), positions in the incoming tensor; None: all
    span: tuple[int, int] | None = None  # first and number, where `read` is a slice
    picks: int  # channels of the incoming tensor; 0: takes all as they come
    plane: bool  # its last input is a plane of ones
    wide: type[nn.Module]  # the layer's own class

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (self.wide,), self.__dict__.copy()

    def forward(self, input: Tensor) -> Tensor:
        axis = input.dim() - 1 if isinstance(self, nn.Linear) else 1
        chosen = input
        if self.span is not None:
            chosen = input.narrow(axis, *self.span)
            if not isinstance(self, nn.Conv2d | nn.Linear):  # others may fail on what is not dense
                chosen = chosen.clone()
        elif self.read is not None:
            chosen = picked(input, self.read, axis)
        if self.plane:
            chosen = torch.cat([chosen, torch.ones_like(input.narrow(axis, 0, 1))], axis)
        return super().forward(chosen)  # type: ignore[misc,no-any-return]

    def find_span(self) -> None:
        """Take a slice where the channels that are read lie together."""
        self.span = None
        if self.read is not None and len(self.read):
            first, last = int(self.read[0]), int(self.read[-1])
            if self.read.tolist() == list(range(first, last + 1)):
                self.span = first, len(self.read)


def picked(features: Tensor, read: Tensor, axis: int) -> Tensor:
    """`features.index_select(axis, read)`, in the memory format that it has.

    Where channels lie side by side (channels_last), rows are picked from: index_select itself would
    be ten times slower there and change the format.
    """
    last = features.dim() == 4 and features.is_contiguous(memory_format=torch.channels_last)
    if axis == 1 and last and not features.is_contiguous():
        rows = features.permute(0, 2, 3, 1)
        return picked(rows, read, 3).permute(0, 3, 1, 2)
    if axis == features.dim() - 1 > 1:
        rows = features.reshape(-1, features.shape[-1]).index_select(1, read)
        return rows.view(*features.shape[:-1], len(read))
    return features.index_select(axis, read)


@cache
def narrow_class(layer_class: type[nn.Module]) -> type[nn.Module]:
    """`layer_class` that picks its inputs; one class for each layer class."""
    inner = {"__module__": __name__, "wide": layer_class}
    return type(f"Narrow{layer_class.__name__}", (Narrow, layer_class), inner)


def _blank(layer_class: type[nn.Module]) -> nn.Module:
    """A narrow layer without content, for copies to fill."""
    kind = narrow_class(layer_class)  # type: ignore[arg-type]
    return kind.__new__(kind)


class Constant(nn.Module):
    """Takes the place of an operation whose outputs do not depend on the image."""

    def __init__(self, channels: int, module: nn.Module, *, value: bool) -> None:
        super().__init__()
        self.channels = channels
        own = list(module.parameters(recurse=False))
        zeros = own[0].detach().new_zeros(channels) if own else torch.zeros(channels)
        learns = all(p.requires_grad for p in own)
        self.value = nn.Parameter(zeros, learns) if value else None
        self.window = window_of(module) if isinstance(module, nn.Conv2d) else None
        self.last = isinstance(module, nn.Linear)

    def forward(self, input: Tensor) -> Tensor:
        # A sum, not expand(): exporters keep batch and size dynamic; in-place steps may follow.
        value = input.new_zeros(self.channels) if self.value is None else self.value
        if self.last or input.dim() == 2:
            return torch.zeros_like(input[..., :1]) + value
        grid = input[:, :1]
        if self.window is not None:
            pads, (down, right) = self.window
            grid = F.pad(grid, pads)[:, :, ::down, ::right]
        return torch.zeros_like(grid) + value.view(1, -1, 1, 1)


def reshape_(network: nn.Module, cuts: dict[str, Cut]) -> nn.Module:
    """Give the modules of `network` the shapes in `cuts`; the tensors' values are not set."""
    for path, cut in cuts.items():
        try:
            if cut.kind == "parameter":
                _shorten_(network, path, cut.outputs)
                continue
            module = network.get_submodule(path)
        except AttributeError:
            raise PgnasError(
                f"the network has no layer '{path}' that the file describes; it was written by"
                " another version of the backbone"
            ) from None
        if cut.kind in ("constant", "idle"):
            new: nn.Module = Constant(cut.outputs, module, value=cut.kind == "constant")
            replace_(network, module, new)
        elif cut.plain and isinstance(module, nn.Conv2d):
            new = plain_shell(module)
            replace_(network, module, new)
            _shrink_(new, cut)
        else:
            _shrink_(module, cut)
    return network


def _shorten_(network: nn.Module, path: str, channels: int) -> None:
    """Give a parameter that the forward reads itself `channels` entries on its one long axis."""
    old = network.get_parameter(path)
    parent, _, name = path.rpartition(".")
    shape = [channels if n > 1 else n for n in old.shape]
    new = nn.Parameter(old.detach().new_empty(shape), old.requires_grad)
    setattr(network.get_submodule(parent), name, new)


def replace_(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` is registered."""
    for parent in network.modules():
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def _shrink_(module: nn.Module, cut: Cut) -> None:
    layer: Any = module
    if cut.kind == "mix":
        _resize_(layer, "weight", (cut.outputs, cut.inputs, *layer.weight.shape[2:]))
        learns = layer.weight.requires_grad if layer.bias is None else layer.bias.requires_grad
        bias = layer.weight.detach().new_empty(cut.outputs)
        layer.bias = nn.Parameter(bias, learns) if cut.bias else None
        if isinstance(module, nn.Conv2d):
            layer.in_channels, layer.out_channels = cut.inputs, cut.outputs
        else:
            layer.in_features, layer.out_features = cut.inputs, cut.outputs
    elif cut.kind == "slice":
        layer.first, layer.last = cut.first, cut.first + cut.outputs
    elif cut.kind == "norm":
        layer.num_features = cut.outputs
        for name in ("weight", "bias", "running_mean", "running_var"):
            if getattr(layer, name) is not None:
                _resize_(layer, name, (cut.outputs,))
    else:
        _resize_(layer, "weight", (cut.outputs, *layer.weight.shape[1:]))
        if layer.bias is not None:
            _resize_(layer, "bias", (cut.outputs,))
        layer.in_channels, layer.out_channels, layer.groups = cut.inputs, cut.outputs, cut.groups
    if cut.picks or cut.plane:
        numbers = layer.running_mean if cut.kind == "norm" else layer.weight
        read = numbers.new_empty(cut.inputs - cut.plane, dtype=torch.int64)
        narrow_(layer, read, cut.picks, plane=cut.plane)


def narrow_(layer: Any, read: Tensor, picks: int, *, plane: bool = False) -> None:
    """Let a layer read the channels `read` of `picks`; all as they come where `picks` is 0."""
    if not isinstance(layer, Narrow):
        layer.__class__ = narrow_class(type(layer))  # type: ignore[arg-type]
    layer.plane, layer.picks = plane, picks
    layer.register_buffer("read", read if picks else None)


def parameter_like(values: Tensor, old: nn.Parameter) -> nn.Parameter:
    """Other values in the place of a parameter: of its type, and learning if it does."""
    return nn.Parameter(values.to(old.dtype).contiguous(), old.requires_grad)


def _resize_(module: nn.Module, name: str, shape: Iterable[int]) -> None:
    old = getattr(module, name)
    new = old.detach().new_empty(tuple(shape))
    parameter = isinstance(old, nn.Parameter)
    setattr(module, name, nn.Parameter(new, old.requires_grad) if parameter else new)
