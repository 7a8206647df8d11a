"""Times in ONNX Runtime: which layer a step belongs to, and packs for devices without pgnas."""

import dataclasses
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pgnas_cli import PgnasError, profiling, slim
from pgnas_cli.formats import OnnxNetwork, quick_onnx
from pgnas_cli.gates import gates
from pgnas_cli.profiling import onnx_runs, table_of_runs, write_pack
from pgnas_cli.profiling.onnx_times import RUNS, layers_of, runs_in
from pgnas_cli.slimming import difference
from pgnas_cli.timing import Forward, milliseconds, timed_by

from ..networks import random_keep, seeded, supernet, tiny

ALONE = (  # as on a device that has onnxruntime and numpy, and neither torch nor pgnas
    "import sys, runpy; sys.modules.update(torch=None, pgnas_cli=None, timm=None);"
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling.tables, "NETWORKS", 8)
    monkeypatch.setattr(onnx_runs, "SECONDS", 0.0)


@pytest.mark.parametrize("name", ["multibranch-tiny", "efficientnet_b0", "regnety_002"])
def test_each_layer_has_the_steps_of_its_own_weights(name: str) -> None:
    network = supernet(name)
    graph = gates(network).graph
    smaller = slim(network, random_keep(network, 0.4, seed=3), "onnx").eval()
    images = torch.randn(2, *graph.input_shape, generator=seeded())
    content = quick_onnx(smaller, images)
    with torch.no_grad():
        assert difference(OnnxNetwork(content)(images), smaller(images)) <= 1e-4
    layers = layers_of(content, graph)
    steps = onnx_runs.step_times(content, images.numpy(), threads=1)
    found = [layers[step] for step in steps if step in layers]
    built = {
        path
        for path, module in smaller.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    assert len(found) == len(set(found))
    assert built <= set(found)
    assert all(milliseconds >= 0 for milliseconds in steps.values())


@pytest.mark.usefixtures("brief")
def test_a_pack_is_timed_without_torch_and_pgnas(tmp_path: Path) -> None:
    network, pack, runs = tiny(), tmp_path / "pack.zip", tmp_path / "runs.json"
    write_pack(pack, network, Forward("onnxruntime", batch=2), seed=0)
    with zipfile.ZipFile(pack) as content:
        content.extract("onnx_runs.py", tmp_path)
    line = [str(tmp_path / "onnx_runs.py"), str(pack), "-o", str(runs), "--seconds", "0"]
    done = subprocess.run([sys.executable, "-c", ALONE, *line], capture_output=True, text=True,
                          check=True)  # fmt: skip
    assert f"wrote {runs}" in done.stdout
    table = table_of_runs(runs, network, seed=0)
    assert (table.runtime, table.batch, table.threads) == ("onnxruntime", 2, 1)
    timed_by(network, table)  # fits
    told = json.loads(runs.read_text())
    assert table.whole == told["networks"][-1]["whole"]
    for change, message in (
        ({"schema": "x"}, "holds no runs of a pack"),
        ({"networks": told["networks"][:3]}, "is of another network"),
        ({"network": "0"}, "is of another network"),
        ({"networks": [{"whole": "long"}]}, "holds no runs of a pack"),
        ({"networks": [{**row, "whole": -1.0} for row in told["networks"]]}, "damaged"),
    ):
        runs.write_text(json.dumps({**told, **change}))
        with pytest.raises(PgnasError, match=message):
            table_of_runs(runs, network, seed=0)


def test_runtimes_and_precisions_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(PgnasError, match="ONNX Runtime is timed in float32 only"):
        Forward("onnxruntime", precision="bfloat16")
    with pytest.raises(PgnasError, match="`time_runtime` 'tflite' is not known; possible: torch,"):
        Forward("tflite")


def test_networks_are_compared_by_the_whole_network_beside_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The machine is twice as slow for some of them, and for the whole network beside these."""
    network = tiny()
    real, turn = profiling.tables.torch_samples, [0]

    def slower(*given: object) -> list[object]:
        turn[0] += 1
        return [
            dataclasses.replace(one, steps=(1.0,) * len(one.steps), whole=float(turn[0]))
            for one in real(*given)  # type: ignore[arg-type]
        ]

    monkeypatch.setattr(onnx_runs, "SECONDS", 0.0)
    monkeypatch.setattr(profiling.tables, "torch_samples", slower)
    keep = profiling.random_candidates(network, 24, 0)
    timed, whole = profiling.samples(network, keep, Forward())
    assert whole.whole == 2.0
    assert {one.whole for one in timed} == {2.0}
    assert [one.steps[0] for one in timed[::8]] == [2.0, 1.0, pytest.approx(2 / 3)]


def test_two_runtimes_have_tables_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling.tables, "NETWORKS", 8)
    monkeypatch.setattr(onnx_runs, "SECONDS", 0.0)
    network = tiny()
    tables = [profiling.profiled(network, Forward(runtime, 2, 1))
              for runtime in ("torch", "onnxruntime")]  # fmt: skip
    assert [table.runtime for table in tables] == ["torch", "onnxruntime"]
    assert [table.threads for table in tables] == [1, 1]
    keep = random_keep(network, 0.5)[None]
    for table in tables:
        assert float(milliseconds(table, profiling.tables.wire(network, keep))) > 0


@pytest.mark.parametrize(
    "change",
    [
        {"whole": 0.0}, {"whole": float("nan")}, {"steps": {}}, {"steps": {"a": -1.0}},
        {"steps": {"a": float("inf")}}, {"batch": -1}, {"batch": 10**9}, {"batch": 2.7},
        {"threads": 0},
    ],
    ids=str,
)  # fmt: skip
def test_runs_that_cannot_be_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    row = {"whole": 1.0, "steps": {"a": 0.5}}
    runs = {"schema": RUNS, "network": "n", "device": "d", "batch": 1, "threads": 1}
    rows = [row, {**row, **{k: v for k, v in change.items() if k in row}}]
    runs |= {k: v for k, v in change.items() if k in runs}
    path = tmp_path / "runs.json"
    path.write_text(json.dumps({**runs, "networks": rows}), encoding="utf-8")
    with pytest.raises(PgnasError, match=r"runs\.json"):
        runs_in(path)
