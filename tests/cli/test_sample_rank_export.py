"""sample, rank, export: from a fitted run to a file, one after the other."""

from pathlib import Path

import pytest
import torch

import pgnas_cli
from pgnas_cli.gates import gates
from pgnas_cli.run import Run
from pgnas_cli.run.posterior import read_posterior, write_posterior

from ..conftest import run
from .conftest import HERE, object_of, said


def test_the_three_lines_work_one_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "--epochs", "1", "-q") == 0
    assert run("sample", "--n", "6", "-q") == 0
    status, out, err = said(capsys, "export", "best.safetensors")
    assert status == 0
    assert "nothing is ranked yet: ranking the candidates first" in err
    assert "wrote best.safetensors" in out
    assert Path("best.safetensors").exists()


def test_every_json_has_its_fixed_keys(capsys: pytest.CaptureFixture[str], fitted: Run) -> None:
    drawn = object_of(capsys, "sample", "-n", "5", *HERE)
    assert set(drawn) == {"run", "candidates", "baseline", "whole", "mean"}
    assert drawn["candidates"] == 5
    ranked = object_of(capsys, "rank", "--top", "3", *HERE)
    assert set(ranked) == {
        "top", "candidates", "mean_params", "pairs_evaluated", "pairs_total", "seconds",
        "undecided", "first_again", "order_again", "expected_error", "waiting",
        "mean_error",  # all five are pilots
    }  # fmt: skip
    assert [set(row) for row in ranked["top"]] == 3 * [
        {"id", "errors", "images", "error", "interval", "p_against_first", "params", "macs"}
    ]
    written = object_of(capsys, "export", "b.safetensors", *HERE)
    assert written["params"] == ranked["top"][0]["params"]
    assert written["held_out_errors"] == ranked["top"][0]["errors"]
    found = object_of(capsys, "evaluate", "b.safetensors")
    assert {"errors", "images", "error", "params", "macs", "latency_ms"} <= set(found)
    assert found["images"] == 359
    several = object_of(capsys, "evaluate", "b.safetensors", "b.safetensors")
    assert len(several["networks"]) == 2


def test_twin_whole_and_any_id_can_be_exported(
    capsys: pytest.CaptureFixture[str], fitted: Run
) -> None:
    whole = object_of(capsys, "export", "whole.safetensors", "--candidate", "whole", *HERE)
    assert whole["params"] == whole["whole_params"] == 151_930
    best = pgnas_cli.load(fitted.folder / "best.safetensors").info
    twin = object_of(capsys, "export", "twin.safetensors", "--candidate", "twin", *HERE)
    assert abs(twin["params"] / best.params - 1) < 0.05
    third = object_of(capsys, "export", "third.safetensors", "--candidate", "3", *HERE)
    assert third["candidate"] == "3"
    status, _, err = said(capsys, "export", "x.safetensors", "--candidate", "60", *HERE)
    assert (status, "no candidate '60'; possible: 0 to 59, whole, or twin\n" in err) == (1, True)


def test_rounded_and_onnx_exports_are_the_same_network(
    capsys: pytest.CaptureFixture[str], fitted: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"a.safetensors": [], "b.safetensors": ["--round-to", "8"], "c.onnx": []}
    sizes = {
        name: object_of(capsys, "export", name, *more, *HERE)["params"]
        for name, more in options.items()
    }
    monkeypatch.setattr("pgnas_cli.exporting.LAYOUTS", ("small",))  # each takes seconds
    monkeypatch.setattr("pgnas_cli.exporting._faster", lambda made: made[0])
    found = object_of(capsys, "export", "d.onnx", "--round-to", "1", "--opset", "20", *HERE)
    assert sizes["a.safetensors"] == found["params"]
    assert sizes["a.safetensors"] < sizes["b.safetensors"] == sizes["c.onnx"]
    rows = object_of(capsys, "evaluate", *sizes, "d.onnx")["networks"]
    assert len({row["errors"] for row in rows}) == 1
    layouts = [row["latency_one"]["layout"] for row in rows]
    assert set(layouts[:2]) <= {"small", "fast"}
    assert layouts[2] in ("small, onnx", "fast, onnx")
    assert layouts[3] == "small, onnx"
    import onnx

    assert onnx.load("c.onnx").opset_import[0].version == 18
    assert onnx.load("d.onnx").opset_import[0].version == 20


def test_sample_can_draw_the_permuted_baseline(
    capsys: pytest.CaptureFixture[str], fitted: Run
) -> None:
    plain = object_of(capsys, "sample", "-n", "50", *HERE)
    permuted = object_of(capsys, "sample", "-n", "50", "--baseline", "permuted", *HERE)
    assert permuted["baseline"] == "permuted"
    assert abs(permuted["mean"]["params"] / plain["mean"]["params"] - 1) < 0.05


def test_each_budget_has_files_of_its_own_and_export_takes_the_one_that_is_named(
    capsys: pytest.CaptureFixture[str], fitted: Run
) -> None:
    drawn = object_of(capsys, "sample", "-n", "20", "--max-params", "50%,60%", *HERE)
    assert [row["budget"]["share"] for row in drawn["budgets"]] == [0.5, 0.6]
    ranked = object_of(capsys, "rank", "--top", "3", *HERE)["boards"]
    names = {path.name for path in fitted.folder.glob("[cr]an*")}
    assert names == {
        "candidates-params-50.safetensors", "candidates-params-60.safetensors",
        "ranking-params-50.safetensors", "ranking-params-60.safetensors",
        "ranking-params-50.csv", "ranking-params-60.csv",
    }  # fmt: skip
    for board in ranked:
        share, first = board["budget"]["share"], board["top"][0]
        name, budget = f"{share}.safetensors", f"{100 * share:.0f}%"
        written = object_of(capsys, "export", name, "--max-params", budget, *HERE)
        kept = [written[k] for k in ("candidate", "params", "held_out_errors")]
        assert kept == [str(first["id"]), first["params"], first["errors"]]
        assert written["params"] <= share * 151_930
    sizes = [pgnas_cli.load(f"{share}.safetensors").info.params for share in (0.5, 0.6)]
    assert sizes[0] < sizes[1]
    possible = "--max-params 60%, --max-params 50%"
    for more, message in (
        ([], f"candidates were drawn for several budgets; name one: {possible}"),
        (["--max-params", "55%"],
         f"no candidates were drawn for that budget; possible: {possible}"),
    ):  # fmt: skip
        status, _, err = said(capsys, "export", "x.safetensors", *more, *HERE)
        assert (status, err.splitlines()[-1]) == (1, f"error: {message}")
    (again,) = pgnas_cli.sample(fitted, 4)
    assert again.label == ""
    assert [path.name for path in fitted.drawn_files()] == ["candidates.safetensors"]


def test_candidates_older_than_the_posterior_are_refused(
    capsys: pytest.CaptureFixture[str], fitted: Run
) -> None:
    network, posterior = read_posterior(fitted.posterior)
    with torch.no_grad():
        gates(network).drop_logit += 1
    write_posterior(fitted.posterior, network, posterior)
    status, _, err = said(capsys, "rank", *HERE)
    assert (status, "is older than the posterior; draw again: pgnas sample" in err) == (1, True)
