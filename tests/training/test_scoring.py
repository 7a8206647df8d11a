"""Scores are counts of errors, whatever shares a batch."""

import pytest
import torch

from pgnas_cli.data import ImageData, Preprocessing
from pgnas_cli.gates import masked
from pgnas_cli.slimming import slim
from pgnas_cli.training import BATCH, Batches, Score, score
from pgnas_cli.training.scoring import predictions

from ..networks import random_keep, seeded, tiny
from .conftest import CPU

PLAIN = Preprocessing(1, 8, (0.5,), (0.25,))


def some_pixels(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 8, 8), generator=seeded(), dtype=torch.uint8)


def test_a_pair_does_not_depend_on_the_images_around_it() -> None:
    network = tiny().to(memory_format=torch.channels_last)
    pixels = some_pixels(150)
    shuffled = torch.randperm(150, generator=seeded(1))
    with masked(network, random_keep(network, 0.3)):
        straight = predictions(network, Batches(pixels, PLAIN, CPU), 150)
        other = predictions(network, Batches(pixels[shuffled], PLAIN, CPU), 150)
    assert torch.equal(straight[shuffled], other)


def test_many_images_are_normalised_each_time_with_the_same_outcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = some_pixels(BATCH + 3)
    once = Batches(pixels, PLAIN, CPU)
    monkeypatch.setattr("pgnas_cli.training.scoring.RESIDENT", 0)
    again = Batches(pixels, PLAIN, CPU)
    assert (once.ready is None, again.ready is None) == (False, True)
    for _ in range(2):
        for a, b in zip(once, again, strict=True):
            assert torch.equal(a, b)


def test_score_counts_the_errors_and_names_the_images(digits: ImageData) -> None:
    part = digits.test
    assert part is not None
    assert part.pixels is not None
    smaller = slim(tiny(), random_keep(tiny(), 0.2))
    found = score(smaller, part, digits.preprocessing)
    with torch.no_grad():
        logits = smaller(digits.preprocessing.normalised(part.pixels))
    wrong = (logits.argmax(1) != part.labels).nonzero().flatten().tolist()
    assert found == Score(len(wrong), len(part), tuple(wrong))
    assert found.error == len(wrong) / 359
