"""Test errors against a plain count, latencies, and what a run keeps of them."""

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch import nn

import pgnas_cli
from pgnas_cli.cli.evaluate import evaluation_json, show_evaluations
from pgnas_cli.cli.terminal import Terminal
from pgnas_cli.data import Part, Preprocessing, load_data
from pgnas_cli.errors import PgnasError
from pgnas_cli.evaluation import (
    Evaluation,
    confusion_of,
    evaluations_of,
    write_evaluations,
)
from pgnas_cli.formats import read_network
from pgnas_cli.latency import latencies, latency_of
from pgnas_cli.machine import Machine
from pgnas_cli.ranking import interval
from pgnas_cli.report.summary import run_summary
from pgnas_cli.report.text import evaluated
from pgnas_cli.run import Run
from pgnas_cli.training import score

from .conftest import refused, run
from .photos import CLASSES, classifier_file


@pytest.fixture(scope="module")
def row(fitted_once: Path) -> Evaluation:
    """The evaluation of the exported network of the shared run."""
    (found,) = pgnas_cli.evaluate(fitted_once / "best.safetensors", batch_size=3)
    return found


def test_errors_are_those_of_a_plain_count_on_the_test_split(
    row: Evaluation, fitted_once: Path
) -> None:
    network, about = read_network(fitted_once / "best.safetensors")
    test = load_data("digits", seed=0).test
    assert test is not None
    with torch.no_grad():
        logits = network(about.supernet.preprocessing.normalised(test.pixels))
    wrong = (logits.argmax(1) != test.labels).nonzero().flatten().tolist()
    assert (row.errors, row.images, row.wrong) == (len(wrong), 359, tuple(wrong))
    assert (row.name, row.data, row.params) == ("best", "digits", about.params)
    for latency, batch in ((row.one, 1), (row.many, 3)):
        assert (latency.batch, latency.layout in ("small", "fast")) == (batch, True)
        assert latency.low is not None and latency.high is not None
        assert latency.low <= latency.ratio <= latency.high


def test_answers_are_those_of_softmax_and_tables_hold_them(
    row: Evaluation, fitted_once: Path, tmp_path: Path
) -> None:
    network, about = read_network(fitted_once / "best.safetensors")
    test = load_data("digits", seed=0).test
    assert test is not None and row.answers is not None
    with torch.no_grad():
        logits = network(about.supernet.preprocessing.normalised(test.pixels))
    sure, said = logits.double().softmax(1).max(1)
    expected = confusion_matrix(test.labels, said)
    assert np.array_equal(confusion_of(row).numpy(), expected)
    assert sum(part.images * part.confidence for part in row.answers.bins) == pytest.approx(
        float(sure.sum()), abs=1e-3
    )
    for one in row.answers.mistakes:
        assert (one.true, one.said) == (int(test.labels[one.image]), int(said[one.image]))
        assert one.file == test.keys[one.image]
        assert one.confidence == pytest.approx(float(sure[one.image]), abs=1e-5)
    assert sorted(one.image for one in row.answers.mistakes) == list(row.wrong)
    run = Run(tmp_path)
    write_evaluations(run, [row, dataclasses.replace(row, name="older", answers=None)])
    assert evaluations_of(run)[0] == row
    with run.confusion.open(newline="") as file:
        cells = list(csv.DictReader(file))
    found = np.zeros_like(expected)
    for cell in cells:
        assert cell["network"] == "best"
        found[int(cell["true"]), int(cell["said"])] = int(cell["images"])
        share = int(cell["images"]) / expected[int(cell["true"])].sum()
        assert float(cell["share"]) == pytest.approx(share, abs=1e-6)
    assert np.array_equal(found, expected)
    with run.mistakes.open(newline="") as file:
        images = list(csv.DictReader(file))
    assert [image["file"] for image in images] == [one.file for one in row.answers.mistakes]


def test_mistakes_on_photos_are_named_below_the_data_folder(
    photo_folder: Callable[..., Path], tmp_path: Path
) -> None:
    file = classifier_file(tmp_path / "a.safetensors")
    folder = photo_folder()
    (found,) = pgnas_cli.evaluate(file, str(folder))
    assert found.answers is not None and found.answers.mistakes
    for one in found.answers.mistakes:
        assert (folder / one.file).is_file()
        assert one.file.split("/")[:2] == ["val", CLASSES[one.true]]
        ((name, probability),) = pgnas_cli.load(file).predict(folder / one.file, top=1)
        assert name == CLASSES[one.said]
        assert one.confidence == pytest.approx(probability, abs=1e-4)
    assert str(tmp_path) not in json.dumps(dataclasses.asdict(found))


def test_json_has_the_calibration_error(row: Evaluation) -> None:
    assert row.answers is not None
    told = evaluation_json([Path("a")], [row])
    assert told["calibration_error"] == row.answers.calibration_error > 0
    older = dataclasses.replace(row, answers=None)
    assert "calibration_error" not in evaluation_json([Path("a")], [older])


def test_tables_are_written_into_a_folder_of_choice(
    fitted: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = str(fitted.folder / "best.safetensors")
    Path("file").touch()
    assert "'file' is no folder" in refused("evaluate", file, "--csv", "file")
    assert run("evaluate", file, "--run", str(fitted.folder), "--csv", "new/tables", "-q") == 0
    for path in (fitted.confusion, fitted.mistakes):
        assert Path("new/tables", path.name).read_bytes() == path.read_bytes()
        assert len(path.read_text().splitlines()) > 3


def test_the_top_5_error_is_that_of_sorting_all_logits_where_there_are_more_than_ten_classes(
    row: Evaluation,
) -> None:
    assert row.top5_errors is None  # ten digits
    for classes in (10, 11, 30):
        g = torch.Generator().manual_seed(classes)
        labels = torch.randint(0, classes, (150,), generator=g)
        pixels = torch.randint(0, 256, (150, 1, 4, 4), generator=g, dtype=torch.uint8)
        part = Part(labels, tuple(map(str, range(150))), pixels)
        network = nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).eval()
        images = Preprocessing(1, 4, (0.5,), (0.25,))
        found = score(network, part, images)
        with torch.no_grad():
            logits = network(images.normalised(pixels)).numpy()
        order = np.argsort(-logits, axis=1, kind="stable")
        missed = order != labels.numpy()[:, None]
        assert found.errors == int(missed[:, 0].sum())
        far = int(missed[:, :5].all(1).sum())
        assert found.top5_errors == (None if classes == 10 else far)


def test_a_tie_of_all_classes_is_no_top_5_error_where_it_is_no_error() -> None:
    part = Part(torch.full((3,), 20), ("a", "b", "c"), pixels=torch.zeros(3, 1, 4, 4).byte())
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 30))
    nn.init.zeros_(network[1].weight)
    nn.init.zeros_(network[1].bias)
    found = score(network.eval(), part, Preprocessing(1, 4, (0.5,), (0.25,)))
    assert found.top5_errors is not None
    assert found.top5_errors <= found.errors


def test_the_top_5_error_has_an_interval_in_table_json_and_report(
    row: Evaluation, fitted: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "top5_error" not in evaluation_json([Path("a")], [row])
    found = dataclasses.replace(row, errors=40, wrong=tuple(range(40)), top5_errors=9)
    low, high = interval(9, 359)
    told = evaluation_json([Path("a")], [found])
    assert [told[f"top5_{name}"] for name in ("errors", "error", "interval")] == [
        9, 9 / 359, (low, high),
    ]  # fmt: skip
    cells = "2.5 %", f"{100 * low:.1f}-{100 * high:.1f}"
    show_evaluations(Terminal(), [found])
    (line,) = [text for text in capsys.readouterr().out.splitlines() if "top-5" in text]
    assert all(cell in line for cell in cells)
    write_evaluations(fitted, [found])
    assert evaluations_of(fitted)[0].top5_errors == 9
    table = evaluated(run_summary(fitted))
    assert table is not None
    assert table.rows[0][list(table.headings).index("top-5 error, 95 %")] == cells
    write_evaluations(fitted, [dataclasses.replace(found, top5_errors=41)])
    with pytest.raises(PgnasError, match="is damaged"):
        evaluations_of(fitted)


def test_latency_of_a_larger_network_is_larger() -> None:
    def convolutions(width: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3))

    small, large = latencies(
        [convolutions(8), convolutions(96)], [(3, 32, 32)] * 2, batch=8,
        device=Machine().device, seconds=0.2,
    )  # fmt: skip
    assert 0 < small < large


def test_times_are_compared_turn_by_turn() -> None:
    """The ratio of medians may lie outside of all ratios of turns."""
    slow, fast = np.full(5, 2.0), np.full(6, 1.0)
    one = np.concatenate([slow, fast])
    other = one.copy()
    other[5] = 2.0  # the median of this side alone
    found = latency_of(1, one, other, "small")
    assert found.slim / found.whole == 0.5
    assert found.ratio == 1.0
    assert not found.faster
    assert latency_of(1, 0.5 * other, other, "small").faster
    swinging = latency_of(1, np.array([0.5, 0.6, 0.9, 1.1, 1.2]), np.ones(5), "small")
    assert swinging.ratio == 0.9
    assert not swinging.faster  # slower in a good part of the turns


def test_a_run_keeps_one_row_of_each_name(row: Evaluation, tmp_path: Path) -> None:
    other = dataclasses.replace(row, name="other")
    again = dataclasses.replace(row, errors=0, wrong=())
    write_evaluations(Run(tmp_path), [row, other])
    write_evaluations(Run(tmp_path), [again])
    assert evaluations_of(Run(tmp_path)) == [again, other]


def test_a_network_that_multiplies_nothing_is_no_damage(row: Evaluation, tmp_path: Path) -> None:
    """A winner of a small budget may be a constant."""
    constant = dataclasses.replace(row, params=0, macs=0)
    write_evaluations(Run(tmp_path), [constant])
    assert evaluations_of(Run(tmp_path)) == [constant]


def assert_damaged(run: Run) -> None:
    with pytest.raises(PgnasError, match="is damaged; remove it, and evaluate again"):
        evaluations_of(run)


@pytest.mark.parametrize(
    ("field", "value"),
    [("images", 0), ("errors", -5), ("errors", 10**6), ("params", 10**400), ("params", -1),
     ("macs", -1), ("macs", 10**400), ("wrong", [1, 1]),
     ("wrong", [10**9]), ("name", "\ud800"), ("one.slim", float("nan")), ("many.whole", 0.0),
     ("held_out_errors", 10**400), ("many.batch", 0), ("device", 3),
     ("answers.bins", []), ("answers.confused", [[0, 1, 10**400]]), ("answers.mistakes", [{}])],
)  # fmt: skip
def test_impossible_numbers_are_damage(
    row: Evaluation, tmp_path: Path, field: str, value: object
) -> None:
    run = Run(tmp_path)
    write_evaluations(run, [row])
    content = json.loads(run.evaluation.read_text(encoding="utf-8"))
    *latency, name = field.split(".")
    stored = content["networks"][0]
    (stored[latency[0]] if latency else stored)[name] = value
    run.evaluation.write_text(json.dumps(content), encoding="utf-8")
    assert_damaged(run)


def test_what_is_no_such_file_is_damage(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for content in (
        b"{", b"[]", b'{"schema": "pgnas.evaluation/1"}', b'{"schema": "x", "networks": []}',
        b'{"schema": "pgnas.evaluation/1", "networks": [{"name": 3}]}', b"[" * 100_000,
        b"\xff\x00\xfe",
    ):  # fmt: skip
        run.evaluation.write_bytes(content)
        assert_damaged(run)
    run.evaluation.unlink()
    run.evaluation.mkdir()
    assert_damaged(run)
