"""What the system refuses: a full disk as stdout, paths with spaces, a terminal of 8 columns."""

import io
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from pgnas_cli.run import Run

from ..conftest import refused, run, said

FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="a device of Linux")
@pytest.mark.parametrize("words", [["backbones"], ["backbones", "--json"], ["--version"], ["-h"]])
def test_a_stdout_that_takes_no_more_is_one_line(words: list[str]) -> None:
    with FULL.open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pgnas_cli", *words], stdout=full, stderr=subprocess.PIPE,
            text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        "error: the output cannot be written: No space left on device; files that were written are"
        " there\n"
    )


class _Full(io.StringIO):
    def flush(self) -> None:
        raise OSError(28, "No space left on device")


def test_every_command_says_that_its_output_is_lost_and_keeps_its_files(fitted: Run) -> None:
    for words in (
        ["sample", "-n", "3", "--force"],
        ["rank"],
        ["export", "a.safetensors"],
        ["evaluate", "a.safetensors", "--csv", "tables"],
        ["report"],
    ):
        with redirect_stdout(_Full()):
            line = refused_into_full(*words, "--run", str(fitted.folder))
        assert line.startswith("error: the output cannot be written: No space left")
    assert fitted.report.exists() and Path("a.safetensors").exists()
    assert fitted.evaluation.exists() and Path("tables/confusion.csv").exists()


def refused_into_full(*words: str) -> str:
    out = sys.stdout
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.conftest.redirect_stdout", lambda _: redirect_stdout(out))
        return refused(*words)


def test_the_next_line_can_be_typed_as_it_stands(fitted: Run, tmp_path: Path) -> None:
    """Paths with spaces and quotes are quoted."""
    home = tmp_path / "my 'best' runs"
    shutil.move(fitted.folder, home)
    file = home / "a network.safetensors"
    line = ["sample", "-n", "5", "--force", "--run", str(home)]
    commands = []
    for _ in range(2):
        status, _, err = said(*line)
        assert status == 0
        pgnas, *line = shlex.split(err.splitlines()[-1].removeprefix("next: "))
        assert pgnas == "pgnas"
        commands.append(line[0])
    assert commands == ["rank", "export"]
    assert line[-2:] == ["--run", str(home)]
    status, _, err = said("export", str(file), "--run", str(home))
    assert shlex.split(err.splitlines()[-1]) == ["next:", "pgnas", "evaluate", str(file)]
    home.joinpath("posterior.safetensors").rename(home / "checkpoint.safetensors")
    line = shlex.split(refused("rank", "--run", str(home)).rpartition("with ")[2])
    assert line == ["pgnas", "fit", "--resume", "--run", str(home)]


def test_eight_columns_lose_no_word_of_a_table(
    fitted: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "8")
    where = ["--run", str(fitted.folder)]
    for words in (
        ["sample", "-n", "3", "--force"],
        ["rank"],
        ["export", "a.safetensors"],
        ["report"],
    ):
        status, out, err = said(*words, *where)
        assert status == 0, err
        assert out
    assert "error: " in refused("rank", "--run", "nowhere")


def test_a_working_directory_that_vanished_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for words in (["rank"], ["fit", "--run", str(tmp_path / "r")], ["backbones"]):
        assert refused(*words) == (
            "error: the working directory is no longer there; change to another one"
        )
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("refusal", [PermissionError(13, "Permission denied", "runs/r"),
                                     OSError(30, "Read-only file system", "runs/r")])  # fmt: skip
def test_what_no_room_has_words_for_is_named_with_its_path(
    refusal: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise refusal

    monkeypatch.setattr("pgnas_cli.cli.rank.run_of", fail)
    assert refused("rank") == f"error: 'runs/r' cannot be used: {refusal.strerror}"


def test_what_is_no_better_than_guessing_is_said(photo_folder: Callable[..., Path]) -> None:
    folder = str(photo_folder(train=12, test=2))
    fit = ["fit", "--data", folder, "--img-size", "24", "-b", "8", "-j", "0", "--lr", "0"]
    assert run(*fit, "--epochs", "1", "--run", "r", "-q") == 0
    assert run("sample", "-n", "3", "--run", "r", "-q") == 0
    _, _, err = said("rank", "--run", "r", "-j", "0")
    assert "warning: the winner: its 95 % interval, " in err
    assert "contains the error of naming one class for all, 66.7 %: more epochs" in err
    assert run("export", "a.safetensors", "--run", "r", "-q") == 0
    _, _, err = said("evaluate", "a.safetensors", "--data", folder, "-j", "0")
    assert "warning: a: its 95 % interval, " in err
