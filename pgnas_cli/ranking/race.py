"""Which (candidate, image) pairs must be looked at to know the best candidates for certain.

Errors only add up. A candidate whose errors so far, with its size and id to break ties, already
come after those of the K-th best finished candidate cannot enter the first K any more: it is out,
and nothing is lost. All candidates walk the images in one order, hardest first, so that losers are
out soon. No order and no guess below can make the result wrong, only the way there longer.

A candidate that lacks g errors to be out must be shown g more images in any proof. It gets just
that many at a time; only where a forward would not be filled does it get more.

Candidates with the same mask are the same network: the first of them is evaluated, and the others
have its outcomes, as full evaluation would find.

Everything here is arithmetic on counts; evaluating a pair is the caller's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PILOTS = 16  # networks that see every image first: they say which images are hard
SURVEYED = 256  # walkers, of which the pairs to come are estimated
ROUNDS_AHEAD = 4  # rounds in which the likeliest candidates are finished early
_NONE = torch.empty(0, dtype=torch.int64)


@dataclass
class Race:
    """How far every candidate has come. Tensors int64 on the CPU."""

    order: Tensor  # (images,): the common order, hardest first
    place: Tensor  # (candidates,): rank by (parameters, id), which breaks ties
    top: int  # how many of the best are wanted
    same_as: Tensor  # (candidates,): the first candidate of the same mask
    seen: Tensor  # (candidates,): images walked
    errors: Tensor  # (candidates,): among them
    hardness: Tensor  # float64 (images + 1,): the pilots' share of errors in each prefix
    margins: Tensor  # float (pilots, images): score of the label less the best other one
    mistakes: list[Tensor]  # parts of one (errors,): network x images + image of every error
    turn: int = 0  # rounds begun; with `goal` it makes a race that is resumed the same race
    goal: Tensor = _NONE  # (candidates,): images that each has walked when the round ends

    def __post_init__(self) -> None:
        """Without a goal no round has begun."""
        if self.goal is _NONE:
            self.goal = self.seen.clone()

    @property
    def networks(self) -> Tensor:
        """Ids of the distinct networks: of each mask the first candidate."""
        return distinct(self.same_as)

    @property
    def pilots(self) -> Tensor:
        """Ids of the networks that saw every image first."""
        return self.networks[: len(self.margins)]

    @property
    def pairs(self) -> int:
        """Pairs that were evaluated."""
        return int(self.seen[self.networks].sum())

    @property
    def finished(self) -> Tensor:
        """Candidates that have seen every image, bool (candidates,)."""
        return self.seen == len(self.order)

    @property
    def key(self) -> Tensor:
        """(errors so far, parameters, id) as one number each: smaller is better."""
        return self.errors * len(self.place) + self.place

    def bar(self) -> int | None:
        """Key of the K-th best finished candidate, or None where fewer have finished."""
        done = self.key[self.finished]
        if len(done) < min(self.top, len(self.place)):
            return None
        return int(done.kthvalue(min(self.top, len(self.place))).values)

    def walking(self) -> Tensor:
        """Ids of the candidates that may still enter the first K."""
        bar = self.bar()
        may = ~self.finished
        if bar is not None:
            may &= self.key < bar
        return may.nonzero().flatten()

    def walkers(self) -> Tensor:
        """Those of them that are evaluated: the smallest id of a mask is ahead of its copies."""
        ids = self.walking()
        return ids[self.same_as[ids] == ids]

    def best(self) -> Tensor:
        """Ids of the finished candidates that cannot be displaced by fewer errors, best first."""
        ids = self.finished.nonzero().flatten()
        return ids[self.key[ids].argsort()][: self.top]

    def row(self, candidate: int) -> Tensor:
        """Which images a finished candidate gets wrong, bool (images,)."""
        images = len(self.order)
        own = self.all_mistakes()
        own = own[own.div(images, rounding_mode="floor") == self.same_as[candidate]] % images
        return torch.zeros(images, dtype=torch.bool).index_fill_(0, own, True)

    def all_mistakes(self) -> Tensor:
        """Every error met so far, int64 (errors,): network x images + image."""
        self.mistakes = [torch.cat(self.mistakes)]
        return self.mistakes[0]

    def predicted(self, ids: Tensor) -> Tensor:
        """Errors that each is headed for, if it goes on as the pilots did, float64 (ids,)."""
        share = self.hardness[self.seen[ids]]
        return self.errors[ids] / share.clamp(min=1e-9)

    def pairs_left(self) -> int:
        """About how many pairs are still to come, from the pace of the pilots.

        Each walker errs on at the mean of its own pace and that of a pilot, for every pilot in
        turn, until it is behind the K-th best candidate, which a quantile of the pilots foretells.
        """
        ids, bar, images = self.walkers(), self.bar(), len(self.order)
        share = min(1.0, self.top / len(self.place))
        if share == 1 or not len(ids):
            return int((images - self.seen[ids]).sum())
        some = ids[:: max(1, len(ids) // SURVEYED)]
        pilots, errors = self.errors[self.pilots].double(), self.errors[some, None]
        limit = int(self.key[self.pilots].double().quantile(share))
        gap = _gap(self, some, limit if bar is None else min(limit, bar))[:, None]
        walked = self.hardness[self.seen[some], None]
        pace = ((errors + pilots) / (walked + 1)).clamp(min=1e-9)  # (walkers, pilots)
        until = walked + gap / pace
        last = torch.searchsorted(self.hardness, until).clamp(max=images)
        steps = (last - self.seen[some, None]).clamp(min=1)
        return int(steps.double().mean() * len(ids))


def begun(
    params: Tensor,  # int64 (candidates,)
    top: int,
    wrong: Tensor,  # bool (pilots, images): of the first networks
    margin: Tensor,  # float (pilots, images): score of the label less the best other one
    same_as: Tensor | None = None,  # int64 (candidates,), see Race; None: no mask occurs twice
) -> Race:
    """A race whose first networks, the pilots, have seen every image."""
    images, candidates = wrong.shape[1], len(params)
    order = margin.double().mean(0).argsort(stable=True)
    walked = wrong[:, order].double().mean(0).cumsum(0)
    share = walked / walked[-1] if walked[-1] else torch.arange(1, images + 1) / images
    hardness = torch.cat([torch.zeros(1, dtype=torch.float64), share.double()])
    seen, errors = torch.zeros(2, candidates, dtype=torch.int64)
    same_as = torch.arange(candidates) if same_as is None else same_as
    race = Race(order, places(params), top, same_as, seen, errors, hardness, margin, [])
    pairs = race.pilots.repeat_interleave(images), torch.arange(images).repeat(len(wrong))
    advance(race, *pairs, wrong.flatten())
    return race


def same_masks(keep: Tensor) -> Tensor:
    """Of each candidate the first one of the same mask, int64 (candidates,).

    `keep`: bool (candidates, gates).
    """
    first: dict[bytes, int] = {}
    rows = np.packbits(keep.cpu().numpy(), axis=1)
    return torch.tensor([first.setdefault(row.tobytes(), i) for i, row in enumerate(rows)])


def distinct(same_as: Tensor) -> Tensor:
    """Ids of the candidates that are the first of their mask."""
    return (same_as == torch.arange(len(same_as))).nonzero().flatten()


def places(params: Tensor) -> Tensor:
    """Rank of each candidate by (parameters, id), int64 (candidates,)."""
    place = torch.empty(len(params), dtype=torch.int64)
    place[params.argsort(stable=True)] = torch.arange(len(params))
    return place


def next_walks(race: Race, turn: int, fill: int) -> tuple[Tensor, Tensor]:
    """Who walks on, and how many images each, int64 (walkers,); none when the race is over.

    `turn` counts the rounds; `fill` is the number of pairs that costs no more than one pair.
    """
    ids, bar, images = race.walkers(), race.bar(), len(race.order)
    left = images - race.seen[ids]
    if bar is None:  # too few have finished to leave anyone behind
        wanted = min(race.top, len(race.place)) - int(race.finished.sum())
        first = _likeliest(race, ids)[:wanted]
        return ids[first], left[first]
    steps = torch.minimum(_gap(race, ids, bar), left)
    if turn and turn <= ROUNDS_AHEAD:  # a lower bar saves everyone else's steps
        first = _likeliest(race, ids)[: race.top]
        first = first[race.predicted(ids[first]) <= bar // len(race.place)]
        steps[first] = left[first]
    spare = fill - int(steps.sum())
    if spare > 0 and len(ids):
        steps = torch.minimum(steps + spare // len(ids), left)
    return ids, steps


def _gap(race: Race, ids: Tensor, bar: int) -> Tensor:
    """How many more errors leave each behind the bar: with a tie in errors, size decides."""
    errors, tie = divmod(bar, len(race.place))
    return (errors - race.errors[ids] + (race.place[ids] < tie)).clamp(min=1)


def _likeliest(race: Race, ids: Tensor) -> Tensor:
    """Positions in `ids` by what they are headed for, (errors, parameters, id), best first."""
    by_place = race.place[ids].argsort()
    return by_place[race.predicted(ids)[by_place].argsort(stable=True)]


def pairs_of(race: Race, ids: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs of such walks in order, candidate by candidate: (candidates, images)."""
    candidates = ids.repeat_interleave(steps)
    first = torch.cat([torch.zeros(1, dtype=torch.int64), steps.cumsum(0)[:-1]])
    within = torch.arange(len(candidates)) - first.repeat_interleave(steps)
    return candidates, race.order[race.seen[candidates] + within]


def advance(race: Race, candidates: Tensor, images: Tensor, wrong: Tensor) -> None:
    """Record outcomes of evaluated pairs, in the order of `pairs_of`; a prefix is allowed."""
    race.seen.index_add_(0, candidates, torch.ones_like(candidates))
    race.errors.index_add_(0, candidates, wrong.long())
    race.seen, race.errors = race.seen[race.same_as], race.errors[race.same_as]
    race.mistakes.append((candidates * len(race.order) + images)[wrong])


def run(
    race: Race,
    evaluate: Callable[[Tensor, Tensor], Tensor],  # (candidates, images) -> wrong, bool (pairs,)
    *,
    fill: int = 1,
    chunk: int = 4096,
) -> Iterator[int]:
    """Walk until the first K are known; yields the number of pairs after each chunk."""
    while True:
        ids = (race.goal > race.seen).nonzero().flatten()  # of a round that was stopped
        steps = race.goal[ids] - race.seen[ids]
        if not len(ids):
            ids, steps = next_walks(race, race.turn, fill)
            if not len(ids):
                return
            race.turn, race.goal = race.turn + 1, race.seen.index_add(0, ids, steps)
        candidates, images = pairs_of(race, ids, steps)
        for some, shown in zip(candidates.split(chunk), images.split(chunk), strict=True):
            advance(race, some, shown, evaluate(some, shown))
            yield len(some)
