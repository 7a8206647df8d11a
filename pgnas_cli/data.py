"""Image data sets, cut once and for all into fit, held-out and test.

A data set is a list of named images with labels. The training images are cut by class into a part
to fit on and a part to rank on; the cut is decided by a hash of each image's name and the seed, so
it depends on neither order nor platform. The test split is a list of its own that only reporting
reads.

Small images of one size (CIFAR, digits) live in memory as bytes; photos are opened when read.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_dataset
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from .errors import PgnasError
from .randomness import derived_seed

SMALL = 64  # pixels: images up to this size are kept in memory
TEST_FOLDERS = ("test", "val", "validation", "valid")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """How bytes become the numbers that the network reads."""

    channels: int
    size: int  # pixels, height = width
    mean: tuple[float, ...]  # of values scaled to [0, 1], per channel
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop: float = 0.875  # share of the resized image that the centre crop keeps; 1 for small images

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return self.channels, self.size, self.size

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 (batch, channels, height, width) -> float32, channels last, normalised."""
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1) * 255
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1) * 255
        images = images.contiguous(memory_format=torch.channels_last)
        return (images.float() - mean) / std


@dataclass(frozen=True)
class Part:
    """Some images of a data set: in memory as bytes, or to be opened one by one."""

    labels: Tensor  # int64 (images,)
    keys: tuple[str, ...]  # a name for each image, unique within the data set
    pixels: Tensor | None = None  # uint8 (images, channels, height, width)
    open: Callable[[int], Image.Image] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, chosen: Sequence[int]) -> "Part":
        """The images at the positions `chosen`."""
        index = torch.as_tensor(chosen, dtype=torch.int64)
        return Part(
            self.labels[index],
            tuple(self.keys[i] for i in chosen),
            None if self.pixels is None else self.pixels[index],
            None if self.open is None else partial(_open_at, self.open, tuple(chosen)),
        )


@dataclass(frozen=True)
class ImageData:
    """A data set, cut."""

    name: str
    classes: tuple[str, ...]
    fit: Part
    held_out: Part
    test: Part | None
    preprocessing: Preprocessing
    mirror: bool = True  # whether a mirrored image is of the same class


# --- opening a data set ------------------------------------------------------------------------


def open_data(
    name: str,  # "digits", a folder, or a name of timm's create_dataset
    *,
    seed: int,
    held_out: float = 0.2,  # share of the training images kept for ranking
    size: int | None = None,  # pixels; None: as the images are, 224 for photos
    root: Path = Path("data"),  # where timm's named data sets live
    skip_corrupt: bool = False,
    preprocessing: Preprocessing | None = None,  # None: decided here
    fitting: bool = True,  # False leaves the images to fit on undecoded
    track: Callable[[Sequence[int], str], Iterable[int]] = lambda items, _: items,
) -> ImageData:
    """Find the data set and cut its training images into fit and held-out.

    `track` wraps the loops that take long, with a word on what they do, to show progress.
    Raises PgnasError where the folder is not as it should be, with what was looked for.
    """
    if not 0 < held_out < 1:
        raise PgnasError(f"held-out share {held_out} is not between 0 and 1; usual: 0.2")
    title, test = name, None
    if name == "digits":
        classes, train, test = _digits()
    elif Path(name).is_dir():
        title = Path(name).resolve().name
        classes, train, test = _folder(Path(name))
    elif name.split("/")[0] in _TIMM_SOURCES and "/" in name:
        classes, train, test = _timm_named(name, root)
    else:
        raise PgnasError(
            f"no data set '{name}'; possible: digits, a folder with train/<class>/ and val/<class>/"
            ", or a timm name such as torch/cifar10"
        )
    if len(classes) < 2:
        raise PgnasError(f"'{name}' has one class ('{classes[0]}'); at least two are needed")
    if skip_corrupt:
        train = _readable(train, track)
        test = None if test is None else _readable(test, track)
    fit, rest = _cut(train, seed, held_out, classes)
    small = _small_size(train)
    wanted = size if preprocessing is None else preprocessing.size
    if small is not None and wanted in (None, small):
        rest = _in_memory(rest, track)
        fit = _in_memory(fit, track) if fitting else fit
    if preprocessing is None:
        if fit.pixels is not None and wanted in (None, small):
            preprocessing = _measured(fit)
        else:
            preprocessing = Preprocessing(3, wanted or 224, IMAGENET_MEAN, IMAGENET_STD)
    return ImageData(title, classes, fit, rest, test, preprocessing, mirror=name != "digits")


def digest(part: Part) -> str:
    """Changes when an image comes, goes, or changes its class; not when its pixels change."""
    lines = sorted(
        f"{key}\t{label}" for key, label in zip(part.keys, part.labels.tolist(), strict=True)
    )
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def _cut(train: Part, seed: int, share: float, classes: Sequence[str]) -> tuple[Part, Part]:
    """Stratified by class; within a class the images with the smallest hashes are held out."""
    held: list[int] = []
    for label, name in enumerate(classes):
        members = (train.labels == label).nonzero().flatten().tolist()
        if len(members) < 2:
            raise PgnasError(
                f"class '{name}' has {len(members)} training image(s); at least 2 are needed, one"
                " to fit on and one to rank on"
            )
        members.sort(key=lambda i: derived_seed(seed, f"held-out {train.keys[i]}"))
        held += members[: min(max(1, round(share * len(members))), len(members) - 1)]
    chosen = set(held)
    return (
        train.subset([i for i in range(len(train)) if i not in chosen]),
        train.subset(sorted(held)),
    )


def _digits() -> tuple[tuple[str, ...], Part, Part]:
    """scikit-learn's 1,797 digits of 8x8; a fifth of each class, the same always, is the test."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = torch.from_numpy(raw.images * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(raw.target).long()
    classes = tuple(str(name) for name in raw.target_names)
    whole = Part(labels, tuple(f"digit-{i:04d}" for i in range(len(labels))), pixels)
    train, test = _cut(whole, 0, 0.2, classes)
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
                return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PgnasError(
            f"'{path}' does not decode ({error}); remove it or add --skip-corrupt"
        ) from None


def _open_at(
    inner: Callable[[int], Image.Image], chosen: tuple[int, ...], index: int
) -> Image.Image:
    return inner(chosen[index])


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
                " --data-root says where data sets live"
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


# --- small images, in memory -------------------------------------------------------------------


def _small_size(part: Part, looked_at: int = 64) -> int | None:
    """Height = width of the images where they are small and alike; None for photos."""
    if part.pixels is not None:
        return int(part.pixels.shape[-1])
    assert part.open is not None
    step = max(1, len(part) // looked_at)
    sizes = {part.open(i).size for i in range(0, len(part), step)}
    if len(sizes) == 1:
        (width, height) = sizes.pop()
        if width == height <= SMALL:
            return int(width)
    return None


def _in_memory(part: Part, track: Callable[[Sequence[int], str], Iterable[int]]) -> Part:
    if part.pixels is not None:
        return part
    opener = part.open
    assert opener is not None
    first = _bytes(opener(0))
    pixels = torch.empty(len(part), *first.shape, dtype=torch.uint8)
    for index in track(range(len(part)), "decoding images"):
        image = _bytes(opener(index))
        if image.shape != first.shape:
            raise PgnasError(
                f"image '{part.keys[index]}' is {image.shape[2]}x{image.shape[1]}, the others"
                f" {first.shape[2]}x{first.shape[1]}; give --img-size to resize all"
            )
        pixels[index] = image
    return Part(part.labels, part.keys, pixels)


def _bytes(image: Image.Image) -> Tensor:
    """uint8 (3, height, width)"""
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, -1).permute(2, 0, 1)


def _measured(fit: Part) -> Preprocessing:
    """Mean and deviation of the images that are fitted; four decimals, so that files agree."""
    assert fit.pixels is not None
    scaled = fit.pixels.double().transpose(0, 1).flatten(1) / 255
    mean = tuple(round(v, 4) for v in scaled.mean(1).tolist())
    std = tuple(max(round(v, 4), 1e-3) for v in scaled.std(1).tolist())
    _, channels, size, _ = fit.pixels.shape
    return Preprocessing(channels, size, mean, std, crop=1.0)


def _readable(part: Part, track: Callable[[Sequence[int], str], Iterable[int]]) -> Part:
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
