"""Error on the test split and time per image: what exported networks are worth, measured.

The only reader of the test split.
"""

import copy
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .data import FOLDER, Part, Preprocessing, Source, Track, untracked
from .deployment import OnnxNetwork, in_onnx, read_onnx
from .errors import PgnasError
from .export import Slim, read_network
from .loading import evaluation_images, placed
from .ranking import BATCH, Batches, predictions
from .slimming import arranged, ungated_copy
from .sources import find_data


@dataclass(frozen=True)
class Score:
    """Errors on a set of images."""

    errors: int
    images: int
    wrong: tuple[int, ...] = ()  # which of them, by position

    @property
    def error(self) -> float:
        """Share of the images that are wrong."""
        return self.errors / self.images


def score(
    network: nn.Module,
    part: Part,
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    workers: int,
    track: Track = untracked,
) -> Score:
    """Errors of `network` on a part of the data."""
    placed(network, device).eval()
    images = evaluation_images(part, preprocessing, batch=BATCH, workers=workers)
    labels = part.labels.split(BATCH)
    wrong: list[int] = []
    with closing(images):
        for place in track(range(len(labels)), "evaluating"):
            pixels = next(images)
            logits = predictions(network, Batches(pixels, preprocessing, device), len(pixels))
            missed = (logits.argmax(1) != labels[place]).nonzero().flatten()
            wrong += (missed + place * BATCH).tolist()
    return Score(len(wrong), len(part), tuple(wrong))


@torch.inference_mode()
def latencies(
    networks: Sequence[nn.Module],
    input_shapes: Sequence[tuple[int, int, int]],  # of each network's images
    *,
    batch: int,
    device: torch.device,
    seconds: float = 1.0,  # roughly, for each network
) -> list[float]:
    """Median milliseconds of one forward of `batch` images, runs alternating among `networks`.

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
            _timed(network, given)
    times: list[list[float]] = [[] for _ in networks]
    deadline = time.perf_counter() + seconds * len(networks)
    while len(times[0]) < 5 or (time.perf_counter() < deadline and len(times[0]) < 500):
        for network, given, found in zip(networks, inputs, times, strict=True):
            found.append(_timed(network, given))
    return [1000 * statistics.median(found) for found in times]


def _timed(network: nn.Module, inputs: Tensor) -> float:
    start = time.perf_counter()
    network(inputs)
    if inputs.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Latency:
    """Median milliseconds of one forward, of a network and of the whole it was cut from."""

    batch: int  # images in the forward
    slim: float
    whole: float
    layout: str  # of the slim network: the faster one here, or that of the ONNX file

    @property
    def ratio(self) -> float:
        """Below 1 the slim network is faster."""
        return self.slim / self.whole


@dataclass(frozen=True)
class Evaluation:
    """What an exported network is worth on the test split and on this machine."""

    path: Path
    about: Slim
    data: str  # name of the data set
    score: Score
    one: Latency  # a single image
    many: Latency  # a large batch


def evaluate_stage(
    paths: Sequence[Path],
    data_name: str | None,
    *,
    data_root: Path,
    skip_corrupt: bool,
    batch: int,
    device: torch.device,
    workers: int,
    track: Track,
) -> list[Evaluation]:
    """Test error and latency of exported networks, each beside the whole network it comes from."""
    found = [read_onnx(p) if p.suffix == ".onnx" else read_network(p) for p in paths]
    names = [
        _data_of(about, path, data_name) for path, (_, about) in zip(paths, found, strict=True)
    ]
    scores = []
    for (network, about), path, name in zip(found, paths, names, strict=True):
        source = find_data(name, root=data_root, skip_corrupt=skip_corrupt, track=track)
        test = _test_images(source, name, about, path)
        scores.append(
            score(
                network, test, about.subject.preprocessing, device=device, workers=workers,
                track=track,
            )
        )  # fmt: skip
    timed = {size: _timings(found, size, device) for size in (1, batch)}
    return [
        Evaluation(path, about, name, score, timed[1][at], timed[batch][at])
        for at, (path, (_, about), name, score) in enumerate(
            zip(paths, found, names, scores, strict=True)
        )
    ]


def _data_of(about: Slim, path: Path, named: str | None) -> str:
    name = named or about.subject.data
    if named is None and name.startswith(FOLDER):
        folder = name.removeprefix(FOLDER)
        raise PgnasError(
            f"'{path}' was fitted on a folder called '{folder}'; say where it lies with --data"
        )
    return name


def _test_images(data: Source, name: str, about: Slim, path: Path) -> Part:
    if data.classes != about.subject.classes:
        raise PgnasError(
            f"'{name}' has the classes {', '.join(data.classes[:5])}..., '{path}' was fitted on"
            f" {', '.join(about.subject.classes[:5])}..."
        )
    if data.test is None:
        raise PgnasError(f"'{name}' has no test images; expected {name}/test/ or {name}/val/")
    return data.test


def _timings(
    found: Sequence[tuple[nn.Module, Slim]], batch: int, device: torch.device
) -> list[Latency]:
    """Each network in both layouts and its whole network, all taking turns."""
    networks: list[nn.Module] = []
    places: list[dict[str, int]] = []
    wholes: dict[str, int] = {}
    shapes: list[tuple[int, int, int]] = []
    for network, about in found:
        shape = about.subject.preprocessing.input_shape
        onnx = isinstance(network, OnnxNetwork)
        of = about.subject
        key = repr((of.backbone, of.options, len(of.classes), shape, onnx))
        if key not in wholes:
            dense: nn.Module = ungated_copy(about.subject.network()).eval()
            if onnx:  # runtime against the same runtime
                dense = OnnxNetwork(in_onnx(dense, torch.randn(2, *shape)))
            wholes[key] = len(networks)
            networks.append(dense)
            shapes.append(shape)
        place = {"whole": wholes[key]}
        if onnx:
            layouts: list[tuple[str, nn.Module]] = [(f"{about.layout}, onnx", network)]
        else:
            layouts = [("small", network), ("fast", arranged(copy.deepcopy(network), "fast"))]
        for name, arrangement in layouts:
            place[name] = len(networks)
            networks.append(arrangement)
            shapes.append(shape)
        places.append(place)
    times = latencies(networks, shapes, batch=batch, device=device)
    rows = []
    for place in places:
        whole = times[place.pop("whole")]
        layout = min(place, key=lambda name: times[place[name]])
        rows.append(Latency(batch, times[place[layout]], whole, layout))
    return rows
