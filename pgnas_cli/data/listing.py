"""Class folders: which folders are classes, and which files are images."""

import collections
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import PgnasError
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
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    keys: tuple[str, ...]  # class and name below it, as text
    others: Mapping[str, int]  # files that are no images, counted by ending

    def without(self, dropped: set[int]) -> "Listing":
        kept = [i for i in range(len(self.paths)) if i not in dropped]
        return Listing(
            self.folder, tuple(self.paths[i] for i in kept), tuple(self.labels[i] for i in kept),
            tuple(self.keys[i] for i in kept), self.others,
        )  # fmt: skip


def hidden(name: str) -> bool:
    """Whether a file or folder is not of the user's making."""
    return name.startswith(".") or name.lower() in _SYSTEM


def text_of(name: str) -> str:
    """A file name as text: composed Unicode, and escapes for bytes that are no UTF-8."""
    decoded = os.fsencode(name).decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", decoded)


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """Folders by the name of their class; two that differ in their Unicode form are one class."""
    found = collections.defaultdict(list)
    for path in folder.iterdir():
        if path.is_dir() and not hidden(path.name):
            found[text_of(path.name)].append(path)
    return {name: sorted(found[name]) for name in sorted(found)}


def files_below(folder: Path) -> Iterator[Path]:
    """Files in `folder` and its folders; links are followed, each folder is read once.

    A link to what `folder` lies in is not: it would bring all classes into this one.
    """

    def fail(error: OSError) -> None:
        raise error

    seen = {_node(path) for path in folder.absolute().parents}
    for place, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        node = _node(Path(place))
        if node in seen:
            folders.clear()
            continue
        seen.add(node)
        folders[:] = sorted(name for name in folders if not hidden(name))
        yield from (Path(place, name) for name in files if not hidden(name))


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
    rows: list[tuple[list[str], int, Path]] = []
    others = collections.Counter(
        f"{_ending(path)} in no class" for path in folder.iterdir()
        if not hidden(path.name) and not path.is_dir()
    )  # fmt: skip
    for label, (name, places) in enumerate(classes.items()):
        before = len(rows)
        for place in places:
            for path in files_below(place):
                if path.suffix.lower() not in endings() or (path.exists() and not path.is_file()):
                    others[_ending(path)] += 1
                    continue
                below = map(text_of, path.parts[len(place.parts) :])
                rows.append(([name, *below], label, path))
        if len(rows) == before:
            raise PgnasError(
                f"no images in '{places[0]}'; read are .jpg and {len(endings()) - 1} more endings"
                " that Pillow opens"
            )
    rows.sort()
    return Listing(
        folder, tuple(path for _, _, path in rows), tuple(label for _, label, _ in rows),
        tuple("/".join(parts) for parts, _, _ in rows), others,
    )  # fmt: skip


def _ending(path: Path) -> str:
    return path.suffix.lower() or "no ending"


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
