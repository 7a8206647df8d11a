"""Exported networks: round trips, and what a damaged or hostile file meets."""

import dataclasses
import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pgnas_cli.data import Preprocessing
from pgnas_cli.errors import PgnasError
from pgnas_cli.formats import (
    NetworkInfo,
    checked_slim,
    load,
    network,
    origin,
    read_network,
    size_fields,
    write_network,
)
from pgnas_cli.gates import masked
from pgnas_cli.run import Run
from pgnas_cli.slimming import largest_difference
from pgnas_cli.storage import file_digest
from pgnas_cli.tensors import read_tensors, versioned, write_tensors

from ..networks import random_keep, randomised, seeded, tiny, without
from ..run.test_posterior import SPEC

IMAGES = torch.randn(16, 1, 8, 8, generator=seeded(3))


def exported(path: Path, closed: str | None = None) -> tuple[nn.Module, Tensor, NetworkInfo]:
    """Write a candidate of `tiny`; returns the super-network, the candidate and its record."""
    whole = tiny()
    keep = random_keep(whole, 0.3)
    if closed:
        keep = without(whole, closed, keep)
    about = NetworkInfo(
        supernet=SPEC, candidate="7", chosen="id", held_out_errors=3, held_out_images=20,
        made_from="0" * 64, held_out_digest="abc", **size_fields(whole, keep),
    )  # fmt: skip
    write_network(path, checked_slim(path, whole, keep, [IMAGES]), about)
    return whole, keep, about


@pytest.mark.parametrize("closed", [None, "blocks.1.branch1.3", "blocks.2.skip.even"])
def test_an_exported_network_loads_in_a_fresh_process(tmp_path: Path, closed: str | None) -> None:
    path = tmp_path / "best.safetensors"
    whole, keep, about = exported(path, closed)
    save_file({"x": IMAGES}, tmp_path / "x.safetensors")
    code = (
        "import sys, pgnas_cli; from safetensors.torch import load_file, save_file\n"
        "x = load_file('x.safetensors')['x']\n"
        "save_file({k: pgnas_cli.load('best.safetensors', layout=k)(x).detach()"
        " for k in ('small', 'fast')}, 'y.safetensors')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    with torch.no_grad(), masked(whole, keep):
        expected = whole(IMAGES)
    for logits in load_file(tmp_path / "y.safetensors").values():
        assert largest_difference(whole, keep, lambda _, y=logits: y, [IMAGES]) <= 1e-4
        assert torch.equal(logits.argmax(1), expected.argmax(1))
    assert sum(p.numel() for p in load(path).parameters()) == about.params
    assert read_network(path)[1] == about


def test_an_inflated_depthwise_network_loads_and_its_slices_are_checked(tmp_path: Path) -> None:
    path, inflation = tmp_path / "best.safetensors", {"inflation": {"kernels": [1, 3]}}
    usual = Preprocessing(3, 32, (0.5,) * 3, (0.5,) * 3)
    spec = dataclasses.replace(
        SPEC, backbone="timm/mobilenetv2_035", options=inflation, preprocessing=usual
    )
    whole = randomised(spec.network())
    keep, images = random_keep(whole, 0.5), torch.randn(4, 3, 32, 32, generator=seeded())
    about = NetworkInfo(
        supernet=spec, candidate="7", chosen="id", held_out_errors=3, held_out_images=20,
        made_from="0" * 64, held_out_digest="abc", **size_fields(whole, keep),
    )  # fmt: skip
    write_network(path, checked_slim(path, whole, keep, [images]), about)
    assert largest_difference(whole, keep, load(path), [images]) <= 1e-4

    def moved(content: dict[str, Any], first: int) -> None:
        cut = [cut for cut in content["cuts"].values() if cut["kind"] == "slice"][-1]
        cut["first"] = first

    for first, message in ((10**6, "layers do not fit together"), (-1, "impossible sizes")):
        rewritten(path, functools.partial(moved, first=first))
        with pytest.raises(PgnasError, match=message):
            load(path)


def test_equal_content_gives_equal_bytes_and_no_time_path_or_host(tmp_path: Path) -> None:
    for name in ("a", "b"):
        exported(tmp_path / f"{name}.safetensors")
    first, second = ((tmp_path / f"{n}.safetensors").read_bytes() for n in "ab")
    assert first == second
    assert str(tmp_path).encode() not in first


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the metadata of a file and leave its tensors."""
    tensors, content = read_tensors(path, "pgnas.network/1")
    change(content)
    content = {k: v for k, v in content.items() if k not in versioned("")}
    write_tensors(path, "pgnas.network/1", tensors, content)


def first_mix(content: dict[str, Any]) -> dict[str, Any]:
    return next(cut for cut in content["cuts"].values() if cut["kind"] == "mix" and cut["picks"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("params"), "its field networkinfo is not what"),
        (lambda c: c.update(params="many"), "its field networkinfo.params is not"),
        (lambda c: c.update(extra=1), "its field networkinfo is not"),
        (lambda c: c["supernet"].update(classes=3), "networkinfo.supernet.classes is not"),
        (lambda c: c["supernet"].update(backbone="os:system"), "if it is yours, name it again"),
        (lambda c: c["supernet"].update(backbone="a.safetensors"), "names a file as its backbone"),
        (lambda c: c["supernet"].update(options={"pretrained": True}), "no option 'pretrained'"),
        (
            lambda c: c["supernet"].update(options={"inflation": {"kernels": [10**9 + 1]}}),
            "no branch",
        ),
        (lambda c: c["supernet"].update(backbone="__import__('os')"), "no backbone named"),
        (lambda c: c["supernet"].update(layers="none"), "`gates` 'none' is not known"),
        (lambda c: c["cuts"].update(nowhere=first_mix(c)), "has no layer 'nowhere'"),
        (lambda c: first_mix(c).update(outputs=10**12), "impossible sizes"),
        (lambda c: first_mix(c).update(inputs=-1), "impossible sizes"),
        (lambda c: first_mix(c).update(kind="magic"), "kind is not what"),
        (lambda c: first_mix(c).update(inputs=first_mix(c)["inputs"] - 1), "does not fit"),
        (lambda c: first_mix(c).update(picks=1), "reads channels that are not there"),
        (lambda c: c["cuts"].clear(), "does not fit"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = tmp_path / "best.safetensors"
    exported(path)
    rewritten(path, change)
    with pytest.raises(PgnasError, match=message):
        load(path)


def test_tensors_that_compute_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    exported(path)
    tensors, content = read_tensors(path, "pgnas.network/1")
    content = {k: v for k, v in content.items() if k not in versioned("")}
    tensors["network.head.weight"] = tensors["network.head.weight"] * 1.5
    write_tensors(path, "pgnas.network/1", tensors, content)
    with pytest.raises(PgnasError, match="computes other logits than when it was written"):
        load(path)


def test_a_file_without_its_fingerprint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    exported(path)
    tensors, content = read_tensors(path, "pgnas.network/1")
    del tensors["fingerprint"]
    write_tensors(path, "pgnas.network/1", tensors, content)
    with pytest.raises(PgnasError, match="is damaged: it has no fingerprint of its logits"):
        load(path)


def test_a_slim_network_that_differs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = network.slim

    def broken(*arguments: Any, **options: Any) -> Any:
        smaller = real(*arguments, **options)
        smaller.head.weight.data[:, 0] *= 1.1
        return smaller

    monkeypatch.setattr(network, "slim", broken)
    path = tmp_path / "best.safetensors"
    with pytest.raises(PgnasError, match="the slim network differs from the masked one"):
        exported(path)
    assert not path.exists()


def test_the_run_that_a_file_came_from_is_found_by_its_posterior(
    fitted: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    beside, elsewhere = fitted.folder / "best.safetensors", tmp_path / "other" / "a.safetensors"
    made_from = {read_network(beside)[1].made_from}
    assert made_from == {file_digest(fitted.posterior)}
    assert origin([elsewhere, beside], made_from, None) == fitted
    assert origin([elsewhere], made_from, None) is None
    assert origin([elsewhere], made_from, fitted) == fitted
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a").symlink_to(fitted.folder)
    assert origin([elsewhere], made_from, None) == Run(Path("runs/a"))
    with pytest.raises(PgnasError, match="is not the run that these networks came from"):
        origin([beside], {"0" * 64}, fitted)
