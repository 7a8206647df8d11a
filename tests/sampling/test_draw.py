"""Candidates: drawn one by one, stored with their sizes, replaced when they are drawn again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pgnas_cli.errors import PgnasError
from pgnas_cli.gates import draw
from pgnas_cli.run import Run
from pgnas_cli.run.posterior import posterior_of
from pgnas_cli.sampling import draw_candidates, read_candidates, sample
from pgnas_cli.sampling.draw import pack, unpack
from pgnas_cli.seeds import generator
from pgnas_cli.sizes import Target, count
from pgnas_cli.storage import to_json

from ..files import rewrite
from ..networks import seeded, tiny


@pytest.mark.parametrize("width", [1, 7, 8, 9, 512])
def test_packing_is_reversible_for_any_number_of_gates(width: int) -> None:
    keep = torch.rand(5, width, generator=seeded()) < 0.5
    packed = pack(keep)
    assert packed.shape == (5, (width + 7) // 8)
    assert torch.equal(unpack(packed, width), keep)


def test_the_ith_candidate_does_not_depend_on_how_many_are_drawn() -> None:
    network = tiny()
    probability = torch.full((17,), 0.5)
    few, many = (draw_candidates(probability, network, n, 3) for n in (4, 9))
    assert torch.equal(few, many[:4])
    assert not torch.equal(few, draw_candidates(probability, network, 4, 4))
    alone = draw(network, generator=generator(3, "candidate", 2), drop_probability=0.5)
    assert torch.equal(few[2], alone)


def test_candidates_come_back_as_they_were_drawn(fitted: Run) -> None:
    network, posterior = posterior_of(fitted)
    (drawn,) = sample(fitted, 20, force=True)
    assert torch.equal(drawn.keep[7], draw(network, generator=generator(0, "candidate", 7)))
    again = read_candidates(fitted, network, posterior)
    assert torch.equal(again.keep, drawn.keep)
    for name, column in vars(count(network, drawn.keep)).items():
        for found in (drawn, again):
            assert torch.equal(getattr(found.sizes, name), column)
    (baseline,) = sample(fitted, 20, baseline="permuted", seed=5)
    assert read_candidates(fitted, network, posterior).baseline == "permuted"
    assert not torch.equal(baseline.keep, drawn.keep)


def test_drawing_again_removes_what_was_derived_from_the_former_candidates(fitted: Run) -> None:
    fitted.evaluation.touch()
    derived = [*fitted.drawn_files(), fitted.evaluation]
    assert {fitted.candidates(), fitted.ranking(), fitted.ranking_table()} < set(derived)
    drawn = sample(fitted, 3, max_params="60%,50%", force=True)
    assert [one.label for one in drawn] == ["params-60", "params-50"]
    assert fitted.drawn_files() == [fitted.candidates(one.label) for one in drawn]
    assert not any(path.exists() for path in derived)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": 61}, "does not fit: keep is"),
        ({"gates": 511}, "does not fit the posterior; draw again"),
        ({"made_from": "0" * 64}, "is older than the posterior; draw again"),
        ({"budget": to_json(Target("params", 0.5))}, "of another budget; draw again"),
    ],
)
def test_candidates_that_do_not_fit_are_refused(
    fitted: Run, change: dict[str, object], message: str
) -> None:
    rewrite(fitted.candidates(), "pgnas.candidates/1", lambda c, t: c.update(change))
    with pytest.raises(PgnasError, match=message):
        read_candidates(fitted, *posterior_of(fitted))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "`n` 0 is out of range; possible: 1 to 1e"),
        ({"baseline": "random"}, "no baseline 'random'; possible: permuted, fixed"),
        ({"max_params": "80%", "baseline": "fixed"}, "leave out `max_params`, `max_macs`"),
    ],
)
def test_wrong_options_leave_the_candidates_as_they_were(
    fitted_once: Path, options: dict[str, Any], message: str
) -> None:
    run = Run(fitted_once)
    before = run.candidates().read_bytes()
    with pytest.raises(PgnasError, match=message):
        sample(run, **options)
    assert run.candidates().read_bytes() == before


def test_the_same_draw_again_changes_nothing_and_another_asks_before_a_ranking_goes(
    fitted: Run,
) -> None:
    files = fitted.drawn_files()
    assert len(files) == 3
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    sample(fitted, 60)
    with pytest.raises(PgnasError, match=r"ranking\.safetensors' is a ranking of other candidates"):
        sample(fitted, 61)
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in files] == before
    sample(fitted, 61, force=True)
    assert fitted.drawn_files() == [fitted.candidates()]
    sample(fitted, 20)  # nothing is lost that was not drawn in a moment
