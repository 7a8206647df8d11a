"""Folders of photos: from a fit to an exported network; changed; of several image sizes."""

from collections.abc import Callable
from pathlib import Path

import torch

from pgnas_cli.formats import load

from ..conftest import object_of, refused, run
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
    assert found[1]["latency_one"]["layout"] in ("small, onnx", "fast, onnx")
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
    rows = object_of("evaluate", *files, *data, "-b", "8")["networks"]
    many = [row["latency_many"] for row in rows]
    assert all(0.3 < time["ms"] / time["whole_ms"] < 3 for time in many)
    assert many[0]["ms"] > many[1]["ms"]
    assert run("sample", "-n", "3", "--run", "16", "-q") == 0
    for path in sorted((folder / "train" / "red").iterdir())[2:]:
        path.rename(path.with_name(f"new-{path.name}"))
    for command in (["rank"], ["export", "b.safetensors"]):
        assert "are not those of the fit" in refused(*command, "--run", "16")
    assert not Path("b.safetensors").exists()
