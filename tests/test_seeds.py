"""Draws are functions of seed and purpose."""

import random

import torch

from pgnas_cli.seeds import derived_seed, generator, seeded_globals


def test_seeded_globals_restores_what_was_there() -> None:
    torch.manual_seed(3)
    random.seed(3)
    expected = torch.rand(2), random.random()
    torch.manual_seed(3)
    random.seed(3)
    with seeded_globals(11):
        torch.rand(5)
        random.random()
    assert torch.equal(torch.rand(2), expected[0])
    assert random.random() == expected[1]


def test_seeds_differ_by_purpose_and_by_each_coordinate() -> None:
    seeds = {
        derived_seed(s, purpose, *c)
        for s in (0, 1)
        for purpose in ("order", "gates")
        for c in ((), (0,), (1,), (0, 1), (1, 0), (11,), (1, 1))
    }
    assert len(seeds) == 28
    a, b = (torch.rand(3, generator=generator(0, "order", 5)) for _ in range(2))
    assert torch.equal(a, b)
