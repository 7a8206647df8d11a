"""fit: what it records, what it says of the outcome, and what decides it."""

import dataclasses
import json
from collections.abc import Callable
from datetime import datetime, tzinfo
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pgnas_cli.cli.fit import closing_notes, early_notes, epoch_line, plan_lines
from pgnas_cli.gates import Prior, gates
from pgnas_cli.registry import Recipe
from pgnas_cli.registry.build import build_backbone
from pgnas_cli.run import Run, run_to_fit
from pgnas_cli.run.posterior import read_posterior
from pgnas_cli.sizes import Target
from pgnas_cli.training import EpochRecord, FitPlan, gated

from ..conftest import FITTED, object_of, refused, run, said
from .conftest import HERE, QUICK


def test_json_has_its_fixed_keys_and_a_named_option_is_recorded_with_run_and_posterior(
    fitted: Run,
) -> None:
    found = object_of("fit", *QUICK, "--label-smoothing", "0.1", "--run", "new")
    assert set(found) == {
        "run", "epochs", "seconds", "held_out_error", "params", "groups", "gates", "without_gates",
    }  # fmt: skip
    assert (found["epochs"], found["groups"], found["gates"]) == (2, 17, 512)
    named = {"epochs": 2, "batch_size": 128, "label_smoothing": 0.1}
    assert json.loads(Path("new/run.json").read_text())["recipe"] == named
    default, recipe = (
        read_posterior(Path(name, "posterior.safetensors"))[1].recipe for name in ("run", "new")
    )
    assert recipe == dataclasses.replace(default, **named)


def test_a_fixed_rate_can_be_that_of_equal_size(fitted: Run) -> None:
    assert run("fit", *QUICK, "--run", "fixed", "--fixed-drop", "run", "-q") == 0
    plain, fixed = (
        object_of("sample", "--run", r, "-n", "200", "--force") for r in ("run", "fixed")
    )
    assert abs(fixed["mean"]["params"] / plain["mean"]["params"] - 1) < 0.05
    rates = load_file("fixed/posterior.safetensors")["drop_logit"]
    assert rates.unique().numel() == 1


def test_the_papers_objective_is_one_flag_away() -> None:
    """On a backbone whose own recipe differs: gates everywhere, one p for each layer's input."""
    name, brief = "timm/mobilenetv3_small_050", ["--epochs", "1", "--batch-size", "512"]
    backbone = build_backbone(name, classes=10, channels=1, size=8)
    state = {k: v.contiguous() for k, v in backbone.network.state_dict().items()}
    save_file(state, "given.safetensors")
    given = ["--backbone", name, "--weights", "given.safetensors", "--preset", "paper"]
    paper = object_of("fit", *given, *brief, "--run", "paper")
    assert backbone.pretrained_recipe is not None
    own = gates(gated(backbone, backbone.pretrained_recipe))
    assert len(own.groups) > paper["groups"]
    assert own.count < paper["gates"]
    recipe = read_posterior(Path("paper/posterior.safetensors"))[1].recipe
    assert (recipe.initial_drop, recipe.temperature, recipe.sharpen) == (0.1, 0.2, 1.0)
    assert recipe.opt == "adamw"


def test_a_fit_that_learns_and_drops_nothing_says_what_to_change() -> None:
    idle = ["--epochs", "1", "--batch-size", "512", "--lr", "0", "--initial-drop", "0.001"]
    _, _, err = said("fit", *idle)
    assert "held-out error, near chance level for 10 classes; more --epochs" in err
    assert "hardly anything is dropped; name a size with --target-params" in err


RECORD = EpochRecord(1, 1, 1.0, 0.1, 0.5, 0.5, 0.5, 700.0, 60.0, 0.7, 0.6, 0.0, 0.3, 0.5, 0.0,
                     (0,) * 10, 0.1, 1.0, 1.0)  # fmt: skip


def plan(target: Target | None) -> FitPlan:
    return FitPlan(1, 1, 1, 1, 1, 1, Prior(1.0, 1.0), 0.1, 1, 10, target, Recipe(), "for digits",
                   0.05, (), ())  # fmt: skip


def test_a_prior_that_outweighs_the_data_comes_with_a_strength_that_does_not() -> None:
    """Half of the chance level, ln 10, at the start."""
    found = {d: plan_lines(dataclasses.replace(plan(None), divergence=d)) for d in (1.0, 5.0, -5.0)}
    assert not any("outweighs" in line for line in found[1.0])
    assert "outweighs the data" in found[5.0][-1]
    assert "--l2 0.23, or" in found[5.0][-1]
    assert found[-5.0][-1].endswith("the entropy of p outweighs the data; raise --kl-images")


@pytest.mark.parametrize("target", [None, Target("params", 0.6)])
def test_a_loss_that_does_not_come_below_chance_level_is_a_bad_start(target: Target | None) -> None:
    third = dataclasses.replace(RECORD, epoch=3, epochs=30, loss=2.31, expected_share=0.7)
    (line,) = early_notes(RECORD, third, plan(target))
    assert line.startswith(
        "warning: a bad start: after 3 epochs the loss is 2.31, chance level 2.30;"
    )
    better = dataclasses.replace(third, loss=2.29)
    assert early_notes(RECORD, better, plan(target)) == []


def test_a_missed_target_is_said_and_that_more_could_be_dropped() -> None:
    assert closing_notes(RECORD, plan(Target("macs", 0.6))) == []
    (line,) = closing_notes(RECORD, plan(Target("params", 0.6)))
    assert "has 70.0 % of the size, not 60.0 %" in line
    assert "size 60 %" in epoch_line(RECORD, 0.0, Target("macs", 0.6))
    assert "size 70 %" in epoch_line(RECORD, 0.0, None)
    cut = dataclasses.replace(RECORD, trained_share=0.52)
    assert "% cut to 52 % left" in epoch_line(cut, 0.0, Target("macs", 0.6))
    assert "p moves 0.000 cut to 52 % left" in epoch_line(cut, 0.0, None)
    whole = dataclasses.replace(RECORD, expected_share=0.99, expected_macs_share=0.99)
    (line,) = closing_notes(whole, plan(None))
    assert line.startswith("note: hardly anything is dropped")
    (line,) = closing_notes(whole, plan(Target("params", 0.5)))
    assert line.startswith("warning: the mean candidate has 99.0 % of the size, not 50.0 %")
    first = dataclasses.replace(RECORD, expected_share=0.85, epochs=30)
    third = dataclasses.replace(first, epoch=3, expected_share=0.867)
    (line,) = early_notes(first, third, plan(None))
    assert line.startswith("note: 98.2 % of the size may stay at the end; name a size")
    assert early_notes(first, dataclasses.replace(third, expected_share=0.84), plan(None)) == []
    assert early_notes(first, third, plan(Target("params", 0.6))) == []
    resumed = dataclasses.replace(third, mean_drop=0.5)  # by one that saw no earlier epoch
    assert early_notes(resumed, resumed, plan(None)) == []
    fixed = dataclasses.replace(whole, mean_drop=0.0)
    assert closing_notes(fixed, plan(None)) == []


def test_long_epochs_are_not_silent_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgnas_cli.cli.terminal.SILENCE", 0.0)
    _, _, err = said("fit", "--epochs", "1", "--batch-size", "300", "--run", "slow")
    assert "fitting: 2 of 3, about 0:0" in err


def test_two_fits_that_begin_in_the_same_second_have_folders_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stopped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Stopped":
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr("pgnas_cli.run.settings.datetime", Stopped)
    name = "multibranch-tiny-20260102-030405"
    for expected in (name, f"{name}-2"):
        run_of, _ = run_to_fit(None, {}, resume=False)
        assert run_of.folder == Path("runs", expected)
        run_of.folder.mkdir(parents=True)


def files_of(folder: str) -> list[bytes]:
    names = ("posterior", "candidates", "ranking", "best")
    return [Path(folder, f"{name}.safetensors").read_bytes() for name in names]


def test_workers_change_no_byte(photo_folder: Callable[..., Path]) -> None:
    photos = ["--data", str(photo_folder()), "--img-size", "32", "--batch-size", "8"]
    for workers in ("0", "2"):
        for step in (
            ["fit", "--epochs", "1", *photos, "--workers", workers],
            ["sample", "-n", "4"],
            ["rank", "--workers", workers],
            ["export", f"{workers}/best.safetensors", "--workers", workers],
        ):
            assert run(*step, "--run", workers, "-q") == 0
    assert files_of("0") == files_of("2")


def test_the_seed_decides_every_byte_and_another_gives_another_posterior(fitted: Run) -> None:
    for step in (*FITTED, ["export", "again/best.safetensors"]):
        assert run(*step, "--run", "again", "-q") == 0
    assert files_of("again") == files_of("run")
    assert run(*FITTED[0], "--seed", "1", "--run", "other", "-q") == 0
    a, b = (load_file(f"{r}/posterior.safetensors")["drop_logit"] for r in ("run", "other"))
    assert not torch.equal(a, b)


def test_a_finished_fit_is_resumed_with_its_own_options_alone(fitted: Run) -> None:
    assert said("fit", "--resume", *HERE, "--epochs", "3")[0] == 0
    told = refused("fit", "--resume", *HERE, "--momentum", "0.5")
    assert "was fitted with --momentum 0.9, not 0.5; leave the option out" in told


def test_a_network_without_gates_is_not_told_of_gates() -> None:
    _, out, err = said("fit", *QUICK, "--fixed-drop", "0", "--run", "whole")
    assert "parameters, trained without gates" in err
    for word in ("prior", "p from", "p moves", "candidate", "size 100"):
        assert word not in err + out, word
    assert "held-out error " in out


def test_a_finished_fit_is_not_overwritten_without_force(fitted: Run) -> None:
    before = fitted.posterior.read_bytes()
    derived = [*fitted.drawn_files(), fitted.evaluation, fitted.report]
    for path in derived[-2:]:
        path.touch()
    again = refused("fit", *QUICK, *HERE)
    assert "holds a fitted posterior; choose another --run, or add --force" in again
    assert fitted.posterior.read_bytes() == before
    assert all(path.exists() for path in derived)
    assert run("fit", *QUICK, *HERE, "--force", "-q") == 0
    assert fitted.posterior.read_bytes() != before
    assert not any(path.exists() for path in derived)
