"""A new head on trained weights starts as the logistic regression of the classes on features."""

import dataclasses
import itertools
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import scipy.optimize
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from pgnas_cli.data import DataName, ImageData, Part, Preprocessing
from pgnas_cli.machine import Machine
from pgnas_cli.registry import Start
from pgnas_cli.registry.build import build_backbone
from pgnas_cli.run.posterior import read_posterior
from pgnas_cli.training.probe import PENALTY, _some, logistic_regression, probe_

from ..conftest import run


def test_weights_and_bias_are_those_that_scipy_finds() -> None:
    random = torch.Generator().manual_seed(0)
    features = 3 + 5 * torch.randn(60, 4, generator=random).double()
    labels = (features[:, 0] > 3).long() + (features[:, 1] > 3).long()
    weight, bias = logistic_regression(features, labels, 3, 0.1)

    scaled = ((features - features.mean(0)) / features.std()).numpy()
    rows = range(len(labels))

    def loss(flat: "scipy.optimize.OptimizeResult") -> float:
        scores = scaled @ flat[:12].reshape(3, 4).T + flat[12:]
        told = scores - scipy.special.logsumexp(scores, axis=1, keepdims=True)
        return float(-told[rows, labels.numpy()].mean() + 0.1 * (flat[:12] ** 2).sum())

    found = scipy.optimize.minimize(loss, [0.0] * 15, tol=1e-10).x
    theirs = torch.from_numpy(scaled @ found[:12].reshape(3, 4).T + found[12:]).softmax(1)
    ours = (features @ weight.T + bias).softmax(1)
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_the_penalty_means_the_same_whatever_the_scale_of_the_features() -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(50, 6, generator=random).double()
    labels = torch.arange(50) % 3
    scores = []
    for scaled in (features, 100 * features - 7):
        weight, bias = logistic_regression(scaled, labels, 3, PENALTY)
        scores.append(scaled @ weight.T + bias)
    assert torch.allclose(*scores, atol=1e-5)


class Small(nn.Module):
    """Two features of an image and a head."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.head = head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(images).mean((2, 3)))  # type: ignore[no-any-return]


def coloured(images: int) -> ImageData:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % 3
    pixels = torch.randint(0, 100, (images, 3, 8, 8), generator=random, dtype=torch.uint8)
    pixels[torch.arange(images), labels] += 100
    part = Part(labels, tuple(map(str, range(images))), pixels)
    preprocessing = Preprocessing(3, 8, (0.5,) * 3, (0.25,) * 3)
    return ImageData(DataName("colours"), ("r", "g", "b"), part, part, None, preprocessing)


def probed(network: nn.Module, data: ImageData | None = None) -> str:
    return probe_(network, "head", data or coloured(150), machine=Machine(), seed=0)


def test_the_probe_learns_from_the_images_of_the_fit_alone() -> None:
    """With other labels on the held-out images it errs on all of them."""
    data = coloured(150)
    turned = dataclasses.replace(data.held_out, labels=(data.held_out.labels + 1) % 3)
    said = probed(Small(nn.Linear(3, 3)), dataclasses.replace(data, held_out=turned))
    assert "it errs on 100.0 % of the held-out images" in said


def test_a_probe_changes_the_head_and_nothing_else() -> None:
    network = Small(nn.Linear(3, 3))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    assert "it errs on 0.0 % of the held-out images" in probed(network)
    assert network.training
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"head.weight", "head.bias"}
    assert not network.head._forward_pre_hooks


def chain(**layers: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(layers))


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Small(nn.Identity()), "it is no linear layer with a bias"),
        (Small(nn.Linear(3, 3, bias=False)), "it is no linear layer with a bias"),
        (chain(head=nn.Conv2d(3, 3, 1), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten()),
         "it does not read one vector of features for each image"),
    ],
    ids=["identity", "no bias", "on a map"],
)  # fmt: skip
def test_a_head_that_cannot_be_a_probe_stays_as_it_was(network: nn.Module, reason: str) -> None:
    before = {k: v.clone() for k, v in network.state_dict().items()}
    assert probed(network) == f"the head 'head' starts at random, not as a linear probe: {reason}"
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_a_head_that_is_a_convolution_of_one_pixel_can_be_a_probe() -> None:
    network = chain(
        norm=nn.BatchNorm2d(3), pool=nn.AdaptiveAvgPool2d(1), head=nn.Conv2d(3, 3, 1),
        flat=nn.Flatten(),
    )  # fmt: skip
    assert "it errs on 0.0 %" in probed(network)
    network.eval()
    data = coloured(30)
    with torch.no_grad():
        assert torch.equal(
            network(data.preprocessing.normalised(data.fit.pixels)).argmax(1), data.fit.labels
        )


def test_features_that_are_not_finite_leave_the_head_as_it_was() -> None:
    network = Small(nn.Linear(3, 3))
    network.norm.weight.data.fill_(torch.inf)
    before = network.head.weight.clone()
    assert "not finite" in probed(network)
    assert torch.equal(network.head.weight, before)


def test_a_probe_that_batch_statistics_make_worse_than_the_random_head_is_taken_back() -> None:
    network = Small(nn.Linear(3, 3))
    nn.init.zeros_(network.head.weight)
    nn.init.zeros_(network.head.bias)
    network.norm.running_mean[0] = 10  # far from that of the images
    before = network.head.weight.clone()
    assert "too unlike" in probed(network)
    assert torch.equal(network.head.weight, before)


def test_images_in_the_order_of_their_classes_do_not_speak_against_a_probe() -> None:
    """A batch of one class has other statistics than the classes have together."""
    data = coloured(300)
    order = data.fit.labels.argsort(stable=True).tolist()
    data = dataclasses.replace(data, fit=data.fit.subset(order))
    torch.manual_seed(0)
    network = Small(nn.Linear(3, 3))
    network.norm.momentum = None
    for _ in range(2):
        network(data.preprocessing.normalised(data.fit.pixels))
    assert "it errs on 0.0 %" in probed(network, data)


def test_every_class_is_among_the_images_that_are_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgnas_cli.training.probe.MOST", 5)
    labels = torch.tensor([0] * 50 + [1] * 50 + [2])
    part = Part(labels, tuple(map(str, range(101))), torch.zeros(101, 3, 2, 2))
    for seed in range(5):
        assert set(_some(part, 3, seed).labels.tolist()) == {0, 1, 2}


def test_at_most_so_many_images_are_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgnas_cli.training.probe.MOST", 20)
    network = Small(nn.Linear(3, 3))
    seen: list[int] = []
    network.norm.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    probed(network)
    assert sum(seen) == 20 + 2 * 20 + 150  # to fit, to be sure, held out


def fit(model: str, folder: Path, name: str, *options: str) -> int:
    """Exit status of a fit of `model` from the weights in the working directory."""
    return run("fit", "--backbone", f"timm/{model}", "--weights", "weights.safetensors",
               "--data", str(folder), "--run", name, *options)  # fmt: skip


def fitted(folder: Path, name: str, *options: str) -> torch.Tensor:
    """The head of the network after a fit in which no weight moves."""
    brief = ("--img-size", "32", "--epochs", "1", "--batch-size", "6", "--lr", "0")
    assert fit("mobilenetv3_small_050", folder, name, *brief, *options) == 0
    network, _ = read_posterior(Path(name) / "posterior.safetensors")
    return network.state_dict()["classifier.weight"]


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
    folder = photo_folder()
    for classes in (7, 3):
        torch.manual_seed(0)
        model = timm.create_model("mobilenetv3_small_050", num_classes=classes)
        save_file(model.state_dict(), "weights.safetensors")
        fresh = build_backbone(
            "timm/mobilenetv3_small_050", classes=3, size=32,
            start=Start(weights=Path("weights.safetensors")),
        )  # fmt: skip
        start = fresh.network.get_submodule("classifier").weight
        assert isinstance(start, torch.Tensor)
        with_probe = fitted(folder, f"probe-{classes}")
        said = "the head 'classifier' starts as a linear probe" in capsys.readouterr().err
        assert said == (classes == 7)
        without = fitted(folder, f"none-{classes}", "--no-probe")
        assert torch.equal(without, start)
        assert torch.equal(with_probe, start) == (classes == 3)


def test_an_image_size_that_the_network_does_not_take_is_one_line_all_the_same(
    photo_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    model = timm.create_model("levit_conv_128s", num_classes=7)
    save_file(model.state_dict(), "weights.safetensors")
    assert fit("levit_conv_128s", photo_folder(), "r", "--img-size", "64") == 1
    assert "does not take images of 64x64 pixels" in capsys.readouterr().err
    assert not Path("r").exists()
