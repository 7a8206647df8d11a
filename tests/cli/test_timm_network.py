"""A network of timm, with starting weights, through all commands on photos."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from pgnas_cli.formats import load

from ..conftest import run
from ..networks import seeded


def test_a_timm_network_goes_through_all_commands(
    photo_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    state = timm.create_model("mobilenetv3_small_050", num_classes=1000).state_dict()
    save_file(state, "weights.safetensors")
    folder = str(photo_folder())
    fit = ["fit", "--backbone", "timm/mobilenetv3_small_050", "--weights", "weights.safetensors",
           "--data", folder, "--img-size", "64", "--epochs", "2", "--batch-size", "6",
           "--initial-drop", "0.2", "--run", "r"]  # fmt: skip
    assert run(*fit) == 0
    err = capsys.readouterr().err
    assert "note: the head 'classifier' has 1000 outputs, here are 3: replaced" in err
    assert run("sample", "-n", "3", "--run", "r", "-q") == 0
    for file in ("a.safetensors", "a.onnx"):
        assert run("export", file, "--run", "r", "-q") == 0
    capsys.readouterr()
    assert run("evaluate", "a.safetensors", "a.onnx", "--data", folder, "--json") == 0
    slim, onnx = json.loads(capsys.readouterr().out)["networks"]
    assert slim["errors"] == onnx["errors"]
    assert slim["latency_one"]["layout"] in ("small", "fast")
    assert onnx["latency_one"]["layout"] in ("small, onnx", "fast, onnx")
    network = load("a.safetensors")
    images = torch.randn(2, 3, 64, 64, generator=seeded())
    program = torch.export.export(network, (images,)).module()
    with torch.no_grad():
        assert torch.allclose(program(images), network(images), atol=1e-5)
