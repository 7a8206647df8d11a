"""The command line in an empty folder: what it says, and the object it prints."""

import json
from pathlib import Path
from typing import Any

import pytest

from ..conftest import run

QUICK = ["--epochs", "2", "--batch-size", "128"]
HERE = ["--run", "run"]  # the copy of the fitted run


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
