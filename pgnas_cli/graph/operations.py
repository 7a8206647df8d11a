"""The vocabulary of the analysis: what each step of a traced program does to channels.

A step that the vocabulary does not hold becomes opaque, which is exact and merely saves less.
`OperationGate` marks the output of an operation without weights (a pool, a skip).
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from torch import Tensor, fx, nn
from torch.nn.modules import activation, batchnorm, dropout, pooling
from torchvision.ops import stochastic_depth

from .convolutions import is_plain_linear, plain_twin
from .nodes import Kind, Node


class OperationGate(nn.Module):
    """Passes its input on; a place for one gate that keeps an operation, or takes it out.

    A backbone puts it behind the operation, on (batch, channels, height, width). It has a gate only
    where operations are asked for ("all+operations"). What is taken out is zero in all channels.
    """

    cost: float = 0.0  # prior cost of keeping the operation, in squared weights

    def forward(self, input: Tensor) -> Tensor:
        return input


class ChannelSlice(nn.Module):
    """Channels first <= c < last of (batch, channels, height, width); a candidate moves the two."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        self.first, self.last = first, last

    def forward(self, input: Tensor) -> Tensor:
        return input[:, self.first : self.last]


@dataclass(frozen=True)
class Seen:
    """What one run of a traced program showed, by the name of the step."""

    shapes: dict[str, torch.Size]  # of every tensor
    memory: dict[str, int]  # equal for views of one another
    writers: set[str]  # steps that write into an operand


_ACTIVATIONS = tuple(
    getattr(activation, name)
    for name in activation.__all__
    if name not in {"MultiheadAttention", "GLU", "PReLU", "Softmax", "Softmin", "Softmax2d",
                    "LogSoftmax"}
)  # fmt: skip

_POOLS = (
    pooling._MaxPoolNd, pooling._AvgPoolNd, pooling._AdaptiveAvgPoolNd,
    pooling._AdaptiveMaxPoolNd, MaxPool2dSame, AvgPool2dSame,
)  # fmt: skip

_PLAIN_MODULES = (*_ACTIVATIONS, *_POOLS, dropout._DropoutNd, nn.Identity, nn.Upsample,
                  nn.ZeroPad2d)  # fmt: skip

# Act along all axes behind the channels, which are the first behind the batch.
_SPATIAL_MODULES = (*_POOLS, nn.Upsample, nn.ZeroPad2d)
_SPATIAL: set[Any] = {
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate,
}  # fmt: skip

_CHANNELWISE: set[Any] = {
    *_SPATIAL,
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.hardtanh, F.hardswish,
    F.hardsigmoid, F.softplus, F.dropout, stochastic_depth, torch.relu, torch.sigmoid, torch.tanh,
    torch.clamp, operator.neg, "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "contiguous",
    "clone", "neg", "clamp", "clamp_", "hardtanh_", "detach", "float",
}  # fmt: skip

_ELEMENTWISE: set[Any] = {
    operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul,
    operator.truediv, torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum,
    "add", "add_", "sub", "mul", "mul_", "div",
}  # fmt: skip

_PRODUCTS: set[Any] = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}

_PERMUTING: set[Any] = {
    "permute", torch.permute, "transpose", torch.transpose, "squeeze", torch.squeeze, "unsqueeze",
    torch.unsqueeze,
}  # fmt: skip


def _argument(step: fx.Node, position: int, name: str, default: Any) -> Any:
    if name in step.kwargs:
        return step.kwargs[name]
    return step.args[position] if len(step.args) > position else default


@dataclass(frozen=True)
class _Fact:
    """What `Reader` finds out about one step."""

    kind: Kind
    axis: int
    borders: bool = False


class Reader:
    """Turns a traced program into nodes."""

    def __init__(self, network: nn.Module, program: fx.Graph, seen: Seen) -> None:
        self.program, self.seen, self.shapes = program, seen, seen.shapes
        self.modules = dict(network.named_modules(remove_duplicate=False))
        self.parameters = dict(network.named_parameters(remove_duplicate=False))
        self.first_name: dict[int, str] = {}  # of a module that is registered under several
        for path, module in self.modules.items():
            self.first_name.setdefault(id(module), path)
        calls = [step for step in program.nodes if step.op == "call_module"]
        self.called = {id(self.modules[str(step.target)]) for step in calls}
        self.whole = self._kept_whole(network, program)
        self.axes: dict[fx.Node, int] = {}

    def _kept_whole(self, network: nn.Module, program: fx.Graph) -> set[int]:
        """Modules whose tensors also serve elsewhere: shared with another, or read by a step."""
        users: dict[int, set[int]] = {}
        for module in network.modules():
            for parameter in module._parameters.values():
                if parameter is not None:
                    users.setdefault(id(parameter), set()).add(id(module))
        found = {module for shared in users.values() if len(shared) > 1 for module in shared}
        for step in program.nodes:
            owner = self.modules.get(str(step.target).rpartition(".")[0])
            if step.op == "get_attr" and owner is not None:
                found.add(id(owner))
        return found

    def nodes(self) -> Iterator[Node]:
        position: dict[fx.Node, int] = {}
        same, stray = self._writing()
        last: dict[fx.Node, fx.Node] = {}  # a tensor -> the step that last wrote into it
        for step in self.program.nodes:
            module = self.modules[str(step.target)] if step.op == "call_module" else None
            fact = self._fact(step, module)
            if step in stray:
                fact = _Fact("opaque", fact.axis, borders=True)
            shape = self._shape(step)
            tensors = fact.kind not in ("opaque", "shape", "output")
            read = [o for o in self._operands(step) if not tensors or o.name in self.shapes]
            operands = [last.get(same[o], o) for o in read]
            if step.name in self.seen.writers:
                last[same[step]] = step
            if fact.kind == "elementwise":
                operands = [o for o in operands if prod(self._shape(o)) > 1]
            position[step], self.axes[step] = len(position), fact.axis
            layer = self.first_name[id(module)] if module is not None else ""
            yield Node(
                name=step.name,
                kind=fact.kind,
                inputs=tuple(position[o] for o in operands),
                channels=shape[fact.axis] if shape else 0,
                axis=fact.axis,
                size=tuple(n for i, n in enumerate(shape[1:], 1) if i != len(shape) + fact.axis),
                layer=str(step.target) if fact.kind == "parameter" else layer,
                groups=int(getattr(module, "groups", 1)),
                borders=fact.borders,
                memory=self.seen.memory.get(step.name, 0),
                in_place=step.name in self.seen.writers,
                product=step.target in _PRODUCTS,
                first=module.first if isinstance(module, ChannelSlice) else 0,
            )

    def _writing(self) -> tuple[dict[fx.Node, fx.Node], set[fx.Node]]:
        """Which steps return the very tensor of an earlier one, having written into it; and which
        of them are read later through another view, or do not return what they wrote."""
        same: dict[fx.Node, fx.Node] = {}
        stray = set()
        order = {step: at for at, step in enumerate(self.program.nodes)}
        for step in self.program.nodes:
            same[step] = step
            if step.name not in self.seen.writers:
                continue
            memory = self.seen.memory.get(step.name)
            for operand in step.all_input_nodes:
                alike = self._shape(operand) == self._shape(step)
                if alike and self.seen.memory.get(operand.name) == memory:
                    same[step] = same[operand]
            touched = {self.seen.memory.get(o.name) for o in step.all_input_nodes}
            views = [
                node
                for node in same
                if self.seen.memory.get(node.name) in touched and same[node] is not same[step]
            ]
            late = any(order[user] > order[step] for view in views for user in view.users)
            if same[step] is step or late:
                stray.add(step)
        return same, stray

    def _shape(self, step: fx.Node) -> torch.Size:
        return self.shapes.get(step.name, torch.Size())

    def _operands(self, step: fx.Node) -> list[fx.Node]:
        """Operands as written, repeats included (`torch.cat([x, x])`), for a concatenation."""
        if step.op == "call_function" and step.target in (torch.cat, torch.concat):
            listed = step.args[0] if step.args else step.kwargs["tensors"]
            if isinstance(listed, list | tuple) and all(isinstance(x, fx.Node) for x in listed):
                return [x for x in listed if isinstance(x, fx.Node)]
        return list(step.all_input_nodes)

    def _fact(self, step: fx.Node, module: nn.Module | None) -> _Fact:
        shape = self._shape(step)
        usual = -3 if len(shape) >= 4 else -1
        if step.op == "placeholder":
            return _Fact("input", usual)
        if step.op == "output":
            return _Fact("output", usual)
        if step.op == "get_attr":
            return self._parameter(step)
        sources = [o for o in self._operands(step) if o.name in self.shapes]
        if not shape:
            return _Fact("shape" if self._harmless(step) else "opaque", -1)
        if sources:
            axis = self.axes[sources[0]]
            spatial = isinstance(module, _SPATIAL_MODULES) or step.target in _SPATIAL
            if spatial and axis != 1 - len(self._shape(sources[0])):
                found = None
            elif module is not None:
                found = self._module(module, sources, axis)
            else:
                found = self._function(step, sources, axis, shape)
            if found is not None:
                return found
            if self._shape(sources[0]) == shape:
                usual = axis
        return _Fact("opaque", usual, borders=True)

    def _parameter(self, step: fx.Node) -> _Fact:
        """A parameter with one number per channel, wherever its axis lies; else opaque."""
        shape = self._shape(step)
        long = [i for i, n in enumerate(shape) if n > 1]
        owner = self.modules.get(str(step.target).rpartition(".")[0])
        called = owner is not None and id(owner) in self.called
        if len(long) == 1 and str(step.target) in self.parameters and not called:
            return _Fact("parameter", long[0] - len(shape))
        return _Fact("opaque", -1)

    def _harmless(self, step: fx.Node) -> bool:
        """A size of the tensor that does not depend on its number of channels."""
        if not step.all_input_nodes or step.all_input_nodes[0].name not in self.shapes:
            return True  # arithmetic on numbers
        source = step.all_input_nodes[0]
        ndim, axis = len(self._shape(source)), self.axes[source]
        if step.target == "dim":
            return True
        if step.target is getattr and step.args[1] in ("ndim", "device", "dtype"):
            return True
        if step.target == "size" and len(step.args) == 2:
            return int(step.args[1]) % ndim != ndim + axis  # type: ignore[arg-type]
        if step.target == "size" or (step.target is getattr and step.args[1] == "shape"):
            return all(self._elsewhere(user, ndim, ndim + axis) for user in step.users)
        return False

    def _elsewhere(self, user: fx.Node, ndim: int, channel: int) -> bool:
        """Whether `user` takes entries of a shape other than the channels', or is not used."""
        if user.target is not operator.getitem:
            return False
        index = user.args[1]
        taken = range(ndim)[index] if isinstance(index, int | slice) else range(ndim)
        entries = [taken] if isinstance(taken, int) else list(taken)
        return not user.users or channel not in entries

    def _module(self, module: nn.Module, sources: list[fx.Node], axis: int) -> _Fact | None:
        if len(sources) != 1:
            return None
        ndim = len(self._shape(sources[0]))
        if id(module) in self.whole:
            return None
        if isinstance(module, nn.Linear | nn.Conv2d) and module._parameters.get("weight") is None:
            return None  # computed: weight norm, spectral norm
        if isinstance(module, nn.Linear):
            return _Fact("mix", -1) if axis == -1 and is_plain_linear(module) else None
        if isinstance(module, nn.Conv2d):
            if axis != -3 or ndim != 4 or plain_twin(module) is None:
                return None
            inside = type(module).forward is nn.Conv2d.forward and module.padding in (0, (0, 0))
            padded = module.padding not in (0, (0, 0), "valid")
            reaches = module.kernel_size != (1, 1) or padded
            pads = not inside and reaches
            return _Fact("mix" if module.groups == 1 else "grouped", -3, pads)
        if isinstance(module, batchnorm._BatchNorm):
            return _Fact("norm", axis) if axis == 1 - ndim and _is_plain_norm(module) else None
        if isinstance(module, OperationGate):
            return _Fact("switch", axis) if axis == -3 and ndim == 4 else None
        if isinstance(module, ChannelSlice):
            return _Fact("slice", axis) if axis == -3 and ndim == 4 else None
        if isinstance(module, nn.Flatten):
            to_end = module.end_dim % ndim == ndim - 1
            return self._flattened(sources[0], module.start_dim) if to_end else None
        if isinstance(module, _PLAIN_MODULES):
            pads = isinstance(module, pooling._AvgPoolNd) and (
                getattr(module, "padding", 0) not in (0, (0, 0))
                or isinstance(module, AvgPool2dSame)  # pads in its forward
                or getattr(module, "divisor_override", None) is not None
            )
            return _Fact("channelwise", axis, pads or isinstance(module, nn.ZeroPad2d))
        return None

    def _function(
        self, step: fx.Node, sources: list[fx.Node], axis: int, shape: torch.Size
    ) -> _Fact | None:
        source = self._shape(sources[0])
        channel = len(source) + axis
        if step.target in _ELEMENTWISE:
            return self._elementwise(sources, shape)
        if step.target in (torch.cat, torch.concat):
            along = int(_argument(step, 1, "dim", 0))
            alike = {self.axes[o] for o in sources} == {axis}
            return _Fact("concatenate", axis) if along % len(shape) == channel and alike else None
        if len(sources) != 1:
            return None
        if step.target in _CHANNELWISE:
            padding = _argument(step, 3, "padding", 0)
            divisor = _argument(step, 6, "divisor_override", None)
            pads = step.target is F.avg_pool2d and (padding not in (0, (0, 0)) or bool(divisor))
            return _Fact("channelwise", axis, pads)
        if step.target is F.pad:
            ahead = len(_argument(step, 1, "pad", ())) // 2
            return _Fact("channelwise", axis, True) if ahead < -axis else None
        if step.target in (torch.flatten, "flatten"):
            end = int(_argument(step, 2, "end_dim", -1)) % len(source)
            start = int(_argument(step, 1, "start_dim", 0))
            return self._flattened(sources[0], start) if end == len(source) - 1 else None
        if step.target in ("view", "reshape", torch.reshape):
            return self._reshaped(step, sources[0], shape)
        moved = _moved_axes(step, source)
        if moved is not None and channel in moved:
            return _Fact("channelwise", moved.index(channel) - len(moved))
        return None

    def _elementwise(self, sources: list[fx.Node], shape: torch.Size) -> _Fact | None:
        """Operands agree in axis and number of channels, or have one number for all of them."""
        tensors = [o for o in sources if prod(self._shape(o)) > 1]
        leading = next((o for o in tensors if self._shape(o) == shape), None)
        if leading is None:
            return None
        axis = self.axes[leading]
        for operand in tensors:
            own = self._shape(operand)
            if len(own) < -axis or self.axes[operand] != axis or own[axis] not in (1, shape[axis]):
                return None
        return _Fact("elementwise", axis)

    def _flattened(self, source: fx.Node, start: int) -> _Fact | None:
        shape = self._shape(source)
        if start == 1 and self.axes[source] == 1 - len(shape):
            return _Fact("flatten", -1)
        return None

    def _reshaped(self, step: fx.Node, source: fx.Node, shape: torch.Size) -> _Fact | None:
        """(batch, -1) is a flattening; (1, -1, 1, 1) of a parameter moves its one long axis."""
        sizes = step.args[1:]
        if step.kwargs or not sizes:
            return None
        if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
            sizes = tuple(sizes[0])
        long = [i for i, n in enumerate(shape) if n > 1]
        if len(long) == 1 and sizes[long[0]] == -1 and source.op == "get_attr":
            return _Fact("channelwise", long[0] - len(shape))
        if len(shape) == 2 and len(sizes) == 2 and sizes[1] == -1:
            return self._flattened(source, 1)
        return None


def _is_plain_norm(module: batchnorm._BatchNorm) -> bool:
    """Whether it scales and shifts each channel by stored numbers, and at most activates after."""
    known = (nn.BatchNorm1d.forward, nn.SyncBatchNorm.forward, BatchNormAct2d.forward)
    inner = [p for child in module.children() for p in child.parameters()]
    return type(module).forward in known and module.track_running_stats and not inner


def _moved_axes(step: fx.Node, shape: torch.Size) -> list[int] | None:
    """For steps that permute or drop axes: which axis of the input each axis of the output was."""
    ndim = len(shape)
    axes = list(range(ndim))
    rest = step.args[1:]
    if step.target in (*_PERMUTING, operator.getitem) and step.kwargs:
        return None  # by name: rare enough to be kept whole
    if len(rest) == 1 and isinstance(rest[0], list | tuple) and step.target is not operator.getitem:
        rest = tuple(rest[0])
    if step.target in ("permute", torch.permute):
        return [int(a) % ndim for a in rest]  # type: ignore[arg-type]
    if step.target in ("transpose", torch.transpose):
        a, b = (int(x) % ndim for x in rest)  # type: ignore[arg-type]
        axes[a], axes[b] = axes[b], axes[a]
        return axes
    if step.target in ("mean", torch.mean, "amax", torch.amax):
        gone = _argument(step, 1, "dim", None)
        if gone is None:
            return None
        gone = [gone] if isinstance(gone, int) else gone
        reduced = {a % ndim for a in gone}
        # A reduced axis that is kept has one entry; the channels must not be among them.
        if _argument(step, 2, "keepdim", False):
            return [-1 if a in reduced else a for a in axes]
        return [a for a in axes if a not in reduced]
    if step.target in ("squeeze", torch.squeeze) and rest:
        gone = [int(a) % ndim for a in rest]  # type: ignore[arg-type]
        return [a for a in axes if a not in gone or shape[a] > 1]
    if step.target in ("unsqueeze", torch.unsqueeze):
        axes.insert(int(rest[0]) % (ndim + 1), -1)  # type: ignore[arg-type]
        return axes
    if step.target is operator.getitem and isinstance(rest[0], tuple):
        return _kept_by_index(rest[0], shape)
    return None


def _kept_by_index(index: tuple[Any, ...], shape: torch.Size) -> list[int] | None:
    """Axes that `x[index]` leaves, where an axis that is sliced in part counts as new (-1)."""
    ndim = len(shape)
    if Ellipsis in index:
        place = index.index(Ellipsis)
        fill = (slice(None),) * (ndim - len(index) + 1)
        index = (*index[:place], *fill, *index[place + 1 :])
    if not all(isinstance(i, slice | int) for i in index):
        return None
    index = (*index, *(slice(None),) * (ndim - len(index)))
    whole = [
        isinstance(i, slice)
        and i.start in (None, 0)
        and i.step in (None, 1)
        and (i.stop is None or (isinstance(i.stop, int) and i.stop >= n))  # fewer will fit, too
        for i, n in zip(index, shape, strict=True)
    ]
    return [a if whole[a] else -1 for a, i in enumerate(index) if not isinstance(i, int)]
