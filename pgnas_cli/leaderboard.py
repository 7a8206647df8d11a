"""Rank the candidates of a run: posterior + candidates + data -> ranking.

The ranking file holds how far each candidate has come, so a ranking that was interrupted, or
stopped by a time limit, goes on from there, as does one that is asked for more of the best.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .confidence import (
    LEVEL,
    Confidence,
    confidence,
    expected_error,
    most_errors_within_noise,
    paired_p,
)
from .data import Track
from .drawing import Drawn, held_out_of, posterior_of, read_candidates
from .errors import Interrupted, PgnasError
from .files import (
    Run,
    checked,
    file_digest,
    read_tensors,
    write_tensors,
    write_text,
)
from .race import PILOTS, Race, places, smallest_passing
from .randomness import generator
from .ranking import Judge, Progress, Ranking, held_out_judge, rank
from .settings import read_settings
from .stopping import StopRequest

RANKING = "pgnas.ranking/3"
SAVE_SECONDS = 30.0
SHOWN = 10  # rows whose order is tested


@dataclass(frozen=True)
class Ranked:
    """What a ranking came to."""

    ranking: Ranking
    confidence: Confidence  # of the first `SHOWN` rows
    expected_error: float  # of the first on other images
    seconds: float


def rank_stage(
    run: Run,
    *,
    top: int,
    exhaustive: bool = False,  # evaluate every pair
    time_limit: float | None = None,  # seconds
    device: torch.device,
    workers: int,
    track: Track,
    watch: Callable[[Progress], None] = lambda _: None,
) -> Ranked:
    """Find the best candidates of a run on its held-out images, and say how sure that is.

    Raises Interrupted, with all that was found saved, on SIGINT and SIGTERM.
    """
    if top < 1:
        raise PgnasError(f"--top {top} is out of range; possible: 1 or more")
    if time_limit is not None and time_limit <= 0:
        raise PgnasError(f"--time-limit {time_limit / 60:g} is out of range; possible: above 0")
    network, posterior = posterior_of(run)
    drawn = read_candidates(run, network)
    data = held_out_of(run, posterior, read_settings(run), workers, track)
    judge = held_out_judge(network, drawn.keep, data, device)
    start = last = time.perf_counter()
    race = _race_of(run, drawn, judge)
    wanted = len(drawn.keep) if exhaustive else min(top, len(drawn.keep))
    if race is not None:
        race.top = wanted

    with StopRequest() as request:

        def between(progress: Progress) -> bool:
            nonlocal last
            watch(progress)
            now = time.perf_counter()
            over = time_limit is not None and now - start > time_limit
            if progress.race is not None and now - last > SAVE_SECONDS:
                _write(run, progress.race, judge)
                last = time.perf_counter()
            return over or request.asked

        ranking = rank(judge, drawn.sizes, top=wanted, race=race, between=between)
        _write(run, ranking.race, judge)
    if request.asked and len(ranking.running):
        raise Interrupted(
            f"interrupted; {len(ranking.running)} candidates are not decided on, go on with"
            f" pgnas rank --run {run.folder}"
        )
    _write_table(run, ranking)
    shown = ranking.order[:SHOWN]
    wrong = torch.stack([ranking.race.row(candidate) for candidate in shown.tolist()])
    sure = confidence(
        wrong, ranking.race.place[shown], generator=generator(posterior.seed, "resampled images")
    )
    # The first ids are those of the pilots, which saw everything whatever they are worth.
    pilots = [c for c in range(min(PILOTS, len(drawn.keep))) if ranking.race.finished[c]]
    unselected = torch.stack([ranking.race.row(candidate) for candidate in pilots])
    expected = expected_error(int(ranking.errors[shown[0]]), unselected)
    return Ranked(ranking, sure, expected, time.perf_counter() - start)


def smallest_within_noise(
    run: Run, drawn: Drawn, judge: Judge, watch: Callable[[Progress], None] = lambda _: None
) -> int:
    """The smallest candidate of a ranked run that the paired test cannot tell from the best.

    Smaller ones are walked until the test must tell them apart, so the choice is exact.
    """
    race = _race_of(run, drawn, judge)
    if race is None:
        raise PgnasError(
            f"the ranking in '{run.folder}' was not made as this machine evaluates ({judge.name});"
            f" rank again: pgnas rank --run {run.folder}"
        )
    images, winners = len(race.order), race.row(int(race.best()[0]))
    most = most_errors_within_noise(int(winners.sum()), images)

    def told(_: int) -> None:
        within = int((~race.finished & (race.errors <= most)).sum())
        pairs = int(race.seen.sum())
        watch(Progress(pairs, images * within, within, most / images, race))

    found = smallest_passing(
        race,
        lambda c, i: judge(c, i)[0],
        lambda candidate: paired_p(winners, race.row(candidate)) >= LEVEL,
        most,
        fill=judge.batch,
        told=told,
    )
    _write(run, race, judge)
    return found


def read_ranking(run: Run, drawn: Drawn) -> Ranking | None:
    """The ranking of a run, or None where its present candidates have not been ranked."""
    found = _read(run, drawn)
    return None if found is None else found[0]


def _read(run: Run, drawn: Drawn) -> tuple[Ranking, object] | None:
    """The same, and how its pairs were evaluated."""
    if not run.ranking.exists():
        return None
    tensors, content = read_tensors(run.ranking, RANKING)
    if content.get("made_from") != file_digest(run.candidates):
        return None
    images, top, rows = content.get("images"), content.get("top"), len(drawn.keep)
    damaged = PgnasError(f"'{run.ranking}' is damaged; rank again: pgnas rank --run {run.folder}")
    if not isinstance(images, int) or not isinstance(top, int) or images < 1 or top < 1:
        raise damaged
    each, walk = ((rows,), torch.int64), ((images,), torch.int64)
    hardness = ((images + 1,), torch.float64)
    found = tensors.get("mistakes", torch.empty(0))
    mistakes = ((found.numel(),), torch.int64)
    wanted = {"seen": each, "walk": walk, "hardness": hardness, "mistakes": mistakes}
    checked(tensors, wanted, run.ranking)
    order, seen = tensors["walk"], tensors["seen"]
    sound = (
        torch.equal(order.sort().values, torch.arange(images))
        and bool((seen >= 0).all() and (seen <= images).all() and (seen == images).any())
        and bool((tensors["hardness"].diff() >= 0).all())
        and _among(found, order, seen)
    )
    if not sound:
        raise damaged
    errors = torch.bincount(found.div(images, rounding_mode="floor"), minlength=rows)
    race = Race(
        order, places(drawn.sizes.params), top, seen, errors, tensors["hardness"], [found]
    )  # fmt: skip
    return Ranking(race, drawn.sizes), content.get("evaluated")


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


def _race_of(run: Run, drawn: Drawn, judge: Judge) -> Race | None:
    """An earlier race of the same candidates, evaluated as `judge` does; None: start anew."""
    try:
        found = _read(run, drawn)
    except PgnasError:
        return None  # what is derived inside a run is replaced
    if found is None or found[0].images != len(judge.labels) or found[1] != judge.name:
        return None
    return found[0].race


def _write(run: Run, race: Race, judge: Judge) -> None:
    write_tensors(
        run.ranking,
        RANKING,
        {
            "seen": race.seen,
            "walk": race.order,
            "hardness": race.hardness,
            "mistakes": race.all_mistakes(),
        },
        {
            "images": len(race.order),
            "top": race.top,
            "evaluated": judge.name,
            "made_from": file_digest(run.candidates),
        },
    )


def _write_table(run: Run, ranking: Ranking) -> None:
    lines = ["rank,id,errors,images,error,params,paper_params,macs"]
    for place, index in enumerate(ranking.order.tolist()):
        errors = int(ranking.errors[index])
        sizes = [int(s[index]) for s in dataclasses.astuple(ranking.sizes)]
        row = [place + 1, index, errors, ranking.images, f"{errors / ranking.images:.6f}", *sizes]
        lines.append(",".join(map(str, row)))
    write_text(run.ranking_table, "\n".join(lines) + "\n")
