"""Folders of photos: from a fit to an exported network; changed; moved; to test on alone."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pgnas_cli.formats import load

from ..conftest import object_of, refused, run, said
from ..networks import seeded


def test_a_timm_network_on_photos_goes_through_all_commands(
    photo_folder: Callable[..., Path],
) -> None:
    photos = str(photo_folder())
    fit = ["fit", "--backbone", "timm/test_efficientnet", "--data", photos, "--img-size", "64",
           "--epochs", "2", "--batch-size", "6", "--initial-drop", "0.2"]  # fmt: skip
    for step in (fit, ["sample", "-n", "3"]):
        assert run(*step, "--run", "r", "-q") == 0
    for file in ("a.safetensors", "a.onnx"):
        assert run("export", file, "--run", "r", "-q") == 0
        assert photos.encode() not in Path(file).read_bytes()
    for more, message in (
        ([], "was trained on a folder called 'photos'; say where it lies with --data"),
        (["--data", "digits"], "has the classes 0, 1, 2, 3, 4..."),
    ):
        assert message in refused("evaluate", "a.safetensors", *more)
    found = object_of("evaluate", "a.safetensors", "a.onnx", "--data", photos)["networks"]
    assert [row["images"] for row in found] == [12, 12]
    assert found[0]["errors"] == found[1]["errors"]
    assert found[0]["latency_one"]["layout"] in ("small", "fast")
    assert found[1]["latency_one"]["layout"] == "onnx"
    shutil.copy("a.safetensors", "r")
    status, _, err = said("evaluate", "r/a.safetensors", "-b", "2")
    assert status == 0
    assert f"data: {photos} (that of the fit; --data names another)" in err
    network, images = load("a.safetensors"), torch.randn(2, 3, 64, 64, generator=seeded())
    program = torch.export.export(network, (images,)).module()
    with torch.no_grad():
        assert torch.allclose(program(images), network(images), atol=1e-5)


def test_changed_data_are_noticed_and_networks_of_two_sizes_are_each_timed_at_their_own(
    photo_folder: Callable[..., Path],
) -> None:
    folder = photo_folder()
    data = ["--data", str(folder), "-j", "0"]
    sizes = ("64", "16")
    files = [f"{size}.safetensors" for size in sizes]
    for size, file in zip(sizes, files, strict=True):
        fit = ["fit", *data, "--epochs", "1", "--batch-size", "8", "--img-size", size]
        assert run(*fit, "--run", size, "-q") == 0
        assert run("export", file, "--candidate", "whole", "--run", size, "-q") == 0
    rows = object_of("evaluate", *files, *data, "-b", "64")["networks"]
    many = [row["latency_many"] for row in rows]
    assert all(0.3 < time["ms"] / time["whole_ms"] < 3 for time in many)
    assert many[0]["ms"] > many[1]["ms"]
    assert run("sample", "-n", "3", "--run", "16", "-q") == 0
    for path in sorted((folder / "train" / "red").iterdir())[2:]:
        path.rename(path.with_name(f"new-{path.name}"))
    for command in (["rank"], ["export", "b.safetensors"]):
        assert "are not those of the fit" in refused(*command, "--run", "16")
    assert not Path("b.safetensors").exists()


TINY = ["--backbone", "multibranch-tiny", "--img-size", "24", "-b", "8", "-j", "0", "--epochs", "1"]


def test_photos_that_were_moved_are_named_to_every_later_stage_and_known_by_their_digest(
    photo_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = photo_folder()
    assert run("fit", "--data", str(folder), *TINY, "--run", "r", "-q") == 0
    assert run("sample", "-n", "3", "--run", "r", "-q") == 0
    home = tmp_path / "my photos"
    home.mkdir()
    moved = str(folder.rename(home / "moved"))
    stages = {"rank": [], "export": ["a.safetensors"],
              "finetune": ["a.safetensors", "--epochs", "1"]}  # fmt: skip
    before = Path("r/run.json").read_bytes()
    for stage, given in stages.items():
        Path("r/run.json").write_bytes(before)
        line = refused(stage, *given, "--run", "r")
        assert f"no folder '{folder}' with the images of the fit; name it with --data" in line
        status, _, err = said(stage, *given, "--run", "r", "--data", moved, "-j", "0")
        assert status == 0, err
    assert object_of("evaluate", "a.safetensors", "--run", "r", "-j", "0")["images"] == 12  # kept
    Path("r/run.json").write_bytes(before)
    assert "say where it lies with --data" in refused("evaluate", "a.safetensors", "--run", "r")
    assert object_of("evaluate", "a.safetensors", "--data", moved, "-j", "0")["images"] == 12
    other = Path(shutil.copytree(moved, home / "other"))
    for path in sorted((other / "train" / "red").iterdir())[2:]:
        path.rename(path.with_name(f"new-{path.name}"))
    for stage, given in stages.items():
        force = ["--force"] if given else []
        line = refused(stage, *given, *force, "--run", "r", "--data", str(other))
        assert f"the images of '{other}' are not those of the fit" in line


@pytest.mark.parametrize("place", ["new/val", "new/test", "new"])
def test_a_network_is_tested_on_labelled_photos_alone(
    photo_folder: Callable[..., Path], tmp_path: Path, place: str
) -> None:
    """All classes, or some of them by their names; no others."""
    folder = photo_folder()
    assert run("fit", "--data", str(folder), *TINY, "--run", "r", "-q") == 0
    assert run("export", "a.safetensors", "--candidate", "whole", "--run", "r", "-q") == 0
    evaluate = ["evaluate", "a.safetensors", "-j", "0", "--data"]
    whole = object_of(*evaluate, str(folder))
    shutil.copytree(folder / "val", place)
    alone = object_of(*evaluate, "new")
    assert [alone[key] for key in ("images", "errors")] == [12, whole["errors"]]
    by_class = {}
    for name in ("blue", "green", "red"):
        shutil.copytree(folder / "val" / name, Path("only", name, name))
        by_class[name] = object_of(*evaluate, f"only/{name}")
    assert [row["images"] for row in by_class.values()] == [4, 4, 4]
    assert sum(row["errors"] for row in by_class.values()) == whole["errors"]
    shutil.move("only/red/red", "only/red/rot")
    assert "'only/red' has the classes rot..., 'a.safetensors' was trained on blue, green, red" in (
        refused(*evaluate, "only/red")
    )
    Path("empty").mkdir()
    assert "'empty' has no class folders; expected empty/<class>/*.jpg" in (
        refused(*evaluate, "empty")
    )


def test_a_fine_tuning_says_of_its_photos_what_the_fit_said(
    photo_folder: Callable[..., Path],
) -> None:
    folder = photo_folder()
    (folder / "train" / "red" / "notes.txt").write_text("none")
    status, _, fitted = said("fit", "--data", str(folder), *TINY, "--run", "r")
    assert run("export", "a.safetensors", "--candidate", "whole", "--run", "r", "-q") == 0
    status, _, tuned = said("finetune", "a.safetensors", "--epochs", "1", "--run", "r")
    assert status == 0
    remark = "note: 1 files left out: 1 .txt"
    assert remark in fitted.splitlines() and remark in tuned.splitlines()
