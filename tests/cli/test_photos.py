"""Folders of photos: changed, moved, and of several image sizes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import run
from .conftest import object_of, said

FIT = ["fit", "--epochs", "1", "--batch-size", "8", "-j", "0", "-q"]


def test_changed_data_are_noticed(
    capsys: pytest.CaptureFixture[str], photo_folder: Callable[..., Path]
) -> None:
    folder = photo_folder()
    assert run(*FIT, "--data", str(folder), "--img-size", "32", "--run", "r") == 0
    assert run("sample", "-n", "3", "--run", "r", "-q") == 0
    for path in sorted((folder / "train" / "red").iterdir())[2:]:
        path.rename(path.with_name(f"new-{path.name}"))
    for command in (["rank"], ["export", "b.safetensors"]):
        status, _, err = said(capsys, *command, "--run", "r")
        assert (status, "are not those of the fit" in err) == (1, True)
    assert not Path("b.safetensors").exists()


def test_a_photo_export_is_evaluated_on_the_folder_that_is_named(
    capsys: pytest.CaptureFixture[str], photo_folder: Callable[..., Path]
) -> None:
    folder = str(photo_folder())
    assert run(*FIT, "--data", folder, "--img-size", "48", "--run", "r") == 0
    assert run("sample", "-n", "3", "--run", "r", "-q") == 0
    assert run("export", "b.safetensors", "--run", "r", "-q") == 0
    assert folder.encode() not in Path("b.safetensors").read_bytes()
    status, _, err = said(capsys, "evaluate", "b.safetensors")
    assert status == 1
    assert "was trained on a folder called 'photos'; say where it lies with --data" in err
    found = object_of(capsys, "evaluate", "b.safetensors", "--data", folder)
    assert found["images"] == 12
    status, _, err = said(capsys, "evaluate", "b.safetensors", "--data", "digits")
    assert (status, "has the classes 0, 1, 2, 3, 4..." in err) == (1, True)


def test_networks_of_different_image_sizes_are_each_timed_at_their_own(
    capsys: pytest.CaptureFixture[str], photo_folder: Callable[..., Path]
) -> None:
    data = ["--data", str(photo_folder()), "-j", "0"]
    for size in ("48", "128"):
        assert run(*FIT, *data, "--img-size", size, "--run", size) == 0
        place = [f"{size}.safetensors", "--candidate", "whole", "--run", size, "-q"]
        assert run("export", *place) == 0
    files = ["128.safetensors", "48.safetensors"]
    rows = object_of(capsys, "evaluate", *files, *data, "-b", "8")["networks"]
    for row in rows:
        many = row["latency_many"]
        assert 0.3 < many["ms"] / many["whole_ms"] < 3
    assert rows[0]["latency_many"]["ms"] > rows[1]["latency_many"]["ms"]
