"""ONNX files, and what else exporters make of a slim network: the same logits and record."""

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgnas_cli.errors import PgnasError
from pgnas_cli.formats import onnx, onnx_content, read_onnx
from pgnas_cli.gates import gates, make_concrete_
from pgnas_cli.slimming import slim
from pgnas_cli.slimming.layers import Constant

from ..networks import Five, random_keep, randomised, tiny, without
from .test_network import IMAGES, exported, load

BATCHES = (1, 3, 16)


def _closed(layer: str) -> nn.Module:
    """A slim network, one of whose layers has no input left; of "all", every one."""
    whole = tiny()
    keep = random_keep(whole, 0.3)
    keep = torch.zeros_like(keep) if layer == "all" else without(whole, layer, keep)
    smaller = slim(whole, keep)
    assert any(isinstance(module, Constant) for module in smaller.modules())
    return smaller


def _by_onnx(network: nn.Module) -> Callable[[Tensor], Tensor]:
    content = onnx.in_onnx(network, IMAGES, opset=23)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _by_export(network: nn.Module) -> Callable[[Tensor], Tensor]:
    shapes = ({0: torch.export.Dim("batch")},)
    return torch.export.export(network, (IMAGES[:2],), dynamic_shapes=shapes).module()


def _by_trace(network: nn.Module) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        return torch.jit.trace(network, (IMAGES[:2],))


@pytest.mark.parametrize("layer", ["blocks.0.branch1.3", "blocks.1.skip.even", "head", "all"])
@pytest.mark.parametrize("through", [_by_onnx, _by_export, _by_trace])
def test_a_network_with_closed_layers_takes_any_batch_through_every_exporter(
    layer: str, through: Callable[[nn.Module], Callable[[Tensor], Tensor]]
) -> None:
    network = _closed(layer)
    other = through(network)
    with torch.no_grad():
        for batch in BATCHES:
            assert torch.allclose(other(IMAGES[:batch]), network(IMAGES[:batch]), atol=1e-5)


def test_an_onnx_file_of_dynamic_size_takes_other_sizes_or_is_refused(tmp_path: Path) -> None:
    _, _, about = exported(tmp_path / "a.safetensors", "blocks.1.skip.even")
    network = load(tmp_path / "a.safetensors")
    path = tmp_path / "a.onnx"
    path.write_bytes(onnx_content(path, network, IMAGES, about, opset=18, dynamic_size=True))
    found, _ = read_onnx(path)
    for size in ((8, 8), (24, 24), (13, 20)):
        images = F.interpolate(IMAGES[:3], size)
        with torch.no_grad():
            assert torch.allclose(found(images), network(images), atol=1e-5)
    flat = Five(lambda m, x: m.c(m.b(m.a(x))).flatten(1), head=nn.Linear(1024, 5))
    whole = randomised(make_concrete_(flat, (3, 8, 8)))
    smaller = slim(whole, torch.ones(gates(whole).count, dtype=torch.bool))
    message = r"takes images of 8x8 only \(.*\); leave out `dynamic_size`"
    with pytest.raises(PgnasError, match=message):
        onnx_content(path, smaller, IMAGES.expand(-1, 3, -1, -1), about, opset=18,
                     dynamic_size=True)  # fmt: skip


def test_the_metadata_of_an_onnx_file_is_enough_to_read_images_and_name_classes(
    tmp_path: Path,
) -> None:
    _, _, about = exported(tmp_path / "a.safetensors")
    images = dataclasses.replace(
        about.supernet.preprocessing, mean=(0.25,), std=(0.5,), crop=0.75, interpolation="bicubic"
    )
    names = ("Katze", "gr\u00fcn \u732b", "\udcff", *"abcdefg")
    spec = dataclasses.replace(about.supernet, preprocessing=images, classes=names)
    about = dataclasses.replace(about, supernet=spec)
    network = load(tmp_path / "a.safetensors")
    session = onnxruntime.InferenceSession(
        onnx_content(tmp_path / "a.onnx", network, IMAGES, about, opset=18),
        providers=["CPUExecutionProvider"],
    )
    told = session.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(told["classes"])) == names
    assert (json.loads(told["size"]), json.loads(told["crop"])) == (8, 0.75)
    assert told["interpolation"] == "bicubic"
    pixels = np.arange(64, dtype=np.uint8).reshape(1, 1, 8, 8)
    mean, std = (np.array(json.loads(told[key])).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    expected = images.normalised(torch.from_numpy(pixels)).numpy()
    assert np.allclose((pixels / 255 - mean) / std, expected, atol=1e-6)


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
