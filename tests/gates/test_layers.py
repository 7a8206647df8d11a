"""Draws of gates against quadrature and quantiles; layers with gates against plain ones."""

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from scipy.integrate import quad
from timm.layers import Conv2dSame, ScaledStdConv2d
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from pgnas_cli import create_supernet
from pgnas_cli.gates import hard_keep, layers, logistic_noise, opened, relaxed, relaxed_keep
from pgnas_cli.gates.layers import gated_class
from pgnas_cli.gates.prior import weight_cost

from ..networks import seeded


def logit(p: float) -> float:
    return math.log(p / (1 - p))


@pytest.mark.parametrize("drop", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("temperature", [0.1, 0.2, 2 / 3])
def test_mean_of_the_relaxed_draw_equals_its_integral(drop: float, temperature: float) -> None:
    def kept(u: float) -> float:  # Eq. 16 with the logistic variable written as log(u / (1 - u))
        return 1 - 1 / (1 + math.exp(-(logit(drop) + logit(u)) / temperature))

    expected, _ = quad(kept, 1e-12, 1 - 1e-12, limit=200, points=[1 - drop])
    noise = logistic_noise((400_000, 1), generator=seeded())
    mean = float(relaxed_keep(torch.tensor([logit(drop)]), noise, temperature=temperature).mean())
    assert abs(mean - expected) < 4 * 0.5 / math.sqrt(400_000)


def test_two_gumbel_variables_differ_by_a_logistic_one() -> None:
    """Eq. 16 is written with log(-log r); its printed log(log r) is not a number."""
    r1, r2 = torch.rand(2, 200_000, generator=seeded(), dtype=torch.float64).clamp_min(1e-300)
    gumbel = -torch.log(-torch.log(r1)) + torch.log(-torch.log(r2))
    logistic = logistic_noise((200_000,), generator=seeded(1)).double()
    levels = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    tolerance = 4 * torch.sqrt(levels * (1 - levels) / 200_000) / (levels * (1 - levels))
    for drawn in (gumbel, logistic):
        assert ((drawn.quantile(levels) - torch.logit(levels)).abs() < tolerance).all()


def test_temperature_takes_the_relaxed_draw_from_a_half_to_the_hard_one() -> None:
    noise = logistic_noise((1000, 3), generator=seeded())
    drop_logit = torch.tensor([logit(0.1), 0.0, logit(0.9)])
    relaxed = relaxed_keep(drop_logit, noise, temperature=1e-4)
    hard = (drop_logit + noise < 0).float()
    assert torch.equal(relaxed.round(), hard)
    assert ((relaxed - hard).abs() < 1e-3).float().mean() > 0.99
    for found, drop in zip(relaxed.mean(0).tolist(), (0.1, 0.5, 0.9), strict=True):
        assert abs(found - (1 - drop)) < 4 * math.sqrt(drop * (1 - drop) / 1000)
    assert (relaxed_keep(drop_logit, noise, temperature=1e6) - 0.5).abs().max() < 1e-4


def test_noise_is_finite_at_the_ends_of_the_unit_interval() -> None:
    assert logistic_noise((3_000_000,), generator=seeded()).isfinite().all()


def test_p_is_the_probability_that_a_channel_is_dropped() -> None:
    """Turning the sign anywhere in the chain turns one of these round."""
    nearly_always_dropped = torch.tensor([logit(0.99)])
    noise = logistic_noise((10_000, 1), generator=seeded())
    assert relaxed_keep(nearly_always_dropped, noise, temperature=0.2).mean() < 0.03
    assert hard_keep(torch.full((10_000,), 0.99), generator=seeded()).float().mean() < 0.03
    cost = weight_cost(torch.ones(1), nearly_always_dropped, l2=1.0)
    assert abs(float(cost) - 0.01) < 1e-6
    assert hard_keep(torch.tensor([0.0, 1.0]), generator=seeded()).tolist() == [True, False]


def test_the_gradient_agrees_with_finite_differences() -> None:
    drop_logit = torch.randn(5, generator=seeded(), dtype=torch.float64, requires_grad=True)
    noise = logistic_noise((3, 5), generator=seeded(2)).double()
    assert torch.autograd.gradcheck(
        lambda logits: relaxed_keep(logits, noise, temperature=0.5), drop_logit
    )


def test_a_dropped_channel_does_not_change_the_output() -> None:
    layer = nn.Conv2d(4, 3, 3, padding=1)
    layer.__class__ = gated_class(nn.Conv2d)
    layer.keep = torch.tensor([True, False, True, True])
    x = torch.randn(2, 4, 5, 5, generator=seeded())
    masked = layer(x)
    x[:, 1] = 100.0
    assert torch.equal(layer(x), masked)
    x[:, 1] = 0
    layer.keep = None
    assert torch.equal(layer(x), masked)


def test_kept_channels_are_not_rescaled() -> None:
    layer = nn.Linear(4, 2)
    layer.__class__ = gated_class(nn.Linear)
    x = torch.randn(3, 4, generator=seeded())
    layer.keep = torch.tensor([True, False, False, True])
    expected = x[:, [0, 3]] @ layer.weight[:, [0, 3]].T + layer.bias
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_each_image_can_have_gates_of_its_own() -> None:
    layer = nn.Conv2d(2, 2, 1, bias=False)
    layer.__class__ = gated_class(nn.Conv2d)
    x = torch.randn(2, 2, 3, 3, generator=seeded())
    layer.keep = torch.tensor([[1.0, 0.0], [0.0, 0.5]])
    expected = [layer.weight[:, 0] * x[0, :1], layer.weight[:, 1] * 0.5 * x[1, 1:]]
    assert torch.allclose(layer(x), torch.stack(expected), atol=1e-6)


@pytest.mark.parametrize("rows", [(), (3,)])
@pytest.mark.parametrize("kind", ["conv", "grouped", "linear", "deep", "tokens"])
def test_the_product_is_made_again_for_the_same_gradients(kind: str, rows: tuple[int, ...]) -> None:
    """Beside a plain multiplication, bit for bit."""
    layer = {
        "conv": nn.Conv2d(4, 3, 3, padding=1), "grouped": nn.Conv2d(4, 4, 3, groups=4),
        "deep": nn.Sequential(nn.Conv2d(4, 3, 1), nn.ReLU()), "linear": nn.Linear(4, 2),
        "tokens": nn.Linear(4, 2),
    }[kind].double()  # fmt: skip
    gated = copy.deepcopy(layer)
    of = gated[0] if kind == "deep" else gated
    of.__class__ = gated_class(type(of))
    shape = {"linear": (3, 4), "tokens": (3, 5, 4)}.get(kind, (3, 4, 6, 6))
    x = torch.randn(shape, generator=seeded(), dtype=torch.float64)
    if len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    keep = torch.rand(*rows, 4, generator=seeded(1), dtype=torch.float64)
    found = []
    for network in (layer, gated):
        network.zero_grad()
        input, open_ = x.clone().requires_grad_(), keep.clone().requires_grad_()
        places = [1] * x.dim()
        places[-1 if kind in ("linear", "tokens") else 1] = 4
        places[0] = 3 if rows else 1
        if network is layer:
            out = network(input.relu() * open_.view(places))
        else:
            of.keep = open_
            out = network(input.relu())
        out.square().sum().backward()
        weights = [p.grad for p in network.parameters()]
        found.append([out, input.grad, open_.grad, *weights])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("kind", ["conv", "same", "standardised", "grouped", "linear", "tokens"])
def test_one_mask_for_all_images_gives_what_a_row_for_each_does(kind: str) -> None:
    """In training it masks the weight; not where the layer computes its weight from it."""
    layer = {
        "conv": nn.Conv2d(4, 3, 3, padding=1), "same": Conv2dSame(4, 3, 3, stride=2),
        "standardised": ScaledStdConv2d(4, 3, 3), "grouped": nn.Conv2d(4, 4, 3, groups=4),
        "linear": nn.Linear(4, 2), "tokens": nn.Linear(4, 2),
    }[kind].double()  # fmt: skip
    layer.__class__ = gated_class(type(layer))
    shape = {"linear": (3, 4), "tokens": (3, 5, 4)}.get(kind, (3, 4, 6, 6))
    x = torch.randn(shape, generator=seeded(), dtype=torch.float64)
    mask = torch.tensor([True, False, True, False])
    found = []
    for keep in (mask, mask.expand(3, -1)):
        layer.zero_grad()
        layer.keep, input = keep, x.clone().requires_grad_()
        out = layer(input)
        out.square().sum().backward()
        found.append([out, input.grad, *(p.grad for p in layer.parameters())])
    assert set(dict(layer.named_parameters())) == {"weight", "bias", "gain"} & set(
        layer._parameters
    )
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-14)


def test_a_layer_whose_weight_is_computed_since_it_was_gated_takes_a_mask() -> None:
    layer = nn.Linear(4, 2)
    layer.__class__ = gated_class(nn.Linear)
    weight = layer.weight.detach().clone()
    nn.utils.parametrizations.weight_norm(layer)
    layer.keep = torch.tensor([True, False, True, True])
    x = torch.randn(3, 4, generator=seeded())
    assert torch.allclose(layer(x), x[:, [0, 2, 3]] @ weight[:, [0, 2, 3]].T + layer.bias)


def test_an_input_that_is_changed_in_place_after_its_layer_is_told() -> None:
    layer = nn.Conv2d(4, 3, 1)
    layer.__class__ = gated_class(nn.Conv2d)
    layer.keep = torch.tensor([[True, False, True, True]] * 2)
    x = torch.ones(2, 4, 3, 3)
    out = layer(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="changed in place before its gradient"):
        out.sum().backward()


def test_gates_keep_next_to_nothing_for_the_backward_pass() -> None:
    """Bytes of distinct storages that a step keeps, counted beside the plain network's."""
    network = create_supernet("timm/resnet50", 10, input_shape=(3, 64, 64)).train()
    network.to(memory_format=torch.channels_last)
    own = {t.untyped_storage().data_ptr() for t in network.state_dict().values()}
    images = torch.randn(2, 3, 64, 64, generator=seeded())
    images = images.contiguous(memory_format=torch.channels_last)

    def kept(context: AbstractContextManager[None], monkeypatch: pytest.MonkeyPatch) -> int:
        sizes: dict[int, int] = {}
        held = []

        def note(*tensors: torch.Tensor) -> None:
            held.extend(tensors)
            for tensor in tensors:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in own:
                    sizes[storage.data_ptr()] = storage.nbytes()

        def watched(*given: torch.Tensor) -> Callable[[torch.Tensor], object]:
            inner = forgetting(*given)

            def pack(tensor: torch.Tensor) -> object:
                found = inner(tensor)
                note(*([found] if isinstance(found, torch.Tensor) else [found.input, found.keep]))
                return found

            return pack

        def whole(tensor: torch.Tensor) -> torch.Tensor:
            note(tensor)
            return tensor

        forgetting = layers._forgetting
        monkeypatch.setattr(layers, "_forgetting", watched)
        with context, saved_tensors_hooks(whole, lambda tensor: tensor):
            network(images)
        monkeypatch.undo()
        return sum(sizes.values())

    with pytest.MonkeyPatch.context() as patch:
        plain = kept(opened(network), patch)
        gated = kept(relaxed(network, batch=2, generator=seeded(), temperature=0.2), patch)
    assert 1 < gated / plain < 1.1
