"""Layouts "fast" and "onnx": the same logits from folded, ordered and rounded layers."""

import copy
import random
from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d, Conv2dSame, StdConv2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from pgnas_cli.gates import gates, make_concrete_
from pgnas_cli.slimming import Layout, arranged, difference, largest_difference, slim, ungated_copy
from pgnas_cli.slimming.arrange import COSTS, Reader, best_order
from pgnas_cli.slimming.layers import Narrow

from ..networks import Five, random_keep, randomised, seeded, supernet, tiny
from .test_timm_families import FAMILIES

FOR_SPEED: tuple[Layout, ...] = ("fast", "onnx")


@torch.no_grad()
@pytest.mark.parametrize("name", ["multibranch-tiny", "densenet121", "mixnet_s", *FAMILIES])
def test_layouts_for_speed_have_the_logits_of_the_masked_network(name: str) -> None:
    network = supernet(name)
    channels, height, width = gates(network).graph.input_shape
    images = torch.randn(2, channels, height, width, generator=seeded(1))
    for dtype, most in ((torch.float32, 1e-5), (torch.float64, 1e-9)):
        network, pixels = network.to(dtype), images.to(dtype)
        for drop in (0.3, 0.5, 0.9):
            keep = random_keep(network, drop, seed=1)
            for layout in FOR_SPEED:
                fast = slim(network, keep, layout)
                assert largest_difference(network, keep, fast, [pixels]) <= most, (drop, layout)
        for layout in FOR_SPEED:
            whole = ungated_copy(network)
            expected = whole(pixels)
            found = arranged(whole, layout, gates(network).graph)(pixels)
            assert difference(found, expected) <= most


@torch.no_grad()
@pytest.mark.parametrize(
    ("outputs", "groups", "round_to"),
    [(32, 4, 1), (32, 4, 8), (32, 16, 1), (32, 16, 8), (8, 4, 1), (8, 8, 1), (8, 8, 8)],
)
def test_grouped_convolutions_that_pick_their_inputs_are_arranged_exactly(
    outputs: int, groups: int, round_to: int
) -> None:
    network = Five(
        lambda m, x: (m.c(m.g(m.a(x)).relu()) + m.b(m.a(x))).mean((2, 3)),
        g=nn.Conv2d(16, outputs, 3, padding=1, groups=groups), c=nn.Conv2d(outputs, 16, 1),
    )  # fmt: skip
    _exact_at_random(make_concrete_(randomised(network), (3, 8, 8)), round_to)


class Tripled(nn.Conv2d):
    """Does more than its weights say."""

    def forward(self, input: Tensor) -> Tensor:
        return 3 * super().forward(input)


def _hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, given, made: 2 * made)
    return layer


def _with_act(layer: nn.Module) -> nn.Module:
    layer.act = nn.ReLU()
    return layer


@torch.no_grad()
@pytest.mark.parametrize(
    "extra",
    [
        {"a": Tripled(16, 16, 1)}, {"a": _hooked(nn.Conv2d(16, 16, 1))},
        {"bn": _hooked(nn.BatchNorm2d(16))}, {"bn": _with_act(nn.BatchNorm2d(16))},
        {"bn": nn.BatchNorm2d(16, affine=False)},
    ],
    ids=["own forward", "hook", "hook of batch-norm", "act that is not used", "no affine"],
)  # fmt: skip
def test_layers_that_do_more_than_their_weights_say_are_arranged_exactly(
    extra: dict[str, nn.Module],
) -> None:
    again = copy.deepcopy(extra)
    network = Five(lambda m, x: (m.c(m.bn(y := m.a(x)).relu()) + m.b(y)).mean((2, 3)), **extra)
    _exact_at_random(make_concrete_(randomised(network), (3, 8, 8)), 1)
    network = Five(lambda m, x: (m.c(m.bn(m.a(x)).relu()) + m.b(x)).mean((2, 3)), **again)
    _exact_at_random(make_concrete_(randomised(network), (3, 8, 8)), 1)


@torch.no_grad()
@pytest.mark.parametrize("round_to", [1, 8])
def test_flattened_and_pooled_features_side_by_side_are_arranged_exactly(round_to: int) -> None:
    network = Five(
        lambda m, x: m.line(torch.cat([m.a(x).flatten(1), m.c(x).mean((2, 3))], 1)),
        line=nn.Linear(16 * 64 + 16, 16),
    )
    _exact_at_random(make_concrete_(randomised(network), (3, 8, 8)), round_to)


def _exact_at_random(network: nn.Module, round_to: int) -> None:
    images = torch.randn(2, 3, 8, 8, generator=seeded(1))
    for seed in range(20):
        keep = random_keep(network, 0.2 + 0.03 * seed, seed=seed)
        fast = slim(network, keep, "fast", round_to=round_to)
        assert largest_difference(network, keep, fast, [images]) <= 1e-5


# --- batch-norm ----------------------------------------------------------------------------------


@torch.no_grad()
def _fast(steps: Callable[[Any, Tensor], Tensor], **extra: nn.Module) -> tuple[Any, Any]:
    """A whole network, and the same in layout "fast", which has its logits."""
    network = make_concrete_(randomised(Five(steps, **extra)), (3, 8, 8))
    whole = ungated_copy(network)
    fast = arranged(copy.deepcopy(whole), "fast", gates(network).graph)
    images = torch.randn(2, 3, 8, 8, generator=seeded())
    assert difference(fast(images), whole(images)) <= 1e-5
    return whole, fast


@pytest.mark.parametrize("kind", [nn.Conv2d, Conv2dSame])
def test_batch_norm_is_folded_as_torch_folds_it(kind: type[nn.Conv2d]) -> None:
    whole, fast = _fast(
        lambda m, x: m.flat(m.line(m.bn(m.a(x)).relu().mean((2, 3)))),
        a=kind(16, 16, 3, stride=2, bias=False), line=nn.Linear(16, 16), flat=nn.BatchNorm1d(16),
    )  # fmt: skip
    folded = fuse_conv_bn_eval(whole.a, whole.bn), fuse_linear_bn_eval(whole.line, whole.flat)
    for layer, expected in zip((fast.a, fast.line), folded, strict=True):
        torch.testing.assert_close(layer.weight, expected.weight)
        torch.testing.assert_close(layer.bias, expected.bias)
    assert not any(isinstance(module, _BatchNorm) for module in fast.modules())


def test_batch_norm_is_folded_through_a_concatenation_and_its_activation_stays() -> None:
    _, fast = _fast(
        lambda m, x: m.c(m.act(torch.cat([m.a(x), m.b(x)], 1))).mean((2, 3)),
        a=StdConv2d(16, 5, 1), act=BatchNormAct2d(21), c=nn.Conv2d(21, 16, 1),
    )  # fmt: skip
    assert [type(module) for module in fast.act] == [nn.Identity, nn.ReLU]
    assert type(fast.a) is nn.Conv2d


@pytest.mark.parametrize(
    "steps",
    [
        lambda m, x: m.c(m.bn(x)).mean((2, 3)),  # `x` is an activation
        lambda m, x: (m.bn(y := m.a(x)) + y).mean((2, 3)),  # read twice
        lambda m, x: m.bn(m.a(m.a(x))).mean((2, 3)),  # a layer called twice
        lambda m, x: m.bn(m.bn(m.a(x))).mean((2, 3)),  # a norm called twice
        lambda m, x: m.bn(m.a(x).relu_()).mean((2, 3)),
        lambda m, x: m.bn(torch.cat([m.a(x)[:, :8], x[:, 8:]], 1)).mean((2, 3)),
    ],
)  # fmt: skip
def test_batch_norm_stays_where_folding_it_would_not_be_exact(
    steps: Callable[[Any, Tensor], Tensor],
) -> None:
    assert isinstance(_fast(steps)[1].bn, nn.BatchNorm2d)


def test_layer_with_computed_weights_keeps_its_batch_norm() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 16, 1))
    assert isinstance(_fast(lambda m, x: m.bn(m.a(x)).mean((2, 3)), a=layer)[1].bn, nn.BatchNorm2d)


# --- the order of channels -----------------------------------------------------------------------


def _cost(order: list[int], readers: list[Reader]) -> float:
    total = 0.0
    for reader in readers:
        places = [order.index(channel) for channel in reader.wanted]
        total += reader.way(len(order), max(places) - min(places) + 1)[0]
    return total


@pytest.mark.parametrize("readers", [1, 2, 3, 4])
def test_order_costs_as_little_as_the_best_of_all(readers: int) -> None:
    draw = random.Random(readers)
    for turn in range(12):
        costs = COSTS[FOR_SPEED[turn % 2]]
        some = [
            Reader(
                tuple(sorted(draw.sample(range(6), draw.randint(1, 5)))), draw.uniform(5, 200),
                draw.choice((4, 49, 10**5)), costs,
            )
            for _ in range(readers)
        ]  # fmt: skip
        found = best_order(6, some)
        assert sorted(found) == list(range(6))
        least = min(_cost(list(order), some) for order in permutations(range(6)))
        assert _cost(found, some) == pytest.approx(least)


def test_what_two_layers_read_of_a_tensor_becomes_two_slices() -> None:
    network = make_concrete_(
        randomised(Five(lambda m, x: torch.cat([m.a(x), m.d(x)], 1).mean((2, 3)),
                        stem=nn.Conv2d(3, 64, 3, padding=1), a=nn.Conv2d(64, 64, 3, padding=1),
                        d=nn.Conv2d(64, 64, 3, padding=1), head=nn.Linear(128, 5))),
        (3, 8, 8),
    )  # fmt: skip
    keep = random_keep(network, 0.5)
    small, fast = (slim(network, keep, layout) for layout in ("small", "fast"))
    assert small.a.span is None
    for layer, twin in ((fast.a, small.a), (fast.d, small.d)):
        assert layer.span is not None
        assert layer.in_channels == layer.span[1] == twin.in_channels < layer.picks
    images = torch.randn(2, 3, 8, 8, generator=seeded())
    assert largest_difference(network, keep, fast, [images]) <= 1e-5


def test_channels_that_lie_together_are_read_as_a_slice_in_layout_small() -> None:
    network = tiny()
    keep = random_keep(network, 0.0)
    layer = network.blocks[1].branch1[0]
    first, _ = gates(network).spans["blocks.1.branch1.0"]
    keep[first : first + 3] = False
    reader = slim(network, keep).get_submodule("blocks.1.branch1.0")
    assert isinstance(reader, Narrow)
    assert reader.span == (3, layer.in_channels - 3)
    assert reader.read.tolist() == list(range(3, layer.in_channels))


def test_numbers_of_channels_become_multiples_of_eight_and_never_more_than_there_were() -> None:
    network = supernet("resnet18")
    keep = random_keep(network, 0.3)
    small, fast = (dict(slim(network, keep, one).named_modules()) for one in ("small", "fast"))
    uneven = 0
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            assert fast[name].out_channels % 8 == 0
            assert fast[name].out_channels <= module.out_channels
            uneven += small[name].out_channels % 8 > 0
    assert uneven > 5
