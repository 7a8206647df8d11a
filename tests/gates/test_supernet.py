"""Gates in place: the traps of swapping layers, groups, and the three states of a gate."""

from collections.abc import Callable

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
    per_gate,
    relaxed,
)
from pgnas_cli.slimming import slim

from ..networks import random_keep, seeded, tiny


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


def test_a_network_is_gated_once() -> None:
    network = gated(nn.Conv2d(4, 4, 3))
    with pytest.raises(PgnasError, match="a network is gated once"):
        make_concrete_(network, (3, 8, 8))


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
    x = torch.randn(2, 1, 8, 8, generator=seeded())
    with masked(network, keep):
        inside = network.eval()(x)
    assert not torch.equal(network(x), inside)


@pytest.mark.parametrize("use", [masked, slim])
@pytest.mark.parametrize(
    "keep",
    [torch.ones(3, dtype=torch.bool), torch.ones(10_000, dtype=torch.bool), torch.ones(512),
     torch.ones(()), torch.ones(2, 512), [True]],
    ids=lambda keep: str(getattr(keep, "shape", keep)),
)  # fmt: skip
def test_what_is_no_candidate_is_refused(use: Callable[..., object], keep: object) -> None:
    with pytest.raises(PgnasError, match=r"a candidate is a bool tensor \(512,\), this is "):
        use(tiny(), keep)
    with pytest.raises(PgnasError, match="Linear has no gates"):
        use(nn.Linear(2, 2), keep)


def test_only_a_mask_can_have_a_row_for_each_image() -> None:
    rows = torch.ones(2, 512, dtype=torch.bool)
    with masked(tiny(), rows):
        pass
    with pytest.raises(PgnasError, match=r"this is torch.bool \(2, 512\)"):
        slim(tiny(), rows)


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


def test_draw_uses_the_learned_probabilities_unless_told_otherwise() -> None:
    network = tiny()
    bank = gates(network)
    bank.drop_logit.data[:] = -30.0
    bank.drop_logit.data[0] = 30.0
    keep = draw(network, generator=seeded())
    assert not keep[bank.group == 0].any()
    assert keep[bank.group != 0].all()
    assert torch.allclose(drop_probabilities(network)[1:], torch.zeros(16), atol=1e-6)


@pytest.mark.parametrize("drop", [0, 0.3, 1.0])
def test_one_number_is_the_drop_probability_of_every_gate(drop: float) -> None:
    network = tiny()
    keep = draw(network, generator=seeded(), drop_probability=drop)
    same = torch.full((17,), float(drop))
    assert torch.equal(keep, draw(network, generator=seeded(), drop_probability=same))
    tolerance = 4 * (drop * (1 - drop) / 512) ** 0.5
    assert abs(float(keep.float().mean()) - (1 - drop)) <= tolerance


def test_values_of_groups_are_repeated_for_their_gates() -> None:
    values = torch.arange(64)
    assert torch.equal(per_gate(tiny(groups="8"), values), values.repeat_interleave(8))


@pytest.mark.parametrize("wrong", [torch.full((3,), 0.5), torch.full((17,), float("nan")), 1.5])
def test_other_drop_probabilities_are_refused(wrong: Tensor | float) -> None:
    with pytest.raises(PgnasError, match=r"is a number, or a tensor \(17,\), from 0 to 1"):
        draw(tiny(), generator=seeded(), drop_probability=wrong)
