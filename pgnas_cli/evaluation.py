"""Error on the test split and time per image: what a network is worth, measured.

With the report, the only reader of the test split.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from .data import ImageData, Preprocessing, evaluation_images, placed
from .ranking import BATCH, predictions, prepared


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
    track: Callable[[Sequence[int], str], Iterable[int]] = lambda items, _: items,
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
