"""Gates in place: the traps of swapping layers, groups, and the three states of a gate."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgnas_cli.errors import PgnasError
from pgnas_cli.gates import (
    draw,
    drop_probabilities,
    gates,
    kl,
    make_concrete_,
    masked,
    opened,
    relaxed,
)
from pgnas_cli.gates.prior import squared_norms
from pgnas_cli.registry.build import create_supernet

from ..networks import random_keep, tiny


class SamePadding(nn.Conv2d):
    """A convolution with a forward of its own, like timm's Conv2dSame."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (1, 1, 1, 1)))


class Trunk(nn.Module):
    """A stem and a layer to be swapped, called as often as asked."""

    def __init__(self, layer: nn.Module, calls: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layer = layer
        self.alias = layer
        self.calls = calls

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for index in range(self.calls):
            x = F.relu((self.layer if index % 2 == 0 else self.alias)(x))
        return x.mean((2, 3))


def gated(layer: nn.Module, calls: int = 1) -> nn.Module:
    return make_concrete_(Trunk(layer, calls), (3, 8, 8))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_subclass_keeps_its_own_forward() -> None:
    network = Trunk(SamePadding(4, 4, 3))
    x = torch.randn(2, 3, 8, 8, generator=seeded())
    before = network(x)
    make_concrete_(network, (3, 8, 8))
    assert type(network.layer).__name__ == "ConcreteSamePadding"
    assert torch.equal(network(x), before)


def test_one_module_under_two_names_stays_one() -> None:
    network = gated(nn.Conv2d(4, 4, 3, padding=1), calls=2)
    assert network.layer is network.alias
    assert gates(network).count == 4
    keep = torch.tensor([True, False, True, True])
    with masked(network, keep):
        assert network.alias.keep is network.layer.keep


def test_hooks_survive() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1)
    seen = []
    layer.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    network = gated(layer)
    seen.clear()
    network(torch.zeros(1, 3, 8, 8))
    assert seen == [(1, 4, 8, 8)]


def test_frozen_weights_stay_frozen() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1)
    layer.weight.requires_grad_(False)
    network = gated(layer)
    assert not network.layer.weight.requires_grad
    assert network.layer.weight is layer.weight


def test_state_dict_keys_survive_and_only_the_drop_logits_are_new() -> None:
    plain = Trunk(nn.Conv2d(4, 4, 3, padding=1))
    keys = set(plain.state_dict())
    make_concrete_(plain, (3, 8, 8))
    assert set(plain.state_dict()) - keys == {"gates.drop_logit"}
    assert keys <= set(plain.state_dict())


def test_a_bare_convolution_as_the_whole_network_is_an_error_that_says_why() -> None:
    with pytest.raises(PgnasError, match="Conv2d does not give one row of logits per image"):
        make_concrete_(nn.Conv2d(3, 4, 3), (3, 8, 8))


def test_a_network_is_gated_once() -> None:
    network = gated(nn.Conv2d(4, 4, 3))
    with pytest.raises(PgnasError, match="a network is gated once"):
        make_concrete_(network, (3, 8, 8))


def test_grouped_and_depthwise_convolutions_and_the_stem_carry_no_gate() -> None:
    for layer in (nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 8, 3, groups=4)):
        with pytest.raises(PgnasError, match="no layer that can carry a gate"):
            gated(layer)


def test_a_network_that_branches_on_values_is_named_before_any_training() -> None:
    class Branching(Trunk):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    with pytest.raises(PgnasError, match="Branching cannot be traced: behind step gt"):
        make_concrete_(Branching(nn.Conv2d(4, 4, 3)), (3, 8, 8))


def test_a_concatenation_gives_one_group_per_segment() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 3, padding=1)
            self.grow = nn.Conv2d(6, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(10)
            self.mix = nn.Conv2d(10, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.mix(F.relu(self.norm(torch.cat([x, self.grow(x)], 1)))).mean((2, 3))

    found = gates(make_concrete_(Dense(), (3, 8, 8))).groups
    assert [(g.layer, g.start, g.stop) for g in found] == [
        ("grow", 0, 6),
        ("mix", 0, 6),
        ("mix", 6, 10),
    ]


@pytest.mark.parametrize(("groups", "count"), [("layer", 17), ("channel", 512), ("8", 64)])
def test_groups_can_be_layers_channels_or_blocks_of_channels(groups: str, count: int) -> None:
    bank = gates(tiny(groups=groups))
    assert len(bank.groups) == count
    assert bank.count == 512
    assert sum(g.stop - g.start for g in bank.groups) == 512


@pytest.mark.parametrize("groups", ["0", "-1", "three", "1.5"])
def test_other_groups_are_refused(groups: str) -> None:
    with pytest.raises(PgnasError, match="possible: layer, channel, or a number"):
        tiny(groups=groups)


def test_hidden_gates_sit_only_where_the_channel_has_one_reader() -> None:
    layers = {group.layer for group in gates(tiny(layers="hidden")).groups}
    assert layers == {f"blocks.{b}.branch{n}.3" for b in range(3) for n in (1, 2)}


def test_contexts_restore_the_state_before_even_after_an_error() -> None:
    network = tiny()
    x = torch.randn(2, 1, 8, 8, generator=seeded())
    whole = network(x)
    keep = random_keep(network, 0.5)
    with masked(network, keep):
        inside = network(x)
        with opened(network):
            assert torch.equal(network(x), whole)
        assert torch.equal(network(x), inside)
        with pytest.raises(ZeroDivisionError), masked(network, ~keep):
            raise ZeroDivisionError
        assert torch.equal(network(x), inside)
    assert torch.equal(network(x), whole)
    assert not torch.equal(inside, whole)


def test_evaluation_mode_does_not_open_the_gates() -> None:
    network = tiny().train()
    keep = random_keep(network, 0.5)
    with masked(network, keep):
        network.eval()
        x = torch.randn(2, 1, 8, 8, generator=seeded())
        inside = network(x)
    assert not torch.equal(network(x), inside)


def test_a_mask_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(PgnasError, match=r"bool tensor \(512,\), this is torch.bool \(3,\)"):
        masked(tiny(), torch.ones(3, dtype=torch.bool))


def test_every_weight_and_every_drop_logit_gets_a_gradient() -> None:
    network = tiny().train()
    x = torch.randn(16, 1, 8, 8, generator=seeded())
    with relaxed(network, batch=16, generator=seeded(), temperature=0.2):
        loss = F.cross_entropy(network(x), torch.arange(16) % 10)
    (loss + kl(network, l2=50.0, images=500_000)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert (gates(network).drop_logit.grad != 0).all()


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


def test_draw_uses_the_learned_probabilities_unless_told_otherwise() -> None:
    network = tiny()
    bank = gates(network)
    bank.drop_logit.data[:] = -30.0
    bank.drop_logit.data[0] = 30.0
    keep = draw(network, generator=seeded())
    assert not keep[bank.group == 0].any()
    assert keep[bank.group != 0].all()
    none = draw(network, generator=seeded(), drop_probability=torch.ones(17))
    assert not none.any()
    assert torch.allclose(drop_probabilities(network)[1:], torch.zeros(16), atol=1e-6)


def test_equal_seeds_give_equal_networks_and_others_do_not() -> None:
    a, b, c = (
        create_supernet("multibranch-tiny", 10, input_shape=(1, 8, 8), seed=s) for s in (3, 3, 4)
    )
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.head.weight, c.head.weight)


def test_building_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    create_supernet("multibranch-tiny", 10, input_shape=(1, 8, 8))
    assert torch.equal(torch.rand(3), expected)
