"""Where gates sit, and which of them share a drop probability."""

import pytest
import torch
from torch import nn

from pgnas_cli.errors import PgnasError
from pgnas_cli.gates import gates, layer_gates, make_concrete_

from ..networks import Five, assert_exact, random_keep, supernet, tiny


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 8, 3, groups=4)])
def test_grouped_and_depthwise_convolutions_and_the_stem_carry_no_gate(layer: nn.Module) -> None:
    steps = [nn.Conv2d(3, 4, 3), nn.ReLU(), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    with pytest.raises(PgnasError, match="no layer that can carry a gate"):
        make_concrete_(nn.Sequential(*steps), (3, 8, 8))


def test_a_concatenation_gives_one_group_per_segment() -> None:
    network = Five(
        lambda m, x: m.c(m.bn(torch.cat([x, m.a(x)], 1)).relu()).mean((2, 3)),
        a=nn.Conv2d(16, 4, 3, padding=1), bn=nn.BatchNorm2d(20), c=nn.Conv2d(20, 16, 1),
    )  # fmt: skip
    found = gates(make_concrete_(network, (3, 8, 8))).groups
    assert [(g.layer, g.start, g.stop) for g in found] == [
        ("a", 0, 16), ("c", 0, 16), ("c", 16, 20), ("head", 0, 16),
    ]  # fmt: skip


def test_hidden_gates_sit_only_where_the_channel_has_one_reader() -> None:
    layers = {group.layer for group in gates(tiny(layers="hidden")).groups}
    assert layers == {f"blocks.{b}.branch{n}.3" for b in range(3) for n in (1, 2)}


def test_weights_that_are_shared_or_computed_are_kept_whole() -> None:
    torch.manual_seed(0)
    plain = Five(
        lambda m, x: m.c(m.a(m.b(x).relu()).relu()).relu().mean((2, 3)),
        b=nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 16, 3)),
    )
    plain.c.weight = plain.a.weight
    network = make_concrete_(plain, (3, 8, 8)).eval()
    reasons = {row.layer: row.remark for row in layer_gates(network) if not row.gates}
    assert reasons["b"] == "its weight is computed by a parametrization"
    assert set(reasons) == {"stem", "a", "b", "c"}
    assert_exact(network, random_keep(network, 0.5))


def test_densenet_has_a_group_for_every_segment() -> None:
    of = {row.layer: row.groups for row in layer_gates(supernet("densenet121"))}
    assert sum(n for layer, n in of.items() if layer.endswith("conv1")) == 535
    assert sum(n for layer, n in of.items() if layer.endswith("conv2")) == 58
    assert [n for layer, n in of.items() if "transition" in layer] == [7, 13, 25]
    assert of["classifier"] == 17


@pytest.mark.parametrize(
    ("name", "shared"), [("resnet18", 0), ("mobilenetv3_small_050", 9), ("efficientnet_b0", 16)]
)
def test_a_squeeze_and_no_residual_sum_shares_the_gates_of_the_layer_it_serves(
    name: str, shared: int
) -> None:
    rows = {row.layer: row for row in layer_gates(supernet(name))}
    found = [row for row in rows.values() if row.remark.startswith("shares the gates of")]
    assert len(found) == shared
    assert all(row.layer.endswith(".se.conv_reduce") for row in found)
    if name == "efficientnet_b0":
        assert all(row.remark.endswith("conv_pwl") or "blocks.0" in row.layer for row in found)
        assert rows["conv_stem"].remark == "reads the image"
        assert rows["blocks.1.0.conv_dw"].remark.startswith("grouped")
