"""ONNX files: the same logits and record, or not written."""

from pathlib import Path

import pytest
import torch

from pgnas_cli.errors import PgnasError
from pgnas_cli.formats import onnx, onnx_content, read_onnx

from .test_network import IMAGES, exported, load


def test_an_onnx_file_has_the_logits_and_the_record_of_its_network_or_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.onnx"
    _, _, about = exported(tmp_path / "a.safetensors")
    network, other = load(tmp_path / "a.safetensors"), load(tmp_path / "a.safetensors")
    path.write_bytes(onnx_content(path, network, IMAGES, about, opset=18))
    found, again = read_onnx(path)
    assert again == about
    with torch.no_grad():
        for images in (IMAGES, IMAGES[:1], IMAGES[:5]):
            assert torch.allclose(found(images), network(images), atol=1e-5)
    other.head.weight.data[:, 0] *= 1.1
    different = onnx.in_onnx(other, IMAGES)
    monkeypatch.setattr(onnx, "in_onnx", lambda *_: different)
    with pytest.raises(PgnasError, match=r"'a.onnx' was not written: its logits differ by .*e-"):
        onnx_content(Path("a.onnx"), network, IMAGES, about, opset=18)
    unlike = {different: "was not written by pgnas", b"x": "is not an ONNX file that ONNX Runtime"}
    for content, message in unlike.items():
        path.write_bytes(content)
        with pytest.raises(PgnasError, match=message):
            read_onnx(path)
