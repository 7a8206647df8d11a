"""What an order of candidates is worth: intervals, paired tests, resampled images.

Candidates are judged on the same images, so they are compared image by image: what only one of two
gets wrong decides, what both get wrong says nothing.
"""

from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor

from .race import places

RESAMPLES = 1000
LEVEL = 0.05  # below this p a difference is no noise


@dataclass(frozen=True)
class Confidence:
    """Of the first rows of a ranking, best first."""

    p_values: tuple[float, ...]  # of each against the first; 1 for the first
    first_again: float  # share of resamplings of the images in which the first stays first
    order_again: float  # in which all rows keep their order


def interval(errors: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of an error."""
    found = binomtest(errors, images).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def paired_p(first: Tensor, second: Tensor) -> float:
    """McNemar's exact two-sided test that two candidates err equally often.

    `first`, `second`: which of the same images each gets wrong, bool (images,).
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def most_errors_within_noise(errors: int, images: int) -> int:
    """No candidate with more errors than this can pass `paired_p` >= `LEVEL` against `errors`.

    At d errors more, p is largest where as many images as possible are wrong for one alone: all
    `errors` of the one, d + `errors` of the other, if there are as many.
    """
    for more in range(images - errors, 0, -1):
        alone = min(errors, images - errors - more)
        if float(binomtest(alone, 2 * alone + more).pvalue) >= LEVEL:
            return errors + more
    return errors


def expected_error(best: int, unselected: Tensor) -> float:
    """Error to expect on other images of the candidate that was chosen for its `best` errors here.

    The best of many owes part of its lead to these very images. `unselected`, bool (rows, images),
    says which images some candidates get wrong that were not chosen for it. Two-way analysis of
    variance (candidate, image) splits the spread of their errors into what other images would show
    again and what they would not; the lead over their mean is shrunk by the first share, on the
    scale of square roots, where the noise of a count does not depend on its height.
    """
    rows, images = unselected.shape
    wrong = unselected.double()
    level = float(wrong.mean())
    if rows < 2 or images < 2 or level == 0:
        return best / images
    own, shared = wrong.mean(1, keepdim=True), wrong.mean(0, keepdim=True)
    between = 4 * level * images * float(own.sqrt().var())
    residual = float((wrong - own - shared + level).square().sum()) / ((rows - 1) * (images - 1))
    again = max(0.0, 1 - residual / between) if between > 0 else 0.0
    middle = float(own.sqrt().mean())
    return float((middle + again * ((best / images) ** 0.5 - middle)) ** 2)


def confidence(
    wrong: Tensor,  # bool (rows, images), best row first
    place: Tensor,  # int64 (rows,): breaks ties, smaller first
    *,
    generator: torch.Generator,
) -> Confidence:
    """How sure the order of these rows is. The bootstrap draws as many images with replacement."""
    rows, images = wrong.shape
    drawn = torch.randint(images, (RESAMPLES, images), generator=generator)
    times = torch.zeros(RESAMPLES, images, dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones_like(times))
    errors = (times @ wrong.double().T).long()  # (resamples, rows)
    order = (errors * rows + places(place)).argsort(1)
    return Confidence(
        tuple(1.0 if i == 0 else paired_p(wrong[0], wrong[i]) for i in range(rows)),
        float((order[:, 0] == 0).double().mean()),
        float((order == torch.arange(rows)).all(1).double().mean()),
    )
