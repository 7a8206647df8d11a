"""Read a network's forward into a `Graph`.

torch.fx records the forward once, on an example image. The traced program itself is never run in
place of the network (it bakes `training` in); it serves the analysis alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.models._features_fx import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn
from torch.nn.modules import batchnorm

from ..errors import PgnasError, one_line
from ..seeds import generator
from .nodes import Graph, described
from .operations import ChannelSlice, OperationGate, Reader, Seen


class _Tracer(fx.Tracer):
    """Stops at the layers that later rooms treat as one piece."""

    def __init__(self, whole: tuple[type[nn.Module], ...]) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.whole = whole

    def is_leaf_module(self, m: nn.Module, qualname: str) -> bool:
        layers = (nn.Conv2d, nn.Linear, batchnorm._BatchNorm, OperationGate, ChannelSlice)
        return isinstance(m, (*layers, *self.whole)) or super().is_leaf_module(m, qualname)


class _Watch(fx.Interpreter):
    """Runs the program; notes the shape and memory of every tensor, and who overwrites what."""

    def __init__(self, network: nn.Module, program: fx.Graph) -> None:
        # Nothing is freed, so that no two tensors share memory by mere reuse.
        super().__init__(network, graph=program, garbage_collect_values=False)
        self.seen = Seen({}, {}, set())
        self.logits: Any = None

    def run_node(self, n: fx.Node) -> Any:
        given = [self.env[o] for o in n.all_input_nodes if isinstance(self.env[o], Tensor)]
        before = [tensor._version for tensor in given]
        value = super().run_node(n)
        if before != [tensor._version for tensor in given]:
            self.seen.writers.add(n.name)
        if isinstance(value, Tensor):
            self.seen.shapes[n.name] = value.shape
            self.seen.memory[n.name] = value.untyped_storage().data_ptr()
        return value


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Context: the network in evaluation mode; every module is as before after it."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def trace(network: nn.Module, input_shape: tuple[int, int, int]) -> Graph:
    """Record what `network` computes in evaluation mode on one image of `input_shape`.

    Raises PgnasError where the forward depends on values that only a real run has.
    """
    image = torch.randn(2, *input_shape, generator=generator(0, "example"))
    image = image.to(next(network.parameters()).device)
    try:
        with torch.no_grad(), evaluating(network):
            network(image.contiguous(memory_format=torch.channels_last))  # as in training
            expected = network(image.clone())
    except (RuntimeError, AssertionError, ValueError) as error:
        raise PgnasError(
            f"{type(network).__name__} does not take images of {input_shape[1]}x{input_shape[2]}"
            f" pixels with {input_shape[0]} channels ({one_line(error)}); try another `img_size`"
        ) from None
    try:
        with evaluating(network):
            program, watch = _traced(network, image)
    except Exception as error:  # fx raises many kinds; each means that the forward is not traceable
        cause = one_line(error)
        raise PgnasError(
            f"{type(network).__name__} cannot be traced: {cause}; a forward that branches on tensor"
            " values cannot be searched, rewrite it without the branch"
        ) from None
    name = type(network).__name__
    if not isinstance(expected, Tensor) or expected.dim() != 2:
        raise PgnasError(
            f"{name} does not give one row of logits per image in evaluation mode; wrap it so that"
            " it does"
        )
    tolerance = 1e-5 * float(expected.abs().max())
    if not torch.allclose(watch.logits, expected, rtol=1e-4, atol=tolerance):
        raise PgnasError(
            f"{name} computes something else when traced: its forward has steps in place that"
            " torch.fx does not see (x /= y, say); write them out of place"
        )
    try:
        nodes = tuple(Reader(network, program, watch.seen).nodes())
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise PgnasError(
            f"{name} has a step that the analysis misreads ({one_line(error)}); please report this"
        ) from error
    return Graph(nodes, program, input_shape)


def _traced(network: nn.Module, image: Tensor) -> tuple[fx.Graph, _Watch]:
    """The program and what a run of it showed; layers inside what timm wants whole are opened."""
    not_prunable = tuple(get_notrace_modules())
    hiding = {
        type(m)
        for m in network.modules()
        if isinstance(m, not_prunable) and any(isinstance(c, nn.Conv2d) for c in m.children())
    }
    attempts = [tuple(set(not_prunable) - hiding), not_prunable] if hiding else [not_prunable]
    for attempt in attempts:
        tracer = _Tracer(attempt)
        try:
            program = tracer.trace(network)
            watch = _Watch(network, program)
            with torch.no_grad():
                watch.logits = watch.run(image.clone())
        except Exception as error:
            if attempt is attempts[-1]:
                last = next(reversed(tracer.graph.nodes), None)
                where = f"behind step {described(last)}: " if last is not None else ""
                raise RuntimeError(f"{where}{one_line(error)}") from error
        else:
            return program, watch
    raise AssertionError("the last attempt returns or raises")
