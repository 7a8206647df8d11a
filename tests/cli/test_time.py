"""Time as the size that is aimed at: profile, fit --target-time, sample --max-time."""

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest
import torch

from pgnas_cli import count, find_machine, profiling
from pgnas_cli.gates import gates
from pgnas_cli.profiling import write_table
from pgnas_cli.registry.build import create_supernet
from pgnas_cli.run import Run
from pgnas_cli.run.posterior import posterior_of
from pgnas_cli.sampling import read_candidates
from pgnas_cli.timing import Forward, TimeTable, timed_by

from ..conftest import object_of, refused, run, said
from ..networks import made_up_times, tiny
from .conftest import QUICK

FIT = ["fit", *QUICK, "--time-table", "times.json", "--target-time", "70%", "--run", "r"]


@pytest.fixture
def table() -> float:
    """A time table for the default network in times.json; milliseconds of the whole network."""
    found = made_up_times(tiny())
    write_table(Path("times.json"), found)
    return found.whole


def test_a_fit_aims_at_a_time_and_draws_keep_within_one(table: float) -> None:
    assert run(*FIT, "--epochs", "4", "--groups", "layer") == 0
    network, posterior = posterior_of(Run(Path("r")))
    last = json.loads(Path("r/metrics.jsonl").read_text().splitlines()[-1])
    assert last["expected_time_share"] == pytest.approx(0.7, abs=0.01)
    found = object_of("sample", "-n", "40", "--run", "r")
    assert found["whole"]["time"] == round(1e6 * table)
    assert found["mean"]["time"] == pytest.approx(0.7e6 * table, rel=0.06)
    assert run("sample", "-n", "20", "--max-time", "68%", "--force", "--run", "r") == 0
    drawn = read_candidates(Run(Path("r")), network, posterior, "time-68")
    assert int(drawn.sizes.time.max()) <= 0.68e6 * table
    assert torch.equal(drawn.sizes.time, count(network, drawn.keep).time)
    named = f"{0.682 * table:.6f}ms"
    assert run("sample", "-n", "10", "--max-time", named, "--force", "--run", "r") == 0
    status, out, _ = said("export", "best.safetensors", "--max-time", named, "--run", "r")
    assert status == 0
    assert "held-out error" in out


def test_an_interrupted_fit_keeps_the_times_it_began_with(
    table: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        profiling.tables, "profiled", lambda *_, **__: pytest.fail("measured again")
    )
    assert run(*FIT, "--epochs", "1") == 0
    bytes_ = Path("r/posterior.safetensors").read_bytes()
    Path("times.json").write_text("{}")
    assert run("fit", "--resume", "--run", "r") == 0
    assert Path("r/posterior.safetensors").read_bytes() == bytes_


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["fit", "--time-table", "none.json", "--target-time", "50%"],
         "none.json'; make one with pgnas profile"),
        (["fit", "--time-table", "empty.json", "--target-time", "50%"],
         "empty.json' is no time table; make one with pgnas profile"),
        (["fit", "--backbone", "enas-e", "--time-table", "times.json", "--target-time", "50%"],
         "the time table is of another network"),
        (["fit", "--time-table", "times.json", "--target-time", "4x"],
         "--target-time '4x' is not a size; possible: a share (60%) or a time (4ms)"),
        (["fit", "--time-table", "times.json", "--target-time", "4"],
         "--target-time '4' is not a size; possible: a share (60%) or a time (4ms)"),
        (["fit", "--time-table", "times.json", "--target-time", "90000ms"],
         "--target-time 90000ms is out of range; the whole network takes"),
        (["fit", "--time-table", "times.json", "--target-time", "1%"],
         "--target-time 1% is out of reach; with 99 % of the gates closed"),
        (["profile", "nothing", "-o", "t.json"], "no backbone named 'nothing'"),
        (["profile", "multibranch-tiny", "-o", "times.json"],
         "'times.json' exists; choose another name, or add --force"),
        (["profile", "multibranch-tiny", "--time-batch", "0", "-o", "t.json"],
         "--time-batch 0 is out of range; possible: 1 to 65536"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("table")
def test_mistakes_with_times_are_one_line(line: list[str], message: str) -> None:
    Path("empty.json").write_text("{}")
    assert message in refused(*line)


def test_a_budget_in_time_needs_a_fit_with_times(fitted: Run) -> None:
    line = refused("sample", "--max-time", "60%", "--run", str(fitted.folder))
    assert "nothing is known of time here; fit with --target-time" in line


def test_a_profile_is_a_table_of_its_network_and_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(profiling.tables, "NETWORKS", 8)
    monkeypatch.setattr(profiling.onnx_runs, "SECONDS", 0.0)
    found = object_of("profile", "multibranch-tiny", "--img-size", "16", "-o", "t.json")
    assert found["whole_ms"] > 0
    assert 0 <= found["error"] <= found["worst"]
    network = create_supernet("multibranch-tiny", 1000, input_shape=(3, 16, 16))
    table = profiling.read_table(Path("t.json"))
    assert len(table.steps) == len(gates(network).graph.nodes)
    timed_by(network, table)  # fits
    first = profiling.table_of(network, Forward(), find_machine("cpu"))
    monkeypatch.setattr(
        profiling.tables, "profiled", lambda *_, **__: pytest.fail("measured again")
    )
    assert profiling.table_of(network, Forward(), find_machine("cpu")) == first


def test_more_threads_than_cores_are_refused() -> None:
    cores = len(os.sched_getaffinity(0))
    for line in (
        ["profile", "multibranch-tiny", "-o", "t.json"],
        ["fit", "--target-time", "60%", "--data", "digits"],
    ):
        assert refused(*line, "--time-threads", str(cores + 1)).endswith(f"possible: 0 to {cores}")


def test_a_profile_names_its_runtime_threads_and_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling.tables, "NETWORKS", 8)
    monkeypatch.setattr(profiling.onnx_runs, "SECONDS", 0.0)
    line = ["profile", "multibranch-tiny", "--img-size", "16", "--time-runtime", "onnxruntime"]
    status, out, err = said(*line, "--time-batch", "3", "--time-threads", "1", "-o", "t.json")
    assert status == 0
    assert "(ONNX Runtime, 3 images a forward, 1 thread, " in out
    assert "next: pgnas fit --backbone multibranch-tiny --img-size 16" in err
    assert "name one file to write" in refused(*line)
    assert "name one file to write" in refused(*line, "--pack", "p.zip", "-o", "u.json")
    status, out, err = said(*line, "--pack", "p.zip")
    assert (status, out) == (0, "wrote p.zip\n")
    assert "python onnx_runs.py p.zip -o RUNS.json" in err


def test_predicted_times_are_told_from_the_draw_to_the_evaluation(
    table: float,
) -> None:
    assert run(*FIT, "--epochs", "4", "--groups", "layer") == 0
    assert run("sample", "-n", "4", "--run", "r", "-q") == 0
    ranked = object_of("rank", "--run", "r", "--top", "1")
    assert ranked["top"][0]["predicted_ms"] == pytest.approx(0.7 * table, rel=0.1)
    status, out, _ = said("export", "best.safetensors", "--run", "r")
    assert status == 0
    assert f"time, predicted  {table:.3g} -> " in out
    found = object_of("evaluate", "best.safetensors")
    assert found["predicted"]["ms"] == ranked["top"][0]["predicted_ms"]
    for name in ("latency_one", "latency_many", "latency_onnx_one", "latency_onnx_many"):
        time = found[name]
        assert time["low"] <= time["high"]
        assert time["images_per_second"] == pytest.approx(1000 * time["batch"] / time["ms"])
    lines = said("evaluate", "best.safetensors")[1]
    assert "best: predicted were" in lines
    assert re.search(r"best +│ ONNX, 1 +│", lines)


def test_a_table_of_a_disturbed_machine_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny()
    wrong = dataclasses.replace(made_up_times(network), error=0.9, worst=0.9)
    measured = []

    def profiled(*_: object, **__: object) -> TimeTable:
        measured.append(1)
        return wrong

    monkeypatch.setattr(profiling.tables, "profiled", profiled)
    for _ in range(2):
        assert profiling.table_of(network, Forward(batch=7), find_machine("cpu")) == wrong
    assert len(measured) == 2
