"""Slim networks against masked ones; the comparison itself; what a cut leaves as it was."""

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgnas_cli.errors import PgnasError
from pgnas_cli.gates import gates, make_concrete_, masked
from pgnas_cli.slimming import agree, difference, largest_difference, slim
from pgnas_cli.slimming.layers import Constant

from ..graph.test_operations import ODD
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


@pytest.mark.parametrize(
    "options",
    [{}, {"size": 64, "channels": 3}, {"groups": "channel"}, {"groups": "8"}, {"layers": "hidden"}],
    ids=str,
)
def test_slim_network_equals_masked_network(options: dict[str, Any]) -> None:
    """From all gates open to all closed, and on images of another size."""
    network = tiny(**options)
    for seed, drop in enumerate((0.0, 0.3, 0.3, 0.3, 0.9, 0.9, 1.0)):
        keep = random_keep(network, drop, seed)
        assert_exact(network, keep)
        assert_exact(network, keep, options.get("size", 8) + 8)
        if "layers" in options:  # no channel has to be picked
            assert not any("read" in key for key in slim(network, keep).state_dict())


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


def test_layout_fast_has_weights_of_zero_where_picking_would_cost_more() -> None:
    network = tiny()
    keep = random_keep(network, 0.3)
    small, fast = (slim(network, keep, layout).blocks[1] for layout in ("small", "fast"))
    thin, wide = small.skip.even, fast.skip.even
    assert (wide.read, wide.in_channels) == (None, 16)
    assert thin.in_channels < 16
    assert wide.weight.count_nonzero() == thin.weight.count_nonzero()
    assert small.branch1[0].in_channels == fast.branch1[0].in_channels < fast.branch1[0].picks


def test_a_constant_behind_padding_is_no_bias() -> None:
    """The trap that the plane of ones is for: a bias would be far off near the border."""
    torch.manual_seed(0)
    steps, extra = ODD["closed before padding"]
    network = make_concrete_(randomised(Five(steps, **copy.deepcopy(extra))), (3, 8, 8))
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


def test_super_and_slim_networks_can_be_pickled() -> None:
    network = tiny()
    images = torch.randn(2, 1, 8, 8, generator=seeded())
    for original in (network, slim(network, random_keep(network, 0.3))):
        again = pickle.loads(pickle.dumps(original))
        assert [type(m) for m in again.modules()] == [type(m) for m in original.modules()]
        with torch.no_grad():
            assert torch.equal(again(images), original(images))


def test_a_slim_network_trains_and_leaves_the_supernet_as_it_was() -> None:
    network = tiny().train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    keep = without(network, "blocks.1.branch2.0", random_keep(network, 0.5))
    smaller = slim(network, keep).train()
    images = torch.randn(16, 1, 8, 8, generator=seeded())
    F.cross_entropy(smaller(images), torch.arange(16) % 10).backward()
    assert all(p.grad is not None for p in smaller.parameters())
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert type(network.head).__name__ == "ConcreteLinear"
    frozen = slim(network.requires_grad_(False), keep)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_wrong_arguments_are_refused() -> None:
    network = tiny()
    with pytest.raises(PgnasError, match="`round_to` 0 is out of range; possible: 1 to 1024"):
        slim(network, everything(network), round_to=0)
    with pytest.raises(
        PgnasError, match="`layout` 'quick' is not known; possible: small, fast, onnx"
    ):
        slim(network, everything(network), "quick")  # type: ignore[arg-type]


class Cancelling(nn.Module):
    """Adds a large number and takes it away again, so that most digits of a logit are lost."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        nn.init.normal_(self.head.weight, generator=seeded())
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        return (self.head(x) + 1e5) - 1e5


def test_networks_agree_within_their_own_rounding_and_not_beyond() -> None:
    network, images = Cancelling(), [torch.randn(4, 8, generator=seeded(1))]
    with torch.no_grad():
        exact, rounded = network.head(images[0]), network(images[0])
    differs = difference(rounded, exact)
    assert 1e-4 < differs < 1e-2
    assert agree(differs, 1e-4, network, images)
    assert not agree(differs, 1e-4, network.head, images)  # which does not round so
    assert agree(1e-5, 1e-4, network.head, images)
    for wrong in (1.01e-2, float("inf"), float("nan")):
        assert not agree(wrong, 1e-4, network, images)
    supernet, pixels = tiny(), [torch.randn(4, 1, 8, 8, generator=seeded(1))]
    assert not agree(5e-4, 1e-4, supernet, pixels, random_keep(supernet, 0.3))
