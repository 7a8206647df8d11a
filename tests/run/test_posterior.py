"""A fitted super-network on disk: as it was written, or refused."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pgnas_cli.data import DataName, Preprocessing
from pgnas_cli.errors import PgnasError
from pgnas_cli.gates import Prior, gates
from pgnas_cli.registry import Recipe
from pgnas_cli.run import Run
from pgnas_cli.run.posterior import (
    DataSplit,
    Objective,
    Posterior,
    SupernetSpec,
    held_out_of,
    posterior_of,
    read_posterior,
    write_posterior,
)
from pgnas_cli.sizes import Target
from pgnas_cli.storage import write_text
from pgnas_cli.tensors import read_tensors, write_tensors

from ..networks import seeded, tiny

SPEC = SupernetSpec(
    backbone="multibranch-tiny", options={}, layers="all", groups="layer",
    classes=tuple("0123456789"), preprocessing=Preprocessing(1, 8, (0.3,), (0.4,), crop=1.0),
    data=DataName("digits"),
)  # fmt: skip
POSTERIOR = Posterior(
    SPEC,
    DataSplit(0, 0.2, 100, 20, "abc", "def"),
    Objective(Prior(50.0, 5e5), None, Target("macs", 0.5)),
    Recipe(),
    0,
)


def test_a_posterior_comes_back_as_it_was(tmp_path: Path) -> None:
    network = tiny()
    gates(network).drop_logit.data = torch.randn(17, generator=seeded())
    path = tmp_path / "posterior.safetensors"
    write_posterior(path, network, POSTERIOR)
    again, record = read_posterior(path)
    assert record == POSTERIOR
    assert not again.training
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize("level", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, level: float) -> None:
    network = tiny()
    network.head.weight.data[0, 0] = level
    write_posterior(tmp_path / "p.safetensors", network, POSTERIOR)
    with pytest.raises(PgnasError, match="holds numbers that are not finite"):
        read_posterior(tmp_path / "p.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["supernet"].update(groups="8"), "has other gate groups than the backbone"),
        (lambda c: c["supernet"].update(classes=["a", "b"]), "does not fit: head.weight"),
        (lambda c: c["supernet"].update(backbone="a.safetensors"), "names a file as its backbone"),
        (lambda c: c["supernet"].update(backbone="os:system"), "function that is not installed"),
        (lambda c: c["split"].update(seed="0"), "its field posterior.split.seed is not what"),
        (lambda c: c["objective"].pop("prior"), "its field posterior.objective is not what"),
        (lambda c: c.pop("recipe"), "its field posterior is not what"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = tmp_path / "posterior.safetensors"
    write_posterior(path, tiny(), POSTERIOR)
    tensors, content = read_tensors(path, "pgnas.posterior/1")
    change(content)
    write_tensors(path, "pgnas.posterior/1", tensors, content)
    with pytest.raises(PgnasError, match=message):
        read_posterior(path)


def test_a_run_without_a_posterior_says_what_to_do(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(PgnasError, match=r"no posterior in .*; fit one with pgnas fit"):
        posterior_of(run)
    run.checkpoint.touch()
    with pytest.raises(PgnasError, match=r"is not finished; resume it with pgnas fit --resume"):
        posterior_of(run)


def test_the_data_of_a_run_are_split_as_for_the_fit_or_refused(fitted: Run) -> None:
    _, posterior = posterior_of(fitted)
    split = posterior.split
    data = held_out_of(fitted, posterior, 0, fitting=True)
    assert (len(data.fit), len(data.held_out)) == (split.fit_images, split.held_out_images)
    assert data.held_out.pixels is not None
    for changed, fitting, message in (
        (dataclasses.replace(split, digest="0"), False, "the held-out part has changed"),
        (dataclasses.replace(split, fit_digest="0"), True, "are not those of the fit"),
    ):
        with pytest.raises(PgnasError, match=message):
            other = dataclasses.replace(posterior, split=changed)
            held_out_of(fitted, other, 0, fitting=fitting)
    write_text(fitted.settings, "{}")
    with pytest.raises(PgnasError, match="is damaged; fit again with `force`"):
        held_out_of(fitted, posterior, 0)
