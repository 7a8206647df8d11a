"""What the networks of a run get wrong: the tables and photos of a report."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data import thumbnail
from ..errors import PgnasError
from ..evaluation import Evaluation, confusion_of, folder_digest
from ..interpretation import Mistake, most_confused, neighbours, only_wrong
from ..units import percent
from .summary import RunSummary
from .text import Cell, Table

FEW_CLASSES = 20  # up to here a confusion matrix is a table
MANY_CLASSES = 2000  # beyond it is left out
PAIRS = 20  # of confused classes that are listed
WORST = 24  # mistakes that are shown
CHANGED = 12  # images of each kind that are shown
PIXELS = 160  # of the longer side of a thumbnail
PHOTO_BYTES = 3_000_000  # of all thumbnails of a page


@dataclass(frozen=True)
class Count:
    """A cell of a confusion matrix."""

    images: int
    share: float  # of its row, in [0, 1]
    right: bool  # on the diagonal


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix for a page."""

    title: str
    caption: str  # what follows the title
    classes: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Count]]]


@dataclass(frozen=True)
class Photo:
    """A mistake, and its thumbnail as a data URI; "" without."""

    address: str
    file: str
    true: str
    said: str
    confidence: str


@dataclass(frozen=True)
class Gallery:
    """Mistakes for a page: as thumbnails where there is one, else as a table."""

    title: str
    caption: str  # what follows the title
    photos: Sequence[Photo]

    @property
    def table(self) -> Table | None:
        """The mistakes as a table where none has a thumbnail."""
        if any(photo.address for photo in self.photos):
            return None
        rows = [(one.file, one.true, one.said, one.confidence) for one in self.photos]
        return Table(
            f"{self.title}: {self.caption}", ("image", "true", "predicted", "confidence"), rows
        )


class Album:
    """Thumbnails of the images of a run, as many as a number of bytes allows."""

    def __init__(self, folder: Path | None, most: int, why_not: str = "") -> None:
        self.folder = folder  # of the data; None: no thumbnails
        self.left = most
        self.why_not = why_not  # there are none, for the reader; "": none are expected

    def address(self, file: str) -> str:
        """The thumbnail of a file below the folder as a data URI; "" where there is none."""
        if self.folder is None or self.left <= 0 or ".." in Path(file).parts:
            return ""
        path = self.folder / file
        if not path.is_relative_to(self.folder) or not path.is_file():
            return ""
        out = io.BytesIO()
        try:
            thumbnail(path, PIXELS).save(out, "JPEG", quality=75)
        except PgnasError:  # the name says enough
            return ""
        found = "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
        if len(found) > self.left:
            self.left = 0
            return ""
        self.left -= len(found)
        return found


def album_of(run: RunSummary, most: int) -> Album:
    """The photos of a run, where its data folder is still there, and is what was evaluated on."""
    folder, rows = Path(run.settings.data), interpreted(run)
    if not (run.posterior.supernet.data.folder and rows and most):
        return Album(None, most)
    if {row.folder_digest for _, row in rows} != {folder_digest(folder)}:
        return Album(
            None,
            most,
            f"No photos: evaluated on '{rows[0][1].data}', not on the folder of the fit.",
        )
    if not folder.is_dir():
        return Album(None, most, "No photos: the folder of the fit is no longer there.")
    return Album(folder, most)


def interpreted(run: RunSummary) -> list[tuple[str, Evaluation]]:
    """The best and the original network, evaluated alike, where their answers are known.

    Without a best, the latest network alone.
    """
    best = run.evaluated_as("best")
    whole = run.evaluated_as("whole", like=best)
    found = [("the best", best), ("the original network", whole)]
    known = [(name, row) for name, row in found if row is not None and row.answers is not None]
    if known or not run.evaluated:
        return known
    latest = max(run.evaluated, key=lambda row: row.at)
    return [(latest.name, latest)] if latest.answers is not None else []


def order_of(rows: Sequence[tuple[str, Evaluation]]) -> list[int]:
    """One order of the classes for all networks, those that any of them confuses together.

    Without classes that have no test images and are never predicted. Empty for too many.
    """
    if not rows or len(rows[0][1].by_class) > MANY_CLASSES:
        return []
    counts = torch.stack([confusion_of(row) for _, row in rows]).sum(0)
    return [i for i in neighbours(counts) if counts[i].any() or counts[:, i].any()]


def matrix(name: str, row: Evaluation, used: Sequence[int]) -> Matrix | None:
    """The confusion matrix of a network, its classes in the order of `used`; None: too large.

    Classes without test images have no row.
    """
    if not 0 < len(used) <= FEW_CLASSES:
        return None
    counts = confusion_of(row)
    names = [name for name, *_ in row.by_class]
    rows = []
    for true in used:
        images = int(counts[true].sum())
        cells = [
            Count(n, n / max(images, 1), said == true)
            for said in used
            for n in (int(counts[true, said]),)
        ]
        if images:
            rows.append((names[true], cells))
    return Matrix(
        f"Confusion matrix of {name}",
        "rows are true classes, columns predicted ones; images, and their share of the row. Classes"
        " that are confused stand together",
        [names[i] for i in used], rows,
    )  # fmt: skip


def pairs(rows: Sequence[tuple[str, Evaluation]]) -> Table | None:
    """The pairs of classes that the first network confuses most, beside the other networks."""
    found = [(name, row, dict(_cells(row))) for name, row in rows]
    _, first, counts = found[0]
    most = most_confused((*pair, images) for pair, images in counts.items())[:PAIRS]
    if not most:
        return None
    lines: list[list[Cell]] = []
    for true, said, _ in most:
        images = first.by_class[true][2]
        cells = [
            (str(of.get((true, said), 0)), percent(of.get((true, said), 0) / images))
            for *_, of in found
        ]
        lines.append([first.by_class[true][0], first.by_class[said][0], str(images), *cells])
    return Table(
        f"The {len(most)} most frequent confusions of {found[0][0]}: images, and their share of"
        " the class",
        ("true", "predicted", "images", *(name.removeprefix("the ") for name, *_ in found)), lines,
    )  # fmt: skip


def _cells(row: Evaluation) -> list[tuple[tuple[int, int], int]]:
    assert row.answers is not None
    return [((true, said), images) for true, said, images in row.answers.confused]


def worst(name: str, row: Evaluation, album: Album) -> Gallery | None:
    """The mistakes of a network that it is surest of."""
    assert row.answers is not None
    mistakes = row.answers.mistakes[:WORST]
    title = f"The worst mistakes of {name}"
    return _gallery(title, row.errors, row, mistakes, album)


def changed(rows: Sequence[tuple[str, Evaluation]], album: Album) -> list[Gallery]:
    """Images that one of two networks gets wrong and the other right."""
    if len(rows) != 2:
        return []
    found = []
    for (name, row), (_, beside) in (rows, rows[::-1]):
        assert row.answers is not None
        right = set(range(beside.images)) - set(beside.wrong)
        total = len(set(row.wrong) & right)
        shown = only_wrong(row.answers, right)[:CHANGED]
        found.append(_gallery(f"Only {name} is wrong", total, row, shown, album))
    return [gallery for gallery in found if gallery is not None]


def _gallery(
    title: str, total: int, row: Evaluation, mistakes: Sequence[Mistake], album: Album
) -> Gallery | None:
    """The first of `total` mistakes; None where there are none."""
    names = [name for name, *_ in row.by_class]
    photos = [
        Photo(
            album.address(one.file), one.file, names[one.true], names[one.said],
            percent(one.confidence),
        )
        for one in mistakes
    ]  # fmt: skip
    shown = f"{len(photos)} of " if len(photos) < total else ""
    caption = f"{shown}{total} image{'s' * (total != 1)}, the most confident first"
    return Gallery(title, caption, photos) if photos else None
