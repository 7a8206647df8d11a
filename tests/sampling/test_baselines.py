"""Baselines: as large as the posterior's own candidates, and nothing else of theirs."""

import pytest
import torch

from pgnas_cli.gates import drop_probabilities, gates
from pgnas_cli.progress import listening
from pgnas_cli.sampling import baseline_probabilities, draw_candidates, random_baseline
from pgnas_cli.sampling.baselines import other_size, permuted
from pgnas_cli.sizes import count, parameter_count

from ..listeners import Heard
from ..networks import seeded, settled, tiny


def test_permuted_probabilities_are_the_learned_ones_dealt_out_at_equal_size() -> None:
    network = tiny()
    gates(network).drop_logit.data = torch.linspace(-4, 2, 17)
    learned = drop_probabilities(network)
    dealt = baseline_probabilities(network, learned, "permuted", generator=seeded())
    assert not torch.equal(dealt.argsort(), learned.argsort())
    shift = dealt.logit().sort().values - learned.logit().sort().values
    assert (shift - shift.mean()).abs().max() < 1e-3
    level = baseline_probabilities(network, learned, "fixed", generator=seeded())
    assert level.unique().numel() == 1
    first, *others = (
        float(count(network, draw_candidates(p, network, 500, 1)).params.double().mean())
        for p in (learned, dealt, level)
    )
    assert others == pytest.approx([first, first], rel=0.05)


def test_baselines_keep_closed_what_was_cut_while_training() -> None:
    network = tiny(groups="channel")
    closed = settled(network)
    learned = drop_probabilities(network)
    for baseline in ("permuted", "fixed"):
        p = baseline_probabilities(network, learned, baseline, generator=seeded())
        assert torch.equal(p == 1, learned == 1)
    assert not torch.equal(permuted(learned, generator=seeded()), learned)
    assert not random_baseline(network, 60_000, 0)[closed].any()


@pytest.mark.parametrize("share", [0.7, 0.4])
def test_a_random_baseline_has_the_size_that_is_asked_for(share: float) -> None:
    network = tiny()
    gates(network).drop_logit.data = torch.linspace(-4, 2, 17)
    wanted = int(share * parameter_count(network))
    one, same, other = (random_baseline(network, wanted, seed) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    for keep in (one, other):
        assert int(count(network, keep[None]).params) == pytest.approx(wanted, rel=0.02)


def test_a_random_baseline_that_cannot_be_as_large_says_by_how_much() -> None:
    """No candidate has fewer parameters than that which keeps nothing."""
    network = tiny()
    nothing = torch.zeros(1, gates(network).count, dtype=torch.bool)
    least = int(count(network, nothing).params)
    for wanted, notes in (
        (least, []),
        (
            round(0.8 * least),
            ["note: the random baseline has 25.0 % more parameters than the best; no draw comes"
             " nearer"],
        ),
    ):  # fmt: skip
        with listening(heard := Heard()):
            keep = random_baseline(network, wanted, 0)
        assert int(count(network, keep[None]).params) == least
        assert heard.notes == notes


def test_sizes_of_two_in_a_hundred_apart_are_the_same() -> None:
    assert [other_size(params, 1000) for params in (980, 1000, 1020)] == ["", "", ""]
    assert other_size(979, 1000) == "2.1 % fewer parameters"
    assert other_size(1250, 1000) == "25.0 % more parameters"


@pytest.mark.parametrize("groups", ["layer", "channel"])
def test_every_random_baseline_of_a_fit_that_has_decided_is_as_large(groups: str) -> None:
    """p near 0 and 1: draws of one probability hardly differ, those of a permuted one do."""
    network = tiny(groups=groups)
    g = gates(network)
    g.drop_logit.data = 12 * torch.randn(len(g.groups), generator=seeded()).sign()
    sizes = count(network, draw_candidates(drop_probabilities(network), network, 20, 0)).params
    for seed, wanted in enumerate(sizes.tolist()):
        keep = random_baseline(network, wanted, seed)
        assert int(count(network, keep[None]).params) == pytest.approx(wanted, rel=0.02)
