"""Interpretation against scikit-learn and plain loops."""

import csv
import dataclasses
import io
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor

from pgnas_cli.interpretation import (
    BINS,
    MOST_MISTAKES,
    Answers,
    Bin,
    Mistake,
    answers_of,
    confusion,
    matrix_of,
    most_confused,
    neighbours,
    only_wrong,
    reliability,
    sane,
)
from pgnas_cli.storage import csv_text

from .networks import seeded


def made_up(images: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, predicted classes, of which half are right, and confidences."""
    draw = seeded(seed)
    labels, other = (torch.randint(classes, (images,), generator=draw) for _ in range(2))
    said = torch.where(torch.rand(images, generator=draw) < 0.5, labels, other)
    return labels, said, torch.rand(images, generator=draw, dtype=torch.float64)


def answers(images: int, classes: int, seed: int = 0) -> Answers:
    return answers_of(*made_up(images, classes, seed), classes, lambda i: f"val/{i}.jpg")


@pytest.mark.parametrize(("images", "classes"), [(1, 2), (300, 5), (2000, 100)])
def test_the_confusion_matrix_is_that_of_scikit_learn_and_comes_back_from_the_errors(
    images: int, classes: int
) -> None:
    labels, said, _ = made_up(images, classes)
    expected = confusion_matrix(labels, said, labels=range(classes))
    assert np.array_equal(confusion(labels, said, classes).numpy(), expected)
    found = matrix_of(answers(images, classes), expected.diagonal().tolist())
    assert np.array_equal(found.numpy(), expected)


def test_bins_and_calibration_error_are_those_of_a_plain_loop() -> None:
    labels, said, confidence = made_up(500, 10)
    confidence[:3] = torch.tensor([0, 1 / BINS, 1])
    members: list[list[tuple[bool, float]]] = [[] for _ in range(BINS)]
    for right, sure in zip((labels == said).tolist(), confidence.tolist(), strict=True):
        (place,) = [k for k in range(BINS) if k / BINS < sure <= (k + 1) / BINS or (k == sure == 0)]
        members[place].append((right, sure))
    total = 0.0
    for one, rows in zip(reliability(labels == said, confidence), members, strict=True):
        right, sure = (sum(column) for column in zip(*rows, strict=True))
        assert (one.images, one.right) == (len(rows), right)
        assert one.confidence == pytest.approx(sure / len(rows))
        total += len(rows) / 500 * abs(right / len(rows) - sure / len(rows))
    found = answers_of(labels, said, confidence, 10, str)
    assert found.calibration_error == pytest.approx(total)


def test_a_calibration_error_is_zero_where_as_many_are_right_as_the_confidence_says() -> None:
    right = torch.arange(100) < 80
    for confidence, error in ((0.8, 0), (1.0, 0.2), (0.5, 0.3)):
        bins = reliability(right, torch.full((100,), confidence, dtype=torch.float64))
        assert Answers((), bins, ()).calibration_error == pytest.approx(error)


def test_the_worst_mistakes_are_those_with_the_highest_confidence() -> None:
    labels, said, confidence = made_up(6000, 7)
    wrong = [i for i in range(6000) if labels[i] != said[i]]
    assert len(wrong) > MOST_MISTAKES
    found = answers(6000, 7).mistakes
    expected = sorted(wrong, key=lambda i: -float(confidence[i]))[:MOST_MISTAKES]
    assert [one.image for one in found] == expected
    for one in found:
        assert (one.true, one.said) == (labels[one.image], said[one.image])
        assert one.file == f"val/{one.image}.jpg"
        assert one.confidence == pytest.approx(float(confidence[one.image]), abs=1e-6)


def test_what_changed_is_wrong_here_and_right_there() -> None:
    first, second = answers(300, 5), answers(300, 5, seed=1)
    theirs = {one.image for one in second.mistakes}
    found = only_wrong(first, set(range(300)) - theirs)
    assert [one.image for one in found] == [
        one.image for one in first.mistakes if one.image not in theirs
    ]
    assert 0 < len(found) < len(first.mistakes)


def test_classes_that_are_confused_stand_together() -> None:
    draw = seeded(3)
    for classes in (6, 20, 300):
        partner = torch.randperm(classes, generator=draw)
        matrix = 50 * torch.eye(classes, dtype=torch.int64)
        for a, b in partner.view(-1, 2).tolist():
            matrix[a, b] = matrix[b, a] = 20
        before = matrix.clone()
        order = neighbours(matrix)
        assert torch.equal(matrix, before)
        assert sorted(order) == list(range(classes))
        place = {label: at for at, label in enumerate(order)}
        assert all(abs(place[a] - place[b]) == 1 for a, b in partner.view(-1, 2).tolist())


@pytest.mark.parametrize(
    "matrix", [torch.eye(5), torch.zeros(4, 4), torch.tensor([[1, 2], [3, 4]])]
)
def test_without_confusion_classes_keep_their_order(matrix: Tensor) -> None:
    assert neighbours(matrix.long()) == list(range(len(matrix)))


def test_the_most_confused_pair_is_first() -> None:
    assert most_confused([(0, 1, 3), (2, 0, 9), (0, 2, 9)]) == [(0, 2, 9), (2, 0, 9), (0, 1, 3)]


def test_answers_that_cannot_be_are_found() -> None:
    good = answers(40, 3)
    errors = [sum(n for true, _, n in good.confused if true == c) for c in range(3)]
    assert sane(good, errors, 40)
    assert not sane(good, [*errors[:2], errors[2] + 1], 40)
    assert not sane(good, errors, 41)
    (true, said, images), *rest = good.confused
    worst, part = good.mistakes[0], good.bins[3]
    changed: list[dict[str, Any]] = [
        {"confused": ((true, true, images), *rest)},
        {"confused": ((true, 3, images), *rest)},
        {"confused": ((true, said, images - 1), (true, said, 1), *rest)},
        {"bins": good.bins[1:]},
        {"bins": (dataclasses.replace(part, right=part.images + 1), *good.bins[1:])},
        {"mistakes": (worst, worst)},
        *({"mistakes": (dataclasses.replace(worst, **{name: value}),)} for name, value in (
            ("file", "/etc/passwd"), ("file", "val/../../a.jpg"), ("confidence", 1.1),
            ("image", 40), ("said", -1), ("true", worst.said),
        )),
    ]  # fmt: skip
    assert not [
        change for change in changed if sane(dataclasses.replace(good, **change), errors, 40)
    ]
    assert not sane(Answers((), (Bin(0, 0, 0.0),) * BINS, ()), [], 0)
    assert isinstance(worst, Mistake)


def test_no_cell_of_a_table_is_a_formula() -> None:
    text = csv_text([("=1+1", "@a", "-b", "+c"), ("a,b", 'say "x"', "line\nbreak", 0.5)])
    first, second = csv.reader(io.StringIO(text))
    assert first == ["'=1+1", "'@a", "'-b", "'+c"]
    assert second == ["a,b", 'say "x"', "line\\nbreak", "0.5"]
