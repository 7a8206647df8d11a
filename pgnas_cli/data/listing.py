"""Class folders: which folders are classes, and which files are images."""

import collections
import os
import stat
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import PgnasError
from .names import Names, text_of
from .pictures import endings

TEST_FOLDERS = ("test", "val", "validation", "valid")
# Of operating systems, file servers and archives, beside whatever begins with a dot.
_SYSTEM = {
    "@eadir", "@recycle", "#recycle", "$recycle.bin", "__macosx", "lost+found",
    "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini",
}  # fmt: skip


@dataclass(frozen=True)
class Listing:
    """The images of one split, by class and name."""

    folder: Path
    names: Names  # of files, below `folder`
    labels: Tensor  # int64 (images,)
    stamps: Tensor  # int64 (images, 2): bytes and time in ns of each file, -1 where it is gone
    others: Mapping[str, int]  # files that are no images, counted by ending

    def __len__(self) -> int:
        return len(self.names)

    def path(self, image: int) -> Path:
        return self.folder / self.names.file(image)

    def take(self, images: Tensor) -> "Listing":
        """The images at int64 positions `images`."""
        return Listing(
            self.folder, self.names.take(images), self.labels[images], self.stamps[images],
            self.others,
        )  # fmt: skip


def no_images(folder: Path) -> Listing:
    """A split that is not read."""
    return Listing(folder, Names(()), torch.empty(0, dtype=torch.int64),
                   torch.empty(0, 2, dtype=torch.int64), {})  # fmt: skip


def hidden(name: str) -> bool:
    """Whether a file or folder is not of the user's making."""
    return name.startswith(".") or name.lower() in _SYSTEM


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """Folders by the name of their class; two that differ in their Unicode form are one class."""
    found = collections.defaultdict(list)
    for path in folder.iterdir():
        if path.is_dir() and not hidden(path.name):
            found[text_of(path.name)].append(path)
    return {name: sorted(found[name]) for name in sorted(found)}


def files_below(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Files in `folder` and its folders; links are followed, each folder is read once.

    A link to what `folder` lies in is not: it would bring all classes into this one.
    """
    seen, left = {_node(path) for path in folder.absolute().parents}, [str(folder)]
    while left:
        place = left.pop()
        node = _node(Path(place))
        if node in seen:
            continue
        seen.add(node)
        folders = []
        with os.scandir(place) as entries:
            for entry in entries:
                if hidden(entry.name):
                    continue
                if _is_folder(entry):
                    folders.append(entry.path)
                else:
                    yield entry
        left += sorted(folders, reverse=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say
        return False


def ending_of(name: str) -> str:
    """What follows the last dot of a file name, and the dot, in lower case; "" without."""
    at = name.rfind(".")
    return name[at:].lower() if 0 < at < len(name) - 1 else ""


def _node(folder: Path) -> tuple[int, int]:
    """What a folder is, by whatever links it is reached."""
    about = folder.stat()
    return about.st_dev, about.st_ino


def test_folder_of(folder: Path, classes: set[str]) -> tuple[Path | None, list[str]]:
    """The first test folder that has the classes of train/; and remarks on others."""
    there = [folder / name for name in TEST_FOLDERS if (folder / name).is_dir()]
    found = {path: set(class_folders(path)) for path in there}
    good = next((path for path in there if found[path] == classes), None)
    if good is None:
        for path in there:
            if found[path]:
                missing, extra = sorted(classes - found[path]), sorted(found[path] - classes)
                raise PgnasError(
                    f"'{path}' has other classes than '{folder / 'train'}': missing"
                    f" {', '.join(missing) or 'none'}; extra {', '.join(extra) or 'none'}"
                )
    why = {path: "it has other classes" if found[path] else f"expected {path}/<class>/*.jpg"
           for path in there if path != good}  # fmt: skip
    why |= {path: f"'{good}' is" for path in why if found[path] == classes}
    return good, [f"'{path}' is not used: {reason}" for path, reason in why.items()]


def listing_of(folder: Path, classes: Mapping[str, Sequence[Path]]) -> Listing:
    """All images of a split; raises PgnasError for a class that has none."""
    others = collections.Counter(
        f"{ending_of(path.name) or 'no ending'} in no class" for path in folder.iterdir()
        if not hidden(path.name) and not path.is_dir()
    )  # fmt: skip
    labels, stamps = array("q"), array("q")

    def names() -> Iterator[str]:
        for label, places in enumerate(classes.values()):
            rows = [row for place in places for row in _images_below(place, folder, others)]
            if not rows:
                raise _no_pictures(places[0])
            for _, parts, *stamp in sorted(rows):
                labels.append(label)
                stamps.extend(stamp)
                yield "/".join(parts)

    found = Names(names())
    return Listing(
        folder, found, torch.frombuffer(labels, dtype=torch.int64),
        torch.frombuffer(stamps, dtype=torch.int64).view(-1, 2), others,
    )  # fmt: skip


def pictures_below(folder: Path) -> list[Path]:
    """Image files in `folder` and its folders, in the order of class folders.

    Raises PgnasError where there are none, or a folder cannot be read.
    """
    try:
        rows = sorted(_images_below(folder, folder, collections.Counter()))
    except OSError as error:
        raise PgnasError(f"'{error.filename}' cannot be read: {error.strerror}") from None
    if not rows:
        raise _no_pictures(folder)
    return [folder.joinpath(*parts) for _, parts, *_ in rows]


def _no_pictures(folder: Path) -> PgnasError:
    return PgnasError(
        f"no images in '{folder}'; read are .jpg and {len(endings()) - 1} more endings that Pillow"
        " opens"
    )


def _images_below(
    place: Path, folder: Path, others: collections.Counter[str]
) -> Iterator[tuple[list[str], list[str], int, int]]:
    """Of each image its path below `folder`, as text and as it is, and its stamp."""
    known, before = endings(), len(os.path.join(folder, ""))  # noqa: PTH118
    for entry in files_below(place):
        ending = ending_of(entry.name)
        try:
            about = entry.stat()
        except OSError:  # a link to nowhere is a lost image
            size, time, regular = -1, -1, True
        else:
            size, time = about.st_size, about.st_mtime_ns
            regular = stat.S_ISREG(about.st_mode)
        if ending in known and regular:
            name = entry.path[before:].replace(os.sep, "/")
            yield text_of(name).split("/"), name.split("/"), size, time
        else:
            others[ending or "no ending"] += 1


def some(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def left_out(splits: Mapping[str, Listing]) -> list[str]:
    """How many files are no images or in no class, by ending."""
    counts = sum((collections.Counter(s.others) for s in splits.values()), collections.Counter())
    if not counts:
        return []
    rows = [f"{n} {ending}" for ending, n in sorted(counts.items(), key=lambda x: (-x[1], x[0]))]
    heic = "; pip install pillow-heif reads HEIC" if {".heic", ".heif"} & set(counts) else ""
    return [f"{sum(counts.values())} files left out: {some(rows, 8)}{heic}"]
