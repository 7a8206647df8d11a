"""Where a classifier errs: confusion matrix, calibration, the worst mistakes, what changed."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import torch
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

BINS = 15  # of the confidence, as in Guo et al. 2017, "On Calibration of Modern Neural Networks"
MOST_MISTAKES = 2000  # that are kept by name
_ORDERED = 200  # classes up to which the leaves of the clustering are put into the best order


@dataclass(frozen=True)
class Mistake:
    """An image that a network errs on."""

    image: int  # its position in the test split
    file: str  # its path below the data folder; where images are no files, its name
    true: int  # position of its class
    said: int  # position of the predicted class
    confidence: float  # probability of the predicted class, in [0, 1]


@dataclass(frozen=True)
class Bin:
    """Images whose confidence lies in one of `BINS` equal parts of [0, 1]."""

    images: int
    right: int
    confidence: float  # mean; 0 without images


@dataclass(frozen=True)
class Answers:
    """What a network answers on labelled images."""

    confused: tuple[tuple[int, int, int], ...]  # (true, said, images), the errors alone
    bins: tuple[Bin, ...]
    mistakes: tuple[Mistake, ...]  # most confident first, `MOST_MISTAKES` of them

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: mean |accuracy - confidence| of the bins, in [0, 1]."""
        images = sum(part.images for part in self.bins)
        gaps = (abs(part.right - part.images * part.confidence) for part in self.bins)
        return sum(gaps) / images


def answers_of(
    labels: Tensor,  # int64 (images,)
    said: Tensor,  # int64 (images,): the predicted class
    confidence: Tensor,  # float64 (images,), in [0, 1]: its probability
    classes: int,
    file: Callable[[int], str],  # what to call an image, by its position
) -> Answers:
    """Count the answers of a network."""
    wrong = (said != labels).nonzero()[:, 0]
    pairs, images = (labels[wrong] * classes + said[wrong]).unique(return_counts=True)
    columns = pairs.div(classes, rounding_mode="floor"), pairs % classes, images
    confused = zip(*(column.tolist() for column in columns), strict=True)
    surest = wrong[confidence[wrong].argsort(descending=True, stable=True)][:MOST_MISTAKES]
    mistakes = (
        Mistake(i, file(i), int(labels[i]), int(said[i]), round(float(confidence[i]), 6))
        for i in surest.tolist()
    )
    return Answers(tuple(confused), reliability(said == labels, confidence), tuple(mistakes))


def confusion(labels: Tensor, said: Tensor, classes: int) -> Tensor:
    """Images by true and predicted class, int64 (classes, classes); the diagonal is right."""
    return torch.bincount(labels * classes + said, minlength=classes**2).view(classes, classes)


def reliability(right: Tensor, confidence: Tensor) -> tuple[Bin, ...]:
    """The images of each bin of the confidence; a bin includes its upper bound.

    `right` is bool and `confidence` float64, both (images,).
    """
    places = (confidence * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    images, hits = (torch.bincount(p, minlength=BINS) for p in (places, places[right]))
    sums = torch.bincount(places, weights=confidence, minlength=BINS)
    means = (sums / images.clamp(min=1)).clamp(0, 1)
    return tuple(map(Bin, images.tolist(), hits.tolist(), means.tolist()))


def matrix_of(answers: Answers, right: Sequence[int]) -> Tensor:
    """The confusion matrix of `confusion`, from the right answers of each class."""
    matrix = torch.diag(torch.tensor(right, dtype=torch.int64))
    for true, said, images in answers.confused:
        matrix[true, said] = images
    return matrix


def neighbours(matrix: Tensor) -> list[int]:
    """An order of the classes in which those that are confused stand together.

    Average-linkage clustering; two classes are close where a large share of their images is given
    the other's name.
    """
    classes = len(matrix)
    shares = (matrix / matrix.sum(1, keepdim=True).clamp(min=1)).double().numpy()
    distance = 1 - (shares + shares.T) / 2
    np.fill_diagonal(distance, 0)
    if classes < 3 or not matrix.clone().fill_diagonal_(0).any():
        return list(range(classes))
    tree = linkage(squareform(distance), "average", optimal_ordering=classes <= _ORDERED)
    return leaves_list(tree).tolist()  # type: ignore[no-any-return]


def most_confused(confused: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """(true, said, images) with most images first."""
    return sorted(confused, key=lambda row: (-row[2], row[:2]))


def only_wrong(answers: Answers, right_elsewhere: Collection[int]) -> list[Mistake]:
    """The mistakes, most confident first, on images that another network gets right.

    `right_elsewhere`: positions of the images.
    """
    return [mistake for mistake in answers.mistakes if mistake.image in right_elsewhere]


def sane(answers: Answers, errors: Sequence[int], images: int) -> bool:
    """Whether answers can be: `errors` of each class, `images` of all."""
    classes, sums = len(errors), [0] * len(errors)
    for true, said, count in answers.confused:
        if not (0 <= true < classes and 0 <= said < classes and true != said and count > 0):
            return False
        sums[true] += count
    return (
        images > 0
        and sums == list(errors)
        and len({row[:2] for row in answers.confused}) == len(answers.confused)
        and len(answers.bins) == BINS
        and all(0 <= b.right <= b.images and 0 <= b.confidence <= 1 for b in answers.bins)
        and sum(part.images for part in answers.bins) == images
        and all(_sane_mistake(mistake, classes, images) for mistake in answers.mistakes)
        and len({mistake.image for mistake in answers.mistakes}) == len(answers.mistakes)
    )


def _sane_mistake(mistake: Mistake, classes: int, images: int) -> bool:
    """A file may be shown: it has to lie below the data folder."""
    path = PurePosixPath(mistake.file)
    return (
        0 <= mistake.image < images
        and 0 <= mistake.true < classes
        and 0 <= mistake.said < classes
        and mistake.true != mistake.said
        and 0 <= mistake.confidence <= 1
        and not path.is_absolute()
        and ".." not in path.parts
    )
