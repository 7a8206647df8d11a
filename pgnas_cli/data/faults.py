"""What is wrong or odd in a folder of images, from the facts of a check."""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import PgnasError
from ..progress import note
from .listing import Listing, some, text_of
from .pictures import Facts

_LISTED = 100  # damaged files, one line each
_NAMED = 3  # the same in an error

Findings = Mapping[Path, Facts | str]  # a string says why a file does not decode


def damaged(
    folder: Path,
    splits: Mapping[str, Listing],
    classes: Sequence[str],
    facts: Findings,
    skip: bool,
) -> list[str]:
    """Images that do not decode, by class; raises PgnasError for them unless they are skipped."""
    bad = [
        (path, classes[label])
        for listing in splits.values()
        for path, label in zip(listing.paths, listing.labels, strict=True)
        if isinstance(facts[path], str)
    ]
    if not bad:
        return []
    reasons = [f"'{path}' ({facts[path]})" for path, _ in bad]
    by_class = collections.Counter(name for _, name in bad)
    counts = some([f"{name} {count}" for name, count in by_class.most_common()], 8)
    images = sum(len(listing.paths) for listing in splits.values())
    said = f"{len(bad)} of {images} images"
    if skip:
        names = some([text_of(str(path.relative_to(folder))) for path, _ in bad], _LISTED)
        return [f"{said} do not decode and are left out (by class: {counts}): {names}"]
    if len(bad) > _NAMED:
        for reason in reasons[:_LISTED]:
            note(f"damaged: {reason}")
    raise PgnasError(
        f"{said} do not decode (by class: {counts}): {some(reasons, _NAMED)}; remove them or add"
        " `skip_corrupt`"
    )


def copies(listing: Listing, facts: Findings) -> tuple[int, ...]:
    """For each image the first one of the same bytes; empty where all differ."""
    first: dict[str, int] = {}
    found = []
    for index, path in enumerate(listing.paths):
        about = facts[path]
        found.append(index if isinstance(about, str) else first.setdefault(about.digest, index))
    return () if found == list(range(len(found))) else tuple(found)


def without_copies(
    train: Listing, test: Listing, classes: Sequence[str], facts: Findings
) -> tuple[Listing, list[str]]:
    """`train` without images whose bytes are those of a test image."""

    def digest(path: Path) -> str | None:
        about = facts[path]
        return None if isinstance(about, str) else about.digest

    tested = {digest(path) for path in test.paths} - {None}
    copies = {i for i, path in enumerate(train.paths) if digest(path) in tested}
    if not copies:
        return train, []
    rest = train.without(copies)
    for label in sorted(set(train.labels) - set(rest.labels)):
        raise PgnasError(
            f"all training images of class '{classes[label]}' are copies of images in"
            f" '{test.folder}'; move new ones there, or remove the folder"
        )
    names = some([train.keys[i] for i in sorted(copies)])
    return rest, [
        f"{len(copies)} training images left out, they are copies of images in '{test.folder}':"
        f" {names}"
    ]


def oddities(splits: Mapping[str, Listing], copy_of: Sequence[int], facts: Findings) -> list[str]:
    """What was done to images, and labels that contradict each other."""
    about = {p: f for s in splits.values() for p in s.paths if isinstance(f := facts[p], Facts)}
    found, train = [], splits["train"]
    turned = sum(one.turned for one in about.values())
    if turned:
        found.append(f"{turned} of {len(about)} images turned upright by their EXIF orientation")
    copies = [i for i, first in enumerate(copy_of) if first != i]
    if copies:
        found.append(
            f"{len(copies)} training images are copies of others (same bytes): each stays on its"
            f" picture's side of the held-out cut: {some([train.keys[i] for i in copies])}"
        )
    torn = [i for i in copies if train.labels[i] != train.labels[copy_of[i]]]
    if torn:
        pairs = [f"'{train.keys[copy_of[i]]}' and '{train.keys[i]}'" for i in torn]
        found.append(f"{len(torn)} pictures lie in two classes: {some(pairs)}")
    deep = {p: one.brightest for p, one in about.items() if one.brightest >= 0}
    if deep and max(deep.values()) < 0.5:
        path = max(deep, key=lambda p: deep[p])
        raise PgnasError(
            f"the {len(deep)} images of more than 8 bits reach {deep[path]:.3g} of white at most"
            f" ('{path}'); white is 65535 of integers and 1 of floats: scale them to it"
        )
    return found


def small_size(listing: Listing, facts: Findings) -> tuple[int | None, list[str]]:
    """Height = width of the images where all are small and alike, else None; remark on a few."""
    sizes = collections.Counter(f.small for p in listing.paths if isinstance(f := facts[p], Facts))
    if not sizes:
        return None, []
    (size, count), total = sizes.most_common(1)[0], sum(sizes.values())
    if not size or count == total:
        return size or None, []
    odd = next(k for p, k in zip(listing.paths, listing.keys, strict=True)
               if not isinstance(f := facts[p], str) and f.small != size)  # fmt: skip
    return None, [
        f"{count} of {total} images are {size}x{size} pixels, others not ('{odd}'): all are"
        f" resized; `img_size` {size} keeps that size"
    ]
