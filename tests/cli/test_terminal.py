"""What people see: a terminal of 80 columns with and without colours, a file, silence."""

import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest

from pgnas_cli.run import Run

from .conftest import HERE, said

LINE = ["search", "--epochs", "2", "-n", "20", "--run", "r"]
PROGRAM = """
import functools, pgnas_cli.evaluation as evaluation
from pgnas_cli.cli import main
evaluation.latencies = functools.partial(evaluation.latencies, seconds=0.05)
main()
"""


def in_a_terminal(folder: Path, *arguments: str, **environment: str) -> str:
    """What a terminal of 80 columns is sent."""
    ours, theirs = pty.openpty()
    variables = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "TERM")}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=folder, stdin=theirs, stdout=theirs,
        stderr=theirs, env={**variables, "TERM": "xterm", "COLUMNS": "80", **environment},
    )  # fmt: skip
    os.close(theirs)
    sent = b""
    while process.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                sent += os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
    os.close(ours)
    assert process.wait() == 0, sent.decode()
    return sent.decode()


@pytest.mark.parametrize("colours", [True, False])
def test_a_search_fits_a_terminal(tmp_path: Path, colours: bool) -> None:
    sent = in_a_terminal(tmp_path, *LINE, **({} if colours else {"NO_COLOR": "1"}))
    if not colours:
        assert not re.findall(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d|38|48)[;\dm]", sent)
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", sent)
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]
    tables = [line for line in lines if line[0] in "┏┃┡│└┗"]
    epochs = [line for line in lines if re.match(r" +\d+/2 loss", line)]
    assert len(tables) > 10
    assert len(epochs) == 2
    assert max(map(len, tables + epochs)) <= 80
    assert all(word in epochs[1] for word in ("loss", "held-out", "size", "p moves", "left"))


def test_without_a_terminal_there_is_no_control_character_and_q_is_silent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for quiet in ([], ["-q"]):
        status, out, err = said(capsys, *LINE, *quiet)
        assert status == 0
        assert "\x1b" not in out + err
        assert "\r" not in out + err
        assert bool(err) is not bool(quiet)
        assert "best.safetensors" in out


def test_every_stage_says_what_comes_next(capsys: pytest.CaptureFixture[str], fitted: Run) -> None:
    for arguments, following in (
        (["fit", "--epochs", "1", "--run", "new"], "sample --run new"),
        (["sample", "-n", "8", *HERE], "rank --run run"),
        (["rank", *HERE], "export best.safetensors --run run"),
        (["export", "best.safetensors", *HERE], "evaluate best.safetensors"),
        (["evaluate", "best.safetensors", *HERE], "report --run run"),
    ):
        status, _, err = said(capsys, *arguments)
        assert (status, err.splitlines()[-1]) == (0, f"next: pgnas {following}")
    status, out, _ = said(capsys, "report", *HERE)
    assert (status, "report.html" in out) == (0, True)
