"""The race against full evaluation, on tables of outcomes."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pgnas_cli.ranking.race import PILOTS, Race, begun, places, run


def raced(wrong: Tensor, params: Tensor, top: int, *, fill: int = 1, chunk: int = 64) -> Race:
    """A race over a table of outcomes; the margins of the pilots are only their signs."""
    pilots = wrong[:PILOTS]
    race = begun(params, min(top, len(params)), pilots, -pilots.double())
    for _ in run(race, lambda c, i: wrong[c, i], fill=fill, chunk=chunk):
        pass
    return race


def expected(wrong: Tensor, params: Tensor, top: int) -> list[tuple[int, int, int]]:
    """(errors, parameters, id) of the first `top`, by sorting everything."""
    errors = wrong.sum(1)
    return sorted((int(errors[i]), int(params[i]), i) for i in range(len(params)))[:top]


def found(race: Race, params: Tensor) -> list[tuple[int, int, int]]:
    return [(int(race.errors[i]), int(params[i]), int(i)) for i in race.best()]


@st.composite
def tables(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Outcomes and parameters, with ties of all kinds made likely."""
    candidates, images = draw(st.integers(1, 40)), draw(st.integers(1, 50))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["random", "alike", "hard images", "all wrong", "all right"]))
    level = draw(st.sampled_from([0.05, 0.3, 0.7]))
    wrong = torch.rand(candidates, images, generator=g) < level
    if kind == "alike":
        wrong = wrong[:1].expand(candidates, images).clone()
    elif kind == "hard images":
        wrong &= torch.rand(images, generator=g) < 0.3
    elif kind != "random":
        wrong[:] = kind == "all wrong"
    params = torch.randint(1, draw(st.sampled_from([2, 4, 1000])), (candidates,), generator=g)
    return wrong, params


@settings(max_examples=300, deadline=None, derandomize=True)
@given(tables(), st.integers(1, 45), st.sampled_from([1, 7, 64]), st.sampled_from([1, 5, 1000]))
def test_the_first_k_are_those_of_full_evaluation(
    table: tuple[Tensor, Tensor], top: int, fill: int, chunk: int
) -> None:
    wrong, params = table
    race = raced(wrong, params, top, fill=fill, chunk=chunk)
    assert found(race, params) == expected(wrong, params, top)
    assert len(race.walking()) == 0


@settings(max_examples=100, deadline=None, derandomize=True)
@given(tables(), st.integers(1, 45), st.integers(0, 200), st.integers(1, 45))
def test_a_race_stopped_anywhere_goes_on_to_the_same_end(
    table: tuple[Tensor, Tensor], top: int, stop: int, again: int
) -> None:
    """Also where it goes on with another number of candidates wanted."""
    wrong, params = table
    pilots = wrong[:PILOTS]
    race = begun(params, min(top, len(params)), pilots, -pilots.double())
    for step, _ in enumerate(run(race, lambda c, i: wrong[c, i], chunk=3)):
        if step == stop:
            break
    race.top = min(again, len(params))
    for _ in run(race, lambda c, i: wrong[c, i], chunk=5):
        pass
    assert found(race, params) == expected(wrong, params, again)


def test_no_pair_is_looked_at_twice() -> None:
    g = torch.Generator().manual_seed(0)
    wrong = torch.rand(60, 80, generator=g) < torch.rand(80, generator=g) * 0.3
    looked = torch.zeros(60, 80, dtype=torch.int64)
    race = begun(torch.arange(60), 3, wrong[:PILOTS], -wrong[:PILOTS].double())

    def judge(candidates: Tensor, images: Tensor) -> Tensor:
        looked[candidates, images] += 1
        return wrong[candidates, images]

    pairs = sum(run(race, judge, chunk=16))
    assert int(looked.max()) == 1
    assert int(looked[:PILOTS].max()) == 0
    assert int(race.seen.sum()) == pairs + PILOTS * 80
    for candidate in race.finished.nonzero().flatten().tolist():
        assert torch.equal(race.row(candidate), wrong[candidate])


def test_losers_leave_early_where_hard_images_are_common_to_all() -> None:
    """1,500 candidates, 1,000 images, 5 % error: the floor for a proof is 4 %."""
    g = torch.Generator().manual_seed(0)
    difficulty = torch.randn(1000, generator=g)
    score = 1.65 - difficulty + 0.2 * torch.randn(1500, 1000, generator=g)
    wrong = score < 0
    params = torch.randint(1000, 2000, (1500,), generator=g)
    race = begun(params, 10, wrong[:PILOTS], score[:PILOTS])
    for _ in run(race, lambda c, i: wrong[c, i], fill=64, chunk=10**6):
        pass
    assert found(race, params) == expected(wrong, params, 10)
    assert int(race.seen.sum()) < 0.12 * wrong.numel()


def test_ten_thousand_candidates_on_fifty_thousand_images() -> None:
    g = torch.Generator().manual_seed(0)
    difficulty = torch.rand(50_000, generator=g)
    # An outcome by arithmetic on (candidate, image), so that no table of 500 MB is needed.
    skill = torch.rand(10_000, generator=g) * 0.02

    def wrong(candidates: Tensor, images: Tensor) -> Tensor:
        noise = (candidates * 7919 + images * 104729) % 1009 / 1009.0
        return difficulty[images] + 0.05 * noise + skill[candidates] > 0.97

    every = torch.arange(50_000)
    full = torch.stack([wrong(torch.tensor(c), every).sum() for c in range(10_000)])
    params = torch.randint(1000, 1100, (10_000,), generator=g)
    pilots = torch.stack([wrong(torch.tensor(c), every) for c in range(PILOTS)])
    race = begun(params, 10, pilots, -difficulty.expand(PILOTS, -1))
    for _ in run(race, wrong, fill=64, chunk=10**7):
        pass
    keys = full * 10_000 + places(params)
    assert race.best().tolist() == keys.argsort()[:10].tolist()
    assert torch.equal(race.errors[race.best()], full[race.best()])


def test_places_are_by_parameters_then_id() -> None:
    assert places(torch.tensor([5, 3, 5, 1])).tolist() == [2, 1, 3, 0]


def ordered(errors: Tensor, params: Tensor) -> Tensor:
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
