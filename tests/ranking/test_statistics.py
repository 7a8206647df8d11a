"""Intervals, paired tests and resampling against closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import dirichlet_multinomial
from torch import Tensor

from pgnas_cli.ranking import interval, paired_p
from pgnas_cli.ranking.statistics import confidence, expected_error


def bits(text: str) -> Tensor:
    return torch.tensor([c == "x" for c in text])


def test_interval_is_wilsons() -> None:
    low, high = interval(7, 360)
    p, n, z = 7 / 360, 360, 1.959963984540054
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert low == pytest.approx(centre - half)
    assert high == pytest.approx(centre + half)


def test_the_paired_test_counts_only_what_one_of_two_gets_wrong() -> None:
    first, second = bits("xxxxx....." + "x" * 9), bits("....." + "....x" + "x" * 9)
    # 5 images wrong for the first alone, 1 for the second alone: twice the tail of 6 coins.
    expected = 2 * sum(math.comb(6, k) for k in (0, 1)) / 2**6
    assert paired_p(first, second) == pytest.approx(expected)
    assert paired_p(second, first) == pytest.approx(expected)
    assert paired_p(first, first) == 1.0


def test_a_first_that_errs_nowhere_stays_first() -> None:
    wrong = torch.stack([bits("." * 40), bits("x" * 20 + "." * 20), bits("x" * 40)])
    found = confidence(wrong, torch.arange(3), randomness=np.random.default_rng(0))
    assert found.first_again > 0.99
    assert found.order_again > 0.99
    assert found.p_values[0] == 1.0
    assert found.p_values[2] < found.p_values[1] < 0.01


@pytest.mark.parametrize(("first", "second", "images"), [(1, 2, 30), (0, 0, 100), (5, 9, 60)])
def test_how_often_the_first_stays_first_is_a_dirichlet_multinomial_sum(
    first: int, second: int, images: int
) -> None:
    """Images that one alone gets wrong, as Jeffreys' prior predicts them; the first wins ties."""
    rest = images - first - second
    wrong = torch.stack([bits("x" * first + "." * (images - first)),
                         bits("." * first + "x" * second + "." * rest)])  # fmt: skip
    found = confidence(wrong, torch.tensor([0, 1]), randomness=np.random.default_rng(0))
    expected = sum(
        dirichlet_multinomial.pmf([a, b, images - a - b], [first + 0.5, second + 0.5, rest], images)
        for a in range(images + 1)
        for b in range(a, images + 1 - a)
    )
    assert found.first_again == pytest.approx(expected, abs=0.04)
    assert found.order_again == found.first_again


def test_rows_that_err_on_the_same_images_may_part_on_others() -> None:
    alike = bits("x...").expand(3, 4)
    found = confidence(alike, torch.tensor([1, 5, 9]), randomness=np.random.default_rng(0))
    assert 0.1 < found.order_again < found.first_again < 0.95
    turned = confidence(alike, torch.tensor([9, 5, 1]), randomness=np.random.default_rng(0))
    assert turned.order_again < found.order_again  # where they tie, size decides


def test_copies_of_a_network_change_nothing_of_what_is_said_of_the_others() -> None:
    rows = torch.stack([bits("xx......"), bits(".xx....."), bits("...xxx..")])
    pick, alone = torch.tensor([0, 0, 1, 1, 1, 2]), np.random.default_rng
    once = confidence(rows, torch.arange(3), randomness=alone(0))
    found = confidence(rows[pick], torch.arange(6), network=pick, randomness=alone(0))
    assert (found.first_again, found.order_again) == (once.first_again, once.order_again)
    assert found.p_values == tuple(once.p_values[i] for i in pick)
    # Of (a, b, a), a and b alike in size: the order holds where a and b err equally often, alone.
    split = confidence(
        rows[[0, 1, 0]], torch.tensor([0, 1, 2]), network=torch.tensor([0, 1, 0]),
        randomness=alone(0),
    )  # fmt: skip
    assert 0 < split.order_again < split.first_again < 1
    same = confidence(rows[[0, 0]], torch.arange(2), network=pick[:2], randomness=alone(0))
    assert same == type(same)((1.0, 1.0), 1.0, 1.0)


@pytest.mark.parametrize("spread", [0.0, 0.008, 0.016])
def test_the_expected_error_of_the_best_is_what_it_has_on_other_images(spread: float) -> None:
    """200 simulated choices of the best of 300; hard images are hard for all candidates."""
    g = torch.Generator().manual_seed(0)
    said, seen, truth = [], [], []
    for _ in range(200):
        skill = 0.10 + spread * torch.randn(300, generator=g)
        hardness = 0.5 * torch.randn(400, generator=g)
        chance = (skill[:, None] * hardness.exp() / hardness.exp().mean()).clamp(0, 1)
        wrong = torch.rand(300, 400, generator=g) < chance
        best = int(wrong.sum(1).argmin())
        said.append(expected_error(int(wrong[best].sum()), wrong[:16]))
        seen.append(float(wrong[best].double().mean()))
        truth.append(float(chance[best].mean()))
    mean = {name: sum(of) / 200 for name, of in (("said", said), ("seen", seen), ("truth", truth))}
    assert -0.005 < mean["said"] - mean["truth"] < 0.008  # where it errs it is careful
    assert mean["seen"] < mean["truth"] - 0.005


def test_one_candidate_was_not_chosen_so_its_error_stands() -> None:
    assert expected_error(3, bits("xxx" + "." * 27)[None]) == 0.1
    assert expected_error(1, bits("x...").expand(5, 4)) == 0.25  # all alike
