"""Errors of candidates on the held-out images, and their order.

One canonical evaluation decides whether a candidate is right on an image: the super-network in
evaluation mode under the candidate's mask, float32, images in batches of one fixed size (the last
one padded), channels-last. Logits change in their last bits with the size of a batch though not
with an image's place in it, so with a fixed size the outcome of a (candidate, image) pair does not
depend on which other images share its batch.

Order: fewer errors, then fewer parameters, then the smaller id.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .candidates import Sizes
from .data import Preprocessing, Track, untracked
from .loading import placed
from .supernet import masked

BATCH = 64  # images in each forward of the canonical evaluation
RESIDENT = 2**28  # numbers that are kept as float32: 1 GiB


@dataclass(frozen=True)
class Ranking:
    """Candidates with what was measured, best first."""

    order: Tensor  # int64 (candidates,): ids, best first
    errors: Tensor  # int64 (candidates,), by id
    images: int  # held-out images that each candidate was judged on
    sizes: Sizes  # by id


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
def predictions(network: nn.Module, batches: Iterable[Tensor], images: int) -> Tensor:
    """Logits of the first `images` images in `batches`, float (images, classes)."""
    assert not network.training
    return torch.cat([network(batch).float().cpu() for batch in batches])[:images]


def rank(
    network: nn.Module,
    keep: Tensor,  # bool (candidates, gates)
    sizes: Sizes,
    pixels: Tensor,  # uint8 (images, channels, height, width), held-out
    labels: Tensor,  # int64 (images,)
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    track: Track = untracked,
) -> Ranking:
    """Evaluate every candidate on every held-out image."""
    placed(network, device).eval()
    batches = Batches(pixels, preprocessing, device)
    errors = torch.zeros(len(keep), dtype=torch.int64)
    for index in track(range(len(keep)), "ranking candidates"):
        with masked(network, keep[index]):
            logits = predictions(network, batches, len(labels))
        errors[index] = (logits.argmax(1) != labels).sum()
    return Ranking(ordered(errors, sizes.params), errors, len(labels), sizes)


def ordered(errors: Tensor, params: Tensor) -> Tensor:
    """Ids by (errors, parameters, id)."""
    rows = sorted(range(len(errors)), key=lambda i: (int(errors[i]), int(params[i]), i))
    return torch.tensor(rows)
