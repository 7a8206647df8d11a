"""A loaded network: an ordinary module of its class that also knows its classes and images."""

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import timm.models
import torch
from PIL import Image
from torch import nn

from pgnas_cli.errors import PgnasError
from pgnas_cli.formats import Classifier, load, read_network
from pgnas_cli.formats.classifier import as_classifier
from pgnas_cli.slimming import slim

from ..networks import Five, random_keep, seeded, supernet
from ..photos import CLASSES, classifier_file, noisy_photos


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few photos, and a network of timm's in both formats."""
    folder = tmp_path_factory.mktemp("made")
    noisy_photos(folder, each=4)
    for file in ("a.safetensors", "a.onnx"):
        classifier_file(folder / file)
    return folder


def test_images_are_preprocessed_as_timm_does_it_from_the_configuration(made: Path) -> None:
    network = load(made / "a.safetensors")
    config = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**config, is_training=False)
    for path in sorted((made / "val").rglob("*.jpg")):
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112) == 6
            upright = image.transpose(Image.Transpose.ROTATE_270) if turned else image
            expected = transform(upright.convert("RGB"))[None]
            before = np.asarray(image)
            from_memory = network.preprocess(image)
            assert np.array_equal(np.asarray(image), before)  # it is the caller's
        found = network.preprocess(path)
        assert (found.shape, found.dtype) == ((1, 3, 48, 48), torch.float32)
        assert torch.allclose(found, expected, atol=1e-5)
        assert torch.equal(found, from_memory)


@pytest.mark.parametrize("file", ["a.safetensors", "a.onnx"])
def test_a_prediction_is_the_softmax_of_the_logits_sorted(made: Path, file: str) -> None:
    network = load(made / file)
    assert (network.classes, network.num_classes) == (CLASSES, 3)
    for path in sorted((made / "val").rglob("*.jpg")):
        with torch.no_grad():
            logits = network(network.preprocess(path))[0].double().numpy()
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        expected = [(CLASSES[i], shares[i]) for i in np.argsort(-shares)]
        found = network.predict(path)
        assert [name for name, _ in found] == [name for name, _ in expected]
        assert np.allclose([p for _, p in found], [p for _, p in expected], atol=1e-9)
        assert network.predict(str(path), top=1) == found[:1]


def test_a_loaded_network_is_an_ordinary_module_of_its_class(made: Path) -> None:
    network = load(made / "a.safetensors")
    plain, info = read_network(made / "a.safetensors")
    assert isinstance(network, timm.models.EfficientNet) and isinstance(network, Classifier)
    assert (repr(network), network.info) == (repr(plain), info)
    images = torch.randn(2, 3, 48, 48, generator=seeded())
    path = next((made / "val").rglob("*.jpg"))
    twin = pickle.loads(pickle.dumps(network))
    for other in (copy.deepcopy(network), twin):
        assert type(other) is type(network)
        assert list(other.state_dict()) == list(plain.state_dict())
        other.load_state_dict(plain.state_dict())
        with torch.no_grad():
            assert torch.equal(other(images), plain(images))
        assert other.predict(path) == network.predict(path)
    twin.classifier.weight.data.zero_()
    assert twin.predict(path) != network.predict(path)
    network.train()
    network.classifier.eval()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    assert network.predict(path) == load(made / "a.safetensors").predict(path)
    assert network.training and not network.classifier.training
    assert all(torch.equal(before[name], buffer) for name, buffer in network.named_buffers())


FAMILIES = [
    "test_efficientnet",
    "lcnet_050",  # a layer between pooling and classifier
    "dpn68",  # a convolution as classifier
    "mambaout_femto",  # channels last
]


@pytest.mark.parametrize("name", FAMILIES)
def test_features_and_a_new_classifier_are_had_as_from_timm(name: str, made: Path) -> None:
    _, info = read_network(made / "a.safetensors")
    whole = supernet(name)
    network: Any = as_classifier(slim(whole, random_keep(whole, 0.3)), info)
    images = torch.randn(2, 3, 64, 64, generator=seeded())
    with torch.no_grad():
        features = network.forward_features(images)
        hidden = network.forward_head(features, pre_logits=True)
        assert torch.equal(network.forward_head(features), network(images))
        assert network.num_features in features.shape[1:]
        assert (hidden.shape[1], network.num_features) == (
            network.head_hidden_size, features.shape[-1 if name.startswith("mamba") else 1],
        )  # fmt: skip
        network.reset_classifier(7)
        assert network(images).shape == (2, 7)
        assert (network.num_classes, network.pretrained_cfg["num_classes"]) == (7, 7)
        assert network.classes == tuple("0123456")
        assert torch.equal(network.forward_features(images), features)
        network.reset_classifier(0)
        assert torch.equal(network(images).flatten(1), hidden.flatten(1))
    with pytest.raises(PgnasError, match="keeps its pooling; leave out `global_pool`"):
        network.reset_classifier(3, "max")


def test_a_new_classifier_is_trained_predicts_and_may_be_none(made: Path) -> None:
    network: Any = load(made / "a.safetensors").bfloat16()
    path = next((made / "val").rglob("*.jpg"))
    assert len(network.predict(path)) == 3
    network.reset_classifier(2, network.global_pool.pool_type)
    assert [name for name, _ in sorted(network.predict(path))] == ["0", "1"]
    network.reset_classifier(0)
    with pytest.raises(PgnasError, match="has no classifier; give it one with `reset_classifier`"):
        network.predict(path)
    for classes, told in ((-1, "`num_classes` -1 is out of range"), ("3", "is not known")):
        with pytest.raises(PgnasError, match=told):
            network.reset_classifier(classes)
    with pytest.raises(PgnasError, match=r"^`top` '2\.5' is not known"):
        network.predict(path, top=2.5)


def test_a_network_of_onnx_runtime_is_copied(made: Path) -> None:
    network = load(made / "a.onnx")
    path = next((made / "val").rglob("*.jpg"))
    assert copy.deepcopy(network).predict(path) == network.predict(path)


@pytest.mark.parametrize("file", ["a.safetensors", "a.onnx"])
def test_logits_that_are_not_finite_are_no_answer(file: str, made: Path) -> None:
    network = load(made / file)
    path = next((made / "val").rglob("*.jpg"))
    images = network.info.supernet.preprocessing
    odd = dataclasses.replace(images, mean=(float("nan"),) * 3)
    spec = dataclasses.replace(network.info.supernet, preprocessing=odd)
    network.info = dataclasses.replace(network.info, supernet=spec)
    with pytest.raises(PgnasError, match="logits that are not finite"):
        network.predict(path)


def test_a_network_with_such_names_of_its_own_keeps_them(made: Path) -> None:
    _, info = read_network(made / "a.safetensors")
    five = Five(lambda m, x: m.predict(x).mean((2, 3)), predict=nn.Identity())
    images = torch.randn(2, 3, 8, 8, generator=seeded())
    expected = five(images)
    found = as_classifier(five, info)
    assert type(found) is Five and found.info is info
    assert torch.equal(found(images), expected)


def test_what_is_no_image_or_has_another_layout_is_refused_in_one_line(made: Path) -> None:
    network = load(made / "a.safetensors")
    (made / "text.jpg").write_text("hello")
    deep = Image.fromarray(np.full((9, 9), 7, np.float32))
    for image, message in (
        (made / "none.jpg", "none.jpg' cannot be read (No such file or directory)"),
        (str(made / "text.jpg"), "text.jpg' cannot be read (no image that Pillow knows)"),
        (deep, "the image cannot be read (values from 7 to 7; floats are read from 0 to 1)"),
        (np.zeros((9, 9, 3)), "`image` 'ndarray' is not known; possible: text, a path, or Image"),
    ):
        with pytest.raises(PgnasError) as raised:
            network.predict(image)
        assert message in str(raised.value)
    with pytest.raises(PgnasError, match="`top` 0 is out of range; possible: 1 or more"):
        network.predict(Image.new("RGB", (9, 9)), top=0)
    with pytest.raises(PgnasError, match=r"a\.onnx' has its layout already; leave out `layout`"):
        load(made / "a.onnx", layout="fast")
