"""Where data sets come from: the embedded digits, class folders, and the names that timm knows."""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..errors import PgnasError
from ..progress import track
from .dataset import SMALL, DataName, ImageData, Part, Preprocessing, Source, cut_data, cut_part

LOOKED_AT = 64  # images whose size is taken for that of all
TEST_FOLDERS = ("test", "val", "validation", "valid")


def find_data(
    name: str,  # "digits", a folder, "cifar10", or another name of timm's create_dataset
    *,
    root: Path = Path("data"),  # where named data sets live
    skip_corrupt: bool = False,
) -> Source:
    """Look a data set up: its classes, its images, and whether they are small.

    Raises PgnasError where the folder is not as it should be, with what was looked for.
    """
    called, test = DataName(name), None
    if name == "digits":
        classes, train, test = _digits()
    elif Path(name).is_dir():
        called = DataName(Path(name).resolve().name, folder=True)
        classes, train, test = _folder(Path(name))
    elif name in _PLAIN_NAMES:
        classes, train, test = _plainly_named(name, root)
    elif name.split("/")[0] in _TIMM_SOURCES and "/" in name:
        classes, train, test = _timm_named(name, root)
    else:
        raise PgnasError(
            f"no data set '{name}'; possible: digits, a folder with train/<class>/ and val/<class>/"
            f", {', '.join(_PLAIN_NAMES)}, or a timm name such as torch/mnist"
        )
    if len(classes) < 2:
        raise PgnasError(f"'{name}' has one class ('{classes[0]}'); at least two are needed")
    if skip_corrupt:
        train = _readable(train)
        test = None if test is None else _readable(test)
    return Source(called, classes, train, test, _small_size(train), mirror=name != "digits")


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
    source = find_data(name, root=root, skip_corrupt=skip_corrupt)
    return cut_data(
        source, seed=seed, held_out=held_out, preprocessing=preprocessing, size=size,
        fitting=fitting,
    )  # fmt: skip


def _digits() -> tuple[tuple[str, ...], Part, Part]:
    """scikit-learn's 1,797 digits of 8x8; a fifth of each class, the same always, is the test."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = torch.from_numpy(raw.images * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(raw.target).long()
    classes = tuple(str(name) for name in raw.target_names)
    whole = Part(labels, tuple(f"digit-{i:04d}" for i in range(len(labels))), pixels)
    train, test = cut_part(whole, 0, 0.2, classes)
    return classes, train, test


def _folder(folder: Path) -> tuple[tuple[str, ...], Part, Part | None]:
    train_folder = folder / "train"
    if not train_folder.is_dir():
        raise PgnasError(
            f"no folder '{train_folder}'; expected {folder}/train/<class>/*.jpg and"
            f" {folder}/val/<class>/*.jpg"
        )
    classes = tuple(sorted(p.name for p in train_folder.iterdir() if p.is_dir()))
    if not classes:
        raise PgnasError(
            f"'{train_folder}' has no class folders; expected {train_folder}/<class>/*.jpg"
        )
    train = _files(train_folder, classes)
    test_folder = next((folder / n for n in TEST_FOLDERS if (folder / n).is_dir()), None)
    test = None
    if test_folder is not None:
        found = {p.name for p in test_folder.iterdir() if p.is_dir()}
        if found != set(classes):
            missing, extra = sorted(set(classes) - found), sorted(found - set(classes))
            raise PgnasError(
                f"'{test_folder}' has other classes than '{train_folder}': missing"
                f" {', '.join(missing) or 'none'}; extra {', '.join(extra) or 'none'}"
            )
        test = _files(test_folder, classes)
    return classes, train, test


def _files(folder: Path, classes: Sequence[str]) -> Part:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in IMG_EXTENSIONS)
        if not found:
            raise PgnasError(
                f"no images in '{folder / name}'; read are {', '.join(IMG_EXTENSIONS)}"
            )
        paths += found
        labels += [label] * len(found)
    keys = tuple(path.relative_to(folder).as_posix() for path in paths)
    return Part(torch.tensor(labels), keys, open=partial(_open_file, tuple(paths)))


def _open_file(paths: tuple[Path, ...], index: int) -> Image.Image:
    """Read one photo as RGB, whatever its mode; a file that does not decode is named."""
    path = paths[index]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd but readable files
            with Image.open(path) as image:
                return _eight_bits(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PgnasError(
            f"'{path}' does not decode ({error}); remove it or add `skip_corrupt`"
        ) from None


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey: Pillow's own conversion clips it to white."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image, dtype=np.int64)
    return Image.fromarray((values // 256 if values.max() > 255 else values).astype(np.uint8))


# Names that need no prefix, and torchvision's folder of each. ImageNet's archives are not unpacked.
_PLAIN_NAMES = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python", "imagenet": ""}


def _plainly_named(name: str, root: Path) -> tuple[tuple[str, ...], Part, Part | None]:
    """Class folders in `root`, or what torchvision has or downloads there."""
    own, folder = root / name, _PLAIN_NAMES[name]
    if (own / "train").is_dir():
        return _folder(own)
    if not folder:
        raise PgnasError(
            f"no data set '{name}': looked for {own}/train/<class>/ and {own}/val/<class>/; give"
            f" its folder as `data`, or the folder that '{name}' lies in as `data_root`"
        )
    try:
        return _timm_named(f"torch/{name}", root)
    except PgnasError as error:
        raise PgnasError(
            f"no data set '{name}': looked for {own}/train/<class>/ and {root / folder}; {error}"
        ) from None


_TIMM_SOURCES = ("torch", "hfds", "tfds", "wds", "hfids")


def _timm_named(name: str, root: Path) -> tuple[tuple[str, ...], Part, Part]:
    """A data set that timm knows by name; its own splits are train and validation or test."""
    parts = []
    for split, training in (("train", True), ("validation", False)):
        try:
            source = create_dataset(
                name, str(root), split=split, is_training=training, download=True
            )
            labels = _labels(source)
        except Exception as error:  # timm and the sources behind it raise many kinds
            raise PgnasError(
                f"timm cannot open data set '{name}' ({split}) below '{root}':"
                f" {' '.join(str(error).split())};"
                " `data_root` says where data sets live"
            ) from None
        keys = tuple(f"{split}-{i:07d}" for i in range(len(labels)))
        parts.append(Part(torch.tensor(labels), keys, open=partial(_open_item, source)))
    train, test = parts
    found = sorted({*train.labels.tolist()})
    names = getattr(create_dataset(name, str(root), split="train"), "classes", None)
    classes = tuple(str(names[i]) if names else str(i) for i in range(found[-1] + 1))
    return classes, train, test


def _labels(source: Any) -> list[int]:
    for holder in (source, getattr(source, "reader", None)):
        for attribute in ("targets", "labels", "_labels"):
            if hasattr(holder, attribute):
                return [int(label) for label in getattr(holder, attribute)]
        samples = getattr(holder, "samples", None)
        if samples is not None:
            return [int(label) for _, label in samples]
    return [int(source[i][1]) for i in range(len(source))]


def _open_item(source: Any, index: int) -> Image.Image:
    image = source[index][0]
    assert isinstance(image, Image.Image)
    return image.convert("RGB")


def _small_size(part: Part) -> int | None:
    """Height = width of the images where they are small and alike; None for photos."""
    if part.pixels is not None:
        return int(part.pixels.shape[-1])
    assert part.open is not None
    step = max(1, len(part) // LOOKED_AT)
    sizes = {part.open(i).size for i in range(0, len(part), step)}
    if len(sizes) == 1:
        (width, height) = sizes.pop()
        if width == height <= SMALL:
            return int(width)
    return None


def _readable(part: Part) -> Part:
    if part.open is None:
        return part
    good = []
    for index in track(range(len(part)), "checking images"):
        try:
            part.open(index)
            good.append(index)
        except PgnasError:
            continue
    return part.subset(good)
