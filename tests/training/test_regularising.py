"""What timm's recipes do to a fit: averages, mixed batches, weights of classes and layers."""

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from pgnas_cli.data import ImageData
from pgnas_cli.data.policies import Policy
from pgnas_cli.errors import PgnasError
from pgnas_cli.registry import Recipe
from pgnas_cli.registry.build import create_supernet
from pgnas_cli.run import check_recipe, settings_of
from pgnas_cli.training.averaging import Average
from pgnas_cli.training.regularising import class_weights, layer_scales, perturbed

from .conftest import small_fit


def batch(images: int = 8, classes: int = 5) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    return (
        torch.rand(images, 3, 16, 16, generator=draws),
        torch.randint(classes, (images,), generator=draws),
    )


def mixed(step: int = 3, **recipe: Any) -> tuple[Tensor, Tensor]:
    images, labels = batch()
    return perturbed(images, labels, Recipe(**recipe), classes=5, seed=1, step=step)


def test_mixup_blends_images_and_labels_by_the_same_share() -> None:
    """mixup: x' = lam x_i + (1 - lam) x_j and the same of one-hot labels (Zhang et al., 2018)."""
    images, labels = batch()
    found, aims = mixed(mixup=0.8)
    partner, hot = images.roll(1, 0), F.one_hot(labels, 5).float()
    share = float(
        ((found - partner) * (images - partner)).sum() / (images - partner).square().sum()
    )
    assert 0.0 < share < 1.0
    torch.testing.assert_close(found, share * images + (1 - share) * partner)
    torch.testing.assert_close(aims, share * hot + (1 - share) * hot.roll(1, 0))


def test_cutmix_weighs_labels_by_the_area_of_the_box() -> None:
    images, labels = batch()
    found, aims = mixed(cutmix=1.0)
    own = (found == images).all(1)  # (images, height, width): not of the partner
    assert bool((own | (found == images.roll(1, 0)).all(1)).all())
    share, hot = own[0].double().mean(), F.one_hot(labels, 5).float()
    assert 0 < share < 1
    expected = share * hot + (1 - share) * hot.roll(1, 0)
    torch.testing.assert_close(aims, expected.float())


def test_mixup_and_cutmix_take_turns_at_random() -> None:
    kinds = set()
    for step in range(20):
        found, _ = mixed(step, mixup=0.8, cutmix=1.0)
        images, _ = batch()
        kinds.add(bool((found == images).any() or (found == images.roll(1, 0)).any()))
    assert kinds == {True, False}


def test_a_share_of_the_images_has_a_box_erased() -> None:
    images, labels = batch(400)
    found, same = perturbed(images, labels, Recipe(reprob=0.25), classes=5, seed=1, step=0)
    erased = (found != batch(400)[0]).flatten(1).any(1)
    assert 0.18 < float(erased.double().mean()) < 0.32
    assert same is labels


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    options = {"mixup": 0.2, "cutmix": 1.0, "reprob": 0.5}
    torch.rand(3)
    first, _ = mixed(**options)
    np.random.rand(3)
    torch.testing.assert_close(mixed(**options)[0], first, rtol=0, atol=0)
    assert not torch.equal(mixed(4, **options)[0], first)


def test_balanced_classes_weigh_alike_and_one_on_average() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    weights = class_weights(labels, 3)
    assert (weights * torch.tensor([6, 3, 1])).tolist() == pytest.approx([10 / 3] * 3)
    assert float(weights[labels].mean()) == pytest.approx(1)


def test_layers_learn_slower_the_further_they_are_from_the_end() -> None:
    """timm's own groups: the head at the full rate, each group before by the factor."""
    network = create_supernet("timm/resnet18", 10, input_shape=(3, 64, 64))
    scales = layer_scales(network, 0.5)
    assert scales is not None
    assert scales["fc.weight"] == 1
    blocks = [scales[f"layer{stage}.{block}.conv1.weight"] for stage in (1, 2) for block in (0, 1)]
    ratios = [after / before for before, after in pairwise(blocks)]
    assert ratios == pytest.approx([2.0] * 3)
    assert scales["conv1.weight"] == min(scales.values())
    assert layer_scales(create_supernet("multibranch-tiny", 10), 0.5) is None


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "inception_v3"])
def test_gates_are_no_layer_of_their_own(name: str) -> None:
    """Of inception_v3, timm's matcher is a function, to which every name is a layer."""
    size = 96 if name == "inception_v3" else 64
    found = layer_scales(create_supernet(f"timm/{name}", 10, input_shape=(3, size, size)), 0.5)
    plain = timm.create_model(name, num_classes=10)
    names = {id(p): key for key, p in plain.named_parameters()}
    groups = param_groups_layer_decay(plain, layer_decay=0.5)
    expected = {names[id(p)]: g["lr_scale"] for g in groups for p in g["params"]}
    assert found is not None
    assert {key: found[key] for key in expected} == expected


def test_the_average_is_that_of_a_plain_loop() -> None:
    network = nn.Linear(3, 2)
    average, expected = Average(network, 0.9), network.weight.detach().clone()
    draws = torch.Generator().manual_seed(0)
    for step in range(40):
        with torch.no_grad():
            network.weight.add_(torch.randn(2, 3, generator=draws))
        average.update(network)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network.weight.detach()
    torch.testing.assert_close(average.values["weight"], expected)
    own = network.weight.detach().clone()
    average.swap_(network)
    torch.testing.assert_close(network.weight.detach(), expected)
    average.swap_(network)
    torch.testing.assert_close(network.weight.detach(), own)


def test_what_is_kept_of_a_fit_is_the_average(digits: ImageData) -> None:
    """A decay of 0 keeps the last weights themselves, another decay does not."""
    options: dict[str, Any] = {"epochs": 2, "batch_size": 128}
    plain, _ = small_fit(digits, **options)
    last, _ = small_fit(digits, **options, model_ema=True, model_ema_decay=0.0)
    slow, _ = small_fit(digits, **options, model_ema=True)
    name = "head.weight" if "head.weight" in plain.state_dict() else next(iter(plain.state_dict()))
    states = [network.state_dict()[name] for network in (plain, last, slow)]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    assert not torch.allclose(states[0], states[2])


def test_a_policy_is_a_function_of_its_seed_and_keeps_the_shape() -> None:
    draws = torch.Generator().manual_seed(0)
    for channels in (1, 3):
        image = torch.randint(256, (channels, 24, 24), generator=draws, dtype=torch.uint8)
        policy = Policy("rand-m9-mstd0.5-inc1", 24, (0.5,) * channels, "bilinear")
        found = [policy(image, seed) for seed in range(8)]
        assert {tuple(one.shape) for one in found} == {tuple(image.shape)}
        assert torch.equal(found[3], policy(image, 3))
        assert any(not torch.equal(one, image) for one in found)


@pytest.mark.parametrize("text", ["rand-m9-mstd0.5-inc1", "rand-m10-inc1", "v0", "augmix-m3-w3"])
def test_a_policy_never_fails_at_its_highest_magnitude(text: str) -> None:
    """timm posterises to 0 bits there, which Pillow refuses."""
    policy = Policy(text, 8, (0.5,) * 3, "bilinear")
    image = torch.full((3, 8, 8), 200, dtype=torch.uint8)
    assert all(policy(image, seed).shape == image.shape for seed in range(600))


def test_numbers_may_be_whole() -> None:
    for name in ("mixup", "cutmix"):
        one, other = mixed(**{name: 1}), mixed(**{name: 1.0})
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"warmup_epochs": 2.0, "cycle_epochs": 2.0}, "leaves nothing of `cycle_epochs` 2"),
        ({"aa": "rnd-m9"}, "`aa` 'rnd-m9' is not known"),
        ({"warmup_epochs": 5.0, "epochs": 5}, "`warmup_epochs` 5 leaves nothing of `epochs` 5"),
        ({"warmup_epochs": 1.0, "sched": "none"}, "needs a schedule"),
        ({"class_weights": "equal"}, "possible: none, balanced"),
        ({"reprob": 1.5}, "`reprob` 1.5 is out of range"),
        ({"layer_decay": 0.0}, "`layer_decay` 0 is out of range"),
    ],
)
def test_options_out_of_place_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(PgnasError, match=told):
        check_recipe(dataclasses.replace(Recipe(), **options), settings_of({}))
