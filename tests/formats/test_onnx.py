"""ONNX files: the same logits and record, or not written."""

from pathlib import Path

import pytest
import torch

from pgnas_cli.errors import PgnasError
from pgnas_cli.formats import onnx, onnx_content, read_onnx

from ..networks import tiny
from .test_network import IMAGES, exported, load


def test_an_onnx_file_has_the_logits_and_the_record_of_its_network_or_is_not_written(
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
    real = onnx.in_onnx
    monkeypatch.setattr(onnx, "in_onnx", lambda _, *rest: real(other, *rest))
    with pytest.raises(PgnasError, match=r"'a.onnx' was not written: its logits differ by .*e-"):
        onnx_content(Path("a.onnx"), network, IMAGES, about, opset=18)


def test_files_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"no network")
    with pytest.raises(PgnasError, match="is not an ONNX file that ONNX Runtime takes"):
        read_onnx(path)
    path.write_bytes(onnx.in_onnx(tiny(), IMAGES))
    with pytest.raises(PgnasError, match="was not written by pgnas"):
        read_onnx(path)
