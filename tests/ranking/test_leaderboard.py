"""Ranking a run: exact, stopped, interrupted, resumed, and budget by budget."""

import csv
import signal
from typing import Any

import pytest
import torch

import pgnas_cli
from pgnas_cli.errors import Interrupted, PgnasError
from pgnas_cli.progress import listening
from pgnas_cli.ranking import Leaderboard, Race, rank, read_ranking
from pgnas_cli.run import Run
from pgnas_cli.run.posterior import posterior_of
from pgnas_cli.sampling import read_candidates, sample
from pgnas_cli.tensors import read_tensors

from ..conftest import run as command
from ..files import Change, rewrite
from ..listeners import Heard

RANKING = "pgnas.ranking/1"


@pytest.fixture
def run(fitted: Run) -> Run:
    """A run with a posterior and 60 candidates, not yet ranked."""
    fitted.ranking().unlink()
    return fitted


def ranked(run: Run, **how: Any) -> Leaderboard:
    (board,) = rank(run, **{"top": 5, **how})
    return board


def best(race: Race, top: int = 5) -> list[tuple[int, int]]:
    return [(int(i), int(race.errors[i])) for i in race.best()[:top]]


def stored(run: Run, label: str = "") -> Race:
    race = read_ranking(run, read_candidates(run, posterior_of(run)[0], label))
    assert race is not None
    return race


def pairs(race: Race) -> int:
    return int(race.seen.sum())


def test_the_race_and_its_table_name_the_winners_of_an_exhaustive_ranking(run: Run) -> None:
    board = ranked(run)
    with run.ranking_table().open() as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["id"]), int(row["errors"])) for row in rows] == best(board.race)
    first = board.candidates.sizes.part(slice(board.best, board.best + 1))
    assert (int(rows[0]["params"]), int(rows[0]["macs"])) == (int(first.params), int(first.macs))
    assert float(rows[0]["error"]) == pytest.approx(board.best_error, abs=1e-6)
    with listening(again := Heard()):
        ranked(run)
    assert "ranking" in dict(again.tasks)
    assert "ranking" not in again.counts  # nothing is evaluated twice
    assert pairs(stored(run)) == board.pairs
    more = ranked(run, top=20)
    assert more.pairs > board.pairs
    full = ranked(run, exhaustive=True)
    assert (board.exhaustive, full.exhaustive, len(full.order)) == (False, True, 60)
    assert best(board.race) == best(full.race) == best(stored(run))
    assert best(more.race, 20) == best(full.race, 20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_ranking_resumes_to_the_same_end(run: Run, number: signal.Signals) -> None:
    stop = Heard(lambda task, done: "candidates left" in task, number)
    hint = f"candidates are undecided, resume with pgnas rank --run {run.folder} --top 5"
    with listening(stop), pytest.raises(Interrupted, match=hint):
        ranked(run)
    half = stored(run)
    assert len(half.walking())
    on = ranked(run)
    assert on.pairs > pairs(half)
    run.ranking().unlink()
    assert best(on.race) == best(ranked(run).race)


def test_a_time_limit_leaves_the_best_so_far_and_the_ranking_resumes_from_its_pilots(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = ranked(run)
    run.ranking().unlink()
    where = ["--run", str(run.folder), "--top", "5"]
    assert command("rank", *where, "--time-limit", "1e-9") == 0
    text = capsys.readouterr().err
    assert "might still be better" in text
    assert f"next: pgnas rank {' '.join(where)}   to resume" in text
    early = stored(run)
    assert len(early.best()) >= 1
    assert 0 < len(early.margins) < 16
    with listening(heard := Heard()):
        pgnas_cli.export(run.folder / "b.safetensors", run)
    assert any("the ranking is not finished" in note for note in heard.notes)
    on = ranked(run)
    assert len(on.race.margins) == 16
    assert (on.pairs, best(on.race)) == (straight.pairs, best(straight.race))


def test_a_ranking_that_was_evaluated_otherwise_is_started_again(run: Run) -> None:
    straight = ranked(run)
    now = read_tensors(run.ranking(), RANKING)[1]["evaluated"]
    then = "512 pairs, float32, cuda"
    rewrite(run.ranking(), RANKING, lambda c, t: c.update(evaluated=then))
    with listening(heard := Heard()):
        again = ranked(run)
    (note,) = heard.notes
    assert f"evaluated otherwise ({then}, now {now}): starting again" in note
    assert heard.counts["ranking"][-1] == again.pairs
    assert best(again.race) == best(straight.race)


def test_a_damaged_ranking_is_not_believed(run: Run) -> None:
    """What is derived is replaced."""
    straight = best(ranked(run).race)

    def too_large(name: str) -> Change:
        return lambda c, t: t[name][0].fill_(t[name][1:].max() + 10**6)

    changes: list[Change] = [
        *map(too_large, ("mistakes", "seen", "walk", "hardness")),
        lambda c, t: t["margins"][0].fill_(torch.inf),
        lambda c, t: c.update(images="none"),
        lambda c, t: c.update(top="none"),
    ]
    for change in changes:
        rewrite(run.ranking(), RANKING, change)
        with pytest.raises(PgnasError, match="is damaged"):
            stored(run)
        assert best(ranked(run).race) == best(stored(run)) == straight


def test_several_budgets_are_ranked_one_by_one_and_resumed_in_the_second(run: Run) -> None:
    sample(run, 40, max_params="50%,57%")
    assert run.budgets() == ["params-57", "params-50"]
    assert not run.candidates().exists()
    (early,) = rank(run, time_limit=1e-9)  # minutes; the second is not begun
    assert early.candidates.label == "params-57"
    assert not run.ranking("params-50").exists()

    def in_the_second(task: str, done: int) -> bool:
        return [name for name, _ in stop.tasks] == 2 * ["ranking"] and "candidates left" in task

    stop = Heard(in_the_second)
    with listening(stop), pytest.raises(Interrupted):
        rank(run, top=5)
    first = run.ranking("params-57").read_bytes()
    assert len(stored(run, "params-57").walking()) == 0
    half = stored(run, "params-50")
    assert len(half.walking())
    boards = rank(run, top=5)
    assert run.ranking("params-57").read_bytes() == first
    assert boards[1].pairs > pairs(half)
    for board, full in zip(boards, rank(run, exhaustive=True), strict=True):
        assert len(full.order) == 40
        assert best(board.race) == best(full.race)
        assert run.ranking_table(board.candidates.label).exists()


def test_a_baseline_is_exported_with_a_word_and_no_file_of_the_run_is_overwritten(
    run: Run,
) -> None:
    before = run.posterior.read_bytes()
    with pytest.raises(PgnasError, match="is a file of the run itself"):
        pgnas_cli.export(run.posterior, run, force=True)
    assert run.posterior.read_bytes() == before
    sample(run, 5, baseline="permuted")
    with listening(heard := Heard()):
        pgnas_cli.export(run.folder / "p.safetensors", run)
    assert any("these candidates are a baseline (permuted)" in note for note in heard.notes)
