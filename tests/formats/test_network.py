"""Files: round trips, atomic writing, and what a damaged or hostile file meets."""

import dataclasses
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pgnas_cli import tensors as storage
from pgnas_cli.data import Preprocessing
from pgnas_cli.errors import PgnasError
from pgnas_cli.formats import NetworkInfo, checked_slim, read_network, slim_record, write_network
from pgnas_cli.formats.network import largest_difference, load
from pgnas_cli.gates import gates, masked
from pgnas_cli.registry import Recipe
from pgnas_cli.run.posterior import (
    DataSplit,
    Objective,
    Posterior,
    SupernetSpec,
    read_posterior,
    write_posterior,
)
from pgnas_cli.sizes import count, parameter_count, whole_macs
from pgnas_cli.slimming import slim
from pgnas_cli.storage import from_json, to_json
from pgnas_cli.tensors import read_tensors, write_tensors

from ..networks import random_keep, tiny

SUBJECT = SupernetSpec(
    backbone="multibranch-tiny",
    options={},
    layers="all",
    groups="layer",
    classes=tuple("0123456789"),
    preprocessing=Preprocessing(1, 8, (0.3,), (0.4,), crop=1.0),
    data="digits",
)
POSTERIOR = Posterior(
    SUBJECT,
    DataSplit(0, 0.2, 100, 20, "abc", "def"),
    Objective(50.0, 5e5, None, False),
    Recipe(),
    0,
)


def exported(
    path: Path, drop: float = 0.3, closed: str | None = None
) -> tuple[Any, Any, NetworkInfo]:
    network = tiny()
    keep = random_keep(network, drop)
    if closed:
        first, last = gates(network).spans[closed]
        keep[first:last] = False
    about = slim_record(
        SUBJECT, network, keep, "7", count(network, keep[None]),
        (parameter_count(network), whole_macs(network)), (3, 20), "0" * 64,
    )  # fmt: skip
    batch = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    write_network(path, checked_slim(path, network, keep, [batch]), about)
    return network, keep, about


# --- round trips -------------------------------------------------------------------------------


def test_a_posterior_comes_back_as_it_was(tmp_path: Path) -> None:
    network = tiny()
    gates(network).drop_logit.data = torch.randn(17, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "posterior.safetensors"
    write_posterior(path, network, POSTERIOR)
    again, record = read_posterior(path)
    assert record == POSTERIOR
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize("closed", [None, "blocks.1.branch1.3", "blocks.2.skip.even"])
def test_an_exported_network_loads_in_a_fresh_process(tmp_path: Path, closed: str | None) -> None:
    path = tmp_path / "best.safetensors"
    network, keep, about = exported(path, closed=closed)
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    save_file({"x": x}, tmp_path / "x.safetensors")
    code = (
        "import sys, pgnas_cli; from safetensors.torch import load_file, save_file\n"
        "x = load_file('x.safetensors')['x']\n"
        "save_file({k: pgnas_cli.load('best.safetensors', layout=k)(x).detach()"
        " for k in ('small', 'fast')}, 'y.safetensors')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    with torch.no_grad(), masked(network, keep):
        expected = network(x)
    for found in load_file(tmp_path / "y.safetensors").values():
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert torch.equal(found.argmax(1), expected.argmax(1))
    assert sum(p.numel() for p in load(path).parameters()) == about.params


def test_equal_content_gives_equal_bytes_and_no_time_path_or_host(tmp_path: Path) -> None:
    for name in ("a", "b"):
        exported(tmp_path / f"{name}.safetensors")
    first, second = ((tmp_path / f"{n}.safetensors").read_bytes() for n in "ab")
    assert first == second
    assert str(tmp_path).encode() not in first


def test_records_survive_json() -> None:
    for record in (POSTERIOR, SUBJECT, Recipe(l2=3.0)):
        text = json.dumps(to_json(record))
        assert from_json(type(record), json.loads(text), Path("x")) == record


# --- writing -----------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, "pgnas.test/1", {"x": torch.ones(3)}, {})
    before = path.read_bytes()

    def full_disk(*args: object, **kwargs: object) -> None:
        part = Path(str(args[1]))
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "save_file", full_disk)
    with pytest.raises(PgnasError, match="No space left on device; what was there before"):
        write_tensors(path, "pgnas.test/1", {"x": torch.zeros(3)}, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PgnasError, match="cannot be written"):
        write_tensors(tmp_path / "file" / "a.safetensors", "pgnas.test/1", {}, {})


# --- reading what is not as it should be ---------------------------------------------------------


def test_a_missing_a_short_and_a_foreign_file(tmp_path: Path) -> None:
    with pytest.raises(PgnasError, match="no file"):
        load(tmp_path / "none.safetensors")
    path = tmp_path / "best.safetensors"
    exported(path)
    whole = path.read_bytes()
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(PgnasError, match="is not a whole safetensors file"):
            load(path)
    path.write_bytes(b"PK\x03\x04" + bytes(500))
    with pytest.raises(PgnasError, match="is not a whole safetensors file"):
        load(path)
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(PgnasError, match="was not written by pgnas"):
        load(path)
    with pytest.raises(PgnasError, match=r"is not a whole safetensors file|no file"):
        load(tmp_path)


def test_another_kind_and_a_newer_format_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_posterior(path, tiny(), POSTERIOR)
    with pytest.raises(PgnasError, match=r"holds pgnas\.posterior, wanted is pgnas\.network"):
        load(path)
    write_tensors(path, "pgnas.network/2", {}, {})
    with pytest.raises(PgnasError, match=r"has format 2 of pgnas\.network, this pgnas .* up to 1"):
        load(path)


def rewritten(path: Path, change: Any) -> None:
    """Apply `change` to the metadata of a file and leave its tensors."""
    tensors, content = read_tensors(path, "pgnas.network/1")
    change(content)
    content.pop("schema")
    content = {k: v for k, v in content.items() if k not in ("pgnas", "torch")}
    write_tensors(path, "pgnas.network/1", tensors, content)


def first_mix(content: dict[str, Any]) -> dict[str, Any]:
    return next(cut for cut in content["cuts"].values() if cut["kind"] == "mix" and cut["picks"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("params"), "its field slim is not what"),
        (lambda c: c.update(params="many"), "its field slim.params is not"),
        (lambda c: c.update(extra=1), "its field slim is not"),
        (lambda c: c["subject"].update(classes=3), "slim.subject.classes is not"),
        (lambda c: c["subject"].update(backbone="os:system"), "name it again on the command line"),
        (lambda c: c["subject"].update(backbone="a.safetensors"), "names a file as its backbone"),
        (lambda c: c["subject"].update(options={"pretrained": True}), "no option 'pretrained'"),
        (
            lambda c: c["subject"].update(options={"inflation": {"kernels": [10**9 + 1]}}),
            "no branch",
        ),
        (lambda c: c["subject"].update(backbone="__import__('os')"), "no backbone named"),
        (lambda c: c["subject"].update(layers="none"), "gates 'none' are not known"),
        (lambda c: c["cuts"].update(nowhere=first_mix(c)), "has no layer 'nowhere'"),
        (lambda c: first_mix(c).update(outputs=10**12), "impossible sizes"),
        (lambda c: first_mix(c).update(inputs=-1), "impossible sizes"),
        (lambda c: first_mix(c).update(kind="magic"), "kind is not what"),
        (lambda c: first_mix(c).update(inputs=first_mix(c)["inputs"] - 1), "does not fit"),
        (lambda c: first_mix(c).update(picks=1), "reads channels that are not there"),
        (lambda c: c["cuts"].clear(), "does not fit"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "best.safetensors"
    exported(path)
    rewritten(path, change)
    with pytest.raises(PgnasError, match=message):
        load(path)


def test_tensors_that_compute_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    exported(path)
    tensors, content = read_tensors(path, "pgnas.network/1")
    content = {k: v for k, v in content.items() if k not in ("schema", "pgnas", "torch")}
    tensors["network.head.weight"] = tensors["network.head.weight"] * 1.5
    write_tensors(path, "pgnas.network/1", tensors, content)
    with pytest.raises(PgnasError, match="computes other logits than when it was written"):
        load(path)


def test_deeply_nested_metadata_is_no_traceback(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"pgnas": "[" * 200_000}}).encode()
    path = tmp_path / "deep.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(PgnasError, match="was not written by pgnas"):
        load(path)


def test_a_posterior_of_another_backbone_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "posterior.safetensors"
    write_posterior(path, tiny(), dataclasses.replace(
        POSTERIOR, subject=dataclasses.replace(SUBJECT, groups="8")))  # fmt: skip
    with pytest.raises(PgnasError, match="has other gate groups"):
        read_posterior(path)


def test_a_slim_network_that_differs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pgnas_cli.formats import network as export

    def broken(*arguments: Any, **options: Any) -> Any:
        smaller = real(*arguments, **options)
        with torch.no_grad():
            smaller.head.weight[:, 0] *= 1.1
        return smaller

    real = export.slim
    monkeypatch.setattr(export, "slim", broken)
    path = tmp_path / "best.safetensors"
    with pytest.raises(PgnasError, match="the slim network differs from the masked one"):
        exported(path)
    assert not path.exists()


@pytest.mark.parametrize("level", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_pass_no_check(tmp_path: Path, level: float) -> None:
    network = tiny()
    network.head.weight.data[0, 0] = level
    write_posterior(tmp_path / "p.safetensors", network, POSTERIOR)
    with pytest.raises(PgnasError, match="holds numbers that are not finite"):
        read_posterior(tmp_path / "p.safetensors")
    batch = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    broken = slim(tiny(), random_keep(tiny(), 0.3))
    broken.head.weight.data[:] = level
    difference = largest_difference(tiny(), random_keep(tiny(), 0.3), broken, [batch])
    assert difference == float("inf")


def test_a_file_read_back_names_its_subject(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    _, _, about = exported(path)
    _, again = read_network(path)
    assert again == about
