"""Evaluate candidates on the held-out images and rank them.

One canonical evaluation decides whether a candidate is right on an image: the super-network, cut
down to what candidates can keep, in evaluation mode under the candidate's mask, full float32 (or
bfloat16, by choice), channels-last, in forwards of one fixed number of pairs (the last one padded),
whose images and candidates may all differ. Logits change in their last bits with the size of a
batch though not with what else is in it, so the outcome of a (candidate, image) pair does not
depend on when it is evaluated, nor beside what. Several processes share the forwards; each knows
all outcomes.

Order: fewer errors, then fewer parameters, then the smaller id. Either every pair is evaluated, or
only those that the first K depend on (race.py); the first K are the same.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..data import ImageData, Preprocessing, placed
from ..distributed import rank, summed, world_size
from ..gates import masked, remaining
from ..machine import FILLED, computing, free_memory
from ..progress import Task, task
from ..slimming import remainder
from ..training import BATCH, RESIDENT
from ..units import percent
from .race import PILOTS, Race, begun, distinct, run, same_masks


class Evaluator:
    """Says whether candidates are right on images, pair by pair, in the canonical way."""

    def __init__(
        self,
        network: nn.Module,
        keep: Tensor,  # bool (candidates, gates)
        pixels: Tensor,  # uint8 (images, channels, height, width), held-out
        labels: Tensor,  # int64 (images,)
        preprocessing: Preprocessing,
        device: torch.device,
        precision: str = "float32",  # or bfloat16; logits are compared in float32
    ) -> None:
        self.precision = precision
        left = remainder(placed(network, device).eval())
        self.cut = left is not None and not bool((keep & ~remaining(network).to(keep)).any())
        self.network = placed(left.network, device).eval() if left and self.cut else network
        self.keep, self.labels = keep.to(device), labels.to(device)
        fits = device.type == "cpu" or pixels.numel() <= FILLED * free_memory(device)
        self.pixels, self.preprocessing = pixels.to(device if fits else "cpu"), preprocessing
        self.ready: Tensor | None = None
        if fits and pixels.numel() < RESIDENT:
            self.ready = torch.cat([preprocessing.normalised(p) for p in self.pixels.split(BATCH)])
        # Pairs in a forward: small images leave a core idle otherwise, a GPU all the more.
        self.batch = 512 if device.type == "cuda" else 256 if pixels[0].numel() <= 1024 else 64

    def of(self, keep: Tensor) -> "Evaluator":
        """The same for other candidates; the images are in memory once."""
        other = copy.copy(self)
        other.keep = keep.to(self.labels.device)
        return other

    @property
    def name(self) -> str:
        """Of this way of evaluating: pairs evaluated under another name may differ in last bits."""
        cut = ", cut" if self.cut else ""
        numbers = "full float32" if self.precision == "float32" else self.precision
        return f"{self.batch} pairs, {numbers}, {self.labels.device.type}{cut}"

    @property
    def chunk(self) -> int:
        """Pairs that all processes evaluate at once, each in one forward."""
        return self.batch * world_size()

    @torch.inference_mode()
    def __call__(self, candidates: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of pairs of int64 (pairs,): wrong, bool; and score of the label less the best other."""
        found = torch.zeros(2, len(candidates))
        for part in torch.arange(len(candidates)).split(self.batch)[rank() :: world_size()]:
            pairs = candidates[part].to(self.labels.device), images[part].to(self.labels.device)
            found[:, part] = torch.stack(self._forward(*pairs)).cpu()
        wrong, margin = summed(found)
        return wrong > 0, margin

    def _forward(self, candidates: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        pairs = len(candidates)
        candidates = torch.cat([candidates, candidates[:1].expand(self.batch - pairs)])
        images = torch.cat([images, images[:1].expand(self.batch - pairs)])
        if self.ready is None:
            shown = self.pixels[images.to(self.pixels.device)].to(self.labels.device)
            inputs = self.preprocessing.normalised(shown)
        else:
            inputs = self.ready[images]
        with masked(self.network, self.keep[candidates]), computing(inputs.device, self.precision):
            logits = self.network(inputs.contiguous(memory_format=torch.channels_last)).float()
        labels = self.labels[images][:, None]
        own = logits.gather(1, labels)[:, 0]
        other = logits.scatter(1, labels, -torch.inf).amax(1)
        return (logits.argmax(1) != labels[:, 0])[:pairs], (own - other)[:pairs]


def held_out_evaluator(
    network: nn.Module,
    keep: Tensor,
    data: ImageData,
    device: torch.device,
    precision: str = "float32",
) -> Evaluator:
    """An evaluator of the candidates `keep` on the held-out images, which are decoded."""
    part = data.held_out
    assert part.pixels is not None
    return Evaluator(network, keep, part.pixels, part.labels, data.preprocessing, device, precision)


def races(
    evaluator: Evaluator,
    params: Tensor,  # int64 (candidates,): breaks ties
    *,
    top: int | None = None,  # None: evaluate every pair
    race: Race | None = None,  # to resume
) -> Iterator[Race]:
    """Rank all candidates, or find the first `top` of them in a race.

    Yields the race after each forward, once a first candidate has seen every image; a caller that
    stops listening stops it. It is over when the iterator is exhausted.
    """
    candidates, images = len(evaluator.keep), len(evaluator.labels)
    wanted = candidates if top is None else max(1, min(top, candidates))
    same_as = same_masks(evaluator.keep) if race is None else race.same_as
    if race is not None and race.top != wanted:
        race.top, race.turn, race.goal = wanted, 0, race.seen
    networks = len(distinct(same_as))
    with task("ranking", networks * images) as shown:
        pilots = min(PILOTS, networks)
        if race is None or len(race.margins) < pilots:
            for pairs, early in _with_pilots(evaluator, params, wanted, race, same_as):
                race, left = early, networks * images - pairs  # at most
                if race is not None:  # a pilot is through
                    left = max(pilots * images - pairs, race.pairs_left())
                shown.update(pairs, total=pairs + left)
                if race is not None:
                    yield race
            assert race is not None
        yield race
        for _ in run(
            race, lambda c, i: evaluator(c, i)[0], fill=evaluator.batch, chunk=evaluator.chunk
        ):
            _show(shown, race)
            yield race


def finished(evaluator: Evaluator, params: Tensor, top: int | None = None) -> Race:
    """The race for the first `top` places at its end; None: every candidate on every image."""
    return list(races(evaluator, params, top=top))[-1]


def _with_pilots(
    evaluator: Evaluator, params: Tensor, top: int, race: Race | None, same_as: Tensor
) -> Iterator[tuple[int, Race | None]]:
    """The first networks see every image; yields the pairs so far, and a race of those who have."""
    images, ids = len(evaluator.labels), distinct(same_as)[:PILOTS]
    found: list[tuple[Tensor, Tensor]] = []
    if race is not None:  # stopped among its pilots
        found = [(race.row(int(pilot)), race.margins[i]) for i, pilot in enumerate(race.pilots)]
    whole = len(found)
    for some in torch.arange(whole * images, len(ids) * images).split(evaluator.chunk):
        found.append(evaluator(ids[some // images], some % images))
        pairs = int(some[-1]) + 1
        if pairs // images > whole:
            whole = pairs // images
            wrong, margin = (
                torch.cat(column)[: whole * images].view(whole, images)
                for column in zip(*found, strict=True)
            )
            race = begun(params, top, wrong, margin, same_as)
        yield pairs, race


def _show(shown: Task, race: Race) -> None:
    bar = race.bar()
    text = f"ranking: {len(race.walking())} candidates left"
    if bar is not None:
        text += f", to beat {percent(bar // len(race.place) / len(race.order))}"
    shown.update(race.pairs, total=race.pairs + race.pairs_left(), what=text)
