"""Steps to a size against a closed form and a solver; the phases of a fit by hand."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from scipy.optimize import brentq, minimize
from torch import Tensor

from pgnas_cli.registry import Recipe
from pgnas_cli.sizes import Target
from pgnas_cli.training.size_control import (
    Phases,
    phases,
    price_of_size,
    step_to_size,
    value_and_slope,
)


def sized(size: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return partial(value_and_slope, size)


def test_descent_with_steps_to_the_size_ends_at_the_constrained_optimum() -> None:
    """Toy: minimise sum(worth * p - entropy(p)) so that sum(cost * (1-p)) meets a target.

    The optimum is p = sigmoid(price * cost - worth), with the price as the root of the constraint,
    whatever the metric.
    """
    worth = torch.tensor([2.0, 1.0, 3.0, 0.5], dtype=torch.float64)
    cost = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    metric = torch.tensor([1.0, 0.3, 2.0, 0.7], dtype=torch.float64)
    target, rate = 0.5, 0.01

    def excess(price: float) -> float:
        return float((cost * (1 - torch.sigmoid(price * cost - worth))).sum()) - target

    logits = torch.zeros(4, dtype=torch.float64)
    for _ in range(8000):
        p = torch.sigmoid(logits)
        gradient = (worth + logits) * p * (1 - p)  # of worth * p - entropy
        logits, slope = step_to_size(
            sized(lambda p: (cost * (1 - p)).sum()), logits - rate * gradient / metric, metric,
            target, limit=1.0,
        )  # fmt: skip
    price = brentq(excess, 0, 100)
    assert price_of_size(gradient, slope, metric) == pytest.approx(price, rel=0.01)
    solution = torch.sigmoid(price * cost - worth)
    assert torch.allclose(torch.sigmoid(logits), solution, atol=1e-3)


def test_no_shorter_step_reaches_the_size() -> None:
    """Against a solver that knows nothing of slopes and multipliers."""
    cost = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    metric = torch.tensor([1.0, 4.0, 0.5], dtype=torch.float64)
    start = torch.tensor([-2.0, -1.0, -1.5], dtype=torch.float64)

    def size(p: Tensor) -> Tensor:
        return (cost * (1 - p)).sum()

    aim = float(size(torch.sigmoid(start))) - 1e-3  # small: the step is right to first order
    step = step_to_size(sized(size), start, metric, aim, limit=1.0)[0] - start
    found = minimize(
        lambda d: float((metric * torch.tensor(d) ** 2).sum() * 1e4),
        [0.0, 0.0, 0.0],
        constraints={
            "type": "eq",
            "fun": lambda d: 1e4 * (float(size(torch.sigmoid(start + torch.tensor(d)))) - aim),
        },
    )
    assert found.success
    assert step.tolist() == pytest.approx(found.x.tolist(), rel=0.02)


def test_the_step_opens_gates_where_more_is_dropped_than_was_asked_for() -> None:
    logits = torch.full((4,), 2.0, dtype=torch.float64)
    moved, _ = step_to_size(sized(lambda p: (1 - p).mean()), logits, torch.ones(4), 0.9, limit=0.5)
    assert torch.allclose(moved, logits - 0.5)  # as far as the limit allows


HALF = Target("params", 0.5)


@pytest.mark.parametrize(
    ("recipe", "target", "expected"),
    [
        # What docs/choosing.md says of timm's networks: 15 and 22 % of a fit.
        (Recipe(drop_delay_epochs=0.5, size_ramp=0.15, freeze=0.22), HALF, Phases(50, 150, 220)),
        (Recipe(drop_delay_epochs=2.0, size_ramp=0.15, freeze=0.22), HALF, Phases(90, 150, 220)),
        (Recipe(size_ramp=0.0, freeze=0.01), HALF, Phases(0, 1, 10)),
        (Recipe(size_ramp=1.0, freeze=1.0), HALF, Phases(100, 1000, 1000)),
        (Recipe(drop_delay_epochs=2.0), None, Phases(200, 1000, 1000)),
    ],
)
def test_the_warm_up_leaves_two_fifths_of_the_ramp(
    recipe: Recipe, target: Target | None, expected: Phases
) -> None:
    assert phases(recipe, 1000, 100, target) == expected
