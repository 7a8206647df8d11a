"""Scores are counts of errors, whatever shares a batch."""

import pytest
import torch

from pgnas_cli.data import ImageData, Preprocessing
from pgnas_cli.gates import masked
from pgnas_cli.slimming import slim
from pgnas_cli.training import Batches, Score, score
from pgnas_cli.training.scoring import predictions

from ..networks import random_keep, seeded, tiny
from .conftest import CPU

PLAIN = Preprocessing(1, 8, (0.5,), (0.25,))


def test_a_pair_does_not_depend_on_the_images_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on whether images are normalised once for all, or each time."""
    network = tiny().to(memory_format=torch.channels_last)
    pixels = torch.randint(0, 256, (150, 1, 8, 8), generator=seeded(), dtype=torch.uint8)
    shuffled = torch.randperm(150, generator=seeded(1))
    once, mixed = (Batches(p, PLAIN, CPU) for p in (pixels, pixels[shuffled]))
    monkeypatch.setattr("pgnas_cli.training.scoring.RESIDENT", 0)
    again = Batches(pixels[shuffled], PLAIN, CPU)
    assert (once.ready is None, again.ready is None) == (False, True)
    with masked(network, random_keep(network, 0.3)):
        straight = predictions(network, once, 150)
        for batches in (mixed, again, again):
            assert torch.equal(straight[shuffled], predictions(network, batches, 150))


def test_score_counts_the_errors_and_names_the_images(digits: ImageData) -> None:
    part = digits.test
    smaller = slim(tiny(), random_keep(tiny(), 0.2))
    found = score(smaller, part, digits.preprocessing)
    with torch.no_grad():
        logits = smaller(digits.preprocessing.normalised(part.pixels))
    wrong = (logits.argmax(1) != part.labels).nonzero().flatten().tolist()
    assert found == Score(len(wrong), len(part), tuple(wrong))
    assert found.error == len(wrong) / 359
