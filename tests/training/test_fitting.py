"""The fit: what it optimises, what it records, when it stops, and that it can go on."""

import dataclasses
import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pgnas_cli.data import ImageData, load_data
from pgnas_cli.errors import PgnasError
from pgnas_cli.gates import auto_l2, drop_probabilities, gates, kl, make_concrete_, objective_images
from pgnas_cli.gates.prior import squared_norms
from pgnas_cli.registry import Recipe
from pgnas_cli.registry.lookup import load_backbone
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.sizes import Target, count, parameter_count, whole_macs
from pgnas_cli.training import EpochRecord, fit
from pgnas_cli.training.checkpoint import State, read_checkpoint, write_checkpoint
from pgnas_cli.training.size_control import Phases, Steering

from .test_files import POSTERIOR

SHORT = {"epochs": 3, "batch_size": 100}


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits", seed=0)


def prepared(data: ImageData, **changes: object) -> tuple[torch.nn.Module, Recipe]:
    shape = data.preprocessing.input_shape
    backbone = load_backbone("multibranch-tiny", classes=10, channels=1, size=8)
    recipe = dataclasses.replace(backbone.recipe, **{**SHORT, **changes})
    network = make_concrete_(
        backbone.network, shape, groups=recipe.groups, initial_drop=recipe.initial_drop
    )
    return network, recipe


def fitted(
    data: ImageData, options: dict[str, object] | None = None, **changes: object
) -> tuple[torch.nn.Module, list[EpochRecord]]:
    network, recipe = prepared(data, **changes)
    return network, list(fit(network, data, recipe, seed=0, **(options or {})))


def test_one_record_per_epoch_and_the_loss_falls(digits: ImageData) -> None:
    network, records = fitted(digits, epochs=6)
    assert [r.epoch for r in records] == [1, 2, 3, 4, 5, 6]
    assert records[-1].loss < 0.5 * records[0].loss
    assert records[-1].hard_error < 0.5
    for record in records:
        assert sum(record.drop_histogram) == gates(network).count
        assert 0 < record.expected_share <= 1
        assert all(math.isfinite(v) for v in dataclasses.astuple(record) if isinstance(v, float))


def test_only_weights_learn_during_the_warm_up(digits: ImageData) -> None:
    network, records = fitted(digits, drop_delay_epochs=2.0, epochs=3, initial_drop=0.1)
    assert [r.drift == 0 for r in records] == [True, True, False]
    assert records[1].mean_drop == pytest.approx(0.1, abs=1e-6)
    assert (drop_probabilities(network) - 0.1).abs().max() > 1e-3


def test_auto_l2_pulls_like_the_weight_decay_at_the_start() -> None:
    recipe = Recipe(weight_decay=3e-4, initial_drop=0.2)
    l2 = auto_l2(recipe.weight_decay, recipe.initial_drop, 500_000)
    weight = torch.randn(7, dtype=torch.float64, requires_grad=True)
    (l2 * (1 - 0.2) * weight.square().sum() / 500_000).backward()
    assert torch.allclose(weight.grad, 3e-4 * weight.detach())


def test_n_is_ten_times_the_images_but_never_below_the_papers_smallest() -> None:
    assert objective_images(None, 1000) == 500_000
    assert objective_images(None, 1_281_167) == 12_811_670
    assert objective_images(42.0, 1000) == 42


def test_one_step_equals_the_objective_written_out(digits: ImageData) -> None:
    """SGD without momentum moves each weight by minus rate times the gradient of Eq. 14-15."""
    from pgnas_cli.data import training_batches
    from pgnas_cli.gates import logistic_noise
    from pgnas_cli.seeds import generator

    changes = {"epochs": 1, "batch_size": len(digits.fit), "momentum": 0.0, "opt": "momentum",
               "sched": "none", "drop_delay_epochs": 0.0, "l2": 70.0}  # fmt: skip
    network, recipe = prepared(digits, **changes)
    network.train()
    images, labels = next(
        training_batches(digits, batch=recipe.batch_size, seed=0, first_step=0, steps=1, workers=0)
    )
    bank = gates(network)
    noise = logistic_noise((len(images), bank.count), generator=generator(0, "gates", 0, 0))
    z = torch.sigmoid((bank.drop_logit[bank.group] + noise) / recipe.temperature)
    modules = dict(network.named_modules())
    for layer, (first, last) in bank.spans.items():
        modules[layer].keep = 1 - z[:, first:last]
    loss = F.cross_entropy(network(digits.preprocessing.normalised(images)), labels)
    p = torch.sigmoid(bank.drop_logit)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    cost = (70.0 * (1 - p[bank.group]) * squared_norms(network)).sum()
    (loss + (cost - (bank.channels * entropy).sum()) / 500_000).backward()
    expected = {
        n: q.detach() - recipe.lr * q.grad
        for n, q in network.named_parameters()
        if n.startswith("blocks.1.branch1")
    }
    other, _ = prepared(digits, **changes)
    list(fit(other, digits, recipe, seed=0))
    found = dict(other.named_parameters())
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=2e-5), name


def test_a_fixed_rate_is_reached_over_the_warm_up_and_held(digits: ImageData) -> None:
    seen: list[float] = []
    network, recipe = prepared(digits, drop_delay_epochs=1.0, epochs=2)
    steps = len(digits.fit) // recipe.batch_size

    def between(step: int, total: int, state: object) -> None:
        seen.append(float(drop_probabilities(network)[0]))

    list(fit(network, digits, recipe, seed=0, fixed_drop=0.4, between=between))
    ramp = [min(1.0, (s + 1) / steps) * 0.4 for s in range(1, 2 * steps + 1)]
    assert seen == pytest.approx(ramp, abs=1e-5)
    assert drop_probabilities(network).unique().numel() == 1


def test_a_fixed_rate_of_zero_trains_the_whole_network(digits: ImageData) -> None:
    network, records = fitted(digits, {"fixed_drop": 0.0}, epochs=4)
    assert records[-1].expected_share == pytest.approx(1.0)
    assert records[-1].soft_error == records[-1].hard_error
    assert drop_probabilities(network).max() < 1e-9


def test_constant_l2_leaves_p_to_data_and_entropy(digits: ImageData) -> None:
    network, _ = prepared(digits)
    (gradient,) = torch.autograd.grad(
        kl(network, l2=1e9, images=1.0, constant=True), gates(network).drop_logit
    )
    (full,) = torch.autograd.grad(kl(network, l2=1e9, images=1.0), gates(network).drop_logit)
    assert gradient.abs().max() < 1e3
    assert full.abs().min() > 1e5


@pytest.mark.parametrize(("kind", "share"), [("params", 0.6), ("params", 0.3), ("macs", 0.5)])
def test_candidates_are_as_large_as_the_target(digits: ImageData, kind: str, share: float) -> None:
    """Counted draws, not the estimate that steers the fit."""
    network, records = fitted(digits, {"target": Target(kind, share)}, epochs=12, drop_lr=0.15)
    keep = draw_candidates(drop_probabilities(network), network, 50, 0)
    sizes = count(network, keep)
    params = float(sizes.params.double().mean()) / parameter_count(network)
    macs = float(sizes.macs.double().mean()) / whole_macs(network)
    assert {"params": params, "macs": macs}[kind] == pytest.approx(share, rel=0.15)
    assert records[-1].price > 0
    assert records[-1].hard_error < 0.3


@pytest.mark.parametrize("epochs", [1, 2, 4])
@pytest.mark.parametrize("groups", ["layer", "channel"])
def test_short_fits_meet_their_target_too(digits: ImageData, epochs: int, groups: str) -> None:
    network, recipe = prepared(digits, epochs=epochs, groups=groups)
    (*_, last) = fit(network, digits, recipe, seed=0, target=Target("params", 0.5))
    assert last.expected_share == pytest.approx(0.5, abs=0.006)
    keep = draw_candidates(drop_probabilities(network), network, 100, 0)
    counted = float(count(network, keep).params.double().mean()) / parameter_count(network)
    assert counted == pytest.approx(0.5, abs=0.03)


def test_sharpening_multiplies_the_drop_logits_that_have_their_size() -> None:
    """Symmetric logits have a mean p of one half however sharp: no other step is due."""
    start = torch.tensor([-1.2, -0.4, 0.4, 1.2], dtype=torch.float64)
    logits = torch.nn.Parameter(start.clone())
    still = torch.optim.Adam([logits], lr=0.0, betas=(0.9, 0.99))
    logits.grad = torch.ones_like(start)
    still.step()
    size: Any = SimpleNamespace(shares=lambda p: {"params": 1 - p.mean()})
    steering = Steering(size, Target("params", 0.5), Phases(0, 10, 20), Recipe(sharpen=8.0))
    before = steering.corrected(logits, still, 9)
    torch.testing.assert_close(before, start)
    for step in range(10, 15):
        logits.data.copy_(steering.corrected(logits, still, step))
    torch.testing.assert_close(logits.data, start * 8**0.5)
    for step in range(15, 20):
        logits.data.copy_(steering.corrected(logits, still, step))
    torch.testing.assert_close(logits.data, start * 8)


def test_frozen_probabilities_stay_while_weights_learn(digits: ImageData) -> None:
    seen = []

    def between(step: int, steps: int, state: object) -> None:
        seen.append((state().tensors["network.gates.drop_logit"],
                     state().tensors["network.head.weight"]))  # fmt: skip

    network, recipe = prepared(digits, freeze=0.5, epochs=2, drop_delay_epochs=0.0)
    target = Target("params", 0.5)
    list(fit(network, digits, recipe, seed=0, target=target, between=between))
    half = len(seen) // 2
    assert not torch.equal(seen[half - 2][0], seen[half - 1][0])
    for (before, weight), (after, changed) in zip(seen[half - 1 :], seen[half:], strict=False):
        assert torch.equal(before, after)
        assert not torch.equal(weight, changed)


def test_gates_are_hard_and_of_each_image_once_p_is_frozen(digits: ImageData) -> None:
    network, recipe = prepared(digits, freeze=0.5, epochs=2, drop_delay_epochs=0.0, sharpen=1.0)
    first = next(iter(gates(network).spans))
    layer: Any = network.get_submodule(first)
    seen = []
    layer.register_forward_pre_hook(
        lambda module, _: seen.append(module.keep.clone()) if module.training else None
    )
    list(fit(network, digits, recipe, seed=0, target=Target("params", 0.5)))
    half = len(seen) // 2
    assert not all(((k == 0) | (k == 1)).all() for k in seen[:half])
    assert all(((k == 0) | (k == 1)).all() for k in seen[half:])
    assert any((k != k[:1]).any() for k in seen[half:])
    for part in (seen[:half], seen[half:]):  # drawn anew in each step, relaxed or hard
        moved = [(a[:50] != b[:50]).any() for a, b in pairwise(part)]
        assert sum(moved) > len(moved) / 2


def test_what_moves_p_is_counted_however_it_moves(digits: ImageData) -> None:
    """The mean change of a probability is never above 1, and steps to the size count as well."""
    for rate in (0.0, 0.05):
        options: dict[str, object] = {"target": Target("params", 0.5)}
        _, records = fitted(digits, options, epochs=1, drop_lr=rate)
        assert 0 < records[0].drift <= 1


def test_a_stronger_prior_gives_a_smaller_network(digits: ImageData) -> None:
    """The direction of Table 4."""
    weak, strong = (
        fitted(digits, epochs=8, l2=l2, batch_size=64)[1][-1].expected_share
        for l2 in (50.0, 2000.0)
    )
    assert strong < weak - 0.1


def test_collapse_stops_with_a_remedy(digits: ImageData) -> None:
    options = {"target": Target("params", 0.015)}
    steep = {"drop_lr": 0.5, "size_ramp": 0.8, "freeze": 1.0, "sharpen": 4.0}
    with pytest.raises(PgnasError, match=r"the fit collapsed in epoch \d+.*aim at a larger size"):
        fitted(digits, options, epochs=12, **steep)


def test_a_loss_that_is_no_number_stops_with_a_remedy(digits: ImageData) -> None:
    with pytest.raises(PgnasError, match=r"the loss is (nan|inf) in epoch \d+; lower --lr"):
        fitted(digits, epochs=3, lr=1000.0, l2=1e8)


@pytest.mark.parametrize("target", [None, Target("params", 0.5)], ids=["plain", "target"])
@pytest.mark.parametrize("stop_at", [1, 11, 12, 20])
def test_a_fit_that_goes_on_from_a_state_ends_the_same(
    digits: ImageData, stop_at: int, target: Target | None
) -> None:
    """Mid-epoch, at the last step of an epoch, at its end; records agree too, but for times."""

    class Stop(Exception):
        pass

    saved: list[State] = []

    def between(step: int, steps: int, state: object) -> None:
        if step == stop_at:
            saved.append(state())
            raise Stop

    straight, records = fitted(digits, {"target": target}, freeze=0.7)
    network, recipe = prepared(digits, freeze=0.7)
    first: list[EpochRecord] = []
    with pytest.raises(Stop):
        for record in fit(network, digits, recipe, seed=0, target=target, between=between):
            first.append(record)
    again, recipe = prepared(digits, freeze=0.7)
    first += list(fit(again, digits, recipe, seed=0, target=target, state=saved[0]))
    for name, value in straight.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    timeless = [
        [dataclasses.replace(r, seconds=0.0, images_per_second=0.0) for r in rs]
        for rs in (records, first)
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize("opt", ["adan", "adamuon", "clamb", "lion"])
def test_every_kind_of_optimizer_state_is_saved(
    digits: ImageData, optimizer: str, tmp_path: Path
) -> None:
    """Adan counts its steps in the parameter groups, AdaMuon keeps flags; through the file."""
    changes = {"opt": optimizer, "lr": 1e-3, "epochs": 1}
    straight, _ = fitted(digits, **changes)
    network, recipe = prepared(digits, **changes)

    def between(step: int, steps: int, state: object) -> None:
        if step == 5:
            write_checkpoint(tmp_path / "c.safetensors", state(), POSTERIOR)

    list(fit(network, digits, recipe, seed=0, between=between))
    again, recipe = prepared(digits, **changes)
    saved, about = read_checkpoint(tmp_path / "c.safetensors")
    assert about == POSTERIOR
    list(fit(again, digits, recipe, seed=0, state=saved))
    for name, value in straight.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_networks_own_dropout_has_no_hidden_state(digits: ImageData) -> None:
    class Dropping(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = torch.nn.Conv2d(1, 8, 3, padding=1)
            self.body = torch.nn.Conv2d(8, 8, 3, padding=1)
            self.drop = torch.nn.Dropout(0.5)
            self.head = torch.nn.Linear(8, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.body(F.relu(self.stem(x)))).mean((2, 3))
            return self.head(self.drop(x))

    weights = []
    for foreign_draws in (0, 3):
        torch.manual_seed(0)
        network = make_concrete_(Dropping(), (1, 8, 8))
        torch.rand(foreign_draws)
        list(fit(network, digits, Recipe(epochs=1, batch_size=256), seed=0))
        weights.append(network.head.weight.detach().clone())
    assert torch.equal(*weights)


def test_the_recorded_divergence_is_that_of_the_objective(digits: ImageData) -> None:
    _, recipe = prepared(digits)
    options: dict[str, object] = {"constant_l2": True}
    network, records = fitted(digits, options, epochs=1, l2=5000.0, initial_drop=0.5)
    found = kl(network, l2=5000.0, images=objective_images(recipe.kl_images, 1), constant=True)
    assert records[0].kl == pytest.approx(float(found.detach()), rel=1e-5)


def test_drift_is_measured_per_unit_of_learning_rate(digits: ImageData) -> None:
    """Halving the rate halves how far p moves, not what the record calls its drift."""
    drifts = []
    for rate in (0.02, 0.01):
        _, records = fitted(
            digits, epochs=2, sched="none", drop_lr=rate, lr=1e-4,
            drop_delay_epochs=0.0, l2=1e5, batch_size=64,
        )  # fmt: skip
        drifts.append(records[0].drift / rate)
    assert drifts[0] == pytest.approx(drifts[1], rel=0.2)
