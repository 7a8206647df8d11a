"""Error on the test split and time per image: what exported networks are worth, measured.

With the report, the only reader of the test split.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from .data import ImageData, Preprocessing, Track, untracked
from .deployment import read_onnx
from .errors import PgnasError
from .export import Slim, read_network
from .loading import evaluation_images, placed
from .ranking import BATCH, predictions, prepared
from .sources import open_data


@dataclass(frozen=True)
class Score:
    """Errors on a set of images."""

    errors: int
    images: int

    @property
    def error(self) -> float:
        """Share of the images that are wrong."""
        return self.errors / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the error (Wilson's score interval)."""
        found = binomtest(self.errors, self.images).proportion_ci(0.95, method="wilson")
        return float(found.low), float(found.high)


def test_score(
    network: nn.Module,
    data: ImageData,
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    workers: int,
    track: Track = untracked,
) -> Score:
    """Errors of `network` on the test split of `data`."""
    assert data.test is not None
    placed(network, device).eval()
    images = evaluation_images(data.test, preprocessing, batch=BATCH, workers=workers)
    labels = data.test.labels.split(BATCH)
    errors = 0
    for place in track(range(len(labels)), "evaluating"):
        pixels = next(images)
        logits = predictions(network, prepared(pixels, preprocessing, device), len(pixels))
        errors += int((logits.argmax(1) != labels[place]).sum())
    return Score(errors, len(data.test))


@torch.inference_mode()
def latencies(
    networks: Sequence[nn.Module],
    input_shape: tuple[int, int, int],
    *,
    batch: int,
    device: torch.device,
    seconds: float = 1.0,  # roughly, for each network
) -> list[float]:
    """Median milliseconds of one forward of `batch` images, runs alternating among `networks`.

    Denormal numbers are flushed to zero: they would make a small network look slow.
    """
    torch.set_flush_denormal(True)
    inputs = torch.randn(batch, *input_shape, generator=torch.Generator().manual_seed(0))
    inputs = inputs.to(device).contiguous(memory_format=torch.channels_last)
    for network in networks:
        placed(network, device).eval()
        for _ in range(3):
            _timed(network, inputs)
    times: list[list[float]] = [[] for _ in networks]
    deadline = time.perf_counter() + seconds * len(networks)
    while len(times[0]) < 5 or (time.perf_counter() < deadline and len(times[0]) < 500):
        for network, found in zip(networks, times, strict=True):
            found.append(_timed(network, inputs))
    return [1000 * statistics.median(found) for found in times]


def _timed(network: nn.Module, inputs: Tensor) -> float:
    start = time.perf_counter()
    network(inputs)
    if inputs.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Evaluation:
    """What an exported network is worth on the test split and on this machine."""

    path: Path
    about: Slim
    score: Score
    latency_ms: float  # one image
    batch_latency_ms: float  # a batch of `batch` images
    batch: int


def evaluate_stage(
    paths: Sequence[Path],
    data_name: str | None,
    *,
    data_root: Path,
    batch: int,
    device: torch.device,
    workers: int,
    track: Track,
) -> list[Evaluation]:
    """Test error and latency of exported networks; latencies alternate among them."""
    found = [read_onnx(p) if p.suffix == ".onnx" else read_network(p) for p in paths]
    scores = []
    for (network, about), path in zip(found, paths, strict=True):
        name = data_name or about.subject.data
        if data_name is None and name != "digits" and "/" not in name:
            raise PgnasError(
                f"'{path}' was fitted on a folder called '{name}'; say where it lies with --data"
            )
        data = open_data(
            name, seed=0, root=data_root, preprocessing=about.subject.preprocessing, fitting=False,
            track=track,
        )  # fmt: skip
        if data.classes != about.subject.classes:
            raise PgnasError(
                f"'{name}' has the classes {', '.join(data.classes[:5])}..., '{path}' was fitted on"
                f" {', '.join(about.subject.classes[:5])}..."
            )
        if data.test is None:
            raise PgnasError(f"'{name}' has no test images; expected {name}/test/ or {name}/val/")
        scores.append(
            test_score(
                network, data, about.subject.preprocessing, device=device, workers=workers,
                track=track,
            )
        )  # fmt: skip
    shape = found[0][1].subject.preprocessing.input_shape
    networks = [network for network, _ in found]
    one = latencies(networks, shape, batch=1, device=device)
    many = latencies(networks, shape, batch=batch, device=device)
    return [
        Evaluation(path, about, score, a, b, batch)
        for path, (_, about), score, a, b in zip(paths, found, scores, one, many, strict=True)
    ]
