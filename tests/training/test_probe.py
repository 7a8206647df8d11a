"""A new head on trained weights starts as the logistic regression of the classes on features."""

import dataclasses
import itertools
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pgnas_cli.data import DataName, ImageData, Part, Preprocessing
from pgnas_cli.machine import Machine
from pgnas_cli.registry import Start
from pgnas_cli.registry.build import build_backbone
from pgnas_cli.run.posterior import read_posterior
from pgnas_cli.training.probe import _some, logistic_regression, probe_

from ..conftest import run
from ..networks import seeded


def test_weights_and_bias_are_those_that_scipy_finds_whatever_the_scale() -> None:
    features = 3 + 5 * torch.randn(60, 4, generator=seeded()).double()
    labels = (features[:, 0] > 3).long() + (features[:, 1] > 3).long()
    scaled = ((features - features.mean(0)) / features.std()).numpy()
    rows = range(len(labels))

    def loss(flat: np.ndarray) -> float:
        scores = scaled @ flat[:12].reshape(3, 4).T + flat[12:]
        told = scores - scipy.special.logsumexp(scores, axis=1, keepdims=True)
        return float(-told[rows, labels.numpy()].mean() + 0.1 * (flat[:12] ** 2).sum())

    found = scipy.optimize.minimize(loss, [0.0] * 15, tol=1e-10).x
    theirs = torch.from_numpy(scaled @ found[:12].reshape(3, 4).T + found[12:]).softmax(1)
    for given in (features, 100 * features - 7):
        weight, bias = logistic_regression(given, labels, 3, 0.1)
        assert torch.allclose((given @ weight.T + bias).softmax(1), theirs, atol=1e-4)


class Small(nn.Module):
    """Two features of an image and a head."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(images).mean((2, 3)))


def linear() -> Small:
    torch.manual_seed(0)
    return Small(nn.Linear(3, 3))


def coloured(images: int) -> ImageData:
    labels = torch.arange(images) % 3
    pixels = torch.randint(0, 100, (images, 3, 8, 8), generator=seeded(), dtype=torch.uint8)
    pixels[torch.arange(images), labels] += 100
    part = Part(labels, tuple(map(str, range(images))), pixels)
    preprocessing = Preprocessing(3, 8, (0.5,) * 3, (0.25,) * 3)
    return ImageData(DataName("colours"), ("r", "g", "b"), part, part, None, preprocessing)


def probed(network: nn.Module, data: ImageData | None = None) -> str:
    return probe_(network, "head", data or coloured(150), machine=Machine(), seed=0)


def changed(network: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Names of the tensors that are not what they were."""
    return {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}


def state(network: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items()}


def test_a_probe_of_the_images_of_the_fit_changes_the_head_and_nothing_else() -> None:
    """With other labels on the held-out images it errs on all of them."""
    network, data = linear(), coloured(150)
    before = state(network)
    assert "it errs on 0.0 % of the held-out images" in probed(network, data)
    assert network.training
    assert changed(network, before) == {"head.weight", "head.bias"}
    assert not network.head._forward_pre_hooks
    turned = dataclasses.replace(data.held_out, labels=(data.held_out.labels + 1) % 3)
    said = probed(linear(), dataclasses.replace(data, held_out=turned))
    assert "it errs on 100.0 % of the held-out images" in said


def chain(**layers: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(layers))


def not_finite() -> nn.Module:
    network = linear()
    network.norm.weight.data.fill_(torch.inf)
    return network


def far_from_the_images() -> nn.Module:
    """In training, on statistics of its batches, the random head is better than the probe."""
    network = linear()
    nn.init.zeros_(network.head.weight)
    nn.init.zeros_(network.head.bias)
    network.norm.running_mean[0] = 10
    return network


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Small(nn.Identity()), "it is no linear layer with a bias"),
        (Small(nn.Linear(3, 3, bias=False)), "it is no linear layer with a bias"),
        (chain(head=nn.Conv2d(3, 3, 1), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten()),
         "it does not read one vector of features for each image"),
        (not_finite(), "not finite"),
        (far_from_the_images(), "too unlike"),
    ],
    ids=["identity", "no bias", "on a map", "not finite", "too unlike"],
)  # fmt: skip
def test_a_head_that_cannot_be_a_probe_stays_as_it_was(network: nn.Module, reason: str) -> None:
    before = state(network)
    said = probed(network)
    assert said.startswith("the head 'head' starts at random, not as a linear probe: ")
    assert reason in said
    assert not changed(network, before)


def test_a_head_that_is_a_convolution_of_one_pixel_can_be_a_probe() -> None:
    network = chain(
        norm=nn.BatchNorm2d(3), pool=nn.AdaptiveAvgPool2d(1), head=nn.Conv2d(3, 3, 1),
        flat=nn.Flatten(),
    )  # fmt: skip
    assert "it errs on 0.0 %" in probed(network)
    data = coloured(30)
    logits = network.eval()(data.preprocessing.normalised(data.fit.pixels))
    assert torch.equal(logits.argmax(1), data.fit.labels)


def test_images_in_the_order_of_their_classes_do_not_speak_against_a_probe() -> None:
    """A batch of one class has other statistics than the classes have together."""
    data = coloured(300)
    order = data.fit.labels.argsort(stable=True).tolist()
    data = dataclasses.replace(data, fit=data.fit.subset(order))
    network = linear()
    network.norm.momentum = None
    for _ in range(2):
        network(data.preprocessing.normalised(data.fit.pixels))
    assert "it errs on 0.0 %" in probed(network, data)


def test_few_images_are_fitted_and_every_class_is_among_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pgnas_cli.training.probe.MOST", 5)
    labels = torch.tensor([0] * 50 + [1] * 50 + [2])
    part = Part(labels, tuple(map(str, range(101))), torch.zeros(101, 3, 2, 2))
    for seed in range(5):
        assert set(_some(part, 3, seed).labels.tolist()) == {0, 1, 2}
    monkeypatch.setattr("pgnas_cli.training.probe.MOST", 20)
    network = linear()
    seen: list[int] = []
    network.norm.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    probed(network)
    assert sum(seen) == 20 + 2 * 20 + 150  # to fit, to be sure, held out


def fit(model: str, folder: Path, name: str, *options: str) -> int:
    """Exit status of a fit of `model` from the weights in the working directory."""
    return run("fit", "--backbone", f"timm/{model}", "--weights", "weights.safetensors",
               "--data", str(folder), "--run", name, *options)  # fmt: skip


def save_weights(model: str, classes: int) -> None:
    torch.manual_seed(0)
    save_file(timm.create_model(model, num_classes=classes).state_dict(), "weights.safetensors")


def test_a_fit_probes_new_heads_on_given_weights_and_only_those(
    photo_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    # These weights are random, and their batch-norm statistics not those of the photos.
    falling = itertools.count(0, -1)
    monkeypatch.setattr(
        "pgnas_cli.training.probe._loss_in_training", lambda *_: float(next(falling))
    )
    model, folder = "mobilenetv3_small_050", photo_folder()
    still = ["--img-size", "32", "--epochs", "1", "--batch-size", "6", "--lr", "0"]
    for classes, options, probes in ((7, [], True), (7, ["--no-probe"], False), (3, [], False)):
        save_weights(model, classes)
        start = Start(weights=Path("weights.safetensors"))
        fresh = build_backbone(f"timm/{model}", classes=3, size=32, start=start).network
        assert fit(model, folder, "r", *still, *options, "--force") == 0
        said = "the head 'classifier' starts as a linear probe" in capsys.readouterr().err
        head = read_posterior(Path("r/posterior.safetensors"))[0].classifier.weight
        assert said == probes
        assert torch.equal(head, fresh.classifier.weight) == (not probes)


def test_an_image_size_that_the_network_does_not_take_is_one_line_all_the_same(
    photo_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    save_weights("levit_conv_128s", 7)
    assert fit("levit_conv_128s", photo_folder(), "r", "--img-size", "64") == 1
    assert "does not take images of 64x64 pixels" in capsys.readouterr().err
    assert not Path("r").exists()
