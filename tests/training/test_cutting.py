"""A fit whose network is cut learns what it would have learned under masks, and can be resumed."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from pgnas_cli.data import ImageData
from pgnas_cli.gates import (
    Prior,
    draw,
    drop_probabilities,
    gates,
    hard_keep,
    make_concrete_,
    masked,
    per_gate,
)
from pgnas_cli.registry import Recipe
from pgnas_cli.sizes import Target, parameter_count
from pgnas_cli.slimming import everything, remainder
from pgnas_cli.training import loop as loop_room
from pgnas_cli.training.cutting import ELEMENTWISE, carry_over_, differs_in_training
from pgnas_cli.training.drop_learning import DropLearning, certain
from pgnas_cli.training.loop import Loop

from ..networks import Five, randomised, seeded, settled, tiny
from .conftest import loop_of, steps

HALF = Target("params", 0.5)


def optimizer(network: nn.Module, name: str) -> torch.optim.Optimizer:
    named = [(n, p) for n, p in network.named_parameters() if n != "gates.drop_logit"]
    groups = [
        {"params": [p for n, p in named if p.dim() <= 1], "weight_decay": 0.0},
        {"params": [p for n, p in named if p.dim() > 1], "weight_decay": 0.01},
    ]
    return create_optimizer_v2(groups, opt=name, lr=1e-3, momentum=0.9)


def step(network: nn.Module, weights: torch.optim.Optimizer, at: int) -> None:
    g = seeded(at)
    images = torch.randn(6, 1, 8, 8, generator=g, dtype=torch.float64)
    keep = torch.stack([draw(network, generator=g) for _ in range(6)])
    with masked(network, keep):
        loss = network.train()(images).square().mean()
    (loss + Prior(50.0, 1000).divergence(network)).backward()
    weights.step()
    weights.zero_grad()


@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
def test_a_step_after_the_cut_is_one_of_the_masked_network(name: str) -> None:
    network = tiny(groups="channel").double()
    weights = optimizer(network, name)
    for at in range(2):  # before anything is decided
        step(network, weights, at)
    settled(network)
    left = remainder(network)
    assert left is not None
    cut = optimizer(left.network, name)
    carry_over_(weights, everything(network), cut, left, network)
    for at in (2, 3):
        step(network, weights, at)
        step(left.network, cut, at)
    whole = network.state_dict()
    for key, value in left.network.state_dict().items():
        if key != "gates.drop_logit":
            place = left.places[key]
            assert torch.allclose(place.part_of(whole[place.name]), value, rtol=0, atol=1e-9), key


def test_a_second_cut_carries_over_what_the_first_one_left() -> None:
    network = tiny(groups="channel").double()
    before, weights = everything(network), optimizer(network, "adamw")
    for closed in (0.2, 0.5):
        step(before.network, weights, 0)
        before.write_back(network)
        settled(network, closed=closed, opened=0.0)
        left = remainder(network)
        assert left is not None
        after = optimizer(left.network, "adamw")
        carry_over_(weights, before, after, left, network)
        for name, parameter in left.network.named_parameters():
            if name in before.places and name in dict(before.network.named_parameters()):
                old = before.network.get_parameter(name)
                moment = torch.zeros_like(network.get_parameter(before.places[name].name))
                before.places[name].write_(weights.state[old]["exp_avg"], moment)
                expected = left.places[name].part_of(moment)
                assert torch.equal(after.state[parameter]["exp_avg"], expected), name
        before, weights = left, after


# --- the fit ---------------------------------------------------------------------------------


def double(loop: Loop) -> Loop:
    loop.network.double()
    loop.network.register_forward_pre_hook(lambda _, given: (given[0].double(),))
    return loop


def past_the_freeze(loop: Loop, more: int) -> Iterator[int]:
    for at in steps(loop):
        yield at
        if at == loop.drops.phases.freeze + more:  # type: ignore[union-attr]
            return


def test_a_fit_that_is_cut_is_the_fit_under_masks(
    digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, whole = (
        double(loop_of(digits, target=HALF, epochs=1, groups="channel")) for _ in range(2)
    )
    for _ in past_the_freeze(cut, 3):
        pass
    monkeypatch.setattr(loop_room, "ELEMENTWISE", ())
    for _ in past_the_freeze(whole, 3):
        pass
    assert whole.network is whole.whole
    assert parameter_count(cut.network) < 0.7 * parameter_count(cut.whole)
    assert float(cut.loss_sum) == pytest.approx(float(whole.loss_sum), abs=1e-9)
    expected = whole.network.state_dict()
    for name, place in cut.left.places.items():
        found = cut.network.state_dict()[name]
        assert torch.allclose(place.part_of(expected[place.name]), found, rtol=0, atol=1e-9), name
    assert torch.equal(drop_probabilities(cut.network), drop_probabilities(whole.network))


@pytest.mark.parametrize("after", [-1, 0, 2])  # the freeze, in steps
@pytest.mark.parametrize(
    "extra",
    [{}, {"model_ema": True, "mixup": 0.2, "cutmix": 1.0, "reprob": 0.2, "warmup_epochs": 0.3}],
    ids=["plain", "with timm's recipes"],
)
def test_a_fit_resumes_across_the_cut_to_the_last_bit(
    digits: ImageData, after: int, extra: dict[str, Any]
) -> None:
    first, second = (
        loop_of(digits, target=HALF, epochs=1, groups="channel", opt="adamw", lr=1e-3, **extra)
        for _ in range(2)
    )
    assert first.drops is not None
    for at in past_the_freeze(first, 4):
        if at == first.drops.phases.freeze + after:
            state = first.state()
    second.restore(state)
    assert (second.network is second.whole) == (after < 0)
    for _ in past_the_freeze(second, 4):
        pass
    expected, found = first.state(), second.state()
    assert found.numbers == expected.numbers
    assert set(found.tensors) == set(expected.tensors)
    for name, tensor in expected.tensors.items():
        assert torch.equal(tensor, found.tensors[name]), name


def test_the_average_of_what_is_left_is_that_of_the_whole_network(
    digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, whole = (
        loop_of(digits, target=HALF, epochs=1, groups="channel", opt="adamw", model_ema=True)
        for _ in range(2)
    )
    for _ in past_the_freeze(cut, 3):
        pass
    monkeypatch.setattr(loop_room, "ELEMENTWISE", ())
    for _ in past_the_freeze(whole, 3):
        pass
    assert cut.average is not None and whole.average is not None
    assert cut.network is not cut.whole
    for name, value in cut.average.values.items():
        place = cut.left.places[name]
        expected = place.part_of(whole.average.values[place.name])
        assert torch.allclose(value, expected, rtol=0, atol=1e-5), name


def test_a_step_that_depends_on_whole_layers_goes_on_with_the_whole_network(
    digits: ImageData,
) -> None:
    loop = loop_of(digits, target=HALF, epochs=1, groups="channel", opt="lamb", lr=1e-3)
    for _ in past_the_freeze(loop, 1):
        pass
    assert loop.network is loop.whole
    assert gates(loop.whole).drop_logit.isposinf().any()


class Noisy(Five):
    """Multiplies its features by noise per channel in training, which its forward hides."""

    def __init__(self) -> None:
        super().__init__(lambda f, x: f.c(f.noise(f.bn(f.b(x)))).mean((2, 3)), noise=Noise())


class Noise(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return input * torch.rand(1, input.shape[1], 1, 1) if self.training else input.relu()


def test_a_network_that_does_something_else_in_training_is_told() -> None:
    network = randomised(make_concrete_(Noisy(), (3, 8, 8), groups="channel"))
    settled(network, closed=0.7)
    left = remainder(network)
    assert left is not None
    assert differs_in_training(network, left.network) > 0.01
    plain = Five(lambda f, x: f.c(f.bn(f.b(x)).relu()).mean((2, 3)))
    plain = randomised(make_concrete_(plain, (3, 8, 8), groups="channel"))
    settled(plain, closed=0.7)
    left, before = remainder(plain), plain.bn.running_mean.clone()  # type: ignore[union-attr, operator]
    assert left is not None
    assert differs_in_training(plain, left.network) < 1e-5
    assert torch.equal(plain.bn.running_mean, before)  # type: ignore[union-attr, arg-type]


# --- atoms -----------------------------------------------------------------------------------


def test_10_000_draws_neither_open_what_is_closed_nor_close_what_is_open() -> None:
    logits = certain(torch.tensor([-7.0, -6.8, 0.0, 6.8, 7.0]), 1e-3)
    assert logits.isinf().tolist() == [True, False, False, False, True]
    network = tiny(groups="channel")
    closed = settled(network)
    p = per_gate(network, drop_probabilities(network))
    keep = hard_keep(p, generator=seeded(), rows=(10_000,))
    assert not keep[:, closed].any() and keep[:, p == 0].all()
    undecided = (p > 0) & (p < 1)
    assert undecided.any()
    assert torch.allclose(keep[:, undecided].float().mean(0), 1 - p[undecided], atol=0.03)


def drops_of(network: nn.Module, **changes: object) -> DropLearning:
    recipe = dataclasses.replace(Recipe(epochs=20), **changes)
    return DropLearning(network, recipe, Prior(1.0, 1000), steps=200, per_epoch=10, seed=0)


@pytest.mark.parametrize(
    ("path", "becomes"),
    [
        ((0.5, 0.9995, 0.9996, 0.9999), 1.0),  # through two windows, and outward
        ((0.5, 0.9995, 0.9990, 0.9994), None),  # inward
        ((0.5, 0.9, 0.9999, 0.9999), None),  # not long enough
        ((0.5, 5e-4, 4e-4, 3e-4), 0.0),
        ((1e-4, 1e-4, 2e-4, 3e-4), None),
    ],
)
def test_without_a_target_p_becomes_certain_where_it_stays(
    path: tuple[float, ...], becomes: float | None
) -> None:
    network = tiny(groups="channel")
    drops = drops_of(network)
    for window, p in enumerate(path):
        gates(network).drop_logit.data[:3] = torch.tensor(p, dtype=torch.float64).logit().float()
        closed = drops.start_epoch(window * drops.window)
        drops.rate_steps = [1.0, 1.0]
    found = drop_probabilities(network)[:3]
    assert closed == (becomes == 1.0)
    assert torch.allclose(found, torch.tensor(path[-1] if becomes is None else becomes), atol=1e-6)
    assert gates(network).drop_logit[:3].isinf().all() == (becomes is not None)


def test_no_optimizer_moves_what_is_certain() -> None:
    network = tiny(groups="channel")
    drops = drops_of(network)
    gates(network).drop_logit.data[:2] = torch.tensor([torch.inf, -torch.inf])
    for at in range(3):
        gates(network).drop_logit.grad = torch.ones(len(gates(network).groups))
        drops.update(at)
    assert gates(network).drop_logit[:2].tolist() == [torch.inf, -torch.inf]
    assert gates(network).drop_logit[2:].isfinite().all()


def test_a_bound_of_0_leaves_p_as_it_was_learned() -> None:
    logits = torch.tensor([-40.0, 3.0, 40.0])
    assert torch.equal(certain(logits, 0.0), logits)
