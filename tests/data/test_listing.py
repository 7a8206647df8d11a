"""Which folders are classes and which files are photos, in the folders that people have."""

import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pgnas_cli.data import find_data, load_data
from pgnas_cli.errors import PgnasError

Folder = Callable[..., Path]
SYSTEM = (".ipynb_checkpoints", "@eaDir", "__MACOSX", ".thumbnails", "$RECYCLE.BIN")


def test_hidden_and_system_folders_are_no_classes(photo_folder: Folder) -> None:
    """Neither with photos inside nor empty."""
    folder = photo_folder()
    for number, name in enumerate(SYSTEM):
        for split in ("train", "val"):
            place = folder / split / name
            place.mkdir()
            if number % 2:
                shutil.copy(folder / "train" / "red" / "00.jpg", place)
    source = find_data(str(folder))
    assert source.classes == ("blue", "green", "red")
    assert (len(source.train), len(source.test), source.remarks) == (24, 12, ())


def test_hidden_and_system_files_are_no_photos(photo_folder: Folder) -> None:
    folder = photo_folder()
    red = folder / "train" / "red"
    for name in ("._00.jpg", ".hidden.png", "Thumbs.db", "desktop.ini", ".DS_Store"):
        (red / name).write_bytes(b"no picture")
    thumbnail = red / "@eaDir" / "00.jpg" / "SYNOPHOTO_THUMB_M.jpg"
    thumbnail.parent.mkdir(parents=True)
    shutil.copy(red / "00.jpg", thumbnail)
    source = find_data(str(folder))
    assert (len(source.train), source.remarks) == (24, ())


def test_files_that_are_no_images_are_counted_by_ending(photo_folder: Folder) -> None:
    folder = photo_folder()
    for split, name in (("train", "a.txt"), ("train", "b.TXT"), ("val", "c.mp4"), ("val", "d"),
                        ("train", "e.heic")):  # fmt: skip
        (folder / split / "red" / name).write_text("text")
    (remark,) = find_data(str(folder)).remarks
    assert remark == (
        "5 files left out: 2 .txt, 1 .heic, 1 .mp4, 1 no ending; pip install pillow-heif reads HEIC"
    )


def test_photos_beside_the_class_folders_are_counted(photo_folder: Folder) -> None:
    folder = photo_folder()
    for split in ("train", "val"):
        shutil.copy(folder / "train" / "red" / "00.jpg", folder / split)
        (folder / split / ".hidden").write_text("text")
    source = find_data(str(folder))
    assert len(source.train) == 24
    assert source.remarks == ("2 files left out: 2 .jpg in no class",)


def test_links_are_followed_once_and_loops_end(photo_folder: Folder, tmp_path: Path) -> None:
    folder = photo_folder()
    red, store = folder / "train" / "red", tmp_path / "store"
    (folder / "train" / "green").rename(store)
    (folder / "train" / "green").symlink_to(store)
    (red / "again").symlink_to(red)
    (red / "up").symlink_to(folder)
    (store / "linked.jpg").symlink_to(shutil.copy(red / "00.jpg", tmp_path / "elsewhere.jpg"))
    (store / "loop").symlink_to(store)
    keys = find_data(str(folder)).train.keys
    assert len(keys) == len(set(keys)) == 25
    assert "green/linked.jpg" in keys


def test_a_dangling_link_is_named(photo_folder: Folder) -> None:
    folder = photo_folder()
    (folder / "train" / "red" / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    with pytest.raises(PgnasError, match=r"1 of 37 images .*red 1.*gone\.jpg' \(no such file\)"):
        find_data(str(folder))


def test_a_pipe_is_no_photo(photo_folder: Folder) -> None:
    folder = photo_folder()
    os.mkfifo(folder / "train" / "red" / "pipe.jpg")
    (remark,) = find_data(str(folder)).remarks
    assert remark == "1 files left out: 1 .jpg"


def test_class_names_in_two_unicode_forms_are_one_class(photo_folder: Folder) -> None:
    folder = photo_folder()
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    assert forms[0] != forms[1]
    for split, form in zip(("train", "val"), forms, strict=True):
        (folder / split / "red").rename(folder / split / form)
    (folder / "train" / "green").rename(folder / "train" / forms[1])
    shutil.rmtree(folder / "val" / "green")
    source = find_data(str(folder))
    assert source.classes == ("blue", forms[0])
    assert source.train.labels.tolist() == 8 * [0] + 16 * [1]


def test_names_that_are_not_utf8_are_read_and_written_in_escapes(photo_folder: Folder) -> None:
    folder = photo_folder()
    for split in ("train", "val"):
        (folder / split / "red").rename(folder / split / os.fsdecode(b"ros\xe9"))
    old = folder / "train" / "green" / "00.jpg"
    old.rename(old.with_name(os.fsdecode(b"caf\xe9.jpg")))
    data = load_data(str(folder), seed=0, size=32)
    assert data.classes == ("blue", "green", "ros\\xe9")
    keys = [*data.fit.keys, *data.held_out.keys]
    assert "green/caf\\xe9.jpg" in keys
    assert all(key.isascii() for key in keys)


@pytest.mark.parametrize("inside", ["", "unknown"])
def test_an_unlabelled_test_folder_does_not_hide_val(photo_folder: Folder, inside: str) -> None:
    folder = photo_folder()
    place = folder / "test" / inside
    place.mkdir(parents=True)
    Image.new("RGB", (50, 50)).save(place / "1.jpg")
    source = find_data(str(folder))
    assert len(source.test) == 12
    (remark,) = source.remarks
    assert remark.startswith(f"'{folder}/test' is not used: ")


def test_a_second_folder_of_test_photos_is_said_not_to_be_used(photo_folder: Folder) -> None:
    folder = photo_folder()
    shutil.copytree(folder / "val", folder / "test")
    (remark,) = find_data(str(folder)).remarks
    assert remark == f"'{folder}/val' is not used: '{folder}/test' is"


def test_a_flat_val_is_said_in_one_line(photo_folder: Folder) -> None:
    folder = photo_folder()
    for path in (folder / "val").rglob("*.jpg"):
        path.rename(folder / "val" / f"{path.parent.name}-{path.name}")
    for name in ("blue", "green", "red"):
        (folder / "val" / name).rmdir()
    source = find_data(str(folder))
    assert source.test is None
    assert source.remarks == (f"'{folder}/val' is not used: expected {folder}/val/<class>/*.jpg",)
