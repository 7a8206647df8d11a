"""Exported networks: round trips, and what a damaged or hostile file meets."""

import dataclasses
import functools
import shutil
import subprocess
import sys
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

from ..files import Change, rewrite
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


def test_exported_networks_load_in_a_fresh_process(tmp_path: Path) -> None:
    layers = [None, "blocks.1.branch1.3", "blocks.2.skip.even"]
    made = [exported(tmp_path / f"{n}.safetensors", closed) for n, closed in enumerate(layers)]
    save_file({"x": IMAGES}, tmp_path / "x")
    code = (
        "import pgnas_cli; from safetensors.torch import load_file, save_file\n"
        "x = load_file('x')['x']\n"
        "save_file({f'{n} {k}': pgnas_cli.load(f'{n}.safetensors', layout=k)(x).detach()"
        " for n in range(3) for k in ('small', 'fast')}, 'y')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    found = load_file(tmp_path / "y")
    for n, (whole, keep, about) in enumerate(made):
        with torch.no_grad(), masked(whole, keep):
            expected = whole(IMAGES)
        for logits in (found[f"{n} small"], found[f"{n} fast"]):
            assert largest_difference(whole, keep, lambda _, y=logits: y, [IMAGES]) <= 1e-4
            assert torch.equal(logits.argmax(1), expected.argmax(1))
        network, record = read_network(tmp_path / f"{n}.safetensors")
        assert record == about
        assert sum(p.numel() for p in network.parameters()) == about.params


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

    def moved(content: dict[str, Any], _: object, first: int) -> None:
        cut = [cut for cut in content["cuts"].values() if cut["kind"] == "slice"][-1]
        cut["first"] = first

    for first, message in ((10**6, "layers do not fit together"), (-1, "impossible sizes")):
        rewrite(path, "pgnas.network/1", functools.partial(moved, first=first))
        with pytest.raises(PgnasError, match=message):
            load(path)


def test_equal_content_gives_equal_bytes_and_no_time_path_or_host(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for path in paths:
        exported(path)
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert str(tmp_path).encode() not in first


def first_mix(content: dict[str, Any]) -> dict[str, Any]:
    return next(cut for cut in content["cuts"].values() if cut["kind"] == "mix" and cut["picks"])


def of_supernet(**change: object) -> Change:
    return lambda c, t: c["supernet"].update(change)


def of_mix(**change: object) -> Change:
    return lambda c, t: first_mix(c).update(change)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "best.safetensors"
    exported(path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, t: c.pop("params"), "its field networkinfo is not what"),
        (lambda c, t: c.update(params="many"), "its field networkinfo.params is not"),
        (lambda c, t: c.update(extra=1), "its field networkinfo is not"),
        (of_supernet(classes=3), "networkinfo.supernet.classes is not"),
        (of_supernet(backbone="os:system"), "if it is yours, name it again"),
        (of_supernet(backbone="a.safetensors"), "names a file as its backbone"),
        (of_supernet(options={"pretrained": True}), "no option 'pretrained'"),
        (of_supernet(options={"inflation": {"kernels": [10**9 + 1]}}), "no branch"),
        (of_supernet(backbone="__import__('os')"), "no backbone named"),
        (of_supernet(layers="none"), "`gates` 'none' is not known"),
        (lambda c, t: c["cuts"].update(nowhere=first_mix(c)), "has no layer 'nowhere'"),
        (of_mix(outputs=10**12), "impossible sizes"),
        (of_mix(inputs=-1), "impossible sizes"),
        (of_mix(kind="magic"), "kind is not what"),
        (lambda c, t: first_mix(c).update(inputs=first_mix(c)["inputs"] - 1), "does not fit"),
        (of_mix(picks=1), "reads channels that are not there"),
        (lambda c, t: c["cuts"].clear(), "does not fit"),
        (lambda c, t: t["network.head.weight"].mul_(1.5), "computes other logits than when it was"),
        (lambda c, t: t.pop("fingerprint"), "is damaged: it has no fingerprint of its logits"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    written: Path, tmp_path: Path, change: Change, message: str
) -> None:
    path = shutil.copy(written, tmp_path / "best.safetensors")
    rewrite(path, "pgnas.network/1", change)
    with pytest.raises(PgnasError, match=message):
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
