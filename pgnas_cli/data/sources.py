"""Where data sets come from: the embedded digits, class folders, and the names that timm knows."""

import contextlib
import dataclasses
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_dataset
from torch.utils.data import IterableDataset

from ..errors import PgnasError, one_line
from ..naming import PLAIN_DATA, TIMM_DATA, check_data_name
from .checks import Findings, checked, in_threads
from .dataset import DataName, ImageData, Part, Preprocessing, Source, cut_data, cut_part
from .faults import copies, damaged, oddities, small_size, without_copies
from .listing import (
    TEST_FOLDERS,
    Listing,
    class_folders,
    left_out,
    listing_of,
    no_images,
    test_folder_of,
)
from .names import Names, text_of
from .pictures import SMALL, Facts, as_rgb, open_picture, reason_of

LOOKED_AT = 64  # images of a named data set whose size is taken for that of all
READ = ("train", "test")
TESTED = ("test",)


def find_data(
    name: str,  # "digits", a folder, "cifar10", or another name of timm's create_dataset
    *,
    root: Path = Path("data"),  # where named data sets live
    skip_corrupt: bool = False,  # leave out images that do not decode
    reads: Sequence[str] = READ,  # the splits that will be read: their images must decode
) -> Source:
    """Look a data set up: its classes, its images, and whether they are small.

    Whoever reads the test images alone may name a folder without train/: with a test folder, or
    with nothing but class folders.

    Every image file is decoded once, and what was found is remembered (checks.py). Raises
    PgnasError where the folder is not as it should be, with what was looked for.
    """
    check_data_name(name)
    folder = partial(_folder, skip_corrupt=skip_corrupt, reads=reads)
    if name == "digits":
        source = _digits()
    elif Path(name).is_dir():
        source = folder(Path(name), DataName(text_of(Path(name).resolve().name), folder=True))
    elif name in PLAIN_DATA and (root / name / "train").is_dir():
        source = folder(root / name, DataName(name))
    elif name in PLAIN_DATA:
        source = _plainly_named(name, root, skip_corrupt, reads)
    else:
        source = _timm_named(name, root, skip_corrupt, reads)
    if len(source.classes) < 2 and reads != TESTED:
        raise PgnasError(f"'{name}' has one class ('{source.classes[0]}'); at least two are needed")
    return source


def load_data(
    name: str,
    *,
    seed: int = 0,
    held_out: float = 0.2,
    size: int | None = None,
    root: Path = Path("data"),
    skip_corrupt: bool = False,
    preprocessing: Preprocessing | None = None,
    fitting: bool = True,
) -> ImageData:
    """`find_data` and `cut_data` in one."""
    reads = READ[:1] if fitting else ()
    source = find_data(name, root=root, skip_corrupt=skip_corrupt, reads=reads)
    return cut_data(
        source, seed=seed, held_out=held_out, preprocessing=preprocessing, size=size,
        fitting=fitting,
    )  # fmt: skip


def _digits() -> Source:
    """scikit-learn's 1,797 digits of 8x8; a fifth of each class, the same always, is the test."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = torch.from_numpy(raw.images * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(raw.target).long()
    classes = tuple(str(name) for name in raw.target_names)
    whole = Part(labels, tuple(f"digit-{i:04d}" for i in range(len(labels))), pixels)
    train, test = cut_part(whole, 0, 0.2, classes)
    return Source(DataName("digits"), classes, train, test, raw.images.shape[-1], mirror=False)


def _folder(folder: Path, name: DataName, *, skip_corrupt: bool, reads: Sequence[str]) -> Source:
    """The images of train/<class>/ and of the first test folder that has the same classes."""
    tested = reads == TESTED
    try:
        if tested and not (folder / "train").is_dir():
            classes, splits, remarks = _labelled(folder)
        else:
            classes, splits, remarks = _listed(folder, tested)
    except OSError as error:
        raise PgnasError(f"'{error.filename}' cannot be read: {error.strerror}") from None
    found = {split: checked(folder, listing) for split, listing in splits.items()}
    if "test" in splits:
        kept, copied = without_copies(splits["train"], splits["test"], classes, found)
        if kept is not None:
            splits["train"], found["train"] = splits["train"].take(kept), found["train"].take(kept)
        remarks += copied
    read = {split: listing for split, listing in splits.items() if split in reads}
    remarks += damaged(folder, read, classes, found, skip_corrupt)
    copy_of = copies(found["train"])
    small, odd = small_size(splits["train"], found["train"])
    remarks += oddities(splits, copy_of, found) + odd
    parts = {split: _part(splits[split], one, skip_corrupt) for split, one in found.items()}
    test = parts["test"].readable() if "test" in parts else None
    return Source(name, classes, parts["train"], test, small, True, copy_of, tuple(remarks))


def _listed(folder: Path, tested: bool) -> tuple[tuple[str, ...], dict[str, Listing], list[str]]:
    """Classes, the images of each split, and remarks on what is not read.

    Where test images alone are wanted, train/ names the classes and no more.
    """
    train_folder = folder / "train"
    if not train_folder.is_dir():
        raise PgnasError(
            f"no folder '{train_folder}'; expected {folder}/train/<class>/*.jpg and"
            f" {folder}/val/<class>/*.jpg"
        )
    places = class_folders(train_folder)
    if not places:
        raise PgnasError(
            f"'{train_folder}' has no class folders; expected {train_folder}/<class>/*.jpg"
        )
    splits = {"train": no_images(folder) if tested else listing_of(train_folder, places)}
    test_folder, remarks = test_folder_of(folder, set(places))
    if test_folder is not None:
        splits["test"] = listing_of(test_folder, class_folders(test_folder))
    return tuple(places), splits, remarks + left_out(splits)


def _labelled(folder: Path) -> tuple[tuple[str, ...], dict[str, Listing], list[str]]:
    """The same of a folder without train/: labelled images to test on."""
    there = [folder / name for name in TEST_FOLDERS if (folder / name).is_dir()]
    place = next((path for path in there if class_folders(path)), folder)
    classes = class_folders(place)
    if not classes:
        raise PgnasError(f"'{place}' has no class folders; expected {place}/<class>/*.jpg")
    splits = {"train": no_images(folder), "test": listing_of(place, classes)}
    return tuple(classes), splits, left_out(splits)


def _part(listing: Listing, found: Findings, skip_corrupt: bool) -> Part:
    return Part(
        listing.labels, listing.names, open=partial(_open_file, listing), file=listing.path,
        damaged=frozenset(found.reasons if skip_corrupt else ()),
    )  # fmt: skip


def _open_file(listing: Listing, index: int) -> Image.Image:
    return open_picture(listing.path(index))


def _plainly_named(name: str, root: Path, skip_corrupt: bool, reads: Sequence[str]) -> Source:
    """What torchvision has or downloads in `root`."""
    own, folder = root / name, PLAIN_DATA[name]
    if not folder:
        raise PgnasError(
            f"no data set '{name}': looked for {own}/train/<class>/ and {own}/val/<class>/; give"
            f" its folder as `data`, or the folder that '{name}' lies in as `data_root`"
        )
    try:
        found = _timm_named(f"torch/{name}", root, skip_corrupt, reads)
        return dataclasses.replace(found, name=DataName(name))
    except PgnasError as error:
        raise PgnasError(
            f"no data set '{name}': looked for {own}/train/<class>/ and {root / folder}; {error}"
        ) from None


def _timm_named(name: str, root: Path, skip_corrupt: bool, reads: Sequence[str]) -> Source:
    """A data set that timm knows by name; its own splits are train and validation or test.

    Its images are decoded once here, and nothing is remembered: some lie in no files.
    """
    package = TIMM_DATA[name.split("/")[0]]
    if find_spec(package) is None:
        raise PgnasError(
            f"'{name}' needs the package {package}: pip install {package.replace('_', '-')}"
        )
    parts = []
    for split, training in (("train", True), ("validation", False)):
        try:
            source = create_dataset(
                name, str(root), split=split, is_training=training, download=True
            )
            labels = None if isinstance(source, IterableDataset) else _labels(source)
        except Exception as error:  # timm and the sources behind it raise many kinds
            raise PgnasError(
                f"timm cannot open data set '{name}' ({split}) below '{root}':"
                f" {' '.join(str(error).split())};"
                " `data_root` says where data sets live"
            ) from None
        if labels is None:
            raise PgnasError(
                f"'{name}' is read from first to last only, and training reads images in any order;"
                " write it out as a folder of train/<class>/*.jpg and val/<class>/*.jpg"
            )
        keys = tuple(f"{split}-{i:07d}" for i in range(len(labels)))
        parts.append(
            Part(
                torch.tensor(labels), keys, open=partial(_open_item, source, f"'{name}' ({split})")
            )
        )
    names = getattr(create_dataset(name, str(root), split="train"), "classes", None)
    last = int(parts[0].labels.max())
    classes = tuple(str(names[i]) if names else str(i) for i in range(last + 1))
    whole = dict(zip(READ, parts, strict=True))
    read = {split: part for split, part in whole.items() if split in reads or skip_corrupt}
    facts = {split: Findings.of(_facts_of(part)) for split, part in read.items()}
    listings = {split: _as_listing(name, part) for split, part in read.items()}
    remarks = damaged(Path(name), listings, classes, facts, skip_corrupt)
    for split, about in facts.items():
        whole[split] = dataclasses.replace(whole[split], damaged=frozenset(about.reasons))
    train, test = whole["train"], whole["test"].readable()
    return Source(DataName(name), classes, train, test, _small_size(train), remarks=tuple(remarks))


def _labels(source: Any) -> list[int]:
    for holder in (source, getattr(source, "reader", None)):
        for attribute in ("targets", "labels", "_labels"):
            if hasattr(holder, attribute):
                return [int(label) for label in getattr(holder, attribute)]
        samples = getattr(holder, "samples", None)
        if samples is not None:
            return [int(label) for _, label in samples]
        if holder is not None and hasattr(holder, "iter_targets"):  # no image is read for it
            return [int(label) for label in holder.iter_targets()]
    return [int(source[i][1]) for i in range(len(source))]


def _open_item(source: Any, called: str, index: int) -> Image.Image:
    """timm's own data set gives the next image in place of one that does not decode."""
    try:
        image = getattr(source, "reader", source)[index][0]
        if isinstance(image, Image.Image):
            return as_rgb(image)
        with image, Image.open(image) as opened:  # a file, or bytes
            return as_rgb(opened)
    except Exception as error:  # Pillow and the sources raise many kinds
        raise PgnasError(
            f"image {index} of {called} does not decode ({reason_of(error)})"
        ) from None


def _small_size(part: Part) -> int | None:
    """Height = width of the images where they are small and alike; None for photos."""
    assert part.open is not None
    step = max(1, len(part) // LOOKED_AT)
    sizes = set()
    for index in range(0, len(part), step):
        with contextlib.suppress(PgnasError):  # told where it is read
            sizes.add(part.open(index).size)
    if len(sizes) == 1:
        (width, height) = sizes.pop()
        if width == height <= SMALL:
            return int(width)
    return None


def _facts_of(part: Part) -> list[Facts | str]:
    """Of each image that it decodes, or why not."""

    def fact(index: int) -> Facts | str:
        assert part.open is not None
        try:
            part.open(index)
        except PgnasError as error:
            return one_line(error)
        return Facts("00" * 16, 0, turned=False, brightest=-1)

    return list(in_threads(fact, range(len(part))))


def _as_listing(name: str, part: Part) -> Listing:
    """The images of a named data set as if they were files of a folder called so."""
    return Listing(Path(name), Names(part.keys), part.labels, torch.empty(len(part), 2), {})
