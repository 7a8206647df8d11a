"""The divergence from the prior against float64 loops, closed forms and autograd."""

import math

import pytest
import torch

from pgnas_cli.gates import Prior, gates, kl
from pgnas_cli.gates.prior import bernoulli_entropy, kl_divergence, squared_norms, weight_cost
from pgnas_cli.registry import Recipe
from pgnas_cli.training import prior_of

from ..networks import seeded, tiny


def test_entropy_weight_cost_and_kl_equal_an_elementwise_loop() -> None:
    g = seeded()
    drop_logit = torch.randn(40, generator=g, dtype=torch.float64) * 4
    norms = torch.rand(40, generator=g, dtype=torch.float64) * 10
    channels = torch.randint(1, 65, (40,), generator=g).double()
    l2, images = 55.0, 500_000.0
    total = 0.0
    for row in range(40):
        p = 1 / (1 + math.exp(-drop_logit[row]))
        entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
        cost = l2 * (1 - p) * float(norms[row])
        assert math.isclose(float(bernoulli_entropy(drop_logit)[row]), entropy, rel_tol=1e-9)
        assert math.isclose(float(weight_cost(norms, drop_logit, l2=l2)[row]), cost, rel_tol=1e-9)
        total += cost - float(channels[row]) * entropy
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-6)):
        given = [tensor.to(dtype) for tensor in (norms, drop_logit, channels)]
        found = float(kl_divergence(*given, l2=l2, images=images))
        assert math.isclose(found, total / images, rel_tol=tolerance)
    constant = weight_cost(torch.ones(2), torch.tensor([-3.0, 3.0]), l2=2.0, constant=True)
    assert constant.tolist() == [2.0, 2.0]  # whatever p


def test_entropy_stays_finite_and_falls_to_zero_where_p_saturates() -> None:
    entropy = bernoulli_entropy(torch.tensor([-90.0, -20.0, 0.0, 20.0, 90.0]))
    assert entropy.isfinite().all()
    assert math.isclose(float(entropy[2]), math.log(2), rel_tol=1e-6)
    assert (entropy[[0, 4]].abs() < 1e-6).all()


def test_the_gradient_agrees_with_finite_differences() -> None:
    drop_logit = torch.randn(5, generator=seeded(), dtype=torch.float64, requires_grad=True)
    norms = torch.rand(5, generator=seeded(1), dtype=torch.float64, requires_grad=True)
    channels = torch.arange(1.0, 6.0, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda n, logits: kl_divergence(n, logits, channels, l2=3.0, images=10.0),
        (norms, drop_logit),
    )


def test_kl_of_a_network_equals_a_loop_over_its_layers() -> None:
    network = tiny(groups="8")
    bank = gates(network)
    bank.drop_logit.data = torch.randn(len(bank.groups), generator=seeded())
    modules = dict(network.named_modules())
    total = 0.0
    for group, logit in zip(bank.groups, bank.drop_logit.detach().double(), strict=True):
        weight = modules[group.layer].weight.detach().double()[:, group.start : group.stop]
        p = torch.sigmoid(logit)
        entropy = -(p * p.log() + (1 - p) * (1 - p).log())
        total += float(50 * (1 - p) * (weight**2).sum() - (group.stop - group.start) * entropy)
    found = kl(network, l2=50.0, images=1000).detach()
    assert abs(float(found) - total / 1000) < 1e-6 * abs(total)
    assert squared_norms(network).shape == (512,)


@pytest.mark.parametrize("l2", [None, 70.0])
@pytest.mark.parametrize("constant", [False, True])
def test_the_weight_decay_of_a_prior_is_the_gradient_of_its_divergence(
    l2: float | None, constant: bool
) -> None:
    """The strength `auto` is the one that pulls like the weight decay that was named."""
    network = tiny(initial_drop=0.2)
    recipe = Recipe(l2=l2, weight_decay=3e-4, initial_drop=0.2)
    prior = prior_of(recipe, 1000, constant=constant)
    decay = prior.weight_decay(0.0 if constant else 0.2)
    if not constant:
        assert decay == pytest.approx(3e-4 if l2 is None else 2 * 70.0 * 0.8 / 500_000)
    prior.divergence(network).backward()
    weight = network.head.weight
    assert torch.allclose(weight.grad, decay * weight, rtol=1e-4, atol=1e-9)


def test_a_constant_prior_leaves_p_to_data_and_entropy() -> None:
    """The slope of the entropy in the drop logit is -logit x p x (1 - p) for each gate."""
    bank = gates(network := tiny())
    Prior(1e9, 1.0, constant=True).divergence(network).backward()
    p = torch.sigmoid(bank.drop_logit.detach())
    slope = bank.channels * bank.drop_logit.detach() * p * (1 - p)
    assert torch.allclose(bank.drop_logit.grad, slope, rtol=1e-4)


@pytest.mark.parametrize(
    ("kl_images", "images", "n"),
    [(None, 1000, 500_000), (None, 1_281_167, 12_811_670), (42.0, 1000, 42)],
)
def test_n_is_ten_times_the_images_but_never_below_the_papers_smallest(
    kl_images: float | None, images: int, n: int
) -> None:
    assert prior_of(Recipe(kl_images=kl_images), images).images == n


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("groups", ["layer", "channel"])
def test_gradients_that_are_added_are_those_of_autograd(constant: bool, groups: str) -> None:
    """Beside gradients that are there already, weights without any included."""
    network = tiny(groups=groups).double()
    gates(network).drop_logit.data = torch.randn(
        len(gates(network).groups), generator=seeded(), dtype=torch.float64
    )
    prior = Prior(50.0, 1000, constant)
    images = torch.randn(4, *gates(network).graph.input_shape, generator=seeded()).double()
    (network(images).square().mean() + prior.divergence(network)).backward()
    expected = {name: p.grad.clone() for name, p in network.named_parameters()}  # type: ignore[union-attr]
    for there in (True, False):
        network.zero_grad()
        if there:
            network(images).square().mean().backward()
        added = prior.backward(network)
        assert float(added) == pytest.approx(float(prior.divergence(network).detach()), rel=1e-12)
        if not there:
            network(images).square().mean().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-12, atol=1e-15)
