"""The canonical evaluation against a plain loop, and the race on real networks."""

import pytest
import torch
from torch import Tensor

from pgnas_cli.data import Preprocessing, load_data
from pgnas_cli.gates import drop_probabilities, masked
from pgnas_cli.ranking import Evaluator, Race, finished, races
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.sizes import count, parameter_count
from pgnas_cli.slimming import slim
from pgnas_cli.training import BATCH

from ..networks import seeded, settled, tiny

PLAIN = Preprocessing(1, 8, (0.5,), (0.25,))
CPU = torch.device("cpu")


def on_noise(candidates: int, images: int) -> tuple[Evaluator, Tensor]:
    """An evaluator of random candidates on random images, and their parameters."""
    network = tiny()
    pixels = torch.randint(0, 256, (images, 1, 8, 8), generator=seeded(), dtype=torch.uint8)
    labels = torch.randint(0, 10, (images,), generator=seeded(1))
    keep = draw_candidates(torch.full((17,), 0.3), network, candidates, 0)
    return Evaluator(network, keep, pixels, labels, PLAIN, CPU), count(network, keep).params


def on_digits() -> tuple[Evaluator, Tensor]:
    """The same of 40 candidates on 70 held-out images."""
    part = load_data("digits", seed=0).held_out.subset(range(70))
    made, params = on_noise(40, 1)
    return Evaluator(made.network, made.keep, part.pixels, part.labels, PLAIN, CPU), params


def best(race: Race, top: int) -> list[tuple[int, int]]:
    return [(int(i), int(race.errors[i])) for i in race.best()[:top]]


@pytest.mark.parametrize("images", [1, BATCH - 1, BATCH, BATCH + 1])
def test_errors_equal_a_plain_loop_over_single_images(images: int) -> None:
    evaluator, params = on_noise(3, images)
    found = finished(evaluator, params)
    assert len(found.order) == images
    assert evaluator.network.head.keep is None  # the gates are open again
    for index, keep in enumerate(evaluator.keep):
        smaller = slim(evaluator.network, keep)
        wrong = 0
        for pixel, label in zip(evaluator.pixels, evaluator.labels, strict=True):
            with torch.no_grad():
                logits = smaller((pixel[None].float() - 0.5 * 255) / (0.25 * 255))
            wrong += int(logits.argmax() != label)
        assert int(found.errors[index]) == wrong


def test_what_is_left_of_a_network_ranks_as_the_masked_whole() -> None:
    network = tiny(groups="channel")
    settled(network)
    part = load_data("digits", seed=0).held_out.subset(range(70))
    assert part.pixels is not None
    keep = draw_candidates(drop_probabilities(network), network, 12, 0)
    evaluator = Evaluator(network, keep, part.pixels, part.labels, PLAIN, CPU)
    assert parameter_count(evaluator.network) < 0.9 * parameter_count(network)
    errors = finished(evaluator, count(network, keep).params).errors
    images = PLAIN.normalised(part.pixels)
    for row, errs in zip(keep, errors.tolist(), strict=True):
        with torch.no_grad(), masked(network, row), masked(evaluator.network, row):
            expected, logits = network(images), evaluator.network(images)
        assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert int((expected.argmax(1) != part.labels).sum()) == errs
    opened = Evaluator(network, keep | True, part.pixels, part.labels, PLAIN, CPU)
    assert opened.network is network  # one of them keeps what is closed
    assert opened.name != evaluator.name


def test_the_race_and_full_evaluation_agree_on_a_network() -> None:
    evaluator, params = on_digits()
    full = finished(evaluator, params)
    assert bool(full.finished.all())
    rows = sorted(zip(full.errors.tolist(), params.tolist(), range(40), strict=True))
    assert full.best().tolist() == [i for _, _, i in rows]
    for top in (1, 5, 40):
        *_, race = races(evaluator, params, top=top)
        assert best(race, top) == best(full, top)
        assert len(race.best()) == top
    evaluator.batch = 100  # stopped among the pilots
    early = races(evaluator, params, top=3)
    next(early)
    race = next(early)
    early.close()
    assert sorted(race.best().tolist()) == [0, 1]
    assert len(race.walking()) == 38
    *_, on = races(evaluator, params, top=3, race=race)
    assert best(on, 3) == best(full, 3)


def test_outcomes_do_not_depend_on_what_shares_the_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on whether the images were normalised once for all."""
    evaluator, _ = on_digits()
    pairs = torch.arange(40 * 70)
    straight = evaluator(pairs // 70, pairs % 70)
    mixed = pairs[torch.randperm(len(pairs), generator=seeded(1))][:777]
    monkeypatch.setattr("pgnas_cli.ranking.evaluator.RESIDENT", 0)
    lean, _ = on_digits()
    assert (evaluator.ready is None, lean.ready is None) == (False, True)
    for some in (evaluator, lean):
        for again, before in zip(some(mixed // 70, mixed % 70), straight, strict=True):
            assert torch.equal(again, before[mixed])
