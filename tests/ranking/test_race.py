"""The race against full evaluation, on tables of outcomes."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pgnas_cli.ranking.race import PILOTS, Race, begun, places, run, same_masks

from ..networks import seeded


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
    g = seeded(draw(st.integers(0, 2**32)))
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
@given(
    tables(), st.integers(1, 45), st.sampled_from([1, 7, 64]), st.sampled_from([1, 5, 1000]),
    st.integers(0, 200), st.integers(1, 45),
)  # fmt: skip
def test_the_first_k_are_those_of_full_evaluation_wherever_a_race_was_stopped(
    table: tuple[Tensor, Tensor], top: int, fill: int, chunk: int, stop: int, again: int
) -> None:
    """Also where it goes on with another number of candidates wanted."""
    wrong, params = table
    pilots = wrong[:PILOTS]
    race = begun(params, min(top, len(params)), pilots, -pilots.double())
    for step, _ in enumerate(run(race, lambda c, i: wrong[c, i], fill=fill, chunk=chunk)):
        if step == stop:
            break
    else:
        assert found(race, params) == expected(wrong, params, top)
        assert len(race.walking()) == 0
    race.top = min(again, len(params))
    list(run(race, lambda c, i: wrong[c, i], fill=fill, chunk=chunk))
    assert found(race, params) == expected(wrong, params, again)
    assert len(race.walking()) == 0


@settings(max_examples=200, deadline=None, derandomize=True)
@given(tables(), st.integers(1, 45), st.lists(st.integers(0, 39), min_size=1, max_size=40))
def test_of_equal_masks_one_is_evaluated_and_the_first_k_are_those_of_full_evaluation(
    table: tuple[Tensor, Tensor], top: int, drawn: list[int]
) -> None:
    pick = [index % len(table[0]) for index in drawn]
    wrong, params = (column[pick] for column in table)
    same_as = torch.tensor([pick.index(index) for index in pick])
    pilots = torch.tensor(sorted({pick.index(index) for index in pick})[:PILOTS])
    race = begun(params, min(top, len(pick)), wrong[pilots], -wrong[pilots].double(), same_as)
    looked = torch.zeros_like(wrong, dtype=torch.int64)
    looked[pilots] = 1

    def judge(candidates: Tensor, images: Tensor) -> Tensor:
        looked[candidates, images] += 1
        return wrong[candidates, images]

    for _ in run(race, judge, fill=7, chunk=5):
        pass
    assert found(race, params) == expected(wrong, params, top)
    assert int(looked.max()) == 1
    assert int(looked[same_as != torch.arange(len(pick))].sum()) == 0
    assert int(looked.sum()) == race.pairs
    for candidate in race.finished.nonzero().flatten().tolist():
        assert torch.equal(race.row(candidate), wrong[candidate])


def test_same_masks_names_the_first_of_each() -> None:
    keep = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 0, 1]], dtype=torch.bool)
    assert same_masks(keep).tolist() == [0, 1, 0, 3, 1]


@pytest.mark.parametrize("skill", [0.0, 0.3])
@pytest.mark.parametrize("top", [1, 10])
def test_the_pairs_to_come_are_foretold_from_the_first_pilot_to_the_end(
    top: int, skill: float
) -> None:
    """1,500 candidates on 300 images, nearly alike or not; hard images are hard for all."""
    g = torch.Generator().manual_seed(0)
    score = 0.8 - torch.randn(300, generator=g) + skill * torch.randn(1500, 1, generator=g)
    score = score + 0.3 * torch.randn(1500, 300, generator=g)
    params = torch.randint(1, 1000, (1500,), generator=g)
    first = begun(params, top, score[:1] < 0, score[:1])
    race = begun(params, top, score[:PILOTS] < 0, score[:PILOTS])
    said = [first.pairs + first.pairs_left()]
    for _ in run(race, lambda c, i: score[c, i] < 0, fill=64, chunk=1024):
        said.append(race.pairs + race.pairs_left())
    assert said[-1] == race.pairs
    assert race.pairs < 0.4 * score.numel()
    assert race.pairs / 2 < min(said[1:]) <= max(said[1:]) < 2 * race.pairs
    assert race.pairs / 2 < said[0] < 4 * race.pairs


def test_no_pair_is_looked_at_twice() -> None:
    g = seeded()
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
    g = seeded()
    difficulty = torch.randn(1000, generator=g)
    score = 1.65 - difficulty + 0.2 * torch.randn(1500, 1000, generator=g)
    wrong = score < 0
    params = torch.randint(1000, 2000, (1500,), generator=g)
    race = begun(params, 10, wrong[:PILOTS], score[:PILOTS])
    list(run(race, lambda c, i: wrong[c, i], fill=64, chunk=10**6))
    assert found(race, params) == expected(wrong, params, 10)
    assert int(race.seen.sum()) < 0.12 * wrong.numel()


def test_ten_thousand_candidates_on_fifty_thousand_images() -> None:
    g = seeded()
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
    list(run(race, wrong, fill=64, chunk=10**7))
    keys = full * 10_000 + places(params)
    assert race.best().tolist() == keys.argsort()[:10].tolist()
    assert torch.equal(race.errors[race.best()], full[race.best()])


def test_order_is_by_errors_then_parameters_then_id_for_every_small_table() -> None:
    assert places(torch.tensor([5, 3, 5, 1])).tolist() == [2, 1, 3, 0]
    seen, hardness = torch.full((3,), 9), torch.linspace(0, 1, 10, dtype=torch.float64)
    small = list(itertools.product(range(2), repeat=3))
    for errors, params in itertools.product(small, small):
        place = places(torch.tensor(params))
        race = Race(torch.arange(9), place, 3, torch.arange(3), seen, torch.tensor(errors),
                    hardness, torch.zeros(0, 1), [])  # fmt: skip
        expected = sorted(range(3), key=lambda i: (errors[i], params[i], i))
        assert race.best().tolist() == expected


@pytest.mark.parametrize("stops", [(1,), (2, 5), (3, 4, 5, 6, 7, 30)])
def test_a_race_that_is_stopped_and_resumed_evaluates_the_same_pairs(
    stops: tuple[int, ...],
) -> None:
    """At any chunk, also within a round; as from its file."""
    g = seeded(3)
    wrong = torch.rand(60, 400, generator=g) < torch.rand(60, 1, generator=g)
    params = torch.arange(60)

    def judge(candidates: Tensor, images: Tensor) -> Tensor:
        return wrong[candidates, images]

    races = [begun(params, 5, wrong[:PILOTS], -wrong[:PILOTS].double()) for _ in range(2)]
    straight, stopped = races
    list(run(straight, judge, fill=7, chunk=5))
    for stop in stops:
        for step, _ in enumerate(run(stopped, judge, fill=7, chunk=5), 1):
            if step == stop:
                break
        stopped = dataclasses.replace(
            stopped, seen=stopped.seen.clone(), errors=stopped.errors.clone()
        )
    list(run(stopped, judge, fill=7, chunk=5))
    assert stopped.turn == straight.turn
    for name in ("seen", "errors", "goal"):
        assert torch.equal(getattr(stopped, name), getattr(straight, name)), name
    assert torch.equal(*(race.all_mistakes().sort().values for race in (straight, stopped)))
