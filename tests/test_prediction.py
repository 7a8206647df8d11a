"""Predictions of image files: those of `evaluate`, whatever else lies beside."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pgnas_cli
from pgnas_cli.errors import PgnasError
from pgnas_cli.formats import load
from pgnas_cli.machine import Machine
from pgnas_cli.prediction import Prediction, Unreadable, class_probabilities, image_files, predict

from .photos import CLASSES, classifier_file, noisy_photos


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 photos in class folders, and a network in both formats."""
    folder = tmp_path_factory.mktemp("made")
    noisy_photos(folder / "photos")
    for file in ("a.safetensors", "a.onnx"):
        classifier_file(folder / file)
    return folder


@pytest.mark.parametrize(("file", "workers"), [("a.safetensors", 2), ("a.onnx", 0)])
def test_the_errors_are_those_of_evaluate_photo_by_photo(
    made: Path, file: str, workers: int
) -> None:
    (row,) = pgnas_cli.evaluate(made / file, str(made / "photos"), batch_size=2)
    found = list(predict(made / file, made / "photos" / "val", machine=Machine(workers=workers)))
    assert len(found) == row.images == 72
    assert all(isinstance(one, Prediction) for one in found)
    labels = [Path(one.image).relative_to(made / "photos" / "val").parts[0] for one in found]
    wrong = [i for i, one in enumerate(found) if one.classes[0] != labels[i]]
    assert tuple(wrong) == row.wrong
    assert 0 < row.errors < 72
    assert {one.classes[0] for one in found} == set(CLASSES)
    for one in found:
        assert sorted(one.classes) == sorted(CLASSES)
        assert list(one.probabilities) == sorted(one.probabilities, reverse=True)
        assert sum(one.probabilities) == pytest.approx(1, abs=1e-9)


def test_both_formats_give_the_same_probabilities(made: Path) -> None:
    tables = []
    for file in ("a.safetensors", "a.onnx"):
        network = load(made / file)
        files = image_files([str(made / "photos")])
        batches = list(class_probabilities(network, network.info, files))
        assert [len(reasons) for _, reasons in batches] == [64, 8]
        tables.append(torch.cat([table for table, _ in batches]))
    assert tables[0].shape == (72, 3)
    assert torch.allclose(*tables, atol=1e-5)


def test_images_that_cannot_be_read_say_why_in_their_place_and_the_rest_goes_on(
    made: Path, tmp_path: Path
) -> None:
    good = made / "photos" / "val" / "red" / "0.jpg"
    content = good.read_bytes()
    for name, wrong in (("cut", content[: len(content) // 2]), ("text", b"hello"), ("none", b"")):
        (tmp_path / f"{name}.jpg").write_bytes(wrong)
    (tmp_path / "notes.txt").write_text("no image")
    Image.fromarray(np.full((9, 9), 3, np.float32)).save(tmp_path / "deep.tif")
    (tmp_path / "lost.jpg").symlink_to("nowhere")
    found = list(predict(made / "a.safetensors", [good, tmp_path, "gone.jpg", "a\0b", good]))
    reasons = [one.reason if isinstance(one, Unreadable) else None for one in found]
    names = [Path(one.image).name for one in found]
    assert names == ["0.jpg", "cut.jpg", "deep.tif", "lost.jpg", "none.jpg", "text.jpg", "gone.jpg",
                     "a\0b", "0.jpg"]  # fmt: skip
    assert reasons[:1] == reasons[-1:] == [None]
    expected = ["truncated", "floats are read from 0 to 1", "No such file", "no image that Pillow",
                "no image that Pillow", "No such file", "null"]  # fmt: skip
    assert all(map(str.__contains__, map(str, reasons[1:-1]), expected)), reasons
    alone = list(predict(made / "a.safetensors", "gone.jpg"))
    assert [type(one) for one in alone] == [Unreadable]


def test_every_kind_of_image_is_read_as_8_bit_rgb(made: Path, tmp_path: Path) -> None:
    photo = Image.open(made / "photos" / "val" / "red" / "0.jpg")
    grey = np.asarray(photo.convert("L"))
    kinds = {
        "grey": (photo.convert("L"), photo.convert("L").convert("RGB")),
        "deep": (Image.fromarray(grey.astype(np.uint16) * 257), photo.convert("L")),
        "cmyk": (photo.convert("CMYK"), photo.convert("CMYK").convert("RGB")),
        "clear": (photo.convert("RGBA"), photo),
    }
    for name, (image, same) in kinds.items():
        image.save(tmp_path / f"{name}.{'tif' if name == 'cmyk' else 'png'}")
        same.save(tmp_path / f"{name}-plain.png")
    found = {Path(one.image).stem: one for one in predict(made / "a.safetensors", tmp_path)}
    for name in kinds:
        odd, plain = found[name], found[f"{name}-plain"]
        assert odd.classes == plain.classes, name
        assert odd.probabilities == pytest.approx(plain.probabilities, abs=1e-6), name
    assert found["grey"].probabilities != found["clear"].probabilities


def test_a_folder_without_images_or_rights_is_named(made: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.jpg").write_bytes(b"")
    with pytest.raises(PgnasError, match=r"no images in '.*'; read are .jpg and \d+ more endings"):
        predict(made / "a.safetensors", [made / "photos", tmp_path])
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    if not os.access(closed, os.R_OK):
        with pytest.raises(PgnasError, match="closed' cannot be read: Permission denied"):
            predict(made / "a.safetensors", closed)
    with pytest.raises(PgnasError, match="`top` 0 is out of range; possible: 1 or more"):
        predict(made / "a.safetensors", made / "photos", top=0)
    with pytest.raises(PgnasError, match=r"`images` '\[3\]' is not known; possible: text"):
        pgnas_cli.predict(made / "a.safetensors", [3])


def test_nothing_is_kept_of_a_photo_beyond_its_turn(made: Path) -> None:
    """The order and the number of photos change no class, and no probability beyond rounding."""
    files = image_files([str(made / "photos" / "val" / "red")])
    forwards = list(predict(made / "a.safetensors", files, top=1))
    backwards = list(predict(made / "a.safetensors", files[::-1], top=1))[::-1]
    single = [next(predict(made / "a.safetensors", file, top=1)) for file in files[:3]]
    for a, b in [*zip(forwards, backwards, strict=True), *zip(forwards, single, strict=False)]:
        assert (a.image, a.classes) == (b.image, b.classes)
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-6)


def test_bytes_in_memory_are_no_path(made: Path) -> None:
    with pytest.raises(PgnasError, match=r"`image` '.*BytesIO.*' is not known; possible: text"):
        load(made / "a.safetensors").predict(io.BytesIO(b""))
