"""Drop probabilities over a fit: when they learn, when they stay, and how the gates act."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pgnas_cli.data import ImageData
from pgnas_cli.gates import drop_probabilities, gates
from pgnas_cli.sizes import Target
from pgnas_cli.training.size_control import Phases, SizeControl

from .conftest import loop_of, small_fit, steps

HALF = Target("params", 0.5)


def test_only_weights_learn_during_the_warm_up(digits: ImageData) -> None:
    network, records = small_fit(digits, drop_delay_epochs=2.0, initial_drop=0.1)
    assert [r.drift == 0 for r in records] == [True, True, False]
    assert records[1].mean_drop == pytest.approx(0.1, abs=1e-6)
    assert (drop_probabilities(network) - 0.1).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("fields", "target", "rate"),
    [
        ({}, None, 0.6 / (8 * 11) ** 0.75),
        ({"drop_opt": "weights", "lr": 0.3}, None, 0.3),
        ({"drop_lr": 0.7}, None, 0.7),
        ({"epochs": 80}, HALF, 12 / (0.4 * 80 * 11 - 11)),
        ({}, HALF, 0.15),
    ],
)
def test_the_rate_of_p_follows_the_length_of_the_fit(
    digits: ImageData, fields: dict[str, Any], target: Target | None, rate: float
) -> None:
    auto = {"epochs": 8, "drop_lr": None, "drop_delay_epochs": None}
    loop = loop_of(digits, target=target, **{**auto, **fields})
    assert loop.drops is not None
    assert loop.drops.optimizer.param_groups[0]["lr"] == pytest.approx(rate)
    plain = fields.get("drop_opt") == "weights"
    assert isinstance(loop.drops.optimizer, torch.optim.SGD if plain else torch.optim.Adam)


def test_a_fixed_rate_is_reached_over_the_warm_up_and_held(digits: ImageData) -> None:
    loop = loop_of(digits, fixed_drop=0.4, drop_delay_epochs=1.0, epochs=2)
    seen = [float(drop_probabilities(loop.network)[0]) for _ in steps(loop)]
    ramp = [min(1.0, (s + 1) / loop.per_epoch) * 0.4 for s in range(1, 2 * loop.per_epoch + 1)]
    assert seen == pytest.approx(ramp, abs=1e-5)
    assert drop_probabilities(loop.network).unique().numel() == 1


def test_a_fixed_rate_of_zero_trains_the_whole_network(digits: ImageData) -> None:
    network, records = small_fit(digits, fixed_drop=0.0, epochs=1)
    assert records[-1].expected_share == pytest.approx(1.0)
    assert records[-1].soft_error == records[-1].hard_error
    assert drop_probabilities(network).max() < 1e-9


def test_once_p_is_frozen_weights_learn_on_hard_gates_of_each_image(digits: ImageData) -> None:
    loop = loop_of(digits, target=HALF, freeze=0.5, epochs=2, drop_delay_epochs=0.0, sharpen=1.0)
    layer: Any = loop.network.get_submodule(next(iter(gates(loop.network).spans)))
    keeps: list[Tensor] = []
    layer.register_forward_pre_hook(lambda module, _: keeps.append(module.keep.clone()))
    states = [loop.state().network for _ in steps(loop)]
    half = len(states) // 2
    logits = [state["gates.drop_logit"] for state in states]
    assert not torch.equal(logits[half - 2], logits[half - 1])
    assert all(torch.equal(logits[half - 1], logit) for logit in logits[half:])
    for before, after in pairwise(states[half - 1 :]):
        assert not torch.equal(before["head.weight"], after["head.weight"])
    hard = [bool(((keep == 0) | (keep == 1)).all()) for keep in keeps]
    assert not all(hard[:half])
    assert all(hard[half:])
    assert any((keep != keep[:1]).any() for keep in keeps[half:])
    for part in (keeps[:half], keeps[half:]):  # drawn anew in each step, relaxed or hard
        moved = [(a[:50] != b[:50]).any() for a, b in pairwise(part)]
        assert sum(moved) > len(moved) / 2


def test_sharpening_multiplies_the_drop_logits_that_have_their_size() -> None:
    """Symmetric logits have a mean p of one half however sharp: no other step is due."""
    start = torch.tensor([-1.2, -0.4, 0.4, 1.2], dtype=torch.float64)
    logits = torch.nn.Parameter(start.clone())
    still = torch.optim.Adam([logits], lr=0.0, betas=(0.9, 0.99))
    logits.grad = torch.ones_like(start)
    still.step()
    size: Any = SimpleNamespace(shares=lambda p: {"params": 1 - p.mean()})
    control = SizeControl(size, HALF, Phases(0, 10, 20), sharpen=8.0, rate=0.05)
    torch.testing.assert_close(control.corrected(logits, still, 9), start)
    for steps_of_phase, factor in ((range(10, 15), 8**0.5), (range(15, 20), 8)):
        for step in steps_of_phase:
            logits.data.copy_(control.corrected(logits, still, step))
        torch.testing.assert_close(logits.data, start * factor)
