"""The canonical evaluation, the order, and scores on the test split."""

import itertools

import pytest
import torch
from torch import nn

from pgnas_cli.data import Preprocessing, load_data
from pgnas_cli.evaluation import latencies
from pgnas_cli.gates import masked
from pgnas_cli.ranking import rank
from pgnas_cli.ranking.evaluator import Evaluator
from pgnas_cli.ranking.race import Race, places
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.sizes import Sizes, count
from pgnas_cli.slimming import slim
from pgnas_cli.training import BATCH, Batches, Score
from pgnas_cli.training import score as score_on_test
from pgnas_cli.training.scoring import predictions

from ..networks import random_keep, tiny

PLAIN = Preprocessing(1, 8, (0.5,), (0.25,))
CPU = torch.device("cpu")


def some_images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=g, dtype=torch.uint8)
    return pixels, torch.randint(0, 10, (count,), generator=g)


def sizes_of(params: list[int]) -> Sizes:
    values = torch.tensor(params)
    return Sizes(values, values, values)


def ordered(errors: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """The order of candidates that have all seen every image."""
    seen, hardness = torch.full_like(errors, 9), torch.linspace(0, 1, 10, dtype=torch.float64)
    return Race(
        torch.arange(9), places(params), len(params), seen, errors, hardness, torch.zeros(0, 1), []
    ).best()


def test_order_is_errors_then_parameters_then_id() -> None:
    errors = torch.tensor([2, 1, 1, 1, 0])
    params = torch.tensor([1, 9, 5, 5, 9])
    assert ordered(errors, params).tolist() == [4, 2, 3, 1, 0]


def test_order_agrees_with_sorting_tuples_for_every_small_table() -> None:
    for errors in itertools.product(range(2), repeat=3):
        for params in itertools.product(range(2), repeat=3):
            expected = sorted(range(3), key=lambda i: (errors[i], params[i], i))
            assert ordered(torch.tensor(errors), torch.tensor(params)).tolist() == expected


@pytest.mark.parametrize("images", [1, BATCH - 1, BATCH, BATCH + 1])
def test_errors_equal_a_plain_loop_over_single_images(images: int) -> None:
    network = tiny()
    pixels, labels = some_images(images)
    keep = draw_candidates(torch.full((17,), 0.3), network, 3, 0)
    found = rank(Evaluator(network, keep, pixels, labels, PLAIN, CPU), count(network, keep))
    mean, std = 0.5 * 255, 0.25 * 255
    for index in range(3):
        smaller = slim(network, keep[index])
        wrong = 0
        for pixel, label in zip(pixels, labels, strict=True):
            with torch.no_grad():
                logits = smaller((pixel[None].float() - mean) / std)
            wrong += int(logits.argmax() != label)
        assert int(found.errors[index]) == wrong
    assert found.images == images


def test_a_pair_does_not_depend_on_the_images_around_it() -> None:
    network = tiny().to(memory_format=torch.channels_last)
    pixels, _ = some_images(150)
    shuffled = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    with masked(network, random_keep(network, 0.3)):
        straight = predictions(network, Batches(pixels, PLAIN, CPU), 150)
        other = predictions(network, Batches(pixels[shuffled], PLAIN, CPU), 150)
    assert torch.equal(straight[shuffled], other)


def test_many_images_are_normalised_each_time_with_the_same_outcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels, _ = some_images(BATCH + 3)
    once = Batches(pixels, PLAIN, CPU)
    monkeypatch.setattr("pgnas_cli.training.scoring.RESIDENT", 0)
    again = Batches(pixels, PLAIN, CPU)
    assert (once.ready is None, again.ready is None) == (False, True)
    for _ in range(2):
        for a, b in zip(once, again, strict=True):
            assert torch.equal(a, b)


def test_ranking_leaves_the_gates_open() -> None:
    network = tiny()
    pixels, labels = some_images(10)
    keep = draw_candidates(torch.full((17,), 0.5), network, 2, 0)
    rank(Evaluator(network, keep, pixels, labels, PLAIN, CPU), count(network, keep))
    assert network.head.keep is None


def test_score_counts_the_errors_on_the_test_split() -> None:
    data = load_data("digits", seed=0)
    assert data.test is not None
    assert data.test.pixels is not None
    smaller = slim(tiny(), random_keep(tiny(), 0.2))
    found = score_on_test(smaller, data.test, data.preprocessing, device=CPU, workers=0)
    with torch.no_grad():
        logits = smaller(data.preprocessing.normalised(data.test.pixels))
    wrong = (logits.argmax(1) != data.test.labels).nonzero().flatten().tolist()
    assert found == Score(len(wrong), len(data.test), tuple(wrong))


def test_latency_of_a_larger_network_is_larger() -> None:
    def convolutions(width: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3))

    small, large = latencies(
        [convolutions(8), convolutions(96)], [(3, 32, 32)] * 2, batch=8, device=CPU, seconds=0.2
    )
    assert 0 < small < large
