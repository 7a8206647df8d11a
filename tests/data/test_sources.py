"""Data sets are found under every name, photos are read right, and mistakes are named."""

import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from pgnas_cli.data import DataName, evaluation_images, find_data, load_data, training_batches
from pgnas_cli.errors import PgnasError

Folder = Callable[..., Path]


@pytest.mark.parametrize("split", ["val", "validation", "valid", "test"])
def test_the_test_folder_may_have_any_of_its_usual_names(photo_folder: Folder, split: str) -> None:
    data = load_data(str(photo_folder(split=split)), seed=0, size=32)
    assert len(data.test) == 12
    assert data.classes == ("blue", "green", "red")


def test_a_folder_is_called_by_its_last_part_wherever_it_lies(
    photo_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photo_folder()
    monkeypatch.chdir(folder / "train")
    for name in (str(folder), ".."):
        assert load_data(name, seed=0, size=32).name == DataName("photos", folder=True)
    assert load_data("digits", seed=0).name == DataName("digits")


def test_photos_of_any_mode_are_read_as_rgb(photo_folder: Folder) -> None:
    """Greys by their luma; 16 bits are scaled, not clipped."""
    folder = photo_folder(train=4)
    extra = folder / "train" / "red"
    Image.new("LA", (96, 80), (200, 255)).save(extra / "la.png")
    Image.new("P", (96, 80)).save(extra / "p.png")
    Image.new("RGBA", (96, 80), (210, 30, 40, 128)).save(extra / "rgba.png")
    Image.new("CMYK", (96, 80)).save(extra / "cmyk.jpg")
    ramp = np.linspace(0, 65535, 96 * 80).reshape(80, 96).astype(np.uint16)
    Image.fromarray(ramp).save(folder / "val" / "red" / "16.png")
    data = load_data(str(folder), seed=0, size=32)
    batches = list(training_batches(data, batch=4, seed=0, first_step=0, steps=3, workers=0))
    assert all(images.shape == (4, 3, 32, 32) for images, _ in batches)
    pixels = torch.cat(list(evaluation_images(data.test, data.preprocessing))).float()
    grey, deep = (pixels[data.test.keys.index(key)] for key in ("red/01.jpg", "red/16.png"))
    assert (grey[0] - grey[1]).abs().max() == 0
    assert abs(float(grey.mean()) - (0.299 * 217 + 0.587 * 37 + 0.114 * 47)) < 3
    assert abs(float(deep.mean()) - 127.5) < 3
    assert deep.std() > 30


def test_timm_named_data_sets_are_read_through_timm(tmp_path: Path) -> None:
    """torch/mnist from files in its own format, so that nothing is downloaded."""
    raw = tmp_path / "mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 60), ("t10k", 20)):
        header = np.array([0x803, count, 28, 28], dtype=">i4").tobytes()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + bytes(count * 28 * 28))
        header = np.array([0x801, count], dtype=">i4").tobytes()
        labels = bytes(index % 10 for index in range(count))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels)
    data = load_data("torch/mnist", seed=0, root=tmp_path / "mnist")
    assert [len(part) for part in (data.fit, data.held_out, data.test)] == [50, 10, 20]
    assert data.fit.pixels is not None
    assert len(data.classes) == 10
    with pytest.raises(PgnasError, match="timm cannot open data set 'torch/nothing'"):
        load_data("torch/nothing", seed=0, root=tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet"])
def test_a_plain_name_is_a_folder_of_classes_below_the_root(
    photo_folder: Folder, tmp_path: Path, name: str
) -> None:
    photo_folder().rename(tmp_path / name)
    data = load_data(name, seed=0, size=32, root=tmp_path)
    assert data.classes == ("blue", "green", "red")
    assert data.name == DataName(name)


class _Fetched:
    """What torchvision has of CIFAR: labels and classes by name, images by index."""

    def __init__(self, count: int) -> None:
        self.targets = [index % 2 for index in range(count)]
        self.classes = ["cat", "dog"]

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", (32, 32), (9 * index, 0, 0)), self.targets[index]


def test_cifar_is_torchvisions_where_no_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def create(name: str, root: str, *, split: str, **options: object) -> _Fetched:
        asked.append((name, root, split))
        return _Fetched(20 if split == "train" else 8)

    monkeypatch.setattr("pgnas_cli.data.sources.create_dataset", create)
    data = load_data("cifar10", seed=0, root=tmp_path)
    assert asked[:2] == [("torch/cifar10", str(tmp_path), s) for s in ("train", "validation")]
    assert data.classes == ("cat", "dog")
    assert (len(data.fit), len(data.held_out)) == (16, 4)


@pytest.mark.parametrize(
    ("name", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")]
)
def test_a_plain_name_that_is_not_found_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: str
) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("pgnas_cli.data.sources.create_dataset", offline)
    with pytest.raises(PgnasError) as caught:
        load_data(name, seed=0, root=tmp_path)
    text = str(caught.value)
    assert f"looked for {tmp_path / name}/train/<class>/ and {tmp_path / folder};" in text
    assert "no route to host" in text
    assert text.endswith("`data_root` says where data sets live")


def test_imagenet_is_not_downloaded(tmp_path: Path) -> None:
    where = tmp_path / "imagenet"
    with pytest.raises(PgnasError, match=f"looked for {where}/train/<class>/ .*`data_root`"):
        load_data("imagenet", seed=0, root=tmp_path)


def test_refusals_say_what_was_found_and_what_is_possible(
    photo_folder: Folder, tmp_path: Path
) -> None:
    def refused(name: str | Path, message: str, **options: object) -> None:
        with pytest.raises(PgnasError, match=message):
            load_data(str(name), seed=0, **options)

    def picture(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 80)).save(path)

    folder, few = photo_folder(), tmp_path / "few"
    refused("nowhere", "no data set 'nowhere'; possible: digits, a folder")
    refused("digits", "`held_out` 1.5 is out of range; possible: above 0 and below 1", held_out=1.5)
    refused(folder / "val", f"no folder '{folder}/val/train'")
    (folder / "train" / "empty").mkdir()
    refused(folder, f"no images in '{folder}/train/empty'; read are .jpg")
    picture(folder / "train" / "empty" / "a.png")
    refused(folder, "has other classes than .*missing empty; extra none")
    picture(few / "train" / "one" / "a.png")
    refused(few, "has one class")
    picture(few / "train" / "two" / "a.png")
    refused(few, "at least 2 are needed, one to train on and one to rank on")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_photo_is_named_and_can_be_skipped(photo_folder: Folder, workers: int) -> None:
    folder = photo_folder()
    data = load_data(str(folder), seed=0, size=32)
    broken = folder / "train" / "green" / "05.jpg"
    broken.write_bytes(broken.read_bytes()[:400])
    part = data.fit if "green/05.jpg" in data.fit.keys else data.held_out
    with pytest.raises(PgnasError, match=r"05\.jpg' does not decode .*`skip_corrupt`"):
        list(evaluation_images(part, data.preprocessing, workers=workers))
    rest = load_data(str(folder), seed=0, size=32, skip_corrupt=True)
    assert len(rest.fit.readable()) + len(rest.held_out.readable()) == 23


def test_the_images_of_a_named_data_set_are_decoded_before_they_are_trained_on(
    photo_folder: Folder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """timm's own data set would give the next image in place of one that is empty."""
    folder = photo_folder(size=(24, 24))
    opened = partial(timm.data.create_dataset, "", download=False)

    def create(name: str, root: str, split: str, **options: bool) -> object:
        return opened(root=folder / {"train": "train", "validation": "val"}[split])

    monkeypatch.setattr("pgnas_cli.data.sources.create_dataset", create)
    monkeypatch.setattr("pgnas_cli.data.sources.find_spec", lambda package: package)
    assert find_data("hfds/mine").train.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    (folder / "train" / "green" / "05.jpg").write_bytes(b"")
    (folder / "val" / "red" / "01.jpg").write_bytes(b"no image")
    with pytest.raises(PgnasError) as refusal:
        find_data("hfds/mine")
    text = str(refusal.value)
    assert text.startswith(
        "2 of 36 images do not decode (by class: 1 1, 2 1): 'hfds/mine/train-000"
    )
    assert text.endswith("remove them or add `skip_corrupt`")
    assert len(find_data("hfds/mine", reads=()).train) == 24  # nothing is read now
    left = find_data("hfds/mine", skip_corrupt=True)
    assert left.train.damaged == {8 + 5} and len(left.test or ()) == 11
    assert left.remarks == (
        "2 of 36 images do not decode and are left out (by class: 1 1, 2 1): train-0000013,"
        " validation-0000009",
    )


@pytest.mark.parametrize(
    ("name", "package"),
    [("hfds/a", "datasets"), ("hfids/a", "datasets"), ("wds/a", "webdataset"),
     ("tfds/a", "tensorflow-datasets")],
)  # fmt: skip
def test_the_package_that_a_name_needs_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setattr("pgnas_cli.data.sources.find_spec", lambda package: None)
    with pytest.raises(PgnasError) as refusal:
        find_data(name)
    wanted = package.replace("-", "_")
    assert str(refusal.value) == f"'{name}' needs the package {wanted}: pip install {package}"


def test_images_that_come_in_one_order_only_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shards(IterableDataset):
        def __iter__(self) -> Iterator[object]:
            return iter(())

    monkeypatch.setattr("pgnas_cli.data.sources.find_spec", lambda package: package)
    monkeypatch.setattr("pgnas_cli.data.sources.create_dataset", lambda *_, **__: Shards())
    with pytest.raises(PgnasError, match="'wds/mine' is read from first to last only"):
        find_data("wds/mine")


def test_labels_of_a_named_data_set_are_read_without_its_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Reader:
        def iter_targets(self) -> list[int]:
            return [0, 0, 1, 1]

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            opened.append(index)
            return Image.new("RGB", (24, 24), (60 * index, 0, 0)), index // 2

    opened: list[int] = []
    made = types.SimpleNamespace(reader=Reader())
    monkeypatch.setattr("pgnas_cli.data.sources.find_spec", lambda package: package)
    monkeypatch.setattr("pgnas_cli.data.sources.create_dataset", lambda *_, **__: made)
    source = find_data("hfds/mine", reads=())
    assert source.train.labels.tolist() == [0, 0, 1, 1]
    assert sorted(opened) == [0, 1, 2, 3]  # once each, to see whether they are small
