"""Slim networks against masked ones; constants behind padding; what a cut leaves as it was."""

import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgnas_cli.errors import PgnasError
from pgnas_cli.gates import gates, make_concrete_, masked
from pgnas_cli.slimming import largest_difference, slim
from pgnas_cli.slimming.layers import Constant

from ..networks import (
    Five,
    assert_exact,
    everything,
    random_keep,
    randomised,
    seeded,
    supernet,
    tiny,
    without,
)


@pytest.mark.parametrize("drop", [0.0, 0.3, 0.9])
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (64, 3)])
def test_slim_network_equals_masked_network(drop: float, size: int, channels: int) -> None:
    network = tiny(size, channels)
    for seed in range(3):
        keep = random_keep(network, drop, seed)
        assert_exact(network, keep)
        assert_exact(network, keep, size + 8)


@pytest.mark.parametrize(
    "layer",
    ["blocks.0.branch1.3", "blocks.1.branch2.0", "blocks.1.skip.even", "blocks.2.branch1.3"],
)
def test_slim_network_equals_masked_network_without_a_whole_operation(layer: str) -> None:
    network = tiny()
    keep = without(network, layer, random_keep(network, 0.3))
    assert_exact(network, keep)
    assert isinstance(slim(network, keep).get_submodule(layer), Constant)


@pytest.mark.parametrize("pixels", [1, 2, 7])
@pytest.mark.parametrize(("kernel", "dilation", "stride"), [(3, 2, 1), (5, 2, 2), (3, 1, 2)])
def test_a_constant_is_as_large_as_what_it_replaces(
    kernel: int, dilation: int, stride: int, pixels: int
) -> None:
    conv = nn.Conv2d(2, 3, kernel, stride, padding=dilation * (kernel // 2), dilation=dilation)
    image = torch.zeros(1, 2, pixels, pixels)
    assert Constant(3, conv, value=False)(image).shape == conv(image).shape


def test_a_branch_whose_last_layer_is_closed_loses_its_first_layer_too() -> None:
    network = tiny()
    keep = without(network, "blocks.2.branch1.3")
    branch = slim(network, keep).get_submodule("blocks.2.branch1")
    assert sum(p.numel() for p in branch.parameters()) == 64  # its batch-norm's constant, no more
    assert_exact(network, keep)


def test_a_network_of_closed_layers_is_a_constant() -> None:
    network = tiny()
    assert_exact(network, ~everything(network))
    found = slim(network, ~everything(network))(torch.randn(2, 1, 8, 8, generator=seeded()))
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("groups", ["channel", "8"])
def test_finer_groups_slim_as_exactly(groups: str) -> None:
    network = tiny(groups=groups)
    assert_exact(network, random_keep(network, 0.5))


def test_hidden_gates_slim_without_picking_channels() -> None:
    network = tiny(layers="hidden")
    keep = random_keep(network, 0.5)
    assert_exact(network, keep)
    assert not any("read" in key for key in slim(network, keep).state_dict())


def test_layout_fast_has_weights_of_zero_where_picking_would_cost_more() -> None:
    network = tiny()
    keep = random_keep(network, 0.3)
    small, fast = (slim(network, keep, layout).blocks[1] for layout in ("small", "fast"))
    thin, wide = small.skip.even, fast.skip.even
    assert (wide.read, wide.in_channels) == (None, 16)
    assert torch.equal(wide.weight[:, thin.read], thin.weight)
    assert wide.weight.count_nonzero() == thin.weight.count_nonzero()
    assert torch.equal(fast.branch1[0].read, small.branch1[0].read)


# --- constants ---------------------------------------------------------------------------------


def behind_padding(closed: nn.Module, reader: nn.Module) -> nn.Module:
    """The layer `a`, to be closed, whose constant goes through a norm into a padded reader."""

    def steps(m: Any, x: Tensor) -> Tensor:
        x = F.leaky_relu(m.bn(m.a(x)), 0.1)
        return F.adaptive_avg_pool2d(m.c(x), 1).flatten(1)

    return Five(steps, a=closed, bn=nn.BatchNorm2d(5), c=reader, head=nn.Linear(4, 5))


def in_a_concatenation() -> nn.Module:
    """The layer `a`, to be closed, beside a live one, read together; steps in place."""

    def steps(m: Any, x: Tensor) -> Tensor:
        x = m.act(x)
        x = m.pool(m.act(m.bn(torch.cat([m.a(x), m.b(x)], 1))))
        return torch.flatten(m.c(x), 1)

    return Five(
        steps, a=nn.Conv2d(16, 5, 1), b=nn.Conv2d(16, 3, 1), bn=nn.BatchNorm2d(8),
        act=nn.ReLU(inplace=True), pool=nn.MaxPool2d(2), head=nn.Linear(4 * 16, 5),
        c=nn.Conv2d(8, 4, 3, padding=1, bias=False),
    )  # fmt: skip


def overwritten_through_a_view(step: Callable[[Tensor], Tensor]) -> nn.Module:
    """A step in place, on a view, changes what another layer reads later."""

    def steps(m: Any, x: Tensor) -> Tensor:
        x = m.bn(torch.cat([m.a(x), m.live(x)], 1))
        y = m.b(step(x))
        return (y + m.c(x)).mean((2, 3))

    return Five(
        steps, a=nn.Conv2d(16, 5, 1), live=nn.Conv2d(16, 3, 1), bn=nn.BatchNorm2d(8),
        b=nn.Conv2d(8, 4, 1), c=nn.Conv2d(8, 4, 1), head=nn.Linear(4, 5),
    )  # fmt: skip


def conv(inputs: int, outputs: int, kernel: int, padding: int, **options: Any) -> nn.Module:
    return nn.Conv2d(inputs, outputs, kernel, padding=padding, **options)


@pytest.mark.parametrize(
    "build",
    [
        lambda: behind_padding(conv(16, 5, 3, 1, bias=False), conv(5, 4, 3, 1)),
        lambda: behind_padding(conv(16, 5, 3, 1, bias=False), conv(5, 4, 3, 0)),
        lambda: behind_padding(conv(16, 5, 3, 1, stride=2), conv(5, 4, 3, 1)),
        # The border of a padded 1x1 is bias alone, so that its output is no constant.
        lambda: behind_padding(conv(16, 5, 1, 1), conv(5, 4, 1, 1)),
        in_a_concatenation,
        partial(overwritten_through_a_view, torch.relu_),
        partial(overwritten_through_a_view, lambda x: F.relu(x, inplace=True)),
        partial(overwritten_through_a_view, lambda x: x.contiguous().relu_()),
        partial(overwritten_through_a_view, lambda x: F.dropout(x, training=False).relu_()),
        partial(overwritten_through_a_view, lambda x: x.view(x.shape).relu_()),
        partial(overwritten_through_a_view, lambda x: x.detach().mul_(2.0)),
    ],
)
def test_constants_are_kept_exactly_borders_included(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = make_concrete_(randomised(build()), (3, 8, 8))
    for drop in (0.0, 0.4):
        keep = random_keep(network, drop)
        assert_exact(network, keep)
        assert_exact(network, without(network, "a", keep))


def test_a_constant_behind_padding_is_no_bias() -> None:
    """The trap that the plane of ones is for: a bias would be far off near the border."""
    torch.manual_seed(0)
    plain = behind_padding(conv(16, 5, 3, 1, bias=False), conv(5, 4, 3, 1))
    network = make_concrete_(randomised(plain), (3, 8, 8))
    reader = slim(network, without(network, "a")).get_submodule("c")
    assert reader.weight.shape == (4, 1, 3, 3)  # one plane of ones for five constant channels
    with torch.no_grad():
        out = reader(torch.zeros(1, 1, 8, 8))
    assert (out[..., 0, 0] - out[..., 4, 4]).abs().max() > 1e-2


# --- the comparison itself ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["multibranch-tiny", "resnet18", "regnety_002", "ese_vovnet19b_slim_dw"]
)
def test_corrupting_any_layer_of_a_slim_network_shows(name: str) -> None:
    """In each gated layer in turn, the slice that reads the busiest channel is changed."""
    network = supernet(name)
    keep = random_keep(network, 0.3)
    smaller = slim(network, keep)
    images = torch.randn(2, *gates(network).graph.input_shape, generator=seeded(2))
    activity: dict[str, Tensor] = {}

    def note(layer: str, module: Any, inputs: tuple[Tensor]) -> None:
        """The mean size of each channel that the layer multiplies."""
        read = getattr(module, "read", None)
        features = inputs[0] if read is None else inputs[0].index_select(1, read)
        activity[layer] = features.abs().transpose(0, 1).flatten(1).mean(1)

    layers = {layer: smaller.get_submodule(layer) for layer in gates(network).spans}
    layers = {k: m for k, m in layers.items() if isinstance(m, nn.Conv2d | nn.Linear)}
    hooks = [m.register_forward_pre_hook(partial(note, layer)) for layer, m in layers.items()]
    assert largest_difference(network, keep, smaller, [images]) <= 1e-4
    for hook in hooks:
        hook.remove()
    assert len(activity) == len(layers) > 15
    for layer, module in layers.items():
        whole = module.weight.detach().clone()
        module.weight.data[:, int(activity[layer].argmax())] *= -10
        assert largest_difference(network, keep, smaller, [images]) > 1e-4, layer
        module.weight.data.copy_(whole)
    assert largest_difference(network, keep, smaller, [images]) <= 1e-4


@pytest.mark.parametrize("level", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_differ(level: float) -> None:
    network, images = tiny(), torch.randn(4, 1, 8, 8, generator=seeded(3))
    keep = random_keep(network, 0.3)
    smaller, broken = slim(network, keep), slim(network, keep)
    broken.head.weight.data[:] = level
    assert largest_difference(network, keep, broken, [images]) == float("inf")
    network.head.weight.data[:] = level
    assert largest_difference(network, keep, smaller, [images]) == float("inf")


# --- as any other network ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_networks_of_other_types_slim(dtype: torch.dtype) -> None:
    network = tiny().to(dtype)
    keep = random_keep(network, 0.3)
    images = torch.randn(4, 1, 8, 8, generator=seeded()).to(dtype)
    smaller = slim(network, keep)
    assert smaller(images).dtype == dtype
    with torch.no_grad(), masked(network, keep):
        difference = (smaller(images) - network(images)).abs().max()
    assert difference <= (1e-9 if dtype == torch.float64 else 0.2)


def test_what_was_frozen_stays_frozen() -> None:
    network = tiny().requires_grad_(False)
    keep = without(network, list(gates(network).spans)[2], random_keep(network, 0.3))
    assert not any(p.requires_grad for p in slim(network, keep).parameters())


def test_super_and_slim_networks_can_be_pickled() -> None:
    network = tiny()
    images = torch.randn(2, 1, 8, 8, generator=seeded())
    for original in (network, slim(network, random_keep(network, 0.3))):
        again = pickle.loads(pickle.dumps(original))
        assert [type(m) for m in again.modules()] == [type(m) for m in original.modules()]
        with torch.no_grad():
            assert torch.equal(again(images), original(images))


def test_a_slim_network_trains_like_any_other() -> None:
    smaller = slim(tiny(), random_keep(tiny(), 0.5)).train()
    images = torch.randn(16, 1, 8, 8, generator=seeded())
    F.cross_entropy(smaller(images), torch.arange(16) % 10).backward()
    assert all(p.grad is not None for p in smaller.parameters())


def test_slimming_leaves_the_supernet_as_it_was() -> None:
    network = tiny().train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    slim(network, random_keep(network, 0.5))
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert type(network.head).__name__ == "ConcreteLinear"


def test_wrong_arguments_are_refused() -> None:
    network = tiny()
    with pytest.raises(PgnasError, match="round_to 0 is out of range"):
        slim(network, everything(network), round_to=0)
    with pytest.raises(PgnasError, match="layout 'quick' is not known; possible: small, fast"):
        slim(network, everything(network), "quick")  # type: ignore[arg-type]
