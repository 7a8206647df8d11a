"""The commands: results on stdout, messages on stderr, exit status, and what users get wrong."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
import torch
from pgnas_backbones import multibranch
from safetensors.torch import load_file

from pgnas_cli.cli.fit import closing_notes, epoch_line
from pgnas_cli.cli.tensorboard import SCALARS
from pgnas_cli.run.posterior import read_posterior
from pgnas_cli.sizes import Target
from pgnas_cli.training import EpochRecord

from ..conftest import run

QUICK = ["--epochs", "2", "--batch-size", "128"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    capsys.readouterr()
    status = run(*arguments)
    text = capsys.readouterr()
    return status, text.out, text.err


def object_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    status, out, _ = said(capsys, *arguments, "--json")
    assert status == 0
    assert out.count("\n") == 1
    value = json.loads(out)
    assert isinstance(value, dict)
    return value


def test_the_three_lines_work_one_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", *QUICK) == 0
    assert run("sample", "--n", "6") == 0
    status, out, err = said(capsys, "export", "best.safetensors")
    assert status == 0
    assert "nothing is ranked yet: ranking the candidates first" in err
    assert "wrote best.safetensors" in out
    assert Path("best.safetensors").exists()


def test_every_json_has_its_fixed_keys(capsys: pytest.CaptureFixture[str]) -> None:
    fitted = object_of(capsys, "fit", *QUICK, "--run", "r")
    assert set(fitted) == {
        "run", "epochs", "seconds", "held_out_error", "params", "groups", "gates",
    }  # fmt: skip
    assert (fitted["epochs"], fitted["groups"], fitted["gates"]) == (2, 17, 512)
    drawn = object_of(capsys, "sample", "--run", "r", "-n", "5")
    assert drawn["candidates"] == 5
    ranked = object_of(capsys, "rank", "--run", "r", "--top", "3")
    assert set(ranked) == {
        "top", "candidates", "mean_params", "pairs_evaluated", "pairs_total", "seconds",
        "undecided", "first_again", "order_again", "expected_error", "waiting",
        "mean_error",  # all five are pilots
    }  # fmt: skip
    assert [set(row) for row in ranked["top"]] == 3 * [
        {"id", "errors", "images", "error", "interval", "p_against_first", "params", "macs"}
    ]
    written = object_of(capsys, "export", "b.safetensors", "--run", "r")
    assert written["params"] == ranked["top"][0]["params"]
    assert written["held_out_errors"] == ranked["top"][0]["errors"]
    judged = object_of(capsys, "evaluate", "b.safetensors")
    assert {"errors", "images", "error", "params", "macs", "latency_ms"} <= set(judged)
    assert judged["images"] == 359
    several = object_of(capsys, "evaluate", "b.safetensors", "b.safetensors")
    assert len(several["networks"]) == 2


def test_twin_whole_and_any_id_can_be_exported(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", *QUICK, "--run", "r", "-q") == 0
    assert run("sample", "--run", "r", "-n", "5", "-q") == 0
    there = ["--run", "r"]
    whole = object_of(capsys, "export", "whole.safetensors", "--candidate", "whole", *there)
    assert whole["params"] == whole["whole_params"]
    best = object_of(capsys, "export", "best.safetensors", *there)
    twin = object_of(capsys, "export", "twin.safetensors", "--candidate", "twin", *there)
    assert abs(twin["params"] / best["params"] - 1) < 0.05
    third = object_of(capsys, "export", "third.safetensors", "--candidate", "3", *there)
    assert third["candidate"] == "3"
    status, _, err = said(capsys, "export", "x.safetensors", "--candidate", "5", *there)
    assert (status, "no candidate '5'; possible: 0 to 4, whole, twin, or smallest" in err) == (
        1,
        True,
    )


def test_rounded_and_onnx_exports_are_the_same_network(capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", *QUICK, "--initial-drop", "0.5", "-q")
    run("sample", "--n", "4", "-q")
    files = {"a.safetensors": [], "b.safetensors": ["--round-to", "8"],
             "c.onnx": ["--layout", "fast"], "e.onnx": ["--round-to", "1"]}  # fmt: skip
    sizes = {
        name: object_of(capsys, "export", name, *options)["params"]
        for name, options in files.items()
    }
    assert sizes["a.safetensors"] == sizes["e.onnx"]
    assert sizes["a.safetensors"] < sizes["b.safetensors"] == sizes["c.onnx"]
    rows = object_of(capsys, "evaluate", *files)["networks"]
    assert len({row["errors"] for row in rows}) == 1
    assert [row["latency_one"]["layout"] for row in rows][2] == "fast, onnx"
    import onnx

    run("export", "d.onnx", "--opset", "13", "-q")
    assert onnx.load("d.onnx").opset_import[0].version == 13


def test_verbose_names_what_is_kept_whole(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, expected in (([], False), (["-v"], True)):
        _, _, err = said(capsys, "backbones", "timm/convnext_atto", "--img-size", "64", *flags)
        assert ("kept whole: stages.0.blocks.0.norm" in err) == expected


def test_sample_can_draw_the_permuted_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", *QUICK, "--run", "r", "-q") == 0
    plain = object_of(capsys, "sample", "--run", "r", "-n", "50")
    dealt = object_of(capsys, "sample", "--run", "r", "-n", "50", "--baseline", "permuted")
    assert dealt["baseline"] == "permuted"
    assert abs(dealt["mean"]["params"] / plain["mean"]["params"] - 1) < 0.05


def test_a_fixed_rate_can_be_that_of_equal_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", *QUICK, "--run", "r", "--initial-drop", "0.3", "-q") == 0
    assert run("fit", *QUICK, "--run", "fixed", "--fixed-drop", "r", "-q") == 0
    plain, fixed = (object_of(capsys, "sample", "--run", r, "-n", "200") for r in ("r", "fixed"))
    assert abs(fixed["mean"]["params"] / plain["mean"]["params"] - 1) < 0.05
    rates = load_file("fixed/posterior.safetensors")["drop_logit"]
    assert rates.unique().numel() == 1


def test_the_papers_objective_is_one_flag_away(capsys: pytest.CaptureFixture[str]) -> None:
    """On a backbone whose own recipe differs: gates everywhere, one p for each layer's input."""
    network = ["--backbone", "timm/mobilenetv3_small_050", "--img-size", "8", "--epochs", "1"]
    own = object_of(capsys, "fit", *network, "--run", "own")
    paper = object_of(capsys, "fit", *network, "--preset", "paper", "--run", "paper")
    assert own["groups"] > paper["groups"]
    assert own["gates"] < paper["gates"]
    recipe = read_posterior(Path("paper/posterior.safetensors"))[1].recipe
    assert (recipe.initial_drop, recipe.temperature, recipe.sharpen) == (0.1, 0.2, 1.0)
    assert recipe.opt == "adamw"


def test_a_target_is_met_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = said(capsys, "fit", "--epochs", "8", "--target-macs", "60%", "--run", "r")
    assert "aim: candidates of 60.0 % of the multiply-adds" in err
    found = object_of(capsys, "sample", "-n", "40", "--run", "r")
    assert found["mean"]["macs"] / found["whole"]["macs"] == pytest.approx(0.6, abs=0.04)


def test_a_fit_that_drops_nothing_says_how_to_shrink(capsys: pytest.CaptureFixture[str]) -> None:
    hint = "hardly anything is dropped; name a size with --target-params"
    _, _, err = said(capsys, "fit", *QUICK, "--initial-drop", "0.001", "--run", "a")
    assert hint in err
    for options in (["--fixed-drop", "0"], ["--target-params", "50%"]):
        _, _, err = said(capsys, "fit", *QUICK, *options, "--run", options[0].strip("-"))
        assert hint not in err


def test_a_missed_target_is_said() -> None:
    record = EpochRecord(1, 1, 1.0, 0.1, 0.5, 0.5, 0.5, 700.0, 60.0, 0.7, 0.6, 0.0, 0.3, 0.5, 0.0,
                         (0,) * 10, 0.1, 1.0, 1.0)  # fmt: skip
    assert closing_notes(record, Target("macs", 0.6), 10) == []
    (line,) = closing_notes(record, Target("params", 0.6), 10)
    assert "has 70.0 % of the size, not 60.0 %" in line
    assert "size 60 %" in epoch_line(record, 0.0, Target("macs", 0.6))
    assert "size 70 %" in epoch_line(record, 0.0, None)


def test_a_fit_that_ends_at_guessing_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = said(capsys, "fit", *QUICK, "--lr", "0", "--run", "r")
    assert "nearly as guessing does among 10 classes; more --epochs" in err


def test_long_epochs_are_not_silent_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pgnas_cli.cli import fit as views

    monkeypatch.setattr(views, "SILENCE", 0.0)
    _, _, err = said(capsys, "fit", "--epochs", "1", "--batch-size", "300", "--run", "slow")
    assert "step 2 of 3, left 0:0" in err


def test_quiet_leaves_stderr_empty(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = said(capsys, "fit", *QUICK, "-q")
    assert status == 0
    assert err == ""
    assert "posterior:" in out


def test_lines_fit_80_columns_and_hold_no_colour_codes(capsys: pytest.CaptureFixture[str]) -> None:
    text = ""
    for arguments in (
        ["fit", *QUICK],
        ["sample", "-n", "4"],
        ["rank"],
        ["export", "b.safetensors"],
        ["evaluate", "b.safetensors"],
    ):
        status, out, err = said(capsys, *arguments)
        assert status == 0
        text += out + err
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80, max(text.splitlines(), key=len)


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


def test_another_seed_gives_another_posterior() -> None:
    for seed in ("1", "2"):
        assert run("fit", *QUICK, "--seed", seed, "--run", seed, "-q") == 0
    a, b = (load_file(f"{s}/posterior.safetensors")["drop_logit"] for s in "12")
    assert not torch.equal(a, b)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_fit_goes_on_to_the_same_posterior(number: signal.Signals) -> None:
    options = ["--epochs", "6", "--batch-size", "64", "--seed", "3"]
    assert run("fit", *options, "--run", "straight", "-q") == 0
    command = [sys.executable, "-m", "pgnas_cli", "fit", *options, "--run", "killed",
               "--save-minutes", "0"]  # fmt: skip
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "NO_COLOR": "1"}
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.strip().startswith("2/6"):
            break
    time.sleep(0.2)
    process.send_signal(number)
    rest = process.stderr.read()
    process.stderr.close()
    status = process.wait()
    if number == signal.SIGKILL:
        assert status == -signal.SIGKILL
    else:
        assert status == 130
        assert "go on with pgnas fit --resume --run killed" in rest
    assert Path("killed/checkpoint.safetensors").exists()
    assert not Path("killed/posterior.safetensors").exists()
    assert run("fit", "--resume", "--run", "killed", "-q") == 0
    straight, killed = (
        Path(r, "posterior.safetensors").read_bytes() for r in ("straight", "killed")
    )
    assert straight == killed
    assert not Path("killed/checkpoint.safetensors").exists()
    epochs = [json.loads(x)["epoch"] for x in Path("killed/metrics.jsonl").read_text().splitlines()]
    assert epochs == [1, 2, 3, 4, 5, 6]


def test_an_unfinished_fit_goes_on_by_its_own_recipe_when_the_backbone_has_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as stopped:
        stopped.setattr("pgnas_cli.training.fitting.StopRequest", Asked)
        assert run("fit", *QUICK, "--run", "r", "-q") == 130
    started = multibranch.MEMBERS["tiny"]
    changed = dataclasses.replace(started.recipe, lr=0.01, initial_drop=0.2)
    monkeypatch.setitem(multibranch.MEMBERS, "tiny", dataclasses.replace(started, recipe=changed))
    assert run("fit", "--resume", "--run", "r", "-q") == 0
    _, posterior = read_posterior(Path("r/posterior.safetensors"))
    assert posterior.recipe.lr == started.recipe.lr


class Asked(contextlib.nullcontext[None]):
    """A request to stop that was there from the start."""

    asked = True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_leaves_loader_workers_alive(
    number: signal.Signals, photo_folder: Callable[..., Path]
) -> None:
    """What Ctrl-C in a terminal sends."""
    command = [sys.executable, "-m", "pgnas_cli", "fit", "--data", str(photo_folder()), "--run",
               "r", "--img-size", "32", "--batch-size", "4", "--epochs", "500",
               "--workers", "2"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.strip().startswith("1/500"):
            break
    os.killpg(process.pid, number)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 130
    assert "Traceback" not in rest
    assert Path("r/checkpoint.safetensors").exists()


@pytest.mark.parametrize("command", ["fit", "evaluate"])
def test_a_crash_ends_the_process_though_workers_live(
    command: str, photo_folder: Callable[..., Path]
) -> None:
    """An exception that nobody expected, with loader workers that ignore signals."""
    data = ["--data", str(photo_folder()), "--workers", "2"]
    fit = ["fit", *data, "--img-size", "32", "--batch-size", "4", "--epochs", "1", "--run", "r"]
    arguments = fit
    if command == "evaluate":
        assert run(*fit, "-q") == 0
        assert run("sample", "-n", "2", "--run", "r", "-q") == 0
        assert run("export", "b.safetensors", "--run", "r", "-q") == 0
        arguments = ["evaluate", "b.safetensors", *data]
    code = (
        "import pgnas_cli.training.loop as t, pgnas_cli.training.scoring as e\n"
        "from pgnas_cli.cli import main\n"
        "def crash(*a, **k): raise MemoryError('out')\n"
        "t.F.cross_entropy = e.predictions = crash\n"
        f"main({arguments!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "MemoryError: out" in done.stderr


def test_digits_are_not_resized_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = said(capsys, "fit", "--img-size", "16")
    assert (status, "'digits' has images of 8x8 pixels" in err) == (1, True)


def test_networks_of_different_image_sizes_are_each_timed_at_their_own(
    capsys: pytest.CaptureFixture[str], photo_folder: Callable[..., Path]
) -> None:
    data = ["--data", str(photo_folder()), "-j", "0"]
    fit = ["fit", *data, "--batch-size", "4", "--epochs", "1", "-q"]
    for size in ("48", "128"):
        assert run(*fit, "--img-size", size, "--run", size) == 0
        place = [f"{size}.safetensors", "--candidate", "whole", "--run", size, "-q"]
        assert run("export", *place) == 0
    files = ["128.safetensors", "48.safetensors"]
    rows = object_of(capsys, "evaluate", *files, *data, "-b", "8")["networks"]
    for row in rows:
        many = row["latency_many"]
        assert 0.3 < many["ms"] / many["whole_ms"] < 3
    assert rows[0]["latency_many"]["ms"] > rows[1]["latency_many"]["ms"]


def test_a_finished_fit_is_not_overwritten_without_force(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("fit", *QUICK, "--run", "r", "-q") == 0
    before = Path("r/posterior.safetensors").read_bytes()
    status, _, err = said(capsys, "fit", *QUICK, "--run", "r", "--seed", "1")
    assert status == 1
    assert "holds a fitted posterior; choose another --run, or add --force" in err
    assert Path("r/posterior.safetensors").read_bytes() == before
    assert run("sample", "-n", "3", "--run", "r", "-q") == 0
    assert run("fit", *QUICK, "--run", "r", "--seed", "1", "--force", "-q") == 0
    assert Path("r/posterior.safetensors").read_bytes() != before
    assert not Path("r/candidates.safetensors").exists()


def test_resume_starts_what_is_not_there_and_refuses_other_options(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("fit", "--resume", *QUICK, "--run", "new", "-q") == 0
    assert Path("new/posterior.safetensors").exists()
    Path("new/posterior.safetensors").rename("new/checkpoint.safetensors")
    status, _, err = said(capsys, "fit", "--resume", "--run", "new", "--epochs", "9")
    assert status == 1
    assert "was started with epochs 2, not 9; leave the option out to go on" in err
    status, _, err = said(capsys, "fit", "--resume", "--run", "new")
    assert (status, "holds pgnas.posterior, wanted is pgnas.checkpoint" in err) == (1, True)


def test_candidates_older_than_the_posterior_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, seed in (("a", "0"), ("b", "1")):
        assert run("fit", *QUICK, "--run", name, "--seed", seed, "-q") == 0
        assert run("sample", "-n", "3", "--run", name, "-q") == 0
    Path("a/candidates.safetensors").replace("b/candidates.safetensors")
    status, _, err = said(capsys, "rank", "--run", "b")
    assert (status, "is older than the posterior; draw again: pgnas sample" in err) == (1, True)


def test_changed_data_are_noticed(
    capsys: pytest.CaptureFixture[str], photo_folder: Callable[..., Path]
) -> None:
    folder = photo_folder()
    data = ["--data", str(folder), "--img-size", "32", "--batch-size", "8", "--epochs", "1"]
    assert run("fit", *data, "--run", "r", "-q") == 0
    assert run("sample", "-n", "3", "--run", "r", "-q") == 0
    for path in sorted((folder / "train" / "red").iterdir())[2:]:
        path.rename(path.with_name(f"new-{path.name}"))
    status, _, err = said(capsys, "rank", "--run", "r")
    assert (status, "are not those of the fit" in err) == (1, True)
    status, _, err = said(capsys, "export", "b.safetensors", "--run", "r")
    assert status == 1
    assert not Path("b.safetensors").exists()


def test_a_photo_export_is_evaluated_on_the_folder_that_is_named(
    capsys: pytest.CaptureFixture[str], photo_folder: Callable[..., Path]
) -> None:
    folder = str(photo_folder())
    data = ["--data", folder, "--img-size", "48", "--batch-size", "8", "--epochs", "1"]
    assert run("fit", *data, "--run", "r", "-q") == 0
    assert run("sample", "-n", "3", "--run", "r", "-q") == 0
    assert run("export", "b.safetensors", "--run", "r", "-q") == 0
    assert folder.encode() not in Path("b.safetensors").read_bytes()
    status, _, err = said(capsys, "evaluate", "b.safetensors")
    assert status == 1
    assert "was fitted on a folder called 'photos'; say where it lies with --data" in err
    judged = object_of(capsys, "evaluate", "b.safetensors", "--data", folder)
    assert judged["images"] == 12
    status, _, err = said(capsys, "evaluate", "b.safetensors", "--data", "digits")
    assert (status, "has the classes 0, 1, 2, 3, 4..." in err) == (1, True)


MISTAKES = [
    (["fit", "--data", "nowhere"], "no data set 'nowhere'; possible: digits, a folder"),
    (["fit", "--backbone", "multibranch-tinny"], "did you mean multibranch-tiny?"),
    (["fit", "--backbone", "zzz"], "no backbone named 'zzz'; known: "),
    (["fit", "--epochs", "0"], "--epochs 0 is out of range; possible: 1 to"),
    (["fit", "--fixed-drop", "1"], "--fixed-drop 1 is out of range"),
    (["fit", "--fixed-drop", "none"], "--fixed-drop 'none' is neither a number nor a fitted run"),
    (["fit", "--temperature", "0"], "--temperature 0 is out of range"),
    (["fit", "--l2", "strong"], "--l2 'strong' is not a number; possible: a number, or auto"),
    (["fit", "--target-params", "much"], "--target-params 'much' is no size; possible: a share"),
    (["fit", "--target-params", "120%"], "--target-params 120% is out of range; the whole network"),
    (
        ["fit", "--target-macs", "9G"],
        "--target-macs 9G is out of range; the whole network has 1500800",
    ),
    (
        ["fit", "--target-macs", "50%", "--target-params", "50%"],
        "--target-params and --target-macs cannot both be met; give one",
    ),
    (["fit", "--target-params", "50%", "--fixed-drop", "0.1"], "--fixed-drop sets the size; leave"),
    (["fit", "--preset", "papers"], "no preset 'papers'; possible: paper"),
    (["fit", "--freeze", "2"], "--freeze 2 is out of range; possible: 0.01 to 1"),
    (
        ["fit", "--target-params", "50%", "--size-ramp", "0.6", "--freeze", "0.2"],
        "--freeze 0.2 comes before the size is met, --size-ramp 0.6; possible: 0.6 or more",
    ),
    (["fit", "--gates", "some"], "gates 'some' are not known; possible: all, hidden"),
    (["fit", "--groups", "0"], "groups '0' are not known; possible: layer, channel"),
    (["fit", "--opt", "adamm"], "no optimizer 'adamm'; near: adam"),
    (["fit", "--sched", "cosin"], "no schedule 'cosin'; possible: cosine"),
    (["fit", "--precision", "float8"], "no precision 'float8'; possible: float32, bfloat16"),
    (["fit", "--device", "gpu"], "no device 'gpu' here; possible: cpu, or auto"),
    (["fit", "--workers", "-1"], "--workers -1 is out of range"),
    (["fit", "--img-size", "0"], "--img-size 0 is out of range; possible: 1 or more"),
    (["fit", "--drop-lr", "-1"], "--drop-lr -1 is out of range"),
    (["fit", "--weight-decay", "-1"], "--weight-decay -1 is out of range"),
    (["fit", "--opt", "adahessian"], "no optimizer 'adahessian'; near: "),
    (["fit", "--held-out", "0"], "held-out share 0.0 is not between 0 and 1"),
    (["fit", "--resume"], "no run below 'runs'; start one with pgnas fit"),
    (["sample"], "no run below 'runs'; start one with pgnas fit, or name one with --run"),
    (["sample", "--run", "none"], "no posterior in 'none'; fit one with pgnas fit"),
    (["rank", "--run", "none"], "no posterior in 'none'"),
    (["export", "a.safetensors", "--run", "none"], "no posterior in 'none'"),
    (
        ["export", "a.pt", "--run", "none"],
        "'a.pt' has no known ending; possible: .safetensors, .onnx",
    ),
    (
        ["export", "a.safetensors", "--layout", "fast", "--run", "none"],
        "--layout is for .onnx files; a .safetensors",
    ),
    (
        ["export", "a.onnx", "--layout", "quick", "--run", "none"],
        "layout 'quick' is not known; possible: small, fast",
    ),
    (
        ["export", "a.onnx", "--round-to", "0", "--run", "none"],
        "--round-to 0 is out of range; possible: 1 to 1024",
    ),
    (["evaluate", "none.safetensors"], "no file 'none.safetensors'"),
    (["evaluate", "folder"], "'folder' is not a whole safetensors file"),
    (["evaluate", "text.safetensors"], "'text.safetensors' is not a whole safetensors file"),
    (["fit", "--device", "meta"], "no device 'meta' here"),
    (["fit", "--run", "text.safetensors"], "is a file; --run wants a folder"),
    (["evaluate", "x", "-b", "0"], "--batch-size 0 is out of range"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda v: " ".join(v)[:40])
def test_a_mistake_ends_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    Path("folder").mkdir()
    Path("text.safetensors").write_text("hello")
    status, out, err = said(capsys, *arguments)
    assert status == 1
    assert out == ""
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert "Traceback" not in err


def test_a_fitted_run_with_nothing_drawn_says_what_to_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("fit", *QUICK, "--run", "r", "-q") == 0
    status, _, err = said(capsys, "rank", "--run", "r")
    assert (status, "no candidates in 'r'; draw some with pgnas sample" in err) == (1, True)
    status, _, err = said(capsys, "sample", "-n", "0", "--run", "r")
    assert (status, "0 candidates cannot be drawn; possible: 1 or more" in err) == (1, True)
    status, _, err = said(capsys, "sample", "--baseline", "other", "--run", "r")
    assert (status, "no baseline 'other'; possible: permuted, fixed" in err) == (1, True)
    assert run("sample", "-n", "2", "--run", "r", "-q") == 0
    Path("there.safetensors").write_text("precious")
    status, _, err = said(capsys, "export", "there.safetensors", "--run", "r")
    assert (status, "'there.safetensors' exists; choose another name" in err) == (1, True)
    assert Path("there.safetensors").read_text() == "precious"
    assert run("export", "there.safetensors", "--run", "r", "--force", "-q") == 0


def test_unknown_options_are_usage_errors() -> None:
    assert run("fit", "--no-such-option") == 2
    assert run("no-such-command") == 2


def test_backbones_are_listed_with_their_package(capsys: pytest.CaptureFixture[str]) -> None:
    found = object_of(capsys, "backbones")
    assert found["backbones"]["multibranch-tiny"] == "pgnas"


def test_tensorboard_holds_what_the_metrics_file_holds(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, board = tmp_path / "run", tmp_path / "board"
    line = ["fit", "--epochs", "2", "-q", "--run", str(folder), "--tensorboard", str(board)]
    assert run(*line) == 0
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    wanted = [json.loads(text) for text in lines]
    found = EventAccumulator(str(board / "run"), {"histograms": 0, "scalars": 0})
    found.Reload()
    for tag, field in SCALARS.items():
        assert tag in found.Tags()["scalars"]
        values = [(event.step, event.value) for event in found.Scalars(tag)]
        assert values == [(m["epoch"], pytest.approx(m[field], rel=1e-5)) for m in wanted]
    for event, record in zip(found.Histograms("p"), wanted, strict=True):
        assert event.histogram_value.bucket == record["drop_histogram"]


def test_tensorboard_that_is_not_installed_is_said_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard.writer", raising=False)
    board = str(tmp_path / "board")
    assert run("fit", "-q", "--run", str(tmp_path / "run"), "--tensorboard", board) == 1
    assert "pip install 'pgnas[tensorboard]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
