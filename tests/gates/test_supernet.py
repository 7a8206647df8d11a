"""Gates in place: the traps of swapping layers, groups, and the three states of a gate."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgnas_cli import create_supernet
from pgnas_cli.errors import PgnasError
from pgnas_cli.gates import (
    decided,
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

from ..networks import Five, random_keep, seeded, tiny


class SamePadding(nn.Conv2d):
    """A convolution with a forward of its own, like timm's Conv2dSame."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (1, 1, 1, 1)))


def test_a_gated_layer_keeps_its_forward_hooks_parameters_and_keys() -> None:
    layer = SamePadding(16, 16, 3)
    layer.weight.requires_grad_(False)
    plain = Five(lambda m, x: m.b(x).mean((2, 3)), b=layer)
    x = torch.randn(2, 3, 8, 8, generator=seeded())
    before, keys, weight = plain(x), set(plain.state_dict()), layer.weight
    seen = []
    layer.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    network = make_concrete_(plain, (3, 8, 8))
    seen.clear()
    assert torch.equal(network(x), before)
    assert seen == [(2, 16, 8, 8)]
    assert type(network.b).__name__ == "ConcreteSamePadding"
    assert network.b.weight is weight and not weight.requires_grad
    assert set(network.state_dict()) == keys | {"gates.drop_logit"}
    with pytest.raises(PgnasError, match="a network is gated once"):
        make_concrete_(network, (3, 8, 8))


def test_one_module_under_two_names_stays_one() -> None:
    def twice(m: Any, x: Tensor) -> Tensor:
        return m.alias(m.a(x).relu()).relu().mean((2, 3))

    layer = nn.Conv2d(16, 16, 1)
    network = make_concrete_(Five(twice, a=layer, alias=layer), (3, 8, 8))
    assert network.a is network.alias
    assert gates(network).count == 32  # the layer and the head
    with masked(network, random_keep(network, 0.5)):
        assert network.alias.keep is network.a.keep


@pytest.mark.parametrize(("groups", "count"), [("layer", 17), ("channel", 512), ("8", 64)])
def test_groups_can_be_layers_channels_or_blocks_of_channels(groups: str, count: int) -> None:
    network = tiny(groups=groups)
    bank = gates(network)
    widths = torch.tensor([g.stop - g.start for g in bank.groups])
    assert (len(widths), int(widths.sum()), bank.count) == (count, 512, 512)
    values = torch.arange(count)
    assert torch.equal(per_gate(network, values), values.repeat_interleave(widths))


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
    x = torch.randn(2, 1, 8, 8, generator=seeded())
    with masked(network, random_keep(network, 0.5)):
        inside = network.eval()(x)
    assert not torch.equal(network(x), inside)


@pytest.mark.parametrize("use", [masked, slim])
def test_what_is_no_candidate_is_refused(use: Callable[..., object]) -> None:
    network, rows = tiny(), torch.ones(2, 512, dtype=torch.bool)
    wrong = [torch.ones(3, dtype=torch.bool), torch.ones(10_000, dtype=torch.bool),
             torch.ones(512), torch.ones(()), torch.ones(2, 512), [True]]  # fmt: skip
    for keep in wrong if use is masked else [*wrong, rows]:
        with pytest.raises(PgnasError, match=r"^`keep` is .*; possible: a bool tensor \(512,\)"):
            use(network, keep)
    with pytest.raises(PgnasError, match="Linear has no gates"):
        use(nn.Linear(2, 2), rows[0])
    with masked(network, rows):  # a mask can have a row for each image
        pass


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
    assert torch.equal(draw(network, generator=seeded()), bank.group != 0)
    assert torch.allclose(drop_probabilities(network)[1:], torch.zeros(16), atol=1e-6)
    for drop in (0, 0.3, 1.0):
        keep, same = (
            draw(network, generator=seeded(), drop_probability=p)
            for p in (drop, torch.full((17,), float(drop)))
        )
        assert torch.equal(keep, same)
        tolerance = 4 * (drop * (1 - drop) / 512) ** 0.5
        assert abs(float(keep.float().mean()) - (1 - drop)) <= tolerance
    for wrong in (torch.full((3,), 0.5), torch.full((17,), float("nan")), 1.5):
        with pytest.raises(PgnasError, match=r"is a number, or a tensor \(17,\), from 0 to 1"):
            draw(network, generator=seeded(), drop_probability=wrong)


def test_layers_are_decided_where_every_p_is_0_or_1() -> None:
    network = create_supernet("multibranch-tiny", 10, input_shape=(1, 8, 8), groups="channel")
    bank = gates(network)
    first, second, third = list(bank.spans)[:3]
    with torch.no_grad():
        bank.drop_logit.zero_()
        for layer, logits in ((first, [-torch.inf]), (second, [torch.inf, -torch.inf])):
            own = bank.places_of(layer)
            bank.drop_logit[bank.group[own]] = torch.tensor(logits).repeat(len(own) // len(logits))
        bank.drop_logit[bank.group[bank.places_of(third)][1:]] = -torch.inf
    found = decided(network)
    assert set(found) == {first, second}
    assert found[first] is None
    assert found[second].tolist() == [False, True] * (len(bank.places_of(second)) // 2)
