"""The command line as a whole: versions, help, usage errors, and what fits a terminal."""

from importlib.metadata import version

import pytest
import typer.main

from pgnas_cli.cli import app

from ..conftest import run
from .conftest import QUICK, said

NAMES = list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_the_version_names_torch_and_timm(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = said(capsys, "--version")
    assert (status, err) == (0, "")
    torch, timm = version("torch"), version("timm")
    assert out == f"pgnas {version('pgnas')} (torch {torch}, timm {timm})\n"


@pytest.mark.parametrize("command", [[], *([name] for name in NAMES)], ids=lambda c: "".join(c))
def test_h_is_help_and_breaks_lines_only_where_they_are_full(
    capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    status, out, _ = said(capsys, *command, "-h")
    assert (status, out) == said(capsys, *command, "--help")[:2]
    assert status == 0
    prose, panels, _ = out.partition("╭")
    assert panels
    assert max(map(len, out.splitlines())) <= 80
    for line, following in zip(prose.splitlines(), prose.splitlines()[1:], strict=False):
        if line.strip() and following.strip():
            assert len(line.rstrip()) + len(f" {following.split()[0]}") > 79, line


def test_unknown_options_are_usage_errors() -> None:
    assert run("fit", "--no-such-option") == 2
    assert run("no-such-command") == 2


def test_lines_fit_80_columns_and_hold_no_colour_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """Every command takes the newest run, and says which it is."""
    text = ""
    for arguments in (
        ["fit", *QUICK],
        ["sample", "-n", "12"],
        ["rank"],
        ["export", "b.safetensors"],
        ["evaluate", "b.safetensors"],
    ):
        status, out, err = said(capsys, *arguments)
        assert status == 0
        text += out + err
    assert text.count("(the newest; --run names another)") == 3
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80, max(text.splitlines(), key=len)


def test_quiet_leaves_stderr_empty(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = said(capsys, "fit", "--epochs", "1", "--batch-size", "512", "-q")
    assert (status, err) == (0, "")
    assert "posterior:" in out
