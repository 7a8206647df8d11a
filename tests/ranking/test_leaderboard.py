"""Ranking a run: exact, stopped, interrupted, resumed, and budget by budget."""

import csv
import json
import signal
from typing import Any

import pytest
import torch

import pgnas_cli
from pgnas_cli import exporting
from pgnas_cli.errors import Interrupted, PgnasError
from pgnas_cli.progress import listening
from pgnas_cli.ranking import Evaluator, Leaderboard, Race, rank, read_ranking
from pgnas_cli.run import Run
from pgnas_cli.run.posterior import posterior_of
from pgnas_cli.sampling import read_candidates, sample
from pgnas_cli.tensors import read_tensors, write_tensors

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
    race = read_ranking(run, read_candidates(run, *posterior_of(run), label))
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


def test_candidates_of_one_mask_share_what_one_of_them_was_evaluated_for(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    once = ranked(run, exhaustive=True)
    pick = torch.randint(0, 7, (60,), generator=torch.Generator().manual_seed(0))
    tensors, content = read_tensors(run.candidates(), "pgnas.candidates/1")
    copied = {name: values[pick] for name, values in tensors.items()}
    write_tensors(run.candidates(), "pgnas.candidates/1", copied, content)
    board = ranked(run, top=20)
    full = [(int(once.errors[i]), int(once.candidates.sizes.params[i]), j)
            for j, i in enumerate(pick.tolist())]  # fmt: skip
    assert best(board.race, 20) == [(j, errors) for errors, _, j in sorted(full)[:20]]
    assert (board.networks, board.pairs) == (7, 7 * 287)
    assert best(stored(run), 20) == best(board.race, 20)
    assert command("rank", "--top", "20", "--run", str(run.folder)) == 0
    text = capsys.readouterr()
    assert "best of 60 candidates (7 distinct) on 287 held-out images" in text.out
    assert "selected from 7;" in text.err
    assert f"distinct among these 10: {board.networks_shown};" in text.err
    tensors, content = read_tensors(run.ranking(), "pgnas.ranking/1")
    copy = int((stored(run).same_as != torch.arange(60)).nonzero()[0])
    tensors["seen"][copy] -= 1
    write_tensors(run.ranking(), "pgnas.ranking/1", tensors, content)
    with pytest.raises(PgnasError, match="is damaged"):
        stored(run)


def test_an_export_races_as_long_as_the_fit_took_and_says_who_is_still_in(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = ranked(run, exhaustive=True)
    target = run.folder / "b.safetensors"

    def exported() -> tuple[list[str], str]:
        run.ranking().unlink(missing_ok=True)
        with listening(heard := Heard()):
            about = pgnas_cli.export(target, run, force=True)
        return heard.notes, about.candidate

    epochs = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    for seconds, limit in ((80.0, "4:00"), (0.1, "1:00"), (None, "10:00"), ("nan", "10:00")):
        lines = [json.dumps({**epoch, "seconds": seconds}) for epoch in epochs]
        run.metrics.write_text("\n".join(lines))
        notes, candidate = exported()
        assert notes == [f"nothing is ranked yet: ranking the candidates first, to find the best"
                         f" one, for {limit} at most"]  # fmt: skip
        assert candidate == str(full.best)
    monkeypatch.setattr(exporting, "_fit_minutes", lambda run: 1e-9)
    monkeypatch.setattr(exporting, "LEAST_MINUTES", 0.0)
    notes, candidate = exported()
    race = stored(run)
    leader = min(race.pilots.tolist(), key=lambda i: (int(race.errors[i]), int(race.place[i])))
    assert candidate == str(leader)
    rivals = 60 - len(race.pilots)
    assert notes[1] == (
        f"the ranking is not finished: {rivals} of 60 candidates cannot be told from the leader,"
        f" {leader}, and might be better; pgnas rank --run {run.folder} resumes it"
    )
    assert best(ranked(run).race) == best(full.race)


def test_of_several_budgets_an_export_ranks_the_one_that_is_named(run: Run) -> None:
    sample(run, 20, max_params="50%,57%")
    pgnas_cli.export(run.folder / "b.safetensors", run, max_params="50%")
    assert not run.ranking("params-57").exists()
    best_of_it = rank(run, exhaustive=True, budget="params-50")[0].best
    assert pgnas_cli.load(run.folder / "b.safetensors").info.candidate == str(best_of_it)


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
    then = "512 pairs, full float32, cuda"
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


def test_candidates_are_ranked_in_full_float32(
    fitted: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU would multiply in TF32, where a candidate's outcomes are not those of its export."""
    seen = set()
    forward = Evaluator._forward

    def watched(self: Evaluator, *pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.add((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return forward(self, *pairs)

    monkeypatch.setattr(Evaluator, "_forward", watched)
    fitted.ranking().unlink()
    rank(fitted)
    assert seen == {(False, False)}


def test_rankings_in_two_precisions_never_mix(run: Run) -> None:
    """One starts again where the other was; errors are those of the same candidates, nearly."""
    first = ranked(run, exhaustive=True)
    for precision, name in (("bfloat16", "bfloat16"), ("float32", "full float32")):
        heard = Heard()
        with listening(heard):
            again = ranked(run, exhaustive=True, precision=precision)
        (told,) = [note for note in heard.notes if "starting again" in note]
        assert f"now {again_name(run)}" in told and name in again_name(run)
        off = (again.errors - first.errors).abs()
        assert off.max() <= 0.02 * first.images
        assert bool(off.any()) is (precision == "bfloat16")
    with pytest.raises(PgnasError, match="`precision` 'half' is not known; possible: float32, bf"):
        ranked(run, precision="half")


def again_name(run: Run) -> str:
    """How the pairs of the ranking were evaluated."""
    _, content = read_tensors(run.ranking(), RANKING)
    return str(content["evaluated"])
