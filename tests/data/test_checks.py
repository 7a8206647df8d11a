"""Every image is decoded once; what was found is remembered until the file changes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pgnas_cli.data import checks, find_data
from pgnas_cli.data.listing import class_folders, listing_of
from pgnas_cli.data.pictures import Facts, facts_of
from pgnas_cli.tensors import read_tensors, write_tensors

Folder = Callable[..., Path]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The files that were decoded, with a memory of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found: list[Path] = []

    def watched(path: Path) -> Facts | str:
        found.append(path)
        return facts_of(path)

    monkeypatch.setattr(checks, "facts_of", watched)
    return found


def memory(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache" / "pgnas").glob("checked-*.safetensors")
    return path


def found_in(folder: Path) -> list[Facts | str]:
    """What the check says of the training images, in the order of their paths."""
    train = folder / "train"
    return list(checks.checked(folder, listing_of(train, class_folders(train))))


def test_a_file_is_decoded_again_only_when_it_has_changed(
    photo_folder: Folder, tmp_path: Path, decoded: list[Path]
) -> None:
    folder = photo_folder()
    paths = sorted((folder / "train").rglob("*.jpg"))
    first = found_in(folder)
    assert first == [facts_of(path) for path in paths]
    assert len(decoded) == len(paths)
    decoded.clear()
    assert found_in(folder) == first
    assert decoded == []
    Image.new("RGB", (9, 9)).save(paths[3])
    os.utime(paths[5])
    again = found_in(folder)
    assert sorted(decoded) == [paths[3], paths[5]]
    assert [i for i in range(len(paths)) if again[i] != first[i]] == [3]
    assert again[3].small == 9


def test_whoever_reads_the_test_images_alone_decodes_no_others(
    photo_folder: Folder, decoded: list[Path]
) -> None:
    folder = photo_folder()
    assert len(find_data(str(folder), reads=("test",)).test) == 12
    assert {path.relative_to(folder).parts[0] for path in decoded} == {"val"}


def test_damaged_files_are_looked_at_again(photo_folder: Folder, decoded: list[Path]) -> None:
    """A full disk or a lost server may have been the reason."""
    folder = photo_folder()
    paths = sorted((folder / "train").rglob("*.jpg"))
    paths[0].write_bytes(b"")
    paths[1].unlink()
    paths[1].symlink_to(folder / "nowhere.jpg")
    for _ in range(2):
        decoded.clear()
        found = found_in(folder)
        assert found[:2] == ["no image that Pillow knows", "no such file"]
    assert decoded == [paths[0]]


def test_an_interrupted_check_goes_on_where_it_stopped(
    photo_folder: Folder, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photo_folder()
    paths = sorted((folder / "train").rglob("*.jpg"))
    monkeypatch.setattr(checks, "_AT_ONCE", 5)

    def stopped(path: Path) -> Facts | str:
        if path == paths[12]:
            raise KeyboardInterrupt
        return facts_of(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checks, "facts_of", stopped)
        found_in(folder)
    assert found_in(folder) == [facts_of(path) for path in paths]
    assert 0 < len(decoded) <= len(paths) - 10


@pytest.mark.parametrize("content", ["", "{", "half", "pillow", "order", "type", "fewer"])
def test_a_memory_that_is_no_memory_is_taken_anew(
    photo_folder: Folder, tmp_path: Path, decoded: list[Path], content: str
) -> None:
    folder = photo_folder(train=2, test=1)
    paths = sorted((folder / "train").rglob("*.jpg"))
    first = found_in(folder)
    path = memory(tmp_path)
    kept = path.read_bytes()
    rows, about = read_tensors(path, "pgnas.checked/3")
    if content == "pillow":
        write_tensors(path, "pgnas.checked/3", rows, {"pillow": "0.1"})
    elif content in ("order", "type", "fewer"):
        key = rows["key"]
        other = {"order": key.flip(0), "type": key.float(), "fewer": key[1:]}[content]
        write_tensors(path, "pgnas.checked/3", {**rows, "key": other}, about)
    else:
        path.write_bytes(kept[: len(kept) // 2] if content == "half" else content.encode())
    decoded.clear()
    assert found_in(folder) == first
    assert len(decoded) == len(paths)
    assert path.read_bytes() == kept


def test_what_is_known_of_a_file_does_not_depend_on_what_else_is_there(
    photo_folder: Folder, decoded: list[Path]
) -> None:
    folder = photo_folder()
    find_data(str(folder))
    paths = sorted((folder / "train").rglob("*.jpg"))
    paths[3].unlink()
    Image.new("RGB", (9, 9)).save(paths[4].with_name("0.png"))
    decoded.clear()
    left = sorted(path for path in (folder / "train").rglob("*.*"))
    assert found_in(folder) == [facts_of(path) for path in left]
    assert [path.name for path in decoded] == ["0.png"]


def test_where_nothing_can_be_remembered_the_check_is_done_all_the_same(
    photo_folder: Folder, tmp_path: Path, decoded: list[Path]
) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    folder = photo_folder(train=2, test=1)
    paths = sorted((folder / "train").rglob("*.jpg"))
    for _ in range(2):
        assert found_in(folder) == [facts_of(path) for path in paths]
