"""Expected sizes against counted draws, and steps to a size against a closed form."""

import pytest
import timm
import torch
from scipy.optimize import brentq, minimize
from torch import nn

from pgnas_cli.errors import PgnasError
from pgnas_cli.gates import gates, make_concrete_
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.sizes import ExpectedSize, count, parameter_count, target_of, whole_macs
from pgnas_cli.training.size_control import price_of_size, step_to_size

from ..networks import tiny


def timm_network(name: str, layers: str) -> nn.Module:
    network = timm.create_model(name, num_classes=10)
    return make_concrete_(network, (3, 64, 64), layers=layers)


@pytest.mark.parametrize("layers", ["all", "hidden"])
@pytest.mark.parametrize(
    "name", ["multibranch-tiny", "resnet18", "efficientnet_b0", "densenet121", "regnety_002"]
)
def test_expected_size_is_the_mean_of_counted_draws(name: str, layers: str) -> None:
    network = tiny(layers=layers) if name == "multibranch-tiny" else timm_network(name, layers)
    groups = len(gates(network).groups)
    for level in (0.3, 0.6):
        p = torch.full((groups,), level)
        p[::3] = 0.1
        params, macs = ExpectedSize(network)(p)
        drawn = count(network, draw_candidates(p, network, 40, 0))
        assert float(params) == pytest.approx(float(drawn.params.double().mean()), rel=0.03)
        assert float(macs) == pytest.approx(float(drawn.macs.double().mean()), rel=0.03)


def test_without_drops_the_expected_size_is_that_of_the_whole_network() -> None:
    network = timm_network("efficientnet_b0", "all")
    params, macs = ExpectedSize(network)(torch.zeros(len(gates(network).groups)))
    assert float(params) == pytest.approx(parameter_count(network), rel=1e-6)
    assert float(macs) == pytest.approx(whole_macs(network), rel=1e-6)


def test_the_slope_of_the_expected_size_is_that_of_finite_differences() -> None:
    size = ExpectedSize(tiny())
    p = torch.linspace(0.1, 0.8, len(size.group.unique()), dtype=torch.float64).requires_grad_()
    for which in (0, 1):
        (slope,) = torch.autograd.grad(size(p)[which], p)
        for group in (0, 3, len(p) - 1):
            step = torch.zeros_like(p)
            step[group] = 1e-6
            with torch.no_grad():
                change = float(size(p + step)[which] - size(p - step)[which]) / 2e-6
            assert float(slope[group]) == pytest.approx(change, rel=1e-4)


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
            lambda p: (cost * (1 - p)).sum(), logits - rate * gradient / metric, metric, target,
            limit=1.0,
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

    def size(p: torch.Tensor) -> torch.Tensor:
        return (cost * (1 - p)).sum()

    aim = float(size(torch.sigmoid(start))) - 1e-3  # small: the step is right to first order
    step = step_to_size(size, start, metric, aim, limit=1.0)[0] - start
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
    moved, _ = step_to_size(lambda p: (1 - p).mean(), logits, torch.ones(4), 0.9, limit=0.5)
    assert torch.allclose(moved, logits - 0.5)  # as far as the limit allows


def test_a_target_below_what_closing_the_gates_reaches_is_refused() -> None:
    network = tiny(layers="hidden")
    with pytest.raises(PgnasError, match=r"--target-params 1% is out of reach; with 99 %"):
        target_of(network, "1%")
    nearly = torch.full((len(gates(network).groups),), 0.99)
    drawn = count(network, draw_candidates(nearly, network, 40, 0)).params.double().mean()
    share = float(drawn) / parameter_count(network)
    assert target_of(network, f"{100 * share + 1}%") is not None
