"""Times of candidates: fitted to steps of a known law, predicted from what a candidate keeps."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from pgnas_cli import PgnasError, slim
from pgnas_cli.gates import gates
from pgnas_cli.profiling import Stopwatch
from pgnas_cli.sizes import ExpectedSize
from pgnas_cli.slimming import wire
from pgnas_cli.timing import (
    Sample,
    Work,
    built_work,
    check_table,
    fitted,
    milliseconds,
    planned_work,
    step_time,
    time_table,
    timed_by,
)

from ..networks import made_up_times, random_keep, supernet, tiny


def test_a_table_predicts_the_sum_over_steps_of_its_law() -> None:
    network = tiny()
    table = made_up_times(network)
    keep = random_keep(network, 0.4)
    wiring = wire(network, keep[None])
    expected = 0.0
    for step, node, both in zip(table.steps, wiring.graph.nodes, planned_work(wiring), strict=True):
        times = []
        for work in both:
            i, o = float(work.inputs), float(work.outputs)
            blocks = math.ceil(o / step.block) * step.block
            own = step.fixed + step.both * i * blocks + step.inputs * i + step.outputs * blocks
            picking = step.picking if float(work.picked) else 0.0
            times.append(own * float(work.runs) + step.picked * float(work.picked) + picking)
        expected += min(times)
        assert step.name == node.name
    assert float(milliseconds(table, wiring)) == pytest.approx(0.05 + 1.1 * expected, rel=1e-12)


@pytest.mark.parametrize(
    "name", ["multibranch-tiny", "resnet18", "efficientnet_b0", "densenet121", "regnety_002"]
)
def test_what_is_planned_for_a_candidate_is_what_its_slim_network_does(name: str) -> None:
    network = supernet(name)
    graph = gates(network).graph
    for drop in (0.3, 0.7):
        keep = random_keep(network, drop, seed=3)
        smaller = slim(network, keep)
        watch = Stopwatch(smaller, graph)
        with torch.no_grad():
            watch.run(torch.zeros(2, *graph.input_shape))
        built = built_work(smaller, graph, watch.widths)
        planned = planned_work(wire(network, keep[None]), block=1)
        for node, (picking, _), found in zip(graph.nodes, planned, built, strict=True):
            for field in dataclasses.fields(Work):
                if field.name == "inputs" and not float(found.runs):
                    continue  # what is constant reads nothing
                expected = float(getattr(picking, field.name))
                assert float(getattr(found, field.name)) == expected, (node.name, field.name)


def test_a_fit_finds_the_law_that_the_steps_were_made_by() -> None:
    network = tiny()
    table, graph = made_up_times(network, block=16), gates(network).graph
    keep = torch.stack([random_keep(network, 0.05 * n, seed=n) for n in range(18)])
    wiring = wire(network, keep)
    planned = planned_work(wiring)
    whole = milliseconds(table, wiring)
    samples = []
    for row in range(len(keep)):
        work = tuple(
            Work(*(getattr(picking, f.name)[row : row + 1] for f in dataclasses.fields(Work)))
            for picking, _ in planned
        )
        steps = [float(step_time(s, one)) for s, one in zip(table.steps, work, strict=True)]
        samples.append(Sample(work, tuple(steps), float(whole[row])))
    assert len({node.name for node in graph.nodes}) == len(graph.nodes)
    steps, scale, constant = fitted(network, graph, samples)
    again = dataclasses.replace(table, steps=steps, scale=scale, constant=constant)
    unseen = wire(network, torch.stack([random_keep(network, d, seed=99) for d in (0.2, 0.5)]))
    assert milliseconds(again, unseen) == pytest.approx(milliseconds(table, unseen), rel=0.05)


def test_networks_of_which_the_smaller_take_longer_have_a_table_all_the_same() -> None:
    network = tiny()
    graph = gates(network).graph
    keep = torch.stack([random_keep(network, 0.1 * n, seed=n) for n in range(1, 8)])
    planned = planned_work(wire(network, keep))
    samples = []
    for row in range(len(keep)):
        work = tuple(
            Work(*(getattr(picking, f.name)[row : row + 1] for f in dataclasses.fields(Work)))
            for picking, _ in planned
        )
        steps = tuple(float(one.outputs) for one in work)
        samples.append(Sample(work, steps, 1.0 + row))
    _, scale, constant = fitted(network, graph, samples)
    assert scale > 0
    assert constant == 0


def test_a_table_for_other_images_is_refused() -> None:
    table = made_up_times(tiny())
    with pytest.raises(PgnasError, match=r"for images of 1x8x8 .*, not 3x64x64"):
        timed_by(supernet("resnet18"), table)
    with pytest.raises(PgnasError, match=r"for images of 1x8x8 .*, not 1x16x16"):
        timed_by(tiny(16), table)


@pytest.mark.parametrize(
    "change", [
        {"whole": 0.0}, {"batch": 0}, {"error": 2.0}, {"scale": -1.0}, {"constant": 1e30},
        {"steps": {"fixed": -1.0}}, {"steps": {"block": 0}},
    ],
)  # fmt: skip
def test_a_table_with_impossible_times_is_refused(change: dict[str, object]) -> None:
    table = made_up_times(tiny())
    if "steps" in change:
        (first, *rest), inner = table.steps, change["steps"]
        assert isinstance(inner, dict)
        change = {"steps": (dataclasses.replace(first, **inner), *rest)}
    with pytest.raises(PgnasError, match=r"'t\.json' is damaged: its times cannot be"):
        check_table(dataclasses.replace(table, **change), Path("t.json"))


def test_a_table_of_a_network_alike_but_for_a_kernel_is_refused() -> None:
    small, wide = (supernet(f"lcnet_{width}") for width in ("050", "075"))
    names = [[node.name for node in gates(n).graph.nodes] for n in (small, wide)]
    assert names[0] == names[1]
    with pytest.raises(PgnasError, match="of another network"):
        timed_by(wide, made_up_times(small))


@pytest.mark.parametrize("change", [{"constant": -1e6}, {"scale": 0.0}, {"whole": 9e8}])
def test_a_table_whose_steps_contradict_the_whole_is_refused(change: dict[str, float]) -> None:
    table = dataclasses.replace(made_up_times(tiny()), **change)
    check_table(table, Path("t.json"))
    with pytest.raises(PgnasError, match="contradicts itself"):
        timed_by(tiny(), table)


def test_picking_that_was_never_timed_is_not_counted_on() -> None:
    """Where no network picked, a layer reads all that there is, predicted and expected."""
    network = tiny(groups="channel")
    table = made_up_times(network)
    steps = tuple(dataclasses.replace(step, picked=0.0, picking=0.0) for step in table.steps)
    network = timed_by(network, dataclasses.replace(table, steps=steps))
    keep = random_keep(network, 0.4)
    wiring = wire(network, keep[None])
    reading = [
        step_time(s, reads) for s, (_, reads) in zip(steps, planned_work(wiring), strict=True)
    ]
    found = milliseconds(dataclasses.replace(table, steps=steps), wiring)
    assert float(found) == pytest.approx(0.05 + 1.1 * float(torch.stack(reading).sum()), rel=1e-12)
    expected = ExpectedSize(network)((~keep).double())["time"] / 1e6
    assert float(expected) == pytest.approx(float(found), rel=0.02)


def test_shares_of_a_time_are_of_the_network_that_is_fitted() -> None:
    """A head of other classes, or a whole network that was timed while something else ran."""
    network = tiny()
    table = dataclasses.replace(made_up_times(network), classes=1000)
    whole = table.whole
    found = timed_by(network, dataclasses.replace(table, whole=1.5 * whole))
    own = time_table(found)
    assert own is not None
    assert own.whole == pytest.approx(whole)
