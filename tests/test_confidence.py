"""Intervals, paired tests and resampling against closed forms."""

import math

import pytest
import torch
from scipy.stats import binom, binomtest
from torch import Tensor

from pgnas_cli.confidence import (
    LEVEL,
    confidence,
    expected_error,
    interval,
    most_errors_within_noise,
    paired_p,
)


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
    wrong = torch.stack([bits("." * 20), bits("x" * 10 + "." * 10), bits("x" * 20)])
    found = confidence(wrong, torch.arange(3), generator=torch.Generator().manual_seed(0))
    assert found.first_again == 1.0
    assert found.order_again > 0.99
    assert found.p_values[0] == 1.0
    assert found.p_values[2] < found.p_values[1] < 0.01


def test_how_often_the_first_stays_first_is_a_binomial_tail() -> None:
    """Two rows that differ on three images of 30, two against one: a resampling is multinomial."""
    wrong = torch.stack([bits("x" + "." * 29), bits(".xx" + "." * 27)])
    found = confidence(wrong, torch.tensor([0, 1]), generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for a in range(31):  # draws of the image that the first gets wrong
        pa = binom.pmf(a, 30, 1 / 30)
        expected += pa * (1 - binom.cdf(a - 1, 30 - a, 2 / 29))
    assert found.first_again == pytest.approx(expected, abs=0.04)
    assert found.order_again == found.first_again


def test_ties_are_broken_by_size_as_in_the_ranking() -> None:
    alike = bits("x...").expand(3, 4)
    g = torch.Generator().manual_seed(0)
    assert confidence(alike, torch.tensor([1, 5, 9]), generator=g).order_again == 1.0
    assert confidence(alike, torch.tensor([5, 1, 9]), generator=g).order_again == 0.0


@pytest.mark.parametrize(("errors", "images"), [(0, 20), (3, 12), (7, 30), (12, 14), (5, 5)])
def test_no_table_with_more_errors_passes_and_one_with_as_many_does(
    errors: int, images: int
) -> None:
    """Every split of the errors into common ones and own ones."""
    most = most_errors_within_noise(errors, images)
    passing = set()
    for other in range(errors, images + 1):
        for common in range(max(0, errors + other - images), errors + 1):
            alone = errors - common, other - common
            p = binomtest(alone[0], sum(alone)).pvalue if sum(alone) else 1.0
            if p >= LEVEL:
                passing.add(other)
    assert max(passing) == most


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
    assert mean["said"] == pytest.approx(mean["truth"], abs=0.006)
    assert mean["seen"] < mean["truth"] - 0.005


def test_one_candidate_was_not_chosen_so_its_error_stands() -> None:
    assert expected_error(3, bits("xxx" + "." * 27)[None]) == 0.1
    assert expected_error(1, bits("x...").expand(5, 4)) == 0.25  # all alike
