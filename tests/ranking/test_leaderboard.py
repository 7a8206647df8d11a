"""Ranking as a stage: exact, stopped, interrupted, gone on with."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from pgnas_cli.errors import Interrupted, PgnasError
from pgnas_cli.ranking import Progress, Ranking, rank_stage, read_ranking
from pgnas_cli.run import Run
from pgnas_cli.run.posterior import posterior_of
from pgnas_cli.sampling import read_candidates

from ..conftest import run as command

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a posterior and 60 candidates."""
    folder = tmp_path_factory.mktemp("fitted") / "run"
    for given in (["fit", "--epochs", "3", "--target-params", "60%"], ["sample", "-n", "60"]):
        assert command(*given, "--run", str(folder), "-q") == 0
    return folder


@pytest.fixture
def run(fitted: Path, tmp_path: Path) -> Run:
    shutil.copytree(fitted, tmp_path / "run")
    return Run(tmp_path / "run")


def ranked(run: Run, **how: Any) -> Ranking:
    how = {"top": 5, "device": CPU, "workers": 0, "track": lambda items, _: items} | how
    return rank_stage(run, **how).boards[0].ranking


def best(ranking: Ranking, top: int = 5) -> list[tuple[int, int]]:
    return [(int(i), int(ranking.errors[i])) for i in ranking.order[:top]]


def stored(run: Run) -> Ranking:
    drawn = read_candidates(run, posterior_of(run)[0])
    found = read_ranking(run, drawn)
    assert found is not None
    ranking = found.ranking(drawn, 0)
    assert ranking is not None
    return ranking


def test_the_race_names_the_winners_of_an_exhaustive_ranking(run: Run) -> None:
    race = ranked(run)
    assert not race.exhaustive
    full = ranked(run, exhaustive=True)
    assert full.exhaustive
    assert len(full.order) == 60
    assert best(race) == best(full)
    assert best(stored(run)) == best(full)


def test_the_winners_lead_is_told_with_what_to_expect_of_it(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("rank", "--run", str(run.folder), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    full = ranked(run, exhaustive=True)
    mean = float(full.errors.double().mean()) / full.images
    assert found["top"][0]["error"] <= found["expected_error"] <= 1.1 * mean


def test_a_second_call_evaluates_nothing_and_more_can_be_asked_for(run: Run) -> None:
    ranked(run)
    before = stored(run).pairs
    calls: list[Progress] = []
    ranked(run, watch=calls.append)
    assert calls == []
    assert stored(run).pairs == before
    more = ranked(run, top=20)
    assert more.pairs > before
    shutil.rmtree(run.folder / "nothing", ignore_errors=True)
    run.ranking.unlink()
    assert best(more, 20) == best(ranked(run, top=20), 20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_ranking_goes_on_to_the_same_end(run: Run, number: signal.Signals) -> None:
    calls = 0

    def interrupt(progress: Progress) -> None:
        nonlocal calls
        calls += 1
        if progress.race is not None:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match="candidates are not decided on, go on with pgnas rank"):
        ranked(run, watch=interrupt)
    half = stored(run)
    assert len(half.running)
    on = ranked(run)
    assert on.pairs > half.pairs
    run.ranking.unlink()
    assert best(on) == best(ranked(run))


def test_a_time_limit_leaves_the_best_so_far_and_says_who_is_still_in(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    early = ranked(run, time_limit=1e-3, top=60)
    assert len(early.running)
    assert len(early.order) >= 1
    assert command("export", str(run.folder / "b.safetensors"), "--run", str(run.folder)) == 0
    assert "the ranking is not finished" in capsys.readouterr().err
    assert command("rank", "--run", str(run.folder), "--time-limit", "0.00001", "--top", "60") == 0
    text = capsys.readouterr()
    assert "might still be better" in text.err
    assert "goes on" in text.err


def test_a_ranking_stopped_among_its_pilots_goes_on_with_them(run: Run) -> None:
    straight = ranked(run, top=5)
    run.ranking.unlink()
    early = ranked(run, time_limit=1e-9)
    assert 0 < len(early.race.margins) < 16
    on = ranked(run, top=5)
    assert len(on.race.margins) == 16
    assert on.pairs == straight.pairs
    assert best(on) == best(straight)


def test_a_ranking_made_otherwise_is_started_anew_and_the_hint_repeats_how(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--run", str(run.folder)]
    assert command("rank", "--recalibrate", "64", "--time-limit", "1e-9", *where) == 0
    assert f"next: pgnas rank --run {run.folder} --recalibrate 64   goes on" in (
        capsys.readouterr().err
    )
    assert command("export", str(run.folder / "x.safetensors"), "--smallest-within-noise", *where)
    assert "the ranking is not finished" in capsys.readouterr().err
    assert command("rank", *where) == 0
    assert "was made otherwise" in capsys.readouterr().err


def test_a_baseline_is_exported_with_a_word_and_no_file_of_the_run_is_overwritten(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--run", str(run.folder)]
    before = run.posterior.read_bytes()
    assert command("export", str(run.posterior), "--force", *where) == 1
    assert "is a file of the run itself" in capsys.readouterr().err
    assert run.posterior.read_bytes() == before
    assert command("sample", "-n", "5", "--baseline", "permuted", *where) == 0
    assert command("export", str(run.folder / "p.safetensors"), *where) == 0
    assert "these candidates are a baseline (permuted)" in capsys.readouterr().err


def test_a_single_row_is_told_with_what_to_expect_of_it(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("rank", "--top", "1", "--run", str(run.folder)) == 0
    assert "chosen for it among 60: expect" in capsys.readouterr().err


def test_the_smallest_within_noise_is_exported(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    ranked(run)
    file = run.folder / "small.safetensors"
    options = ["--smallest-within-noise", "--run", str(run.folder), "--json"]
    assert command("export", str(file), *options) == 0
    text = capsys.readouterr()
    assert "is the smallest that cannot be told from the best" in text.err
    written = json.loads(text.out)
    sizes = read_candidates(run, posterior_of(run)[0]).sizes.params
    assert written["params"] <= int(sizes[stored(run).order[0]])
    with_both = ["--candidate", "3", "--smallest-within-noise", "--run", str(run.folder)]
    assert command("export", str(run.folder / "other.safetensors"), *with_both) == 1
    assert "leave --candidate out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", ["mistakes", "seen", "walk", "hardness", "images", "top", "recalibrate"]
)
def test_a_damaged_ranking_is_not_believed(run: Run, change: str) -> None:
    from pgnas_cli.tensors import read_tensors, write_tensors

    ranked(run)
    tensors, content = read_tensors(run.ranking, "pgnas.ranking/5")
    if f"0.{change}" in tensors:
        values = tensors[f"0.{change}"]
        values[0] = values[1:].max() + 10**6
    else:
        content[change] = "none"
    write_tensors(run.ranking, "pgnas.ranking/5", tensors, content)
    with pytest.raises(PgnasError, match="is damaged"):
        stored(run)
    ranked(run)  # what is derived is replaced
    assert best(stored(run)) == best(ranked(run, exhaustive=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--top", "0"], "--top 0 is out of range"), (["--time-limit", "0"], "--time-limit 0 is out")],
)
def test_wrong_options_are_named(
    run: Run, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert command("rank", "--run", str(run.folder), *options) == 1
    assert message in capsys.readouterr().err
