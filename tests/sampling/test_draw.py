"""Candidates: drawn one by one, stored with their sizes, replaced when they are drawn again."""

import dataclasses

import pytest
import torch

from pgnas_cli.errors import PgnasError
from pgnas_cli.gates import draw, gates
from pgnas_cli.run import Run
from pgnas_cli.run.posterior import posterior_of
from pgnas_cli.sampling import draw_candidates, read_candidates, sample
from pgnas_cli.sampling.draw import pack, unpack
from pgnas_cli.seeds import generator
from pgnas_cli.sizes import Target, count
from pgnas_cli.tensors import read_tensors, write_tensors

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
    (drawn,) = sample(fitted, 20)
    again = read_candidates(fitted, network)
    assert torch.equal(again.keep, drawn.keep)
    assert torch.equal(drawn.keep[7], draw(network, generator=generator(0, "candidate", 7)))
    assert posterior.seed == 0
    counted = count(network, drawn.keep)
    for found in (drawn.sizes, again.sizes):
        for name, column in vars(counted).items():
            assert torch.equal(getattr(found, name), column)
    (baseline,) = sample(fitted, 20, baseline="permuted", seed=5)
    assert read_candidates(fitted, network).baseline == baseline.baseline == "permuted"
    assert not torch.equal(baseline.keep, drawn.keep)


def test_drawing_again_removes_what_was_derived_from_the_former_candidates(fitted: Run) -> None:
    assert fitted.ranking().exists() and fitted.ranking_table().exists()
    fitted.evaluation.touch()
    first, second = sample(fitted, 3, max_params="60%,50%")
    assert (first.label, second.label) == ("params-60", "params-50")
    assert fitted.drawn_files() == [fitted.candidates(one.label) for one in (first, second)]
    assert not fitted.candidates().exists() and not fitted.ranking().exists()
    assert not fitted.ranking_table().exists() and not fitted.evaluation.exists()
    assert fitted.posterior.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": 0}, "does not fit the posterior; draw again"),
        ({"candidates": 61}, "does not fit: keep is"),
        ({"gates": 511}, "does not fit the posterior; draw again"),
        ({"made_from": "0" * 64}, "is older than the posterior; draw again"),
        ({"budget": dataclasses.asdict(Target("params", 0.5))}, "of another budget; draw again"),
        ({"budget": {"kind": "params"}}, "its field target is not what"),
    ],
)
def test_candidates_that_do_not_fit_are_refused(
    fitted: Run, change: dict[str, object], message: str
) -> None:
    path, (network, _) = fitted.candidates(), posterior_of(fitted)
    assert len(read_candidates(fitted, network).keep) == 60
    assert gates(network).count == 512
    tensors, content = read_tensors(path, "pgnas.candidates/1")
    write_tensors(path, "pgnas.candidates/1", tensors, {**content, **change})
    with pytest.raises(PgnasError, match=message):
        read_candidates(fitted, network)
    with pytest.raises(PgnasError, match="no candidates in"):
        read_candidates(fitted, network, "params-60")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "`n` 0 is out of range; possible: 1 or more"),
        ({"baseline": "random"}, "no baseline 'random'; possible: permuted, fixed"),
        ({"max_params": "80%", "baseline": "fixed"}, "leave out `max_params` and"),
        ({"max_params": "80%", "max_macs": "50%"}, "are mutually exclusive; give one"),
        ({"max_macs": "80%,x"}, "`max_macs` 'x' is not a size"),
    ],
)
def test_wrong_options_leave_the_candidates_as_they_were(
    fitted: Run, options: dict[str, str | int], message: str
) -> None:
    before = fitted.candidates().read_bytes()
    with pytest.raises(PgnasError, match=message):
        sample(fitted, **options)  # type: ignore[arg-type]
    assert fitted.candidates().read_bytes() == before
