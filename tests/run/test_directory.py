"""The files of a run, and which run is the newest."""

import os
from pathlib import Path

import pytest

from pgnas_cli.errors import PgnasError
from pgnas_cli.run import Run, newest_run


def test_budgets_are_listed_largest_first(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.budgets() == []
    labels = ["", "macs-80", "macs-50", "macs-9.5", "params-75", "params-60.25", "params-7"]
    for label in sorted(labels, key=lambda label: label[::-1]):
        run.candidates(label).touch()
    for stray in ("candidates-old.safetensors", "candidates-params-x.safetensors", "x.safetensors"):
        (tmp_path / stray).touch()
    assert run.budgets() == labels


def test_files_that_are_read_again_are_all_named(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for path in (run.candidates("params-60"), run.ranking("params-60"), run.ranking()):
        path.touch()
    assert run.drawn_files() == [run.candidates("params-60"), run.ranking("params-60")]
    assert {run.posterior, run.ranking(), *run.drawn_files()} <= set(run.files())


def test_the_newest_run_is_the_one_started_last(tmp_path: Path) -> None:
    with pytest.raises(PgnasError, match="no run below"):
        newest_run(tmp_path)
    for at, name in enumerate(("c", "a", "b")):
        run = Run(tmp_path / name)
        run.folder.mkdir()
        run.settings.touch()
        os.utime(run.settings, (at, at))
    assert newest_run(tmp_path).folder.name == newest_run(tmp_path, fitted=True).folder.name == "b"
    Run(tmp_path / "a").posterior.touch()
    assert newest_run(tmp_path).folder.name == "b"
    assert newest_run(tmp_path, fitted=True).folder.name == "a"
