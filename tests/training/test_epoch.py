"""What an epoch records, and when a fit stops."""

import dataclasses
import math

import pytest

from pgnas_cli.data import ImageData
from pgnas_cli.errors import PgnasError
from pgnas_cli.gates import gates, kl
from pgnas_cli.sizes import Target
from pgnas_cli.training.epoch import held_out_errors

from .conftest import loop_of, small_fit


def test_one_record_per_epoch_and_the_loss_falls(digits: ImageData) -> None:
    network, records = small_fit(digits, epochs=6)
    assert [r.epoch for r in records] == [1, 2, 3, 4, 5, 6]
    assert records[-1].loss < 0.5 * records[0].loss
    assert records[-1].hard_error < 0.5
    for record in records:
        assert sum(record.drop_histogram) == gates(network).count
        assert 0 < record.expected_share <= 1
        assert all(math.isfinite(v) for v in dataclasses.astuple(record) if isinstance(v, float))


def test_the_recorded_divergence_is_that_of_the_objective(digits: ImageData) -> None:
    network, records = small_fit(digits, constant=True, epochs=1, l2=5000.0, initial_drop=0.5)
    found = kl(network, l2=5000.0, images=500_000, constant=True)
    assert records[0].kl == pytest.approx(float(found.detach()), rel=1e-5)


def test_what_moves_p_is_counted_however_it_moves(digits: ImageData) -> None:
    """The mean change of a probability is never above 1, and steps to the size count as well."""
    for rate in (0.0, 0.05):
        _, records = small_fit(digits, target=Target("params", 0.5), epochs=1, drop_lr=rate)
        assert 0 < records[0].drift <= 1


def test_drift_is_measured_per_unit_of_learning_rate(digits: ImageData) -> None:
    """Halving the rate halves how far p moves, not what the record calls its drift."""
    drifts = []
    for rate in (0.02, 0.01):
        _, records = small_fit(
            digits, epochs=2, sched="none", drop_lr=rate, lr=1e-4, drop_delay_epochs=0.0, l2=1e5,
            batch_size=64,
        )  # fmt: skip
        drifts.append(records[0].drift / rate)
    assert drifts[0] == pytest.approx(drifts[1], rel=0.2)


def test_a_fit_goes_on_in_rounds_until_p_has_settled(digits: ImageData) -> None:
    """Three rounds at most here; each repeats the schedule. p that hardly moves ends the first."""
    rounds = {"epochs": 2, "until_settled": True, "max_epochs": 5, "drop_delay_epochs": 0.0}
    _, moving = small_fit(digits, drop_lr=0.3, **rounds)
    assert [(r.epoch, r.epochs) for r in moving] == [(1, 2), (2, 4), (3, 4), (4, 5), (5, 5)]
    assert moving[1].learning_rate == 0.1  # of the step to come
    _, still = small_fit(digits, drop_lr=1e-6, **rounds)
    assert [(r.epoch, r.settled) for r in still] == [(1, False), (2, True)]


def test_collapse_stops_with_a_remedy(digits: ImageData) -> None:
    steep = {"drop_lr": 0.5, "size_ramp": 0.8, "freeze": 1.0, "sharpen": 4.0}
    remedy = r"the fit collapsed in epoch \d+.*choose a larger target size"
    with pytest.raises(PgnasError, match=remedy):
        small_fit(digits, target=Target("params", 0.015), epochs=12, **steep)


def test_a_loss_that_is_no_number_stops_with_a_remedy(digits: ImageData) -> None:
    with pytest.raises(
        PgnasError, match=r"the (loss|gradient) is (nan|inf) in epoch \d+, step \d+; lower `lr`"
    ):
        small_fit(digits, lr=1000.0, l2=1e8)


def test_weights_that_learn_on_hard_gates_are_judged_on_them_alone(digits: ImageData) -> None:
    loop = loop_of(digits, target=Target("params", 0.5), epochs=2)
    forwards: list[int] = []
    loop.whole.register_forward_hook(lambda *_: forwards.append(loop.step))
    assert loop.drops is not None
    for step, passes in ((0, 2), (loop.drops.phases.freeze, 1)):
        loop.step = step
        forwards.clear()
        soft, hard = held_out_errors(loop, 1)
        assert len(forwards) == passes * -(-len(digits.held_out) // loop.batch)
        assert (soft == hard) == (passes == 1)
