"""Test errors against a plain count, latencies, and what a run keeps of them."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import pgnas_cli
from pgnas_cli.data import load_data
from pgnas_cli.errors import PgnasError
from pgnas_cli.evaluation import Evaluation, evaluations_of, latencies, write_evaluations
from pgnas_cli.formats import read_network
from pgnas_cli.machine import Machine
from pgnas_cli.run import Run


@pytest.fixture(scope="module")
def row(fitted_once: Path) -> Evaluation:
    """The evaluation of the exported network of the shared run."""
    (found,) = pgnas_cli.evaluate(fitted_once / "best.safetensors", batch_size=3)
    return found


def test_errors_are_those_of_a_plain_count_on_the_test_split(
    row: Evaluation, fitted_once: Path
) -> None:
    network, about = read_network(fitted_once / "best.safetensors")
    test = load_data("digits", seed=0).test
    assert test is not None
    with torch.no_grad():
        logits = network(about.supernet.preprocessing.normalised(test.pixels))
    wrong = (logits.argmax(1) != test.labels).nonzero().flatten().tolist()
    assert (row.errors, row.images, row.wrong) == (len(wrong), 359, tuple(wrong))
    assert (row.name, row.data, row.params) == ("best", "digits", about.params)
    for latency, batch in ((row.one, 1), (row.many, 3)):
        assert (latency.batch, latency.layout in ("small", "fast")) == (batch, True)
        assert latency.ratio == latency.slim / latency.whole


def test_latency_of_a_larger_network_is_larger() -> None:
    def convolutions(width: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3))

    small, large = latencies(
        [convolutions(8), convolutions(96)], [(3, 32, 32)] * 2, batch=8,
        device=Machine().device, seconds=0.2,
    )  # fmt: skip
    assert 0 < small < large


def test_a_run_keeps_one_row_of_each_name_and_refuses_rows_that_cannot_be(
    row: Evaluation, tmp_path: Path
) -> None:
    run = Run(tmp_path)
    other = dataclasses.replace(row, name="other")
    again = dataclasses.replace(row, errors=0, wrong=())
    write_evaluations(run, [row, other])
    write_evaluations(run, [again])
    assert evaluations_of(run) == [again, other]
    write_evaluations(run, [dataclasses.replace(row, errors=row.errors + 1)])
    with pytest.raises(PgnasError, match="is damaged; remove it, and evaluate again"):
        evaluations_of(run)
