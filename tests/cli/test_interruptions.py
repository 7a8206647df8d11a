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

from pgnas_cli.run import Run, writing
from pgnas_cli.run.posterior import read_posterior, write_posterior

from ..conftest import object_of, run, said
from .conftest import QUICK

KILLED = ["fit", "--epochs", "6", "--batch-size", "128", "--seed", "3"]


def started(*arguments: str, until: str) -> subprocess.Popen[str]:
    """A command as a process of its own that has just said a line which begins with `until`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pgnas_cli", *arguments], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "NO_COLOR": "1"}, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert any(line.strip().startswith(until) for line in process.stderr)
    return process


def test_a_killed_fit_goes_on_to_the_same_posterior() -> None:
    assert run(*KILLED, "--run", "straight", "-q") == 0
    straight, killed = Run(Path("straight")), Run(Path("killed"))
    process = started(*KILLED, "--run", "killed", "--save-minutes", "0", until="2/6")
    time.sleep(0.2)
    process.kill()
    process.communicate()
    assert killed.checkpoint.exists()
    assert not killed.posterior.exists()
    assert run("fit", "--resume", "--run", "killed", "-q") == 0
    assert killed.posterior.read_bytes() == straight.posterior.read_bytes()
    assert not killed.checkpoint.exists()
    epochs = [json.loads(line)["epoch"] for line in killed.metrics.read_text().splitlines()]
    assert epochs == [1, 2, 3, 4, 5, 6]


def test_an_unfinished_fit_goes_on_by_its_own_recipe_when_the_backbone_has_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = contextlib.nullcontext(SimpleNamespace(asked=signal.SIGINT))  # to stop, from the start
    with monkeypatch.context() as stopped:
        stopped.setattr("pgnas_cli.training.loop.StopRequest", lambda: asked)
        assert run("fit", *QUICK, "--run", "r", "-q") == 130
    own = multibranch.MEMBERS["tiny"]
    changed = dataclasses.replace(own.recipe, lr=0.01, initial_drop=0.2)
    monkeypatch.setitem(multibranch.MEMBERS, "tiny", dataclasses.replace(own, recipe=changed))
    assert run("fit", "--resume", "--run", "r", "-q") == 0
    _, posterior = read_posterior(Path("r/posterior.safetensors"))
    assert posterior.recipe.lr == own.recipe.lr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_leaves_loader_workers_alive(
    number: signal.Signals, photo_folder: Callable[..., Path]
) -> None:
    """What Ctrl-C in a terminal sends."""
    fit = ["fit", "--data", str(photo_folder()), "--run", "r", "--img-size", "32",
           "--batch-size", "4", "--epochs", "500", "--workers", "2"]  # fmt: skip
    process = started(*fit, until="1/500")
    os.killpg(process.pid, number)
    _, rest = process.communicate()
    assert process.returncode == 128 + number
    assert "resume with pgnas fit --resume --run r" in rest
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_is_one_line(number: signal.Signals) -> None:
    process = started("fit", *QUICK, "--run", "r", until="run: r")
    process.send_signal(number)
    _, rest = process.communicate()
    assert process.returncode == 128 + number
    assert rest.splitlines()[-1].startswith("error: interrupted; ")
    assert "Traceback" not in rest
    assert run("fit", *QUICK, "--run", "r", "-q") == 0


def test_a_signal_in_the_last_step_ends_a_search_behind_the_fit() -> None:
    asked: list[int] = []

    def last(path: Path, *rest: object) -> None:
        write_posterior(path, *rest)  # type: ignore[arg-type]
        asked.append(os.kill(os.getpid(), signal.SIGTERM) or 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pgnas_cli.training.fitting.write_posterior", last)
        status, _, err = said(
            "search", "--epochs", "1", "-n", "5", "--no-compare", "--run", "r", "-q"
        )
    assert (status, asked) == (143, [1])
    assert err.strip() == "error: interrupted; every file is whole, the same command goes on"
    assert [path.name for path in Run(Path("r")).drawn_files()] == []
    assert not Run(Path("r")).checkpoint.exists()


def test_a_finished_fit_that_is_resumed_says_its_summary_again() -> None:
    first = object_of("fit", *QUICK, "--run", "r")
    before = Path("r/posterior.safetensors").read_bytes()
    Path("r/checkpoint.safetensors").touch()  # killed behind its last write
    again = object_of("fit", "--resume", "--run", "r")
    assert {**first, "seconds": 0} == {**again, "seconds": 0}
    assert sorted(path.name for path in Path("r").iterdir()) == [
        "commands.jsonl", "metrics.jsonl", "posterior.safetensors", "run.json",
    ]  # fmt: skip
    assert Path("r/posterior.safetensors").read_bytes() == before


def test_a_second_command_on_a_run_is_one_line_and_readers_need_no_lock(fitted: Run) -> None:
    with writing(fitted):
        lines = subprocess.run(
            [sys.executable, "-c", "from tests.conftest import refused, run\n"
             "for line in (['fit', '--resume'], ['sample', '--force'], ['rank'], ['search'],\n"
             "             ['finetune', 'run/best.safetensors', '-o', 'x.safetensors']):\n"
             "    print(refused(*line, '--run', 'run'))\n"
             "print(run('export', 'x.safetensors', '--run', 'run', '-q'))"],
            capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        ).stdout.splitlines()  # fmt: skip
    told = f"error: 'run' is being written by process {os.getpid()} ("
    assert [line.startswith(told) for line in lines[:5]] == 5 * [True]
    assert lines[-1] == "0"


def test_a_command_line_that_cannot_be_kept_is_a_remark(fitted: Run) -> None:
    fitted.commands.unlink()
    fitted.commands.mkdir()
    status, _, err = said("sample", "-n", "5", "--force", "--run", str(fitted.folder))
    assert status == 0
    assert "note: the command line was not added to" in err
