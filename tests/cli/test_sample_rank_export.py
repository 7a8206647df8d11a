"""sample, rank, export: what they print, and the files that they write."""

import onnx

import pgnas_cli
from pgnas_cli.run import Run

from ..conftest import object_of, refused, run
from .conftest import HERE


def test_every_json_has_its_fixed_keys(fitted: Run) -> None:
    drawn = object_of("sample", "-n", "5", "--force", *HERE)
    assert set(drawn) == {"run", "candidates", "baseline", "whole", "mean"}
    assert drawn["candidates"] == 5
    ranked = object_of("rank", "--top", "3", *HERE)
    assert set(ranked) == {
        "top", "candidates", "networks", "mean_params", "pairs_evaluated", "pairs_total", "seconds",
        "undecided", "first_again", "order_again", "expected_error", "waiting",
        "mean_error",  # all five are pilots
    }  # fmt: skip
    assert [set(row) for row in ranked["top"]] == 3 * [
        {"id", "errors", "images", "error", "interval", "p_against_first", "params", "macs"}
    ]
    written = object_of("export", "b.safetensors", *HERE)
    assert written["params"] == ranked["top"][0]["params"]
    assert written["held_out_errors"] == ranked["top"][0]["errors"]
    found = object_of("evaluate", "b.safetensors")
    assert {"errors", "images", "error", "params", "macs", "latency_ms"} <= set(found)
    assert found["images"] == 359
    several = object_of("evaluate", "b.safetensors", "b.safetensors")
    assert len(several["networks"]) == 2


def test_twin_whole_and_any_id_can_be_exported(fitted: Run) -> None:
    whole = object_of("export", "whole.safetensors", "--candidate", "whole", *HERE)
    assert whole["params"] == whole["whole_params"] == 151_930
    best = pgnas_cli.load(fitted.folder / "best.safetensors").info
    named = object_of("export", "named.safetensors", "--candidate", "best", *HERE)
    assert (named["candidate"], named["chosen"]) == (best.candidate, "best")
    twin = object_of("export", "twin.safetensors", "--candidate", "twin", *HERE)
    assert abs(twin["params"] / best.params - 1) <= 0.02
    third = object_of("export", "third.safetensors", "--candidate", "3", *HERE)
    assert third["candidate"] == "3"
    unknown = refused("export", "x.safetensors", "--candidate", "60", *HERE)
    assert unknown == "error: no candidate '60'; possible: 0 to 59, best, whole, or twin"


def test_rounded_and_onnx_exports_are_the_same_network(
    fitted: Run,
) -> None:
    options = {"a.safetensors": [], "b.safetensors": ["--round-to", "8"], "c.onnx": [],
               "d.onnx": ["--round-to", "1", "--opset", "20"]}  # fmt: skip
    sizes = {
        name: object_of("export", name, *more, *HERE)["params"] for name, more in options.items()
    }
    assert sizes["a.safetensors"] == sizes["d.onnx"] < sizes["b.safetensors"] == sizes["c.onnx"]
    rows = object_of("evaluate", *sizes)["networks"]
    assert len({row["errors"] for row in rows}) == 1
    layouts = [row["latency_one"]["layout"] for row in rows]
    assert set(layouts[:2]) <= {"small", "fast"}
    assert layouts[2:] == ["onnx", "onnx"]
    opsets = [onnx.load(name).opset_import[0].version for name in ("c.onnx", "d.onnx")]
    assert opsets == [18, 20]


def test_each_budget_has_files_of_its_own(fitted: Run) -> None:
    assert run("sample", "-n", "20", "--max-params", "50%,60%", "--force", *HERE, "-q") == 0
    assert run("rank", "--top", "3", *HERE, "-q") == 0
    assert {path.name for path in fitted.folder.glob("[cr]an*")} == {
        "candidates-params-50.safetensors", "candidates-params-60.safetensors",
        "ranking-params-50.safetensors", "ranking-params-60.safetensors",
        "ranking-params-50.csv", "ranking-params-60.csv",
    }  # fmt: skip
    (again,) = pgnas_cli.sample(fitted, 4, force=True)
    assert again.label == ""
    assert [path.name for path in fitted.drawn_files()] == ["candidates.safetensors"]
