"""The race against full evaluation, on tables of outcomes and on real networks."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pgnas_cli.data import load_data
from pgnas_cli.ranking import Progress, Ranking, paired_p, rank
from pgnas_cli.ranking.evaluator import Evaluator
from pgnas_cli.ranking.race import PILOTS, Race, begun, places, run, smallest_passing
from pgnas_cli.ranking.statistics import LEVEL, most_errors_within_noise
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.sizes import count

from ..networks import tiny

CPU = torch.device("cpu")


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


@settings(max_examples=200, deadline=None, derandomize=True)
@given(tables(), st.sampled_from([1, 7, 64]))
def test_the_smallest_within_noise_is_that_of_testing_everyone(
    table: tuple[Tensor, Tensor], fill: int
) -> None:
    wrong, params = table
    race = raced(wrong, params, 1)
    best = wrong[int(race.best()[0])]
    most = most_errors_within_noise(int(best.sum()), wrong.shape[1])
    chosen = smallest_passing(
        race, lambda c, i: wrong[c, i], lambda i: paired_p(best, wrong[i]) >= LEVEL, most,
        fill=fill,
    )  # fmt: skip
    passing = [i for i in range(len(params)) if paired_p(best, wrong[i]) >= LEVEL]
    assert chosen == min(passing, key=lambda i: (int(params[i]), i))


# --- real networks ---------------------------------------------------------------------------


def judged(images: int = 70) -> tuple[Evaluator, object]:
    data = load_data("digits", seed=0)
    network = tiny()
    keep = draw_candidates(torch.full((17,), 0.3), network, 40, 0)
    assert data.held_out.pixels is not None
    judge = Evaluator(network, keep, data.held_out.pixels[:images], data.held_out.labels[:images],
                  data.preprocessing, CPU)  # fmt: skip
    return judge, count(network, keep)


def board(ranking: Ranking, top: int) -> list[tuple[int, int]]:
    return [(int(i), int(ranking.errors[i])) for i in ranking.order[:top]]


def test_the_race_and_full_evaluation_agree_on_a_network() -> None:
    judge, sizes = judged()
    full = rank(judge, sizes)
    assert full.exhaustive
    rows = sorted((int(e), int(p), i) for i, (e, p) in
                  enumerate(zip(full.errors, sizes.params, strict=True)))  # fmt: skip
    assert full.order.tolist() == [i for _, _, i in rows]
    for top in (1, 5, 40):
        race = rank(judge, sizes, top=top)
        assert board(race, top) == board(full, top)
        assert len(race.order) == top


def test_outcomes_do_not_depend_on_what_shares_the_forward() -> None:
    judge, _ = judged()
    pairs = torch.arange(40 * 70)
    straight = judge(pairs // 70, pairs % 70)
    mixed = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(1))][:777]
    wrong, margin = judge(mixed // 70, mixed % 70)
    assert torch.equal(wrong, straight[0][mixed])
    assert torch.equal(margin, straight[1][mixed])


def test_a_ranking_stopped_among_the_pilots_says_who_is_undecided() -> None:
    judge, sizes = judged()
    judge.batch = 100
    steps: list[Progress] = []

    def stop_after_two(progress: Progress) -> bool:
        steps.append(progress)
        return len(steps) == 2

    ranking = rank(judge, sizes, top=3, between=stop_after_two)
    assert ranking.order.tolist() in ([0, 1], [1, 0])
    assert len(ranking.running) == 38
    full = rank(judge, sizes)
    on = rank(judge, sizes, top=3, race=ranking.race)
    assert board(on, 3) == board(full, 3)
