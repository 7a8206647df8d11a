"""What people see: a terminal of 80 columns with and without colours, a file, silence."""

import io
import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pgnas_cli.cli.terminal import Terminal, failure

from ..conftest import said
from .conftest import QUICK

PROGRAM = """
import functools, pgnas_cli.latency as latency
from pgnas_cli.cli import main
latency.forward_times = functools.partial(latency.forward_times, seconds=0.05)
main()
"""


def in_a_terminal(folder: Path, *arguments: str, program: str = PROGRAM, **environment: str) -> str:
    """What a terminal of 80 columns is sent."""
    ours, theirs = pty.openpty()
    variables = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "TERM")}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], cwd=folder, stdin=theirs, stdout=theirs,
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


def test_a_search_fits_a_terminal_in_colours_unless_they_are_unwanted(tmp_path: Path) -> None:
    line = ["search", "--epochs", "2", "-n", "20", "--no-compare", "--run", "r"]
    sent = in_a_terminal(tmp_path, *line, NO_COLOR="1")
    coloured = in_a_terminal(tmp_path, "rank", "--top", "20", "--run", "r")
    colour = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d|38|48)[;\dm]")
    assert [bool(colour.search(text)) for text in (sent, coloured)] == [False, True]
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", sent + coloured)
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]
    tables = [line for line in lines if line[0] in "┏┃┡│└┗"]
    epochs = [line for line in lines if re.match(r" +\d+/2 loss", line)]
    assert len(tables) > 30
    assert len(epochs) == 2
    assert max(map(len, tables + epochs)) <= 80
    assert all(word in epochs[1] for word in ("loss", "held-out", "size", "cut to", "left"))


def test_work_that_will_last_says_so_in_its_first_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("pgnas_cli.cli.terminal.time.monotonic", lambda: now[0])
    terminal = Terminal()
    told: list[tuple[float, str]] = []
    monkeypatch.setattr(terminal, "note", lambda text: told.append((now[0], text)))
    for what, total in (("brief", 50), ("long", 1000)):
        now[0], terminal.told = 0.0, 0.0
        with terminal.task(what, total) as shown:
            for done in range(1, 45):  # eight a second
                now[0] = done / 8
                shown.update(done)
    assert told == [(1.0, "long: 8 of 1000, about 2:04 left")]


def test_each_stage_takes_the_newest_run_and_names_the_next_in_plain_lines_of_80_columns() -> None:
    text = ""
    for arguments, following in (
        (["fit", *QUICK, "--target-macs", "60%"], "sample --run RUN"),
        (["sample", "-n", "12"], "rank --run RUN"),
        (["rank"], "export best.safetensors --run RUN"),
        (["export", "b.safetensors"], "evaluate b.safetensors"),
        (["evaluate", "b.safetensors"], "report --run RUN"),
        (["report"], None),
    ):
        status, out, err = said(*arguments)
        (folder,) = Path("runs").iterdir()
        assert status == 0
        if following:
            assert err.splitlines()[-1] == f"next: pgnas {following.replace('RUN', str(folder))}"
        text += out + err
    assert "report.html" in out
    assert "target size: 60 % of the MACs" in text
    assert text.count("(the newest; --run names another)") == 4
    assert not {"\x1b", "\r"} & set(text)
    assert max(map(len, text.splitlines())) <= 80, max(text.splitlines(), key=len)


def test_results_beside_a_bar_go_to_stdout_and_complaints_to_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal = Terminal(quiet=False)
    screen = io.StringIO()
    terminal.err = Console(file=screen, force_terminal=True, width=80)
    with terminal.task("predicting", 2) as shown:
        shown.update(1)
        terminal.result("one")
        terminal.row(["two, 2", 0.5])
        terminal.complaint("three")
    assert capsys.readouterr().out == 'one\n"two, 2",0.5\n'
    assert "predicting" in screen.getvalue() and "three\n" in screen.getvalue()
    Terminal(quiet=True).complaint("four")
    assert capsys.readouterr().err == "four\n"


def test_no_character_of_a_name_acts_on_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a note, a result, a table with two lines in a cell, and the error line."""
    evil = "a\x1b]0;b\x07\r\n\u202ec"
    terminal = Terminal()
    terminal.note(evil)
    terminal.result(evil)
    terminal.table(evil, ("<class", "n"), [[evil, "1"], [("one", evil), "2"]])
    failure(evil)
    out, err = capsys.readouterr()
    assert not set(out + err) & set("\x1b\x07\r\u202e")
    shown = r"a\x1b]0;b\x07\r\n\u202ec"
    assert err == f"{shown}\nerror: {shown}\n"
    assert out.count(shown) == 4
