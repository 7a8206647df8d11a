"""Uncertainty of a ranking: confidence intervals, paired tests, bootstrap over images.

Candidates are evaluated on the same images, so they are compared image by image: what only one of
two gets wrong decides, what both get wrong says nothing.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from ..units import percent
from .race import places

RESAMPLES = 1000


@dataclass(frozen=True)
class Confidence:
    """Of the first rows of a ranking, best first."""

    p_values: tuple[float, ...]  # of each against the first; 1 for the first
    first_again: float  # chance that the first stays first on other images, as many
    order_again: float  # that all rows keep their order


def interval(errors: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of an error."""
    found = binomtest(errors, images).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def error_cells(errors: int, images: int) -> tuple[str, str]:
    """An error and its 95 % interval, as tables show them."""
    low, high = interval(errors, images)
    return percent(errors / images), f"{100 * low:.1f}-{100 * high:.1f}"


def like_guessing(errors: int, labels: Tensor) -> str:
    """A warning where an error is no less than that of naming the largest class; or "".

    `labels`: int64 (images,), of the images that the errors are counted on.
    """
    low, high = interval(errors, len(labels))
    chance = 1 - int(labels.bincount().max()) / len(labels)
    if high < chance or chance == 0:
        return ""
    where = "lies above" if low > chance else "contains"
    return (
        f"its 95 % interval, {100 * low:.1f} to {percent(high)}, {where} the error of naming one"
        f" class for all, {percent(chance)}: more epochs, a larger size or more images may help"
    )


def paired_p(first: Tensor, second: Tensor) -> float:
    """McNemar's exact two-sided test that two candidates err equally often.

    `first`, `second`: which of the same images each gets wrong, bool (images,).
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def expected_error(best: int, unselected: Tensor) -> float:
    """Error to expect on other images of the candidate that was chosen for its `best` errors here.

    The best of many owes part of its lead to these very images. `unselected`, bool (rows, images),
    says which images some candidates get wrong that were not chosen for it. Two-way analysis of
    variance (candidate, image) splits the spread of their errors into what other images would show
    again and what they would not; the lead over their mean is shrunk by the first share, on the
    scale of square roots, where the noise of a count depends less on its height.
    """
    rows, images = unselected.shape
    wrong = unselected.double()
    level = float(wrong.mean())
    if rows < 2 or images < 2 or level == 0:
        return best / images
    own, shared = wrong.mean(1, keepdim=True), wrong.mean(0, keepdim=True)
    between = images * float(own.var())
    residual = float((wrong - own - shared + level).square().sum()) / ((rows - 1) * (images - 1))
    again = max(0.0, 1 - residual / between) if between > 0 else 0.0
    return float((level**0.5 + again * ((best / images) ** 0.5 - level**0.5)) ** 2)


def confidence(
    wrong: Tensor,  # bool (rows, images), best row first
    place: Tensor,  # int64 (rows,): breaks ties, smaller first
    *,
    network: Tensor | None = None,  # int64 (rows,): equal where rows are one; None: all differ
    randomness: np.random.Generator,
) -> Confidence:
    """How sure the order of these rows is.

    Other images, as many, are drawn from what these suggest: a Bayesian bootstrap says how frequent
    each kind of image may be, a multinomial draw which of them come. To the images, each network
    adds half a one that it alone gets wrong (Jeffreys' prior): networks that err on the same
    images, or on none, are not told apart by these, but may be by others. Rows of one network err
    alike on all images.
    """
    rows, images = wrong.shape
    network = torch.arange(rows) if network is None else network
    alone = (network[:, None] == network.unique()).numpy()  # (rows, networks)
    outcome = wrong.numpy()
    telling = outcome[:, outcome.any(0) & ~outcome.all(0)]
    kinds = np.concatenate([telling, alone, np.zeros((rows, 1), bool)], 1)
    alike = max(images - telling.shape[1], 1)
    shape = np.concatenate([np.ones(telling.shape[1]), np.full(alone.shape[1], 0.5), [alike]])
    chances = randomness.standard_gamma(shape, (RESAMPLES, len(shape)))
    drawn = randomness.multinomial(images, chances / chances.sum(1, keepdims=True))
    errors = torch.from_numpy(drawn @ kinds.T.astype(np.int64))  # (resamples, rows)
    order = (errors * rows + places(place)).argsort(1)
    return Confidence(
        tuple(1.0 if i == 0 else paired_p(wrong[0], wrong[i]) for i in range(rows)),
        float((order[:, 0] == 0).double().mean()),
        float((order == torch.arange(rows)).all(1).double().mean()),
    )
