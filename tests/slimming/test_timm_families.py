"""Networks that nobody here wrote, cut exactly: families of timm and torchvision."""

import pytest
import torch
from torch import nn

from pgnas_cli.gates import gates
from pgnas_cli.sizes import count, parameter_count
from pgnas_cli.slimming import largest_difference, slim

from ..networks import assert_exact, random_keep, seeded, supernet, without

# One small member of families that differ in what the analysis must understand.
FAMILIES = [
    "resnet18",  # residual sums
    "regnety_002",  # grouped convolutions, squeeze-excite
    "efficientnet_b0",  # depthwise, squeeze-excite beside the main reader
    "mobilenetv3_small_050",  # a linear subclass, hard activations
    "convnext_atto",  # layer norm, layer scale, channels last
    "ghostnet_050",  # slices of a concatenation
    "resnetv2_50",  # standardised weights, activation inside the norm
    "ese_vovnet19b_slim_dw",  # long concatenations
    "torchvision/mnasnet0_5",  # a state dict without its version is rebuilt on loading
    "torchvision/shufflenet_v2_x0_5",  # chunks, channels permuted
]


@pytest.mark.parametrize("name", FAMILIES)
def test_slim_network_equals_the_masked_one(name: str) -> None:
    network = supernet(name)
    layers = list(gates(network).spans)
    middle = without(network, layers[len(layers) // 2], random_keep(network, 0.3))
    assert_exact(network, middle, rows=4)
    few = random_keep(network, 0.9)
    assert_exact(network, few, 96, rows=4)
    for keep in (middle, few):
        assert int(count(network, keep[None]).params) < 0.9 * parameter_count(network)


@pytest.mark.parametrize("name", ["resnet18", "regnety_002", "ghostnet_050", "densenet121"])
def test_rounding_brings_channels_back_with_the_same_logits(name: str) -> None:
    network = supernet(name)
    keep = random_keep(network, 0.6)
    images = torch.randn(2, 3, 64, 64, generator=seeded(2))
    plain, rounded = slim(network, keep), slim(network, keep, round_to=8)
    assert largest_difference(network, keep, rounded, [images]) <= 1e-4
    uneven = 0
    for layer in gates(network).spans:
        module, whole = rounded.get_submodule(layer), network.get_submodule(layer)
        if not isinstance(module, nn.Conv2d):
            continue
        there = getattr(module, "picks", 0) or module.in_channels
        assert module.in_channels % 8 == 0 or module.in_channels == there
        assert module.out_channels % 8 == 0 or module.out_channels == whole.out_channels
        before = plain.get_submodule(layer)
        uneven += isinstance(before, nn.Conv2d) and before.out_channels % 8 > 0
    assert uneven > 5  # it had something to do
    built = sum(p.numel() for p in rounded.parameters())
    assert built == int(count(network, keep[None], round_to=8).params)
    assert built > sum(p.numel() for p in plain.parameters())
