"""fit: what it records, what it says of the outcome, and what decides it."""

import dataclasses
import json
from collections.abc import Callable
from datetime import datetime, tzinfo
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pgnas_cli.cli.fit import closing_notes, epoch_line
from pgnas_cli.gates import Prior
from pgnas_cli.registry import Recipe
from pgnas_cli.run import Run
from pgnas_cli.run.posterior import read_posterior
from pgnas_cli.sizes import Target
from pgnas_cli.training import EpochRecord, FitPlan

from ..conftest import run
from .conftest import HERE, QUICK, object_of, said


def test_json_has_its_fixed_keys(capsys: pytest.CaptureFixture[str]) -> None:
    found = object_of(capsys, "fit", *QUICK, "--run", "r")
    assert set(found) == {
        "run", "epochs", "seconds", "held_out_error", "params", "groups", "gates",
    }  # fmt: skip
    assert (found["epochs"], found["groups"], found["gates"]) == (2, 17, 512)


def test_label_smoothing_is_recorded_with_the_run_and_with_the_posterior() -> None:
    for name, more in (("plain", []), ("smoothed", ["--label-smoothing", "0.1"])):
        assert run("fit", "--epochs", "1", *more, "--run", name, "-q") == 0
    recipes = [json.loads(Path(name, "run.json").read_text())["recipe"]
               for name in ("plain", "smoothed")]  # fmt: skip
    assert [recipe.get("label_smoothing") for recipe in recipes] == [None, 0.1]
    (_, plain), (_, smoothed) = (
        read_posterior(Path(name, "posterior.safetensors")) for name in ("plain", "smoothed")
    )
    assert smoothed.recipe == dataclasses.replace(plain.recipe, label_smoothing=0.1)
    losses = [
        json.loads(Path(n, "metrics.jsonl").read_text())["loss"] for n in ("plain", "smoothed")
    ]
    assert losses[0] != losses[1]


def test_a_fixed_rate_can_be_that_of_equal_size(
    capsys: pytest.CaptureFixture[str], fitted: Run
) -> None:
    assert run("fit", *QUICK, "--run", "fixed", "--fixed-drop", "run", "-q") == 0
    plain, fixed = (object_of(capsys, "sample", "--run", r, "-n", "200") for r in ("run", "fixed"))
    assert abs(fixed["mean"]["params"] / plain["mean"]["params"] - 1) < 0.05
    rates = load_file("fixed/posterior.safetensors")["drop_logit"]
    assert rates.unique().numel() == 1


def test_the_papers_objective_is_one_flag_away(capsys: pytest.CaptureFixture[str]) -> None:
    """On a backbone whose own recipe differs: gates everywhere, one p for each layer's input."""
    network = ["--backbone", "timm/mobilenetv3_small_050", "--img-size", "8", "--epochs", "1",
               "--batch-size", "512"]  # fmt: skip
    own = object_of(capsys, "fit", *network, "--run", "own")
    paper = object_of(capsys, "fit", *network, "--preset", "paper", "--run", "paper")
    assert own["groups"] > paper["groups"]
    assert own["gates"] < paper["gates"]
    recipe = read_posterior(Path("paper/posterior.safetensors"))[1].recipe
    assert (recipe.initial_drop, recipe.temperature, recipe.sharpen) == (0.1, 0.2, 1.0)
    assert recipe.opt == "adamw"


def test_a_target_is_met_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = said(capsys, "fit", "--epochs", "5", "--target-macs", "60%", "--run", "r")
    assert "target size: 60 % of the MACs" in err
    found = object_of(capsys, "sample", "-n", "40", "--run", "r")
    assert found["mean"]["macs"] / found["whole"]["macs"] == pytest.approx(0.6, abs=0.04)


def test_a_fit_that_learns_and_drops_nothing_says_what_to_change(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, _, err = said(capsys, "fit", *QUICK, "--lr", "0", "--initial-drop", "0.001", "--run", "r")
    assert "held-out error, near chance level for 10 classes; more --epochs" in err
    assert "hardly anything is dropped; name a size with --target-params" in err


RECORD = EpochRecord(1, 1, 1.0, 0.1, 0.5, 0.5, 0.5, 700.0, 60.0, 0.7, 0.6, 0.0, 0.3, 0.5, 0.0,
                     (0,) * 10, 0.1, 1.0, 1.0)  # fmt: skip


def plan(target: Target | None) -> FitPlan:
    return FitPlan(1, 1, 1, 1, 1, 1, Prior(1.0, 1.0), 0.1, 1, 10, target, Recipe(), (), ())


def test_a_missed_target_is_said() -> None:
    assert closing_notes(RECORD, plan(Target("macs", 0.6))) == []
    (line,) = closing_notes(RECORD, plan(Target("params", 0.6)))
    assert "has 70.0 % of the size, not 60.0 %" in line
    assert "size 60 %" in epoch_line(RECORD, 0.0, Target("macs", 0.6))
    assert "size 70 %" in epoch_line(RECORD, 0.0, None)


def test_only_a_fit_that_could_drop_more_is_told_so() -> None:
    whole = dataclasses.replace(RECORD, expected_share=0.99, expected_macs_share=0.99)
    (line,) = closing_notes(whole, plan(None))
    assert line.startswith("note: hardly anything is dropped")
    (line,) = closing_notes(whole, plan(Target("params", 0.5)))
    assert line.startswith("warning: the mean candidate has 99.0 % of the size, not 50.0 %")
    fixed = dataclasses.replace(whole, mean_drop=0.0)
    assert closing_notes(fixed, plan(None)) == []


def test_long_epochs_are_not_silent_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgnas_cli.cli.terminal.SILENCE", 0.0)
    _, _, err = said(capsys, "fit", "--epochs", "1", "--batch-size", "300", "--run", "slow")
    assert "fitting: 2 of 3, about 0:0" in err


def test_two_fits_that_begin_in_the_same_second_have_folders_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stopped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Stopped":
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr("pgnas_cli.run.settings.datetime", Stopped)
    for _ in range(2):
        assert run("fit", "--epochs", "1", "--batch-size", "512", "-q") == 0
    name = "multibranch-tiny-20260102-030405"
    assert sorted(p.name for p in Path("runs").iterdir()) == [name, f"{name}-2"]


@pytest.mark.parametrize("source", ["digits", "photos"])
def test_seed_decides_every_byte_and_workers_none(
    source: str, photo_folder: Callable[..., Path]
) -> None:
    data = [] if source == "digits" else ["--data", str(photo_folder()), "--img-size", "32"]
    batch = ["--batch-size", "8"] if data else []
    for name, workers in (("a", "0"), ("b", "2")):
        steps = [
            ["fit", *QUICK, *batch, *data, "--seed", "5", "--workers", workers],
            ["sample", "-n", "4"],
            ["rank", "--workers", workers],
            ["export", f"{name}/best.safetensors", "--workers", workers],
        ]
        for step in steps:
            assert run(*step, "--run", name, "-q") == 0
    for file in ("posterior", "candidates", "ranking", "best"):
        first, second = (Path(n, f"{file}.safetensors").read_bytes() for n in "ab")
        assert first == second, file


def test_another_seed_gives_another_posterior(fitted: Run) -> None:
    options = ["--epochs", "3", "--target-params", "60%", "--seed", "1"]
    assert run("fit", *options, "--run", "other", "-q") == 0
    a, b = (load_file(f"{r}/posterior.safetensors")["drop_logit"] for r in ("run", "other"))
    assert not torch.equal(a, b)


def test_a_finished_fit_is_not_overwritten_without_force(
    capsys: pytest.CaptureFixture[str], fitted: Run
) -> None:
    before = fitted.posterior.read_bytes()
    status, _, err = said(capsys, "fit", *QUICK, *HERE)
    assert status == 1
    assert "holds a fitted posterior; choose another --run, or add --force" in err
    assert fitted.posterior.read_bytes() == before
    assert fitted.candidates().exists()
    assert run("fit", *QUICK, *HERE, "--force", "-q") == 0
    assert fitted.posterior.read_bytes() != before
    assert not fitted.candidates().exists()
