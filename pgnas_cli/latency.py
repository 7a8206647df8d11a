"""How long exported networks take, beside the original network and in turns with it."""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .data import placed
from .errors import one_line
from .formats import NetworkInfo, OnnxNetwork, in_onnx, onnx_installed, quick_onnx
from .gates import gates
from .graph import Graph
from .machine import forward_seconds
from .progress import note
from .slimming import Layout, arranged, ungated_copy

FASTER = 0.95  # of the original network's time, below which a network is faster


@torch.inference_mode()
def forward_times(
    networks: Sequence[nn.Module],
    input_shapes: Sequence[tuple[int, int, int]],  # of each network's images
    *,
    batch: int,
    device: torch.device,
    seconds: float = 1.0,  # roughly, for each network
) -> np.ndarray:
    """Milliseconds of forwards of `batch` images, (networks, turns), networks taking turns.

    Denormal numbers are flushed to zero: they would make a small network look slow.
    """
    torch.set_flush_denormal(True)
    made = {
        shape: torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))
        .to(device)
        .contiguous(memory_format=torch.channels_last)
        for shape in set(input_shapes)
    }
    inputs = [made[shape] for shape in input_shapes]
    for network, given in zip(networks, inputs, strict=True):
        placed(network, device).eval()
        for _ in range(3):
            forward_seconds(network, given)
    times: list[list[float]] = [[] for _ in networks]
    deadline = time.perf_counter() + seconds * len(networks)
    while len(times[0]) < 5 or (time.perf_counter() < deadline and len(times[0]) < 500):
        for network, given, found in zip(networks, inputs, times, strict=True):
            found.append(forward_seconds(network, given))
    return 1000 * np.array(times)


def latencies(
    networks: Sequence[nn.Module],
    input_shapes: Sequence[tuple[int, int, int]],
    *,
    batch: int,
    device: torch.device,
    seconds: float = 1.0,
) -> list[float]:
    """The medians of `forward_times`."""
    times = forward_times(networks, input_shapes, batch=batch, device=device, seconds=seconds)
    return [float(median) for median in np.median(times, axis=1)]


@dataclass(frozen=True)
class Latency:
    """Median milliseconds of one forward, of a network and of the whole it was cut from."""

    batch: int  # images in the forward
    slim: float
    whole: float
    layout: str  # of the slim network: the faster one here, or that of the ONNX file
    low: float | None = None  # of the ratio: half of the turns lie between `low` and `high`
    high: float | None = None
    middle: float | None = None  # median of the turns' ratios; None: older files

    @property
    def ratio(self) -> float:
        """Below 1 the slim network is faster: the median of the turns."""
        return self.slim / self.whole if self.middle is None else self.middle

    @property
    def faster(self) -> bool:
        """Whether it takes less of the time than `FASTER`, and less in most of the turns."""
        return self.ratio < FASTER and (self.high is None or self.high < 1)

    @property
    def throughput(self) -> float:
        """Images a second."""
        return 1000 * self.batch / self.slim


def latency_of(batch: int, slim: np.ndarray, whole: np.ndarray, layout: str) -> Latency:
    """From milliseconds (turns,) of both."""
    low, middle, high = (float(q) for q in np.quantile(slim / whole, (0.25, 0.5, 0.75)))
    return Latency(
        batch, float(np.median(slim)), float(np.median(whole)), layout, low, high, middle
    )


@dataclass(frozen=True)
class _Case:
    """A network in one layout or several, and where the whole network stands that it came from."""

    layouts: dict[str, nn.Module]
    whole: str  # key
    input_shape: tuple[int, int, int]


def timings(
    found: Sequence[tuple[nn.Module, NetworkInfo]], batch: int, device: torch.device
) -> list[Latency]:
    """Each network in both layouts and its whole network in layout "fast", all taking turns."""
    cases: list[_Case] = []
    wholes: dict[str, nn.Module] = {}
    graphs: dict[str, Graph] = {}
    for network, about in found:
        shape = about.supernet.preprocessing.input_shape
        onnx = isinstance(network, OnnxNetwork)
        key = f"{_whole_key(about)} {onnx}"
        if key not in wholes:
            dense, graphs[key] = _whole(about, "onnx" if onnx else "fast")
            if onnx:  # runtime against the same runtime
                dense = OnnxNetwork(in_onnx(dense, torch.randn(2, *shape)))
            wholes[key] = dense
        if onnx:
            name = "onnx" if about.layout == "onnx" else f"{about.layout}, onnx"  # older files
            layouts = {name: network}
        else:
            fast = arranged(copy.deepcopy(network), "fast", graphs[key])
            layouts = {"small": network, "fast": fast}
        cases.append(_Case(layouts, key, shape))
    return _in_turns(cases, wholes, batch, device)


def onnx_timings(
    found: Sequence[tuple[nn.Module, NetworkInfo]], batch: int, device: torch.device
) -> list[Latency | None]:
    """Networks that are no ONNX files, in ONNX Runtime beside their whole network; None: not timed.

    For a GPU, without the packages, and for steps that cannot be exported, there are none.
    """
    plain = [at for at, (network, _) in enumerate(found) if not isinstance(network, OnnxNetwork)]
    rows: list[Latency | None] = [None] * len(found)
    if device.type == "cpu" and onnx_installed() and plain:
        try:
            for at, row in zip(
                plain, _timed_in_onnx([found[p] for p in plain], batch), strict=True
            ):
                rows[at] = row
        except Exception as error:  # exporter and runtime raise many kinds
            note(f"note: no times in ONNX Runtime: {one_line(error)}")
    return rows


def _timed_in_onnx(found: Sequence[tuple[nn.Module, NetworkInfo]], batch: int) -> list[Latency]:
    cases: list[_Case] = []
    wholes: dict[str, nn.Module] = {}
    graphs: dict[str, Graph] = {}
    for network, about in found:
        key, shape = _whole_key(about), about.supernet.preprocessing.input_shape
        images = torch.zeros(batch, *shape)
        if key not in wholes:
            dense, graphs[key] = _whole(about, "onnx")
            wholes[key] = OnnxNetwork(quick_onnx(dense, images))
        smaller = arranged(copy.deepcopy(network).cpu().eval(), "onnx", graphs[key])
        layouts: dict[str, nn.Module] = {"onnx": OnnxNetwork(quick_onnx(smaller, images))}
        cases.append(_Case(layouts, key, shape))
    return _in_turns(cases, wholes, batch, torch.device("cpu"))


def _whole(about: NetworkInfo, layout: Layout) -> tuple[nn.Module, Graph]:
    """The whole network that a network was cut from, arranged, and the super-network's graph."""
    supernet = about.supernet.network()
    graph = gates(supernet).graph
    return arranged(ungated_copy(supernet).eval(), layout, graph), graph


def _in_turns(
    cases: Sequence[_Case], wholes: dict[str, nn.Module], batch: int, device: torch.device
) -> list[Latency]:
    """Each case in its fastest layout, beside its whole network."""
    shape_of = {case.whole: case.input_shape for case in cases}
    networks, shapes = list(wholes.values()), [shape_of[key] for key in wholes]
    for case in cases:
        networks += case.layouts.values()
        shapes += [case.input_shape] * len(case.layouts)
    times = iter(forward_times(networks, shapes, batch=batch, device=device))
    beside = {key: next(times) for key in wholes}
    rows = []
    for case in cases:
        own = {layout: next(times) for layout in case.layouts}
        layout = min(own, key=lambda name: float(np.median(own[name])))
        rows.append(latency_of(batch, own[layout], beside[case.whole], layout))
    return rows


def _whole_key(about: NetworkInfo) -> str:
    """Networks of one key were cut out of the same one."""
    of = about.supernet
    return repr((of.backbone, of.options, len(of.classes), of.preprocessing.input_shape))
