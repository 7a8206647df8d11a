"""Rank the candidates of a run: posterior + candidates + data -> ranking.

Candidates within one budget are ranked among each other. A ranking file holds how far each of its
candidates has come, so a ranking that was interrupted, or stopped by a time limit, resumes from
there, as does one that is asked for more of the best.
"""

import dataclasses
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..distributed import check_alike, largest, together
from ..distributed import rank as process_rank
from ..errors import Interrupted, PgnasError, command
from ..fields import check_choice, check_range
from ..machine import PRECISIONS, Machine, full_float32
from ..progress import note
from ..run import Run, run_at, writing
from ..run.posterior import held_out_of, posterior_of
from ..sampling import Candidates, read_candidates
from ..seeds import numpy_generator
from ..signals import StopRequest
from ..storage import write_text
from ..tensors import checked, read_header, read_values, write_tensors
from ..training import Saving
from .evaluator import Evaluator, held_out_evaluator, races
from .race import PILOTS, Race, distinct, places, same_masks
from .statistics import Confidence, confidence, expected_error, like_guessing

RANKING = "pgnas.ranking/1"
SHOWN = 10  # rows whose order is tested


@dataclass(frozen=True)
class Leaderboard:
    """Result of `rank`: candidates with what was measured, best first."""

    candidates: Candidates
    race: Race
    confidence: Confidence  # of the first `SHOWN` rows
    expected_error: float  # of the first on other images

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
    def best(self) -> int:
        """Id of the first."""
        return int(self.order[0])

    @property
    def best_error(self) -> float:
        """Its share of errors on the held-out images."""
        return int(self.errors[self.best]) / self.images

    @property
    def undecided(self) -> int:
        """Candidates that might still enter the first K."""
        return len(self.race.walking())

    @property
    def within(self) -> str:
        """ " within ..." where the candidates have a budget."""
        budget = self.candidates.budget
        return "" if budget is None else f" within {budget}"

    @property
    def networks(self) -> int:
        """Distinct candidates: those with the same mask are one network."""
        return len(self.race.networks)

    @property
    def networks_shown(self) -> int:
        """The same of the first `SHOWN` rows."""
        return len(self.race.same_as[self.order[:SHOWN]].unique())

    @property
    def pairs(self) -> int:
        """(candidate, image) pairs that were evaluated."""
        return self.race.pairs

    @property
    def exhaustive(self) -> bool:
        """Whether every candidate has seen every image."""
        return bool(self.race.finished.all())


@full_float32()
def rank(
    run: Run | str | Path | None = None,  # None: the newest in runs/
    *,
    top: int = 10,
    exhaustive: bool = False,  # evaluate every pair
    time_limit: float | None = None,  # minutes
    budget: str | None = None,  # label of the one to rank within; None: all
    data: str | None = None,  # where the images of the fit lie now; None: as for the fit
    precision: str = "float32",  # or bfloat16: another ranking, which starts again
    machine: Machine = Machine(),  # noqa: B008 - frozen
) -> list[Leaderboard]:
    """Find the best candidates of a run on its held-out images, and how certain that is.

    Returns one leaderboard per budget that was begun, in the order of `Run.budgets`. Raises
    Interrupted, with all that was found saved, on SIGINT and SIGTERM. The processes that torchrun
    started all return the same; the first one alone writes.
    """
    run = run_at(run)
    check_range("top", top, 1)
    check_choice("precision", precision, PRECISIONS)
    if time_limit is not None:
        check_range("time_limit", time_limit, 0, open=True)
    with together(machine.device), writing(run):
        return _ranked(run, top, exhaustive, time_limit, budget, data, precision, machine)


def _ranked(
    run: Run,
    top: int,
    exhaustive: bool,
    time_limit: float | None,
    budget: str | None,
    data: str | None,
    precision: str,
    machine: Machine,
) -> list[Leaderboard]:
    network, posterior = posterior_of(run)
    labels = (run.budgets() or [""]) if budget is None else [budget]
    drawn = [read_candidates(run, network, posterior, label) for label in labels]
    images = held_out_of(run, posterior, machine.workers, moved=data)
    evaluator = held_out_evaluator(network, drawn[0].keep, images, machine.device, precision)
    begun: list[tuple[Candidates, Race]] = []
    start = time.perf_counter()
    first = process_rank() == 0  # of several processes the one that writes
    with StopRequest() as request:

        def stopping() -> bool:
            spent = time.perf_counter() - start
            late = time_limit is not None and spent > 60 * time_limit
            return bool(largest(bool(request.asked) or late))

        for candidates in drawn:
            saving = Saving()
            wanted = len(candidates) if exhaustive else min(top, len(candidates))
            own = evaluator.of(candidates.keep)
            earlier = _race_to_resume(run, candidates, own)
            check_alike(
                f"{candidates.digest} {earlier and earlier.pairs}",
                f"'{run.folder}' must lie on a file system that all machines share",
            )
            if begun and earlier is None and stopping():
                continue  # no time left to begin it; others are shown as far as they came
            for race in races(own, candidates.sizes.params, top=wanted, race=earlier):
                if first and saving.due():
                    saving(partial(_write, run, candidates, race, own))
                if stopping():
                    break
            if first:
                _write(run, candidates, race, own)
            begun.append((candidates, race))
        undecided = sum(len(race.walking()) for _, race in begun)
        asked = int(largest(request.asked))
        if asked and undecided:
            raise Interrupted(
                f"interrupted; {undecided} candidates are undecided, resume with"
                f" {rank_again(run, top, exhaustive, data, precision)}",
                asked,
            )
        boards = [leaderboard_of(candidates, race, posterior.seed) for candidates, race in begun]
        for board in boards:
            if first:
                _write_table(run, board)
            if guessing := like_guessing(int(board.errors[board.best]), evaluator.labels.cpu()):
                note(f"warning: the winner{board.within}: {guessing}")
    return boards


def rank_again(
    run: Run,
    top: int = SHOWN,
    exhaustive: bool = False,
    data: str | None = None,
    precision: str = "float32",
) -> str:
    """The command that resumes such a ranking."""
    more = ["--exhaustive"] if exhaustive else ["--top", top] if top != SHOWN else []
    more += ["--precision", precision] if precision != "float32" else []
    return command("rank", "--run", run.folder, *more, *(["--data", data] if data else []))


def leaderboard_of(candidates: Candidates, race: Race, seed: int) -> Leaderboard:
    """A ranking, and how certain its order is."""
    shown = race.best()[:SHOWN]
    wrong = torch.stack([race.row(candidate) for candidate in shown.tolist()])
    sure = confidence(
        wrong, race.place[shown], network=race.same_as[shown],
        randomness=numpy_generator(seed, "other images"),
    )  # fmt: skip
    # The pilots saw every image, good or bad.
    unselected = torch.stack([race.row(candidate) for candidate in race.pilots.tolist()])
    expected = expected_error(int(race.errors[shown[0]]), unselected)
    return Leaderboard(candidates, race, sure, expected)


# --- the file --------------------------------------------------------------------------------


def read_ranking(run: Run, candidates: Candidates) -> Race | None:
    """The ranking of `candidates` as far as it came, or None where they have not been ranked."""
    found = _read(run, candidates)
    return None if found is None else found[0]


def _read(run: Run, candidates: Candidates) -> tuple[Race, str] | None:
    """The race, and the name of the way its pairs were evaluated."""
    path = run.ranking(candidates.label)
    if not path.exists():
        return None
    header, content = read_header(path, RANKING)
    if content.get("made_from") != candidates.digest:
        return None
    images, evaluated = content.get("images"), content.get("evaluated")
    race = None
    if type(images) is int and images >= 1 and isinstance(evaluated, str):
        _check_header(header, images, candidates, path)
        tensors = read_values(path, header)
        tensors.setdefault("goal", tensors["seen"])  # in older files
        walked = content.get("top"), content.get("turn", 0)
        race = _race(tensors, images, walked, candidates)
    if race is None:
        raise PgnasError(f"'{path}' is damaged; rank again: {rank_again(run)}")
    assert isinstance(evaluated, str)
    return race, evaluated


def _check_header(
    header: dict[str, Tensor], images: int, candidates: Candidates, path: Path
) -> None:
    found, margins = (header.get(name, torch.empty(0)) for name in ("mistakes", "margins"))
    row = ((len(candidates),), torch.int64)
    wanted = {
        "seen": row,
        **({"goal": row} if "goal" in header else {}),  # not in older files
        "walk": ((images,), torch.int64),
        "hardness": ((images + 1,), torch.float64),
        "mistakes": ((found.numel(),), torch.int64),
        "margins": ((margins.numel() // images, images), torch.float32),
    }
    checked(header, wanted, path)


def _race(
    tensors: dict[str, Tensor],
    images: int,
    walked: tuple[Any, Any],  # top, turn
    candidates: Candidates,
) -> Race | None:
    """The race in a file; None where its numbers contradict each other."""
    top, turn = walked
    params, same_as = candidates.sizes.params, same_masks(candidates.keep)
    networks = distinct(same_as)
    found, margins = tensors["mistakes"], tensors["margins"]
    order, seen = tensors["walk"], tensors["seen"]
    sound = (
        type(top) is type(turn) is int
        and 1 <= top <= len(params)
        and 1 <= len(margins) <= min(PILOTS, len(networks))
        and bool((seen[networks[: len(margins)]] == images).all())
        and torch.equal(seen, seen[same_as])
        and bool(torch.isfinite(margins).all())
        and torch.equal(order.sort().values, torch.arange(images))
        and bool((seen >= 0).all() and (seen <= images).all() and (seen == images).any())
        and bool((tensors["goal"] >= seen).all() and (tensors["goal"] <= images).all())
        and bool((tensors["hardness"].diff() >= 0).all())
        and bool(torch.isfinite(tensors["hardness"]).all())
        and _among(found, order, torch.zeros_like(seen).index_copy_(0, networks, seen[networks]))
    )
    if not sound:
        return None
    errors = torch.bincount(found.div(images, rounding_mode="floor"), minlength=len(params))
    return Race(
        order, places(params), top, same_as, seen, errors[same_as], tensors["hardness"], margins,
        [found], turn, tensors["goal"],
    )  # fmt: skip


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


def _race_to_resume(run: Run, candidates: Candidates, evaluator: Evaluator) -> Race | None:
    """An earlier race of the same candidates, evaluated as `evaluator` does; None: start again."""
    try:
        found = _read(run, candidates)
    except PgnasError:
        return None  # what is derived inside a run is replaced
    if found is None:
        return None
    race, evaluated = found
    if evaluated != evaluator.name:
        note(
            f"the earlier ranking was evaluated otherwise ({evaluated}, now {evaluator.name}):"
            " starting again"
        )
        return None
    return race if len(race.order) == len(evaluator.labels) else None


def _write(run: Run, candidates: Candidates, race: Race, evaluator: Evaluator) -> None:
    tensors = {
        "seen": race.seen,
        "goal": torch.maximum(race.goal, race.seen),
        "walk": race.order,
        "hardness": race.hardness,
        "margins": race.margins.float(),
        "mistakes": race.all_mistakes().sort().values,
    }
    content = {
        "images": len(evaluator.labels),
        "top": race.top,
        "turn": race.turn,
        "evaluated": evaluator.name,
        "made_from": candidates.digest,
    }
    write_tensors(run.ranking(candidates.label), RANKING, tensors, content)


def _write_table(run: Run, board: Leaderboard) -> None:
    lines = ["rank,id,errors,images,error,params,paper_params,macs"]
    for place, index in enumerate(board.order.tolist()):
        errors = int(board.errors[index])
        sizes = [int(s[index]) for s in dataclasses.astuple(board.candidates.sizes)]
        error = f"{errors / board.images:.6f}"
        lines.append(",".join(map(str, [place + 1, index, errors, board.images, error, *sizes])))
    write_text(run.ranking_table(board.candidates.label), "\n".join(lines) + "\n")
