"""Fits that are stopped, killed, crash, and resume."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from pgnas_backbones import multibranch

from pgnas_cli.run.posterior import read_posterior

from ..conftest import run
from .conftest import QUICK, said

KILLED = ["fit", "--epochs", "6", "--batch-size", "128", "--seed", "3"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The posterior of the fit that nothing interrupts."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert run(*KILLED, "--run", str(folder), "-q") == 0
    return (folder / "posterior.safetensors").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_fit_goes_on_to_the_same_posterior(
    number: signal.Signals, straight: bytes
) -> None:
    command = [sys.executable, "-m", "pgnas_cli", *KILLED, "--run", "killed", "--save-minutes", "0"]
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
        assert "resume with pgnas fit --resume --run killed" in rest
    assert Path("killed/checkpoint.safetensors").exists()
    assert not Path("killed/posterior.safetensors").exists()
    assert run("fit", "--resume", "--run", "killed", "-q") == 0
    assert Path("killed/posterior.safetensors").read_bytes() == straight
    assert not Path("killed/checkpoint.safetensors").exists()
    epochs = [json.loads(x)["epoch"] for x in Path("killed/metrics.jsonl").read_text().splitlines()]
    assert epochs == [1, 2, 3, 4, 5, 6]


def test_an_unfinished_fit_goes_on_by_its_own_recipe_when_the_backbone_has_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = contextlib.nullcontext(SimpleNamespace(asked=True))  # to stop, from the start
    with monkeypatch.context() as stopped:
        stopped.setattr("pgnas_cli.training.loop.StopRequest", lambda: asked)
        assert run("fit", *QUICK, "--run", "r", "-q") == 130
    started = multibranch.MEMBERS["tiny"]
    changed = dataclasses.replace(started.recipe, lr=0.01, initial_drop=0.2)
    monkeypatch.setitem(multibranch.MEMBERS, "tiny", dataclasses.replace(started, recipe=changed))
    assert run("fit", "--resume", "--run", "r", "-q") == 0
    _, posterior = read_posterior(Path("r/posterior.safetensors"))
    assert posterior.recipe.lr == started.recipe.lr


def test_resume_starts_what_is_not_there_and_refuses_other_options(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("fit", "--resume", *QUICK, "--run", "new", "-q") == 0
    Path("new/posterior.safetensors").rename("new/checkpoint.safetensors")
    status, _, err = said(capsys, "fit", "--resume", "--run", "new", "--epochs", "9")
    assert status == 1
    assert "was started with --epochs 2, not 9; leave the option out to resume" in err
    status, _, err = said(capsys, "fit", "--resume", "--run", "new")
    assert (status, "holds pgnas.posterior, wanted is pgnas.checkpoint" in err) == (1, True)


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
        assert run("export", "whole.safetensors", "--candidate", "whole", "--run", "r", "-q") == 0
        arguments = ["evaluate", "whole.safetensors", *data]
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
