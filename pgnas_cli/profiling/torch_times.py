"""Times of slim networks in torch, as a whole and step by step, in turns: what slows the machine
for a while slows all of them."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..data import placed
from ..graph import Graph
from ..machine import computing, forward_seconds, until_done
from ..progress import task
from ..seeds import generator
from ..timing import Forward, Sample, built_work
from .onnx_runs import in_turns, undisturbed


class Stopwatch(fx.Interpreter):
    """Runs the steps of a program one by one; notes their seconds and channels."""

    def __init__(self, network: nn.Module, graph: Graph) -> None:
        super().__init__(network, graph=graph.program)
        self.device = next(network.parameters()).device
        self.axes = iter([node.axis for node in graph.nodes])
        self.seconds: list[float] = []
        self.widths: list[int] = []

    def run_node(self, n: fx.Node) -> Any:
        began = time.perf_counter()
        value = super().run_node(n)
        until_done(self.device)
        self.seconds.append(time.perf_counter() - began)
        axis = next(self.axes)
        counted = isinstance(value, Tensor) and value.dim() >= -axis
        self.widths.append(value.shape[axis] if counted else 0)
        return value


@torch.inference_mode()
def torch_samples(
    networks: Sequence[nn.Module],
    graph: Graph,
    forward: Forward,
    device: torch.device,
    seconds: float,
    what: str,
) -> list[Sample]:
    """Slim networks, timed in about so many seconds."""
    networks = [placed(network, device).eval() for network in networks]
    shape = (forward.batch, *graph.input_shape)
    images = torch.randn(shape, generator=generator(0, "profile images"))
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    works = []
    alone: list[list[float]] = [[] for _ in networks]
    parts: list[list[list[float]]] = [[] for _ in networks]
    with computing(device, forward.precision), task(what, None) as shown:
        for one in networks:
            forward_seconds(one, images)
            watch = Stopwatch(one, graph)
            watch.run(images)
            works.append(built_work(one, graph, watch.widths))
        for at in in_turns(
            len(networks), seconds, lambda done, total: shown.update(done, total=total)
        ):
            alone[at].append(forward_seconds(networks[at], images))
            watch = Stopwatch(networks[at], graph)
            watch.run(images)
            parts[at].append(watch.seconds)
    return [
        Sample(work, tuple(map(undisturbed, zip(*part, strict=True))), undisturbed(own))
        for work, part, own in zip(works, parts, alone, strict=True)
    ]
