"""What a network computes, as a list of channel-wise facts.

torch.fx records the forward once, on an example image; each step becomes a `Node` whose `kind`
says what the step does to channels. That is all the later rooms need: where gates can sit, which
channels somebody still reads, what a layer costs. The traced program itself is never run in place
of the network (it bakes `training` in); it serves the analysis alone.

Kinds:

    input          the image
    mix            convolution (not grouped) or linear layer: each output reads all inputs
    norm           batch-norm: one channel in, the same out, with parameters per channel
    channelwise    activation, pool, dropout, depthwise convolution: one channel in, the same out
    elementwise    sum, product, ... of operands with equal channels
    concatenate    operands one behind the other along the channels
    flatten        each channel becomes height x width features
    opaque         anything else: reads all of its inputs and writes all of its outputs, as a rule
                   exact, only less saving
    output         the logits
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.models._features_fx import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn
from torch.nn.modules import activation, batchnorm, dropout, pooling

from .errors import PgnasError

Kind = Literal[
    "input", "mix", "norm", "channelwise", "elementwise", "concatenate", "flatten", "opaque",
    "output",
]  # fmt: skip


@dataclass(frozen=True)
class Node:
    """One step of the forward."""

    name: str
    kind: Kind
    inputs: tuple[int, ...]  # positions of the tensor operands in Graph.nodes
    channels: int  # of the output
    size: tuple[int, ...]  # height and width of the output; () for a vector
    layer: str = ""  # dotted path of the module called, "" for a function
    borders: bool = False  # zero padding makes a constant input vary near the border
    in_place: bool = False  # writes into its operand
    cuttable: bool = False  # its module has tensors with a row per channel


@dataclass(frozen=True)
class Graph:
    """The whole forward, in order of execution."""

    nodes: tuple[Node, ...]
    program: fx.Graph
    input_shape: tuple[int, int, int]  # channels, height, width of the example

    def consumers(self) -> list[list[int]]:
        """For each node, the positions of the nodes that read it."""
        readers: list[list[int]] = [[] for _ in self.nodes]
        for position, node in enumerate(self.nodes):
            for source in node.inputs:
                readers[source].append(position)
        return readers

    def shared(self) -> dict[str, list[int]]:
        """The cuttable modules that are called more than once: all calls are cut alike."""
        return {
            layer: calls
            for layer, calls in self.calls().items()
            if len(calls) > 1 and self.nodes[calls[0]].cuttable
        }

    def calls(self) -> dict[str, list[int]]:
        """For each module, the positions of its calls (two where it is used twice)."""
        found: dict[str, list[int]] = {}
        for position, node in enumerate(self.nodes):
            if node.layer:
                found.setdefault(node.layer, []).append(position)
        return found


_ACTIVATIONS = tuple(
    getattr(activation, name)
    for name in activation.__all__
    if name not in {"MultiheadAttention", "GLU", "PReLU", "Softmax", "Softmin", "Softmax2d",
                    "LogSoftmax"}
)  # fmt: skip
_POOLS = (
    pooling._MaxPoolNd,
    pooling._AvgPoolNd,
    pooling._AdaptiveAvgPoolNd,
    pooling._AdaptiveMaxPoolNd,
)
_PLAIN_MODULES = (*_ACTIVATIONS, *_POOLS, dropout._DropoutNd, nn.Identity, nn.Upsample)

_CHANNELWISE: set[Any] = {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.hardtanh, F.hardswish,
    F.hardsigmoid, F.softplus, F.dropout, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d,
    F.adaptive_max_pool2d, F.interpolate, torch.relu, torch.sigmoid, torch.tanh, operator.neg,
    "relu", "relu_", "sigmoid", "tanh", "contiguous", "clone", "neg",
}  # fmt: skip
_ELEMENTWISE: set[Any] = {
    operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul,
    operator.truediv, torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum,
    "add", "add_", "sub", "mul", "mul_", "div",
}  # fmt: skip
_IN_PLACE: set[Any] = {operator.iadd, operator.isub, operator.imul, "relu_", "add_", "mul_"}


class _Tracer(fx.Tracer):
    """Stops at the layers that later rooms treat as one piece."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))

    def is_leaf_module(self, m: nn.Module, qualname: str) -> bool:
        whole = (nn.Conv2d, nn.Linear, batchnorm._BatchNorm, *get_notrace_modules())
        return isinstance(m, whole) or super().is_leaf_module(m, qualname)


class _Shapes(fx.Interpreter):
    """Runs the program and notes the shape of every tensor."""

    def __init__(self, network: nn.Module, program: fx.Graph) -> None:
        super().__init__(network, graph=program, garbage_collect_values=True)
        self.shapes: dict[str, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n.name] = value.shape
        return value


def trace(network: nn.Module, input_shape: tuple[int, int, int]) -> Graph:
    """Record what `network` computes in evaluation mode on one image of `input_shape`.

    Raises PgnasError where the forward depends on values that only a real run has.
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        program = _Tracer().trace(network)
        shapes = _Shapes(network, program)
        parameter = next(network.parameters())
        with torch.no_grad():
            shapes.run(torch.zeros(2, *input_shape, device=parameter.device))
    except Exception as error:  # fx raises many kinds; each means that the forward is not traceable
        cause = " ".join(str(error).split())[:300]
        raise PgnasError(
            f"{type(network).__name__} cannot be traced: {cause}; a forward that branches on tensor"
            " values cannot be searched, rewrite it without the branch"
        ) from None
    finally:
        for module, training in modes.items():
            module.training = training
    modules = dict(network.named_modules(remove_duplicate=False))
    return Graph(tuple(_nodes(program, shapes.shapes, modules)), program, input_shape)


def _nodes(
    program: fx.Graph, shapes: dict[str, torch.Size], modules: dict[str, nn.Module]
) -> Iterator[Node]:
    position: dict[fx.Node, int] = {}
    channels: dict[fx.Node, int] = {}
    canonical: dict[int, str] = {}  # one name for a module that is registered under several
    for path, registered in modules.items():
        canonical.setdefault(id(registered), path)
    for step in program.nodes:
        shape = shapes.get(step.name, torch.Size((2, 0)))
        operands = [source for source in step.all_input_nodes if source.name in shapes]
        module = modules[str(step.target)] if step.op == "call_module" else None
        kind, borders = _kind(step, module, [channels[o] for o in operands], shape)
        position[step] = len(position)
        channels[step] = shape[1] if len(shape) > 1 else 0
        in_place = bool(getattr(module, "inplace", False) or step.kwargs.get("inplace", False))
        yield Node(
            name=step.name,
            kind=kind,
            inputs=tuple(position[o] for o in _operands_in_order(step, operands)),
            channels=channels[step],
            size=tuple(shape[2:]),
            layer=canonical[id(module)] if module is not None else "",
            borders=borders,
            in_place=in_place or step.target in _IN_PLACE,
            cuttable=kind in ("mix", "norm") or (kind == "channelwise" and _has_weights(module)),
        )


def _has_weights(module: nn.Module | None) -> bool:
    return module is not None and next(module.parameters(), None) is not None


def _operands_in_order(step: fx.Node, operands: list[fx.Node]) -> list[fx.Node]:
    """Operands as written, repeats included (`torch.cat([x, x])`), for a concatenation."""
    if step.op == "call_function" and step.target in (torch.cat, torch.concat):
        return list(step.args[0])  # type: ignore[arg-type]
    return operands


def _kind(
    step: fx.Node, module: nn.Module | None, operand_channels: list[int], shape: torch.Size
) -> tuple[Kind, bool]:
    """What a step does to channels, and whether its padding spoils a constant input."""
    if step.op == "placeholder":
        return "input", False
    if step.op == "output":
        return ("output", False) if len(operand_channels) == 1 else ("opaque", True)
    if module is not None:
        return _module_kind(module, operand_channels)
    same = len(operand_channels) > 0 and len(shape) > 1 and set(operand_channels) == {shape[1]}
    if step.target in _CHANNELWISE and same and len(operand_channels) == 1:
        return "channelwise", _function_pads(step)
    if step.target in _ELEMENTWISE and same:
        return "elementwise", False
    if step.target in (torch.cat, torch.concat) and _argument(step, 1, "dim", 0) in (1, -3):
        return "concatenate", False
    if _flattens(step, operand_channels, shape):
        return "flatten", False
    if step.target is F.pad and same and len(_argument(step, 1, "pad", ())) <= 4:
        return "channelwise", True
    return "opaque", True


def _module_kind(module: nn.Module, operand_channels: list[int]) -> tuple[Kind, bool]:
    if isinstance(module, nn.Linear):
        return "mix", False
    if isinstance(module, nn.Conv2d):
        inside = type(module).forward is nn.Conv2d.forward and module.padding in (0, (0, 0))
        pads = not inside and module.kernel_size != (1, 1)
        if module.groups == 1:
            return "mix", pads
        if module.groups == module.in_channels == module.out_channels:
            return "channelwise", pads
        return "opaque", True
    if isinstance(module, batchnorm._BatchNorm):
        return "norm", False
    if isinstance(module, nn.Flatten) and module.start_dim == 1:
        return "flatten", False
    if isinstance(module, _PLAIN_MODULES) and len(operand_channels) == 1:
        averages = isinstance(module, pooling._AvgPoolNd)
        return "channelwise", averages and getattr(module, "padding", 0) not in (0, (0, 0))
    return "opaque", True


def _argument(step: fx.Node, position: int, name: str, default: Any) -> Any:
    if name in step.kwargs:
        return step.kwargs[name]
    return step.args[position] if len(step.args) > position else default


def _function_pads(step: fx.Node) -> bool:
    padding = _argument(step, 3, "padding", 0)
    return step.target is F.avg_pool2d and padding not in (0, (0, 0))


def _flattens(step: fx.Node, operand_channels: list[int], shape: torch.Size) -> bool:
    """`flatten(x, 1)`, or a mean over height and width, which is the same with one pixel."""
    if len(operand_channels) != 1 or len(shape) < 2:
        return False
    if step.target in (torch.flatten, "flatten"):
        return bool(_argument(step, 1, "start_dim", 0) == 1)
    if step.target in (torch.mean, "mean"):
        axes = _argument(step, 1, "dim", ())
        return shape[1] == operand_channels[0] and set(axes) <= {2, 3, -1, -2}
    return False


# --- where gates can sit ---------------------------------------------------------------------


def gateable(network: nn.Module, graph: Graph) -> dict[str, str]:
    """For each convolution and linear layer: "" where its input can be gated, else why not."""
    modules = dict(network.named_modules())
    reasons: dict[str, str] = {}
    for path, positions in graph.calls().items():
        module = modules[path]
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            reason = "grouped: a dropped input would leave its outputs alive"
        elif any(_walk_back(graph, graph.nodes[at].inputs[0]).kind == "input" for at in positions):
            reason = "reads the image"
        else:
            reason = ""
        reasons[path] = reason
    return reasons


def segments(graph: Graph, layer: str) -> tuple[int, ...]:
    """Channel counts of the pieces whose concatenation `layer` reads; one piece as a rule."""
    source = graph.nodes[graph.calls()[layer][0]].inputs[0]
    return tuple(_pieces(graph, source))


def reads_hidden_channels(graph: Graph, layer: str) -> bool:
    """Whether `layer` is the one reader of some other layer's outputs.

    Channels between the two die with their gate; the input of any other layer is shared, so that a
    dropped channel goes on being computed for the others.
    """
    readers = graph.consumers()
    calls = graph.calls()[layer]
    at = graph.nodes[calls[0]].inputs[0]
    while graph.nodes[at].kind in ("norm", "channelwise", "flatten") and len(readers[at]) == 1:
        at = graph.nodes[at].inputs[0]
    return graph.nodes[at].kind == "mix" and len(readers[at]) == 1 and len(calls) == 1


def _walk_back(graph: Graph, at: int) -> Node:
    """The node that a chain of one-channel-in, one-channel-out steps starts from."""
    while graph.nodes[at].kind in ("norm", "channelwise"):
        at = graph.nodes[at].inputs[0]
    return graph.nodes[at]


def _pieces(graph: Graph, at: int) -> Iterator[int]:
    node = graph.nodes[at]
    if node.kind in ("norm", "channelwise"):
        yield from _pieces(graph, node.inputs[0])
    elif node.kind == "concatenate":
        for source in node.inputs:
            yield from _pieces(graph, source)
    elif node.kind == "flatten":
        pixels = node.channels // graph.nodes[node.inputs[0]].channels
        yield from (pixels * piece for piece in _pieces(graph, node.inputs[0]))
    else:
        yield node.channels
