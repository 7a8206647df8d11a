"""Errors of candidates on the held-out images, and their order.

One canonical evaluation decides whether a candidate is right on an image: the super-network in
evaluation mode under the candidate's mask, float32, channels-last, in forwards of one fixed number
of pairs (the last one padded), whose images and candidates may all differ. Logits change in their
last bits with the size of a batch though not with what else is in it, so the outcome of a
(candidate, image) pair does not depend on when it is evaluated, nor beside what.

Order: fewer errors, then fewer parameters, then the smaller id. Either every pair is evaluated, or
only those that the first K depend on (race.py); the first K are the same.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data import ImageData, Preprocessing, placed
from ..gates import masked
from ..sizes import Sizes
from ..training import BATCH, RESIDENT
from .race import PILOTS, Race, begun, run
from .recalibration import Recalibration


@dataclass(frozen=True)
class Ranking:
    """Candidates with what was measured."""

    race: Race
    sizes: Sizes  # by id

    @property
    def order(self) -> Tensor:
        """Ids, best first, int64: the first K, or all candidates."""
        return self.race.best()

    @property
    def errors(self) -> Tensor:
        """Errors among the images seen, by id, int64 (candidates,)."""
        return self.race.errors

    @property
    def images(self) -> int:
        """Held-out images."""
        return len(self.race.order)

    @property
    def running(self) -> Tensor:
        """Ids that a ranking stopped early had not yet decided on, int64."""
        return self.race.walking()

    @property
    def pairs(self) -> int:
        """(candidate, image) pairs that were evaluated."""
        return int(self.race.seen.sum())

    @property
    def exhaustive(self) -> bool:
        """Whether every candidate has seen every image."""
        return bool(self.race.finished.all())


class Judge:
    """Says whether candidates are right on images, pair by pair, in the canonical way."""

    def __init__(
        self,
        network: nn.Module,
        keep: Tensor,  # bool (candidates, gates)
        pixels: Tensor,  # uint8 (images, channels, height, width), held-out
        labels: Tensor,  # int64 (images,)
        preprocessing: Preprocessing,
        device: torch.device,
        recalibrated_on: list[Tensor] | None = None,  # images in batches, normalised
    ) -> None:
        self.network = placed(network, device).eval()
        self.recalibration: Recalibration | None = None
        if recalibrated_on:
            self.recalibration = Recalibration(self.network, keep, recalibrated_on)
        self.keep, self.labels = keep.to(device), labels.to(device)
        self.pixels, self.preprocessing = pixels.to(device), preprocessing
        self.ready: Tensor | None = None
        if pixels.numel() < RESIDENT:
            self.ready = torch.cat([preprocessing.normalised(p) for p in self.pixels.split(BATCH)])
        # Pairs in a forward: small images leave a core idle otherwise, a GPU all the more.
        self.batch = 512 if device.type == "cuda" else 256 if pixels[0].numel() <= 1024 else 64

    def of(self, keep: Tensor) -> "Judge":
        """The same for other candidates; the images are there once."""
        other = copy.copy(self)
        other.keep = keep.to(self.labels.device)
        if self.recalibration is not None:
            other.recalibration = Recalibration(self.network, keep, self.recalibration.batches)
        return other

    @property
    def name(self) -> str:
        """Of this way of evaluating: pairs evaluated under another name may differ in last bits."""
        way = f"{self.batch} pairs, float32, {self.labels.device.type}"
        again = self.recalibration
        return way if again is None else f"{way}, recalibrated on {again.images} images"

    @torch.inference_mode()
    def __call__(self, candidates: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of pairs of int64 (pairs,): wrong, bool; and score of the label less the best other."""
        wrong, margin = [], []
        for some, shown in zip(candidates.split(self.batch), images.split(self.batch), strict=True):
            found = self._forward(some.to(self.labels.device), shown.to(self.labels.device))
            wrong.append(found[0].cpu())
            margin.append(found[1].cpu())
        return torch.cat(wrong), torch.cat(margin)

    def _forward(self, candidates: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        pairs = len(candidates)
        candidates = torch.cat([candidates, candidates[:1].expand(self.batch - pairs)])
        images = torch.cat([images, images[:1].expand(self.batch - pairs)])
        if self.ready is None:
            inputs = self.preprocessing.normalised(self.pixels[images])
        else:
            inputs = self.ready[images]
        own = self.recalibration.of(candidates) if self.recalibration else nullcontext()
        with own, masked(self.network, self.keep[candidates]):
            logits = self.network(inputs.contiguous(memory_format=torch.channels_last)).float()
        labels = self.labels[images][:, None]
        own = logits.gather(1, labels)[:, 0]
        other = logits.scatter(1, labels, -torch.inf).amax(1)
        return (logits.argmax(1) != labels[:, 0])[:pairs], (own - other)[:pairs]


def held_out_judge(
    network: nn.Module,
    keep: Tensor,
    data: ImageData,
    device: torch.device,
    recalibrated_on: list[Tensor] | None = None,
) -> Judge:
    """What evaluates the candidates `keep` on the held-out images, which are decoded."""
    part = data.held_out
    assert part.pixels is not None
    return Judge(
        network, keep, part.pixels, part.labels, data.preprocessing, device, recalibrated_on
    )


@dataclass(frozen=True)
class Progress:
    """Where a ranking is, between two forwards."""

    pairs: int  # evaluated so far
    left: int  # about how many are still to come
    walking: int  # candidates not yet decided on
    bar: float | None  # error of the K-th best so far
    race: Race | None  # None while the pilots run


def rank(
    judge: Judge,
    sizes: Sizes,
    *,
    top: int | None = None,  # None: evaluate every pair
    race: Race | None = None,  # to go on from
    between: Callable[[Progress], bool] | None = None,  # after each forward; True stops
) -> Ranking:
    """Rank all candidates, or find the first `top` of them in a race."""
    candidates, images = len(judge.keep), len(judge.labels)
    wanted = candidates if top is None else max(1, min(top, candidates))
    pairs = 0

    def told(number: int) -> bool:
        nonlocal pairs
        pairs += number
        if between is None:
            return False
        if race is None:
            left = (candidates if wanted == candidates else pilots) * images - pairs
            return between(Progress(pairs, left, candidates, None, begun_so_far()))
        bar = race.bar()
        level = None if bar is None else bar // candidates / images
        return between(Progress(pairs, race.pairs_left(), len(race.walking()), level, race))

    pilots = min(PILOTS, candidates)
    found: list[tuple[Tensor, Tensor]] = []

    def begun_so_far() -> Race | None:
        """A race of the pilots that have seen everything."""
        whole = sum(len(wrong) for wrong, _ in found) // images
        if not whole:
            return None
        wrong, margin = (
            torch.cat(column)[: whole * images].view(whole, images)
            for column in zip(*found, strict=True)
        )
        return begun(sizes.params, wanted, wrong, margin)

    if race is not None and len(race.margins) < pilots:  # stopped among its pilots
        done = range(len(race.margins))
        found = [(race.row(pilot), race.margins[pilot]) for pilot in done]
        race = None
    if race is None:
        pairs = len(found) * images
        for some in torch.arange(pairs, pilots * images).split(judge.batch):
            found.append(judge(some // images, some % images))
            if told(len(some)) and begun_so_far() is not None:  # so that there is a best so far
                break
        race = begun_so_far()
        assert race is not None
        if len(race.margins) < pilots:
            return Ranking(race, sizes)
    for number in run(race, lambda c, i: judge(c, i)[0], fill=judge.batch, chunk=judge.batch):
        if told(number):
            break
    return Ranking(race, sizes)
