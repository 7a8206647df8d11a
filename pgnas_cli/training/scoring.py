"""Errors of a network on a set of images."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..data import Part, Preprocessing, evaluation_images, placed
from ..formats import likelihoods
from ..machine import Machine, computing
from ..progress import track

BATCH = 64  # images in each forward of one network
FEW_CLASSES = 10  # up to here a guess of five classes is right half of the time: no top-5 error
RESIDENT = 2**28  # numbers that are kept as float32: 1 GiB


class Batches:
    """Images in batches of exactly `BATCH`, the last one padded; they can be read many times.

    They are normalised once where that takes little memory, else each time.
    """

    def __init__(self, pixels: Tensor, preprocessing: Preprocessing, device: torch.device) -> None:
        self.pixels = pixels.to(device)  # uint8 (images, channels, height, width)
        self.preprocessing = preprocessing
        self.ready = list(self._made()) if pixels.numel() < RESIDENT else None

    def __iter__(self) -> Iterator[Tensor]:
        return self._made() if self.ready is None else iter(self.ready)

    def _made(self) -> Iterator[Tensor]:
        for part in self.pixels.split(BATCH):
            padding = part[:1].expand(BATCH - len(part), -1, -1, -1)
            yield self.preprocessing.normalised(torch.cat([part, padding]))


@torch.inference_mode()
def predictions(
    network: nn.Module, batches: Iterable[Tensor], images: int, precision: str = "float32"
) -> Tensor:
    """Logits of the first `images` images in `batches`, float (images, classes)."""
    assert not network.training
    logits = []
    for batch in batches:
        with computing(batch.device, precision):
            logits.append(network(batch).float().cpu())
    return torch.cat(logits)[:images]


@dataclass(frozen=True)
class Score:
    """Errors on a set of images."""

    errors: int
    images: int
    wrong: tuple[int, ...] = ()  # which of them, by position
    top5_errors: int | None = None  # label not among the five likeliest; None: few classes
    # The predicted class of each image, int64, and its probability, float64, both (images,).
    said: Tensor = field(default_factory=lambda: torch.empty(0).long(), compare=False)
    confidence: Tensor = field(default_factory=lambda: torch.empty(0).double(), compare=False)

    @property
    def error(self) -> float:
        """Share of the images that are wrong."""
        return self.errors / self.images


def score(
    network: nn.Module,
    part: Part,
    preprocessing: Preprocessing,
    *,
    precision: str = "float32",  # or bfloat16
    machine: Machine = Machine(),  # noqa: B008 - frozen
) -> Score:
    """Errors of `network` on a part of the data.

    Raises PgnasError for logits that are not finite.
    """
    placed(network, machine.device).eval()
    images = evaluation_images(part, preprocessing, batch=BATCH, workers=machine.workers)
    labels = part.labels.split(BATCH)
    wrong: list[int] = []
    top5: int | None = None
    answers: list[tuple[Tensor, Tensor]] = []  # class, probability
    with closing(images):
        for place in track(range(len(labels)), "evaluating"):
            pixels = next(images)
            logits = predictions(
                network, Batches(pixels, preprocessing, machine.device), len(pixels), precision
            )
            said = logits.argmax(1)
            own = likelihoods(logits).gather(1, said[:, None])[:, 0]
            answers.append((said, own))
            missed = said != labels[place]
            wrong += (missed.nonzero().flatten() + place * BATCH).tolist()
            if logits.shape[1] > FEW_CLASSES:
                five = logits.argsort(dim=1, descending=True, stable=True)[:, :5]
                far = missed & (five != labels[place][:, None]).all(1)
                top5 = (top5 or 0) + int(far.sum())
    said, confidence = map(torch.cat, zip(*answers, strict=True))
    return Score(len(wrong), len(part), tuple(wrong), top5, said, confidence)
