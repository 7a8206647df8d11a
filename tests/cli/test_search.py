"""The one command: it ends in files and a table, and the same line goes on where it stopped."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import pgnas_cli
from pgnas_cli.cli.terminal import _Line

from ..conftest import run as command
from .conftest import object_of

QUICK = ["search", "--epochs", "2", "-n", "20", "-q"]


def found(capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    return object_of(capsys, *QUICK, *more)


@contextmanager
def stopped_after(step: int) -> Iterator[None]:
    """Context in which SIGINT arrives after a step of a fit."""
    update, calls = _Line.update, 0

    def interrupting(line: _Line, done: int, **more: Any) -> None:
        nonlocal calls
        calls += line.what == "fitting"
        if calls == step:
            os.kill(os.getpid(), signal.SIGINT)
        update(line, done, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Line, "update", interrupting)
        yield


@pytest.fixture
def _without_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes as long as the fit."""
    monkeypatch.setattr("pgnas_cli.report.write_report", lambda runs, path: [])


def test_one_line_ends_in_networks_within_the_size_and_does_nothing_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = found(capsys)
    networks = {name: pgnas_cli.load(file) for name, file in first["files"].items()}
    assert list(networks) == ["best", "twin"]
    sizes = {name: sum(p.numel() for p in n.parameters()) for name, n in networks.items()}
    assert sizes["best"] <= 0.6 * 151_930 + 1
    assert abs(sizes["twin"] / sizes["best"] - 1) < 0.05
    assert [row["params"] for row in first["networks"]] == list(sizes.values())
    before = {
        p: p.stat().st_mtime_ns for p in Path(first["run"]).glob("*") if "posterior" in p.name
    }
    again = found(capsys)
    assert again["run"] == first["run"]
    assert [r["errors"] for r in again["networks"]] == [r["errors"] for r in first["networks"]]
    assert {p: p.stat().st_mtime_ns for p in before} == before
    with stopped_after(1):
        assert command(*QUICK, "--max-params", "40%") == 130
    assert len(list(Path("runs").iterdir())) == 2  # of other options, another run


@pytest.mark.usefixtures("_without_a_page")
def test_a_named_run_is_not_taken_for_one_of_other_options(
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = found(capsys, "--run", "r")
    assert command(*QUICK, "--run", "r", "--max-params", "40%") == 1
    assert "was fitted with --target-params 59.4%, not 39.6%" in capsys.readouterr().err
    assert command(*QUICK, "--run", "r", "--epochs", "3") == 1
    more = found(capsys, "--run", "r", "-n", "30")  # candidates are drawn again, nothing is fitted
    assert more["run"] == first["run"] == "r"
    rows = Path("r/ranking-params-60.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) > 10
    assert 20 <= max(int(row.split(",")[1]) for row in rows[1:]) < 30


@pytest.mark.usefixtures("_without_a_page")
def test_a_search_that_was_stopped_goes_on_with_the_same_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with stopped_after(5):
        assert command(*QUICK) == 130
    assert "saved after step 5" in capsys.readouterr().err
    on = found(capsys)
    shutil.rmtree("runs")
    straight = found(capsys)
    assert [r["errors"] for r in on["networks"]] == [r["errors"] for r in straight["networks"]]


@pytest.mark.usefixtures("_without_a_page")
def test_the_whole_network_is_trained_beside_where_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = found(capsys, "--compare")
    assert list(rows["files"]) == ["best", "twin", "whole"]
    assert rows["networks"][-1]["params"] == 151_930
    assert command(*QUICK, "--compare") == 0
    text = capsys.readouterr().out
    assert "whole" in text
    assert "trained without gates" in text


def test_photos_without_test_images_are_searched_all_the_same(
    capsys: pytest.CaptureFixture[str], photo_folder: Callable[..., Path]
) -> None:
    photos = photo_folder()
    shutil.rmtree(photos / "val")
    where = ["--data", str(photos), "--img-size", "16", "--batch-size", "8", "-j", "0"]
    rows = found(capsys, *where)
    assert rows["networks"] == []
    assert Path(rows["files"]["best"]).exists()
    stored = json.loads((Path(rows["run"]) / "run.json").read_text())
    assert Path(stored["data"]).is_absolute()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-params", "60%", "--max-macs", "60%"], "are mutually exclusive; give one"),
        (["--max-params", "much"], "--max-params 'much' is not a size"),
        (["--max-params", "0"], "--max-params 0 is out of range"),
        (["--max-macs", "120%"], "--max-macs 120% is out of range"),
        (["--max-params", "0.001%"], "is out of reach"),
        (["--data", "nowhere"], "no data set 'nowhere'"),
    ],
)
def test_wrong_options_are_named_before_anything_is_trained(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert command(*QUICK, *options) == 1
    assert message in capsys.readouterr().err
    assert not list(Path("runs").glob("*/posterior*"))
