"""The command line in an empty folder."""

from pathlib import Path

import pytest

QUICK = ["--epochs", "2", "--batch-size", "128"]
HERE = ["--run", "run"]  # the copy of the fitted run


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
