"""A fitted super-network on disk: as it was written, or refused."""

import dataclasses
from pathlib import Path

import pytest
import torch

from pgnas_cli.data import DataName, Preprocessing
from pgnas_cli.errors import PgnasError
from pgnas_cli.gates import Prior, gates
from pgnas_cli.registry import Recipe
from pgnas_cli.run.posterior import POSTERIOR as POSTERIOR_SCHEMA
from pgnas_cli.run.posterior import (
    DataSplit,
    Objective,
    Posterior,
    SupernetSpec,
    read_posterior,
    write_posterior,
)
from pgnas_cli.sizes import Target
from pgnas_cli.slimming import remainder
from pgnas_cli.tensors import read_tensors, versioned, write_tensors

from ..files import Change, rewrite
from ..networks import seeded, settled, tiny

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


def test_what_was_cut_while_training_is_not_stored_and_reads_as_zero(tmp_path: Path) -> None:
    network, path = tiny(groups="channel"), tmp_path / "posterior.safetensors"
    about = dataclasses.replace(POSTERIOR, supernet=dataclasses.replace(SPEC, groups="channel"))
    write_posterior(path, network, about)
    whole = path.stat().st_size
    settled(network)
    left = remainder(network)
    assert left is not None
    write_posterior(path, left.network, about)
    assert path.stat().st_size < 0.8 * whole
    again, record = read_posterior(path)
    assert record == about
    left.write_back(network)
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    found = remainder(again)
    assert found is not None
    copy = tmp_path / "again.safetensors"
    write_posterior(copy, found.network, record)
    assert copy.read_bytes() == path.read_bytes()


def test_a_posterior_of_the_first_format_is_read(tmp_path: Path) -> None:
    """All of its p lie between 0 and 1, and all of its network is stored."""
    network, path = tiny(), tmp_path / "posterior.safetensors"
    gates(network).drop_logit.data = torch.randn(17, generator=seeded())
    write_posterior(path, network, POSTERIOR)
    tensors, content = read_tensors(path, POSTERIOR_SCHEMA)
    content["recipe"].pop("certain")
    kept = {k: v for k, v in content.items() if k not in versioned("")}
    write_tensors(path, "pgnas.posterior/1", tensors, kept)
    again, record = read_posterior(path)
    assert record == POSTERIOR
    assert torch.equal(again.head.weight, network.head.weight)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, t: c["supernet"].update(groups="8"), "has other gate groups than the backbone"),
        (lambda c, t: c["supernet"].update(classes=["a", "b"]), "does not fit: head.weight"),
        (lambda c, t: c["objective"].pop("prior"), "its field posterior.objective is not what"),
        (lambda c, t: t["network.head.weight"][0].fill_(float("nan")), "that are not finite"),
        (lambda c, t: t["drop_logit"][0].fill_(float("nan")), "numbers that are not finite"),
        (lambda c, t: t["network.head.weight"].resize_(10, 9), "does not fit: head.weight"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, change: Change, message: str) -> None:
    path = tmp_path / "posterior.safetensors"
    write_posterior(path, tiny(), POSTERIOR)
    rewrite(path, POSTERIOR_SCHEMA, change)
    with pytest.raises(PgnasError, match=message):
        read_posterior(path)
