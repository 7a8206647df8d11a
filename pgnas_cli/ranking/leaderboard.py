"""Rank the candidates of a run: posterior + candidates + data -> ranking.

Candidates within one budget are ranked among each other: one board per budget. The ranking file
holds how far each candidate has come, so a ranking that was interrupted, or stopped by a time
limit, goes on from there, as does one that is asked for more of the best.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data import ImageData
from ..errors import Interrupted, PgnasError
from ..progress import Track
from ..run import Run, read_settings
from ..run.posterior import held_out_of, posterior_of
from ..sampling import Drawn, read_candidates
from ..seeds import numpy_generator
from ..sizes import Target
from ..storage import checked, file_digest, read_tensors, write_tensors, write_text
from ..training import StopRequest
from .evaluator import Judge, Progress, Ranking, held_out_judge, rank
from .race import PILOTS, Race, places, smallest_passing
from .recalibration import recalibration_images
from .statistics import (
    LEVEL,
    Confidence,
    confidence,
    expected_error,
    most_errors_within_noise,
    paired_p,
)

RANKING = "pgnas.ranking/5"

SAVE_SECONDS = 30.0

SHOWN = 10  # rows whose order is tested


@dataclass(frozen=True)
class Board:
    """The ranking of the candidates within one budget."""

    budget: Target | None  # None: all that were drawn
    first: int  # id of the first of its candidates; those of `ranking` are counted from it
    ranking: Ranking
    confidence: Confidence  # of the first `SHOWN` rows
    expected_error: float  # of the first on other images

    @property
    def best(self) -> int:
        """The first candidate, counted from `first`."""
        return int(self.ranking.order[0])

    @property
    def best_error(self) -> float:
        """Its share of errors on the held-out images."""
        return int(self.ranking.errors[self.best]) / self.ranking.images


@dataclass(frozen=True)
class Ranked:
    """What a ranking came to."""

    boards: tuple[Board, ...]  # those that were begun
    waiting: int  # budgets that the time did not suffice for
    seconds: float


@dataclass(frozen=True)
class Stored:
    """A ranking file."""

    races: tuple[Race | None, ...]  # of each board, as far as it came
    evaluated: str  # how its pairs were
    recalibrate: int  # images; 0: candidates had the statistics of the fit

    def ranking(self, drawn: Drawn, board: int) -> Ranking | None:
        """The ranking of one board; None where it was not begun."""
        race = self.races[board]
        rows = drawn.boards()[board][1]
        return None if race is None else Ranking(race, drawn.sizes.part(rows))


def rank_stage(
    run: Run,
    *,
    top: int,
    exhaustive: bool = False,  # evaluate every pair
    time_limit: float | None = None,  # seconds
    recalibrate: int = 0,  # images of the fit for each candidate's batch-norm statistics
    device: torch.device,
    workers: int,
    track: Track,
    watch: Callable[[Progress], None] = lambda _: None,
    notice: Callable[[str], None] = lambda _: None,
) -> Ranked:
    """Find the best candidates of a run on its held-out images, and say how sure that is.

    Raises Interrupted, with all that was found saved, on SIGINT and SIGTERM.
    """
    if top < 1:
        raise PgnasError(f"--top {top} is out of range; possible: 1 or more")
    if time_limit is not None and not time_limit > 0:
        raise PgnasError(f"--time-limit {time_limit / 60:g} is out of range; possible: above 0")
    network, posterior = posterior_of(run)
    drawn = read_candidates(run, network)
    data = held_out_of(run, posterior, read_settings(run), workers, track)
    judges = judges_of(network, drawn, data, device, workers, recalibrate)
    races = list(_races_of(run, drawn, judges[0], notice))
    start = last = time.perf_counter()
    with StopRequest() as request:
        for board, (judge, (_, rows)) in enumerate(zip(judges, drawn.boards(), strict=True)):
            wanted = len(judge.keep) if exhaustive else min(top, len(judge.keep))
            race = races[board]
            if race is not None:
                race.top = wanted

            def between(progress: Progress, board: int = board, judge: Judge = judge) -> bool:
                nonlocal last
                watch(progress)
                now = time.perf_counter()
                over = time_limit is not None and now - start > time_limit
                if progress.race is not None and now - last > SAVE_SECONDS:
                    races[board] = progress.race
                    _write(run, races, judge)
                    last = time.perf_counter()
                return over or request.asked

            sizes = drawn.sizes.part(rows)
            ranking = rank(judge, sizes, top=wanted, race=race, between=between)
            races[board] = ranking.race
            if len(ranking.running):
                break
        _write(run, races, judges[0])
    rankings = {
        board: Ranking(race, drawn.sizes.part(rows))
        for board, (race, (_, rows)) in enumerate(zip(races, drawn.boards(), strict=True))
        if race is not None
    }
    undecided = sum(len(ranking.running) for ranking in rankings.values())
    if request.asked and undecided:
        raise Interrupted(
            f"interrupted; {undecided} candidates are not decided on, go on with"
            f" {rank_again(run, top, recalibrate, exhaustive)}"
        )
    boards = tuple(
        board_of(*drawn.boards()[board], ranking, posterior.seed)
        for board, ranking in rankings.items()
    )
    _write_table(run, boards)
    return Ranked(boards, len(judges) - len(boards), time.perf_counter() - start)


def rank_again(run: Run, top: int, recalibrate: int, exhaustive: bool = False) -> str:
    """The command that goes on with such a ranking."""
    more = f" --recalibrate {recalibrate}" if recalibrate else ""
    more += " --exhaustive" if exhaustive else f" --top {top}" if top != SHOWN else ""
    return f"pgnas rank --run {run.folder}{more}"


def judges_of(
    network: nn.Module,
    drawn: Drawn,
    data: ImageData,
    device: torch.device,
    workers: int,
    recalibrate: int,
) -> list[Judge]:
    """What evaluates the candidates of each board."""
    images = recalibration_images(data, recalibrate, workers) if recalibrate else None
    first = held_out_judge(network, drawn.keep, data, device, images)
    return [first.of(drawn.keep[rows]) for _, rows in drawn.boards()]


def board_of(budget: Target | None, rows: slice, ranking: Ranking, seed: int) -> Board:
    """A ranking, and how sure its order is."""
    race, shown = ranking.race, ranking.order[:SHOWN]
    wrong = torch.stack([race.row(candidate) for candidate in shown.tolist()])
    sure = confidence(wrong, race.place[shown], randomness=numpy_generator(seed, "other images"))
    # The pilots saw everything whatever they are worth.
    unselected = torch.stack([race.row(candidate) for candidate in range(len(race.margins))])
    expected = expected_error(int(ranking.errors[shown[0]]), unselected)
    return Board(budget, rows.start, ranking, sure, expected)


def smallest_within_noise(
    run: Run,
    drawn: Drawn,
    board: int,
    judges: Sequence[Judge],
    watch: Callable[[Progress], None] = lambda _: None,
) -> int:
    """The smallest candidate of a board that the paired test cannot tell from its best.

    Smaller ones are walked until the test must tell them apart, so the choice is exact.
    """
    races, judge = list(_races_of(run, drawn, judges[board])), judges[board]
    race = races[board]
    if race is None:  # whether it is there and finished is the caller's to check
        raise PgnasError(
            f"the ranking in '{run.folder}' was not made as this machine evaluates ({judge.name});"
            f" rank again: pgnas rank --run {run.folder}"
        )
    images, winners = len(race.order), race.row(int(race.best()[0]))
    most = most_errors_within_noise(int(winners.sum()), images)

    def told(_: int) -> None:
        within = ~race.finished & (race.errors <= most)
        left = int((images - race.seen[within]).sum())
        watch(Progress(int(race.seen.sum()), left, int(within.sum()), most / images, race))

    found = smallest_passing(
        race,
        lambda c, i: judge(c, i)[0],
        lambda candidate: paired_p(winners, race.row(candidate)) >= LEVEL,
        most,
        fill=judge.batch,
        told=told,
    )
    _write(run, races, judge)
    return found + int(drawn.boards()[board][1].start)


def read_ranking(run: Run, drawn: Drawn) -> Stored | None:
    """The ranking of a run, or None where its present candidates have not been ranked."""
    if not run.ranking.exists():
        return None
    tensors, content = read_tensors(run.ranking, RANKING)
    if content.get("made_from") != file_digest(run.candidates):
        return None
    damaged = PgnasError(f"'{run.ranking}' is damaged; rank again: pgnas rank --run {run.folder}")
    images, tops, boards = content.get("images"), content.get("top"), drawn.boards()
    evaluated, recalibrate = content.get("evaluated"), content.get("recalibrate")
    if not isinstance(images, int) or images < 1 or not isinstance(evaluated, str):
        raise damaged
    if (
        type(recalibrate) is not int
        or recalibrate < 0
        or not isinstance(tops, list)
        or len(tops) != len(boards)
    ):
        raise damaged
    races: list[Race | None] = []
    for board, ((_, rows), top) in enumerate(zip(boards, tops, strict=True)):
        prefix = f"{board}."
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if top is None and not own:
            races.append(None)
            continue
        race = _race(own, images, top, drawn.sizes.params[rows], run)
        if race is None:
            raise damaged
        races.append(race)
    if not any(races):
        raise damaged
    return Stored(tuple(races), evaluated, recalibrate)


def _race(
    tensors: dict[str, Tensor], images: int, top: Any, params: Tensor, run: Run
) -> Race | None:
    """The race of one board; None where its numbers contradict each other."""
    found, margins = (tensors.get(name, torch.empty(0)) for name in ("mistakes", "margins"))
    wanted = {
        "seen": ((len(params),), torch.int64),
        "walk": ((images,), torch.int64),
        "hardness": ((images + 1,), torch.float64),
        "mistakes": ((found.numel(),), torch.int64),
        "margins": ((margins.numel() // images, images), torch.float32),
    }
    checked(tensors, wanted, run.ranking)
    order, seen = tensors["walk"], tensors["seen"]
    sound = (
        type(top) is int
        and 1 <= top <= len(params)
        and 1 <= len(margins) <= min(PILOTS, len(params))
        and bool((seen[: len(margins)] == images).all())
        and bool(torch.isfinite(margins).all())
        and torch.equal(order.sort().values, torch.arange(images))
        and bool((seen >= 0).all() and (seen <= images).all() and (seen == images).any())
        and bool((tensors["hardness"].diff() >= 0).all())
        and _among(found, order, seen)
    )
    if not sound:
        return None
    errors = torch.bincount(found.div(images, rounding_mode="floor"), minlength=len(params))
    place = places(params)
    return Race(order, place, top, seen, errors, tensors["hardness"], margins, [found])


def _among(mistakes: Tensor, order: Tensor, seen: Tensor) -> bool:
    """Whether the errors are distinct ones, of pairs that were evaluated."""
    if not len(mistakes):
        return True
    images = len(order)
    distinct = bool((mistakes.sort().values.diff() > 0).all())
    if not distinct or int(mistakes.min()) < 0 or int(mistakes.max()) >= len(seen) * images:
        return False
    step = torch.empty_like(order)
    step[order] = torch.arange(images)
    walked = step[mistakes % images] < seen[mistakes.div(images, rounding_mode="floor")]
    return bool(walked.all())


def _races_of(
    run: Run, drawn: Drawn, judge: Judge, notice: Callable[[str], None] = lambda _: None
) -> tuple[Race | None, ...]:
    """Earlier races of the same candidates, evaluated as `judge` does; None: start anew."""
    anew = (None,) * len(drawn.boards())
    try:
        found = read_ranking(run, drawn)
    except PgnasError:
        return anew  # what is derived inside a run is replaced
    if found is None:
        return anew
    if found.evaluated != judge.name:
        notice(
            f"the ranking that is there was made otherwise ({found.evaluated}, now {judge.name}):"
            " starting anew"
        )
        return anew
    if any(race is not None and len(race.order) != len(judge.labels) for race in found.races):
        return anew
    return found.races


def _write(run: Run, races: Sequence[Race | None], judge: Judge) -> None:
    tensors: dict[str, Tensor] = {}
    for board, race in enumerate(races):
        if race is not None:
            own = {"seen": race.seen, "walk": race.order, "hardness": race.hardness,
                   "margins": race.margins.float(),
                   "mistakes": race.all_mistakes().sort().values}  # fmt: skip
            tensors |= {f"{board}.{name}": value for name, value in own.items()}
    write_tensors(
        run.ranking,
        RANKING,
        tensors,
        {
            "images": len(judge.labels),
            "top": [None if race is None else race.top for race in races],
            "evaluated": judge.name,
            "recalibrate": judge.recalibration.images if judge.recalibration else 0,
            "made_from": file_digest(run.candidates),
        },
    )


def _write_table(run: Run, boards: Sequence[Board]) -> None:
    lines = ["rank,id,errors,images,error,params,paper_params,macs,budget"]
    for board in boards:
        ranking, budget = board.ranking, "" if board.budget is None else str(board.budget)
        for place, index in enumerate(ranking.order.tolist()):
            errors = int(ranking.errors[index])
            sizes = [int(s[index]) for s in dataclasses.astuple(ranking.sizes)]
            error = f"{errors / ranking.images:.6f}"
            row = [place + 1, board.first + index, errors, ranking.images, error, *sizes, budget]
            lines.append(",".join(map(str, row)))
    write_text(run.ranking_table, "\n".join(lines) + "\n")
