"""The drawing of the network says what the exported network is."""

import pytest
import torch
from torch import nn

from pgnas_cli.gates import gates
from pgnas_cli.report.drawing import MOST, Block, Operation, blocks_of
from pgnas_cli.slimming import slim

from ..networks import random_keep, supernet


@pytest.mark.parametrize(
    "name", ["timm/resnet18", "timm/tf_efficientnet_lite0", "timm/densenet121", "multibranch-tiny"]
)
def test_kept_channels_are_the_widths_of_the_slim_network(name: str) -> None:
    network = supernet(name)
    keep = random_keep(network, 0.6, seed=3)
    smaller, widths = slim(network, keep), {}
    for path, module in smaller.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            out = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            widths[path] = out
    drawn = {
        f"{block.name}.{one.name}".rstrip("."): one.kept
        for block in blocks_of(network, keep)
        for one in block.operations
    }
    assert {path: kept for path, kept in drawn.items() if kept} == widths


def test_a_layer_without_inputs_is_gone() -> None:
    network = supernet("multibranch-tiny")
    keep = torch.ones(gates(network).count, dtype=torch.bool)
    first, last = gates(network).spans["blocks.1.branch1.3"]
    keep[first:last] = False
    found = {block.name: block for block in blocks_of(network, keep)}["blocks.1"]
    gone = {one.name for one in found.operations if not one.kept}
    assert gone == {"branch1.0", "branch1.3"}  # nobody reads the one before
    assert found.gone == 2


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("timm/resnet18", ["conv1", "layer1.0", "layer1.1", "layer2.0"]),
        ("timm/tf_efficientnet_lite0", ["conv_stem", "blocks.0.0", "blocks.1.0", "blocks.1.1"]),
        ("timm/convnext_atto", ["stem.0", "stages.0.blocks.0", "stages.0.blocks.1"]),
        ("timm/vgg11_bn", ["features.0", "features.4"]),
        ("timm/densenet121", ["features.conv0", "features.denseblock1.denselayer1"]),
    ],
)
def test_blocks_are_those_that_a_reader_knows(name: str, blocks: list[str]) -> None:
    network = supernet(name)
    keep = torch.ones(gates(network).count, dtype=torch.bool)
    assert [block.name for block in blocks_of(network, keep)][: len(blocks)] == blocks


def test_of_many_operations_those_that_are_left_are_named() -> None:
    some = tuple(Operation(str(i), "conv 3x3", 8, i % 2) for i in range(2 * MOST))
    assert [one.name for one in Block("cells.0", some).named] == [str(i) for i in range(1, 24, 2)]
    assert Block("cells.0", some[:MOST]).named == some[:MOST]
