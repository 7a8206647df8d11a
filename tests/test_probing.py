"""A new head on trained weights starts as the logistic regression of the classes on features."""

from collections.abc import Callable
from pathlib import Path

import pytest
import scipy.optimize
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from pgnas_cli.data import ImageData, Part, Preprocessing, untracked
from pgnas_cli.files import read_posterior
from pgnas_cli.inflation import build_backbone
from pgnas_cli.probing import PENALTY, logistic_regression, probe_

from .conftest import run

CPU = torch.device("cpu")


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
    return ImageData("colours", ("r", "g", "b"), part, part, None, preprocessing)


def probed(network: nn.Module, images: int = 150) -> float | None:
    return probe_(network, "head", coloured(images), device=CPU, seed=0, workers=0, track=untracked)


def test_a_probe_changes_the_head_and_nothing_else() -> None:
    network = Small(nn.Linear(3, 3))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    assert probed(network) == 0
    assert network.training
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"head.weight", "head.bias"}
    assert not network.head._forward_pre_hooks


@pytest.mark.parametrize(
    "head", [nn.Identity(), nn.Sequential(nn.Linear(3, 3))], ids=["identity", "not linear"]
)
def test_a_head_that_is_no_linear_layer_stays_as_it_was(head: nn.Module) -> None:
    assert probed(Small(head)) is None


def test_features_that_are_not_finite_leave_the_head_as_it_was() -> None:
    network = Small(nn.Linear(3, 3))
    network.norm.weight.data.fill_(torch.inf)
    before = network.head.weight.clone()
    assert probed(network) is None
    assert torch.equal(network.head.weight, before)


def test_at_most_so_many_images_are_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgnas_cli.probing.MOST", 20)
    network = Small(nn.Linear(3, 3))
    seen: list[int] = []
    network.norm.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    probed(network)
    assert sum(seen) == 20 + 150  # to fit, held out


def fitted(folder: Path, name: str, *options: str) -> torch.Tensor:
    """The head of the network after a fit in which no weight moves."""
    status = run(
        "fit", "--backbone", "timm/mobilenetv3_small_050", "--weights", "weights.safetensors",
        "--data", str(folder), "--img-size", "32", "--epochs", "1", "--batch-size", "6",
        "--lr", "0", "--run", name, "-q", *options,
    )  # fmt: skip
    assert status == 0
    network, _ = read_posterior(Path(name) / "posterior.safetensors")
    return network.state_dict()["classifier.weight"]


def test_a_fit_probes_new_heads_on_given_weights_and_only_those(
    photo_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = photo_folder()
    for classes in (7, 3):
        torch.manual_seed(0)
        model = timm.create_model("mobilenetv3_small_050", num_classes=classes)
        save_file(model.state_dict(), "weights.safetensors")
        fresh = build_backbone(
            "timm/mobilenetv3_small_050", classes=3, size=32, weights=Path("weights.safetensors"),
            seed=0,
        )  # fmt: skip
        start = fresh.network.get_submodule("classifier").weight
        assert isinstance(start, torch.Tensor)
        with_probe = fitted(folder, f"probe-{classes}")
        without = fitted(folder, f"none-{classes}", "--no-probe")
        assert torch.equal(without, start)
        assert torch.equal(with_probe, start) == (classes == 3)
    capsys.readouterr()
