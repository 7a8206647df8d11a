"""Read a network's forward into a `Graph`.

torch.fx records the forward once, on an example image. The traced program itself is never run in
place of the network (it bakes `training` in); it serves the analysis alone.
"""

import operator
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models._features_fx import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute
from torch.nn.modules import batchnorm

from ..errors import PgnasError, one_line
from ..seeds import generator
from .nodes import Graph, described
from .operations import ChannelSlice, OperationGate, Reader, Seen


class _Branch(Exception):
    """The forward asks for the value of a tensor."""


class _Proxy(fx.Proxy):
    """A value of the traced forward that also answers what is known without the image: its length,
    and numbers that follow from shapes alone."""

    tracer: "_Tracer"

    def __getattr__(self, k: str) -> "_Attribute":
        return _Attribute(self, k)

    def __len__(self) -> int:
        value = self.tracer.values[self.node]
        if isinstance(value, Tensor):
            self.size(0)  # recorded: it may be a number of channels
        return len(value)

    def __int__(self) -> int:
        return int(self.tracer.fixed(self.node))

    def __float__(self) -> float:
        return float(self.tracer.fixed(self.node))

    __index__ = __int__


def _told(value: Any) -> Any:
    """Stands in the program for the forward, which was told the value."""
    return value


class _Attribute(_Proxy, Attribute):
    pass


_OF_SHAPES = {"size", "dim", "numel", "ndimension", "is_floating_point", "get_device"}
_ATTRIBUTES = {"shape", "ndim", "device", "dtype", "is_cuda", "requires_grad"}


class _Tracer(fx.Tracer):
    """Records the forward while it runs on an image: what each step gives is known at once.

    Stops at the layers that later rooms treat as one piece. Notes the shape and memory of every
    tensor, and who overwrites what.
    """

    def __init__(self, whole: tuple[type[nn.Module], ...], image: Tensor) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.whole, self.image = whole, image
        self.values: dict[fx.Node, Any] = {}  # all kept: no two tensors share memory by mere reuse
        self.known: set[fx.Node] = set()  # steps that follow from shapes alone
        self.seen = Seen({}, {}, set())
        self.running = False  # a step, not the forward

    def is_leaf_module(self, m: nn.Module, qualname: str) -> bool:
        layers = (nn.Conv2d, nn.Linear, batchnorm._BatchNorm, OperationGate, ChannelSlice)
        return isinstance(m, (*layers, *self.whole)) or super().is_leaf_module(m, qualname)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self.running:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, *given: Any, **named: Any) -> fx.Node:
        node = super().create_node(*given, **named)
        operands = [self.values[o] for o in node.all_input_nodes]
        tensors = [value for value in operands if isinstance(value, Tensor)]
        before = [tensor._version for tensor in tensors]
        self.running = True
        try:
            value = self.values[node] = self._run(node)
        finally:
            self.running = False
        if before != [tensor._version for tensor in tensors]:
            self.seen.writers.add(node.name)
        if isinstance(value, Tensor):
            self.seen.shapes[node.name] = value.shape
            self.seen.memory[node.name] = value.untyped_storage().data_ptr()
        elif _asks_for_shape(node) or (operands and self.known.issuperset(node.all_input_nodes)):
            self.known.add(node)
        return node

    def _run(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.image if len(self.values) == 0 else next(iter(node.args), ())
        args = fx.node.map_arg(node.args, self.values.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, self.values.__getitem__)
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        target = str(node.target)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        if node.op == "call_module":
            return self.root.get_submodule(target)(*args, **kwargs)
        if node.op == "get_attr":
            return operator.attrgetter(target)(self.root)
        return args[0]  # output

    def fixed(self, node: fx.Node) -> Any:
        """The value of a step that follows from shapes alone."""
        if node not in self.known:
            raise _Branch(f"step {described(node)} asks for the value of a tensor")
        self.create_node("call_function", _told, (node,), {})  # it may be a number of channels
        return self.values[node]

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.fixed(obj.node))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        places = range(len(self.values[obj.node]))
        return iter(
            [self.create_proxy("call_function", operator.getitem, (obj, n), {}) for n in places]
        )


def _asks_for_shape(node: fx.Node) -> bool:
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in _ATTRIBUTES
    return node.op == "call_method" and node.target in _OF_SHAPES


def evaluating(network: nn.Module) -> AbstractContextManager[None]:
    """Context: the network in evaluation mode; every module is as before after it."""
    return in_mode(network, training=False)


@contextmanager
def in_mode(network: nn.Module, *, training: bool) -> Iterator[None]:
    """Context: the network in training mode or not; every module is as before after it."""
    modes = {module: module.training for module in network.modules()}
    network.train(training)
    try:
        yield
    finally:
        for module, before in modes.items():
            module.training = before


def contiguous_(network: nn.Module) -> None:
    """Keep a network that fails on channels_last out of it: images are made contiguous, and
    `network.memory_format` says where its kernels belong."""
    if not hasattr(network, "memory_format"):
        network.memory_format = torch.contiguous_format  # type: ignore[assignment]
        network.register_forward_pre_hook(_as_contiguous)


def _as_contiguous(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return given[0].contiguous(), *given[1:]


def trace(network: nn.Module, input_shape: tuple[int, int, int]) -> Graph:
    """Record what `network` computes in evaluation mode on one image of `input_shape`.

    Raises PgnasError where the forward depends on values that only a real run has.
    """
    image = torch.randn(2, *input_shape, generator=generator(0, "example"))
    image = image.to(next(network.parameters()).device)
    name = type(network).__name__
    with torch.no_grad(), evaluating(network):
        expected, contiguous = _ran(network, image)
        if not isinstance(expected, Tensor) or expected.dim() != 2:
            raise PgnasError(
                f"{name} does not give one row of logits per image in evaluation mode; wrap it so"
                " that it does"
            )
        tracer, program = _traced(network, image)
    logits = tracer.values[next(iter(reversed(program.nodes)))]
    tolerance = 1e-5 * float(expected.abs().max())
    if not torch.allclose(logits, expected, rtol=1e-4, atol=tolerance):
        raise PgnasError(
            f"{name} computes something else when traced: its forward has steps in place that"
            " torch.fx does not see (x /= y, say); write them out of place"
        )
    try:
        nodes = tuple(Reader(network, program, tracer.seen).nodes())
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise PgnasError(
            f"{name} has a step that the analysis misreads ({one_line(error)}); please report this"
        ) from error
    return Graph(nodes, program, input_shape, contiguous)


def _ran(network: nn.Module, image: Tensor) -> tuple[Any, bool]:
    """The logits, and whether images must be contiguous: view() fails on channels_last."""
    for contiguous in (False, True):
        layout = torch.contiguous_format if contiguous else torch.channels_last
        try:
            network(image.contiguous(memory_format=layout))
            return network(image.clone()), contiguous
        except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
            if contiguous:
                channels, height, width = image.shape[1:]
                raise PgnasError(
                    f"{type(network).__name__} does not take images of {height}x{width} pixels with"
                    f" {channels} channels ({one_line(error)}{_place(error)}); try another"
                    " `img_size`"
                ) from None
    raise AssertionError("the second layout returns or raises")


def _traced(network: nn.Module, image: Tensor) -> tuple[_Tracer, fx.Graph]:
    """What was recorded, and the program; layers inside what timm wants whole are opened."""
    not_prunable = tuple(get_notrace_modules())
    hiding = {
        type(m)
        for m in network.modules()
        if isinstance(m, not_prunable) and any(isinstance(c, nn.Conv2d) for c in m.children())
    }
    attempts = [tuple(set(not_prunable) - hiding), not_prunable] if hiding else [not_prunable]
    for attempt in attempts:
        tracer = _Tracer(attempt, image.clone())
        try:
            return tracer, tracer.trace(network, _defaults(network))
        except Exception as error:  # fx and strangers' code raise many kinds
            if attempt is attempts[-1]:
                last = next(iter(reversed(tracer.graph.nodes)), None)
                where = f"behind step {described(last)}: " if last is not None else ""
                advice = (
                    "; a forward that branches on tensor values cannot be searched, rewrite it"
                    " without the branch"
                )
                raise PgnasError(
                    f"{type(network).__name__} cannot be traced: {where}{one_line(error)}"
                    f"{_place(error)}{advice if isinstance(error, _Branch) else ''}"
                ) from None
    raise AssertionError("the last attempt returns or raises")


def _defaults(network: nn.Module) -> dict[str, Any]:
    """What the forward takes besides the image: as where nothing is given."""
    others = list(signature(network.forward).parameters.values())[1:]
    return {other.name: other.default for other in others if other.default is not other.empty}


_LIBRARIES = tuple(str(Path(str(m.__file__)).parent) for m in (torch, timm))


def _place(error: Exception) -> str:
    """The line of the network's source that an error comes from, as " (file:line: source)"."""
    own = str(Path(__file__).parents[1])
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((own, _LIBRARIES[0]))
    ]
    if not frames:
        return ""
    theirs = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)] or frames
    return f" ({Path(theirs[-1].filename).name}:{theirs[-1].lineno}: {theirs[-1].line})"
