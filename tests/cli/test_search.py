"""The one command: it ends in files and a table, and the same line goes on where it stopped."""

import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import pgnas_cli
from pgnas_cli.cli.search import _with_groups
from pgnas_cli.cli.terminal import _Line
from pgnas_cli.evaluation import evaluations_of
from pgnas_cli.run import Run, settings_of
from pgnas_cli.run.posterior import posterior_of
from pgnas_cli.sampling import read_candidates

from ..conftest import SEARCH, object_of, refused, run, said

QUICK = ["search", "--epochs", "2", "-n", "40", "--no-compare", "-q"]


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


@pytest.fixture(autouse=True)
def _without_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes as long as the fit."""
    monkeypatch.setattr("pgnas_cli.report.write_report", lambda runs, path, photos: [])


@pytest.mark.parametrize(
    ("given", "groups"),
    [
        ({"backbone": "multibranch-tiny"}, "channel"),
        ({"backbone": "timm/resnet18"}, "channel"),
        ({"backbone": "multibranch-tiny", "groups": "layer"}, "layer"),
        ({"backbone": "enas-e"}, None),
        ({"backbone": "densenet121-inflated"}, None),
    ],
)
def test_a_search_of_one_size_has_a_p_for_each_channel(
    given: dict[str, str], groups: str | None
) -> None:
    assert _with_groups(settings_of(given), given).recipe.get("groups") == groups


def test_a_search_ends_in_networks_within_the_size_and_does_nothing_twice(searched: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in searched.folder.rglob("posterior*")}
    errors = {row.name: row.errors for row in evaluations_of(searched)}
    found = object_of(*SEARCH, "--run", str(searched.folder))
    networks = {name: pgnas_cli.load(file) for name, file in found["files"].items()}
    sizes = {name: sum(p.numel() for p in n.parameters()) for name, n in networks.items()}
    assert list(sizes) == ["best", "twin", "whole"]
    assert sizes["best"] <= 0.6 * sizes["whole"] + 1
    assert abs(sizes["twin"] / sizes["best"] - 1) <= 0.02
    assert sizes["whole"] == 151_930
    assert [row["params"] for row in found["networks"]] == list(sizes.values())
    assert [row["errors"] for row in found["networks"]] == [errors[name] for name in sizes]
    assert len(before) == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_finished_search_shows_its_table_again_and_with_q_nothing_else(searched: Run) -> None:
    errors = {row.name: row.errors for row in evaluations_of(searched)}
    for quiet in ([], ["-q"]):
        status, out, err = said(*SEARCH, "--run", str(searched.folder), *quiet)
        assert status == 0
        assert bool(err) is not bool(quiet)
        stages = re.findall(r"^stage (\d) of (\d): \w+", err, re.MULTILINE)
        assert stages == ([] if quiet else [(str(i + 1), "7") for i in range(7)])
        assert "best.safetensors" in out
        best = evaluations_of(searched)[0]
        assert f"best on one image: {best.onnx_one.slim:.3g} ms in ONNX Runtime" in out
        assert "trained without gates" in out
        table, _, told = out.partition("└")
        cells = {row[0]: row[1] for row in re.findall(r"│ (\w+) +│ +([\d.]+ %) │", table)}
        assert set(cells) == {"best", "twin", "whole"}
        assert re.search(
            rf"in all: best has 5\d\.\d % of the parameters .* errs on {cells['best']} of 359 test"
            rf" images, the original network on {cells['whole']}",
            told.splitlines()[-1],
        )
        assert pgnas_cli.evaluate(searched.folder / "best.onnx")[0].errors == errors["best"]


def test_a_named_run_is_not_taken_for_one_of_other_options(searched: Run) -> None:
    line = [*QUICK, "--run", str(searched.folder)]
    before = searched.posterior.stat().st_mtime_ns
    for more, message in (
        (["--max-params", "40%"], "was fitted with --target-params 59.4%, not 39.6%"),
        (["--epochs", "3"], "was fitted with --epochs 2, not 3"),
    ):
        assert message in refused(*line, *more)
    assert run(*line, "-n", "50") == 0  # candidates are drawn again, nothing is fitted
    drawn = read_candidates(searched, *posterior_of(searched), "params-60")
    assert len(drawn) == 50
    assert searched.ranking("params-60").exists()
    assert searched.posterior.stat().st_mtime_ns == before


def test_a_search_that_was_stopped_goes_on_with_the_same_line(searched_once: Path) -> None:
    with stopped_after(5):
        status, _, err = said(*QUICK)
    assert (status, "saved after step 5" in err) == (130, True)
    found = object_of(*QUICK)
    straight = {row.name: row.errors for row in evaluations_of(Run(searched_once))}
    assert [row["errors"] for row in found["networks"]] == [straight["best"], straight["twin"]]
    with stopped_after(1):
        assert run(*QUICK, "--max-params", "40%") == 130
    assert len(list(Path("runs").iterdir())) == 2  # one, and of other options another


def test_photos_without_test_images_are_searched_all_the_same(
    photo_folder: Callable[..., Path],
) -> None:
    photos = photo_folder()
    shutil.rmtree(photos / "val")
    where = ["--data", str(photos), "--img-size", "16", "--batch-size", "8", "-j", "0"]
    rows = object_of(*QUICK, *where)
    assert rows["networks"] == []
    assert Path(rows["files"]["best"]).exists()
    stored = json.loads((Path(rows["run"]) / "run.json").read_text())
    assert Path(stored["data"]).is_absolute()


def test_long_paths_of_a_search_stand_whole_on_lines_of_their_own(searched: Run) -> None:
    home = searched.folder.rename(searched.folder.parent / ("a long name " * 12).strip())
    status, out, _ = said(*SEARCH, "--run", str(home))
    assert status == 0
    for name in ("best.safetensors", "twin.safetensors", "best.onnx", "report.html"):
        assert f"  {home / name}" in out.splitlines()


def test_a_search_on_photos_ends_with_a_line_that_classifies_one(
    photo_folder: Callable[..., Path],
) -> None:
    where = ["--data", str(photo_folder()), "--img-size", "16", "--batch-size", "8", "-j", "0"]
    status, _, err = said(*(word for word in QUICK if word not in ("-q", "--no-compare")), *where)
    assert status == 0, err
    pgnas, *line = shlex.split(err.splitlines()[-1].removeprefix("next: "))
    assert (pgnas, line[0], Path(line[-1]).name) == ("pgnas", "predict", "00.jpg")
    status, out, _ = said(*line)
    assert (status, out.count("\n")) == (0, 1)
    assert out.startswith(f"{line[-1]}  ")
    # The original network has a fit of its own; its photos are those of the others.
    folder = Path(line[1]).parent
    files = [str(folder / f"{name}.safetensors") for name in ("best", "whole")]
    rows = object_of("evaluate", *files, "--run", str(folder), "-j", "0")["networks"]
    assert [row["params"] for row in rows] == [pgnas_cli.load(file).info.params for file in files]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-params", "60%", "--max-macs", "60%"], "are mutually exclusive; give one"),
        (["--max-params", "much"], "--max-params 'much' is not a size"),
        (["--max-params", "0"], "--max-params 0 is out of range"),
        (["--max-macs", "120%"], "--max-macs 120% is out of range"),
        (["--max-params", "0.001%"], "is out of reach"),
        (["-n", "0"], "--n 0 is out of range; possible: 1 to 1e+06"),
        (["-n", "-3"], "--n -3 is out of range; possible: 1 to 1e+06"),
        (["--data", "nowhere"], "no data set 'nowhere'"),
    ],
)
def test_wrong_options_are_named_before_anything_is_trained(
    options: list[str], message: str
) -> None:
    assert message in refused(*QUICK, *options)
    assert not list(Path("runs").glob("*/posterior*"))
