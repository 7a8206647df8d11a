"""What is wrong or odd in a folder of images, and what is done about it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from pgnas_cli.data import Source, cut_data, find_data, remarks_on
from pgnas_cli.errors import PgnasError

Folder = Callable[..., Path]


def content_of(folder: Path, keys: tuple[str, ...]) -> set[bytes]:
    return {(folder / key).read_bytes() for key in keys}


def test_copies_of_a_photo_stay_on_one_side_of_the_held_out_cut(photo_folder: Folder) -> None:
    """Ten copies of some, under other names and in another class."""
    folder = photo_folder(train=20)
    train = folder / "train"
    for number in range(8):
        for copy in range(10):
            shutil.copy(train / "red" / f"{number:02d}.jpg", train / "red" / f"{copy}-{number}.jpg")
        shutil.copy(train / "blue" / f"{number:02d}.jpg", train / "green" / f"blue-{number}.jpg")
    source = find_data(str(folder))
    for seed in range(5):
        data = cut_data(source, seed=seed, size=32)
        sides = [content_of(train, part.keys) for part in (data.fit, data.held_out)]
        assert not sides[0] & sides[1]
        assert len(data.fit) + len(data.held_out) == 60 + 80 + 8
        assert len(content_of(train, tuple(k for k in data.held_out.keys if "red" in k))) == 4
    copied, torn = source.remarks
    assert copied.startswith("88 training images are copies of others")
    assert torn.startswith("8 pictures lie in two classes: 'blue/00.jpg' and 'green/blue-0.jpg'")


def test_copies_of_test_photos_are_left_out_of_training(photo_folder: Folder) -> None:
    folder = photo_folder()
    for number in range(3):
        name = f"{number:02d}.jpg"
        shutil.copy(folder / "val" / "red" / name, folder / "train" / "green" / f"v{name}")
    source = find_data(str(folder))
    assert (len(source.train), len(source.test)) == (24, 12)
    assert not content_of(folder / "train", source.train.keys) & content_of(
        folder / "val", source.test.keys
    )
    (remark,) = source.remarks
    assert remark == (
        f"3 training images left out, they are copies of images in '{folder}/val':"
        " green/v00.jpg, green/v01.jpg, green/v02.jpg"
    )
    shutil.rmtree(folder / "train" / "green")
    shutil.copytree(folder / "val" / "green", folder / "train" / "green")
    with pytest.raises(PgnasError, match="all training images of class 'green' are copies"):
        find_data(str(folder))


def test_a_class_of_one_picture_cannot_be_cut(photo_folder: Folder) -> None:
    folder = photo_folder()
    for path in (folder / "train" / "red").iterdir():
        shutil.copy(folder / "train" / "red" / "00.jpg", path.with_name(f"0{path.name}"))
        path.unlink() if path.name != "00.jpg" else None
    with pytest.raises(PgnasError, match="class 'red' has 1 different training image"):
        cut_data(find_data(str(folder)), seed=0, size=32)


def test_turned_photos_are_counted(photo_folder: Folder) -> None:
    folder, tag = photo_folder(), Image.Exif()
    tag[ExifTags.Base.Orientation] = 6
    for path in ("train/red/00.jpg", "val/red/00.jpg"):
        Image.new("RGB", (80, 96), (len(path), 0, 0)).save(folder / path, exif=tag)
    source = find_data(str(folder))
    assert source.remarks == ("2 of 36 images turned upright by their EXIF orientation",)


def of_16_bits(folder: Path, white: int) -> Source:
    dice = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name, level in (("dark", 0.2), ("light", 0.9)):
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(count):
                values = dice.integers(0, level * white, (40, 46)).astype(np.uint16)
                Image.fromarray(values).save(place / f"{number}.png")
    return find_data(str(folder))


def test_a_set_of_16_bit_images_that_never_come_near_white_is_refused(tmp_path: Path) -> None:
    """12 bits in 16 would be read as black; a dark image among bright ones is not refused."""
    assert of_16_bits(tmp_path / "16", 65535).train.open(0).getextrema()[0][1] < 52
    for bits in (8, 12):
        with pytest.raises(
            PgnasError, match=r"the 12 images of more than 8 bits reach 0\.\d+ of w"
        ):
            of_16_bits(tmp_path / f"{bits}", 2**bits)


def test_16_bit_images_to_test_on_that_never_come_near_white_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PgnasError, match="12 images of more than 8 bits reach"):
        of_16_bits(tmp_path, 2**12)
    (tmp_path / "train").rename(tmp_path / "elsewhere")
    with pytest.raises(PgnasError, match="4 images of more than 8 bits reach"):
        find_data(str(tmp_path), reads=("test",))


def test_damaged_images_are_listed_by_class(photo_folder: Folder) -> None:
    folder = photo_folder()
    for path in ("train/red/00.jpg", "train/red/01.jpg", "val/blue/00.jpg"):
        (folder / path).write_bytes(b"")
    with pytest.raises(PgnasError) as caught:
        find_data(str(folder))
    text = str(caught.value)
    assert text.startswith("3 of 36 images do not decode (by class: red 2, blue 1): ")
    assert f"'{folder}/val/blue/00.jpg' (no image that Pillow knows)" in text
    assert text.endswith("remove them or add `skip_corrupt`")
    assert len(find_data(str(folder), reads=("test",), skip_corrupt=True).test) == 11
    (remark,) = find_data(str(folder), skip_corrupt=True).remarks
    assert remark == (
        "3 of 36 images do not decode and are left out (by class: red 2, blue 1):"
        " train/red/00.jpg, train/red/01.jpg, val/blue/00.jpg"
    )
    assert find_data(str(folder), reads=()).train.damaged == frozenset()


def test_a_class_without_an_image_that_decodes_is_refused(photo_folder: Folder) -> None:
    folder = photo_folder()
    for path in (folder / "train" / "red").iterdir():
        path.write_bytes(b"")
    source = find_data(str(folder), skip_corrupt=True)
    with pytest.raises(PgnasError, match="class 'red' has no training image that decodes"):
        cut_data(source, seed=0, size=32)


def test_a_few_images_of_another_size_make_all_of_them_photos(photo_folder: Folder) -> None:
    """Then `img_size` resizes them; which one is odd is said."""
    folder = photo_folder(size=(32, 32))
    Image.new("RGB", (40, 32)).save(folder / "train" / "red" / "03.jpg")
    source = find_data(str(folder))
    (remark,) = source.remarks
    assert remark == (
        "23 of 24 images are 32x32 pixels, others not ('red/03.jpg'): all are resized; `img_size`"
        " 32 keeps that size"
    )
    assert cut_data(source, seed=0, size=32).fit.pixels is None


def test_few_held_out_images_and_unequal_classes_are_remarked(photo_folder: Folder) -> None:
    folder = photo_folder(train=30)
    for path in sorted((folder / "train" / "red").iterdir())[2:]:
        path.unlink()
    few, unequal = remarks_on(cut_data(find_data(str(folder)), seed=0, size=32))
    assert few.startswith("13 held-out images cannot rank candidates: one image is 7.7 points")
    assert "24 training images of 'blue', 1 of 'red'" in unequal
    assert remarks_on(cut_data(find_data("digits"), seed=0)) == []
