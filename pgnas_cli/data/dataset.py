"""Image data sets, split once and for all into training, held-out and test images.

A data set is a list of named images with labels. The images of train/ are split by class into a
part to train on and a part to rank on. A hash of each image's name and the seed decides the split,
so it depends on neither order nor platform. Only reporting reads the test images.

Small images of one size (CIFAR, digits) live in memory as bytes; photos are opened when read.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from ..errors import PgnasError
from ..fields import check_range
from ..progress import track
from ..seeds import derived_seed

HELD_OUT_MOST = 10_000  # images: errors to half a point, decoded in 1.5 GB at 224 pixels
SMALL = 64  # pixels: images up to this size are kept in memory
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DataName:
    """What a data set is called in files; where a folder lies is not said."""

    name: str
    folder: bool = False  # of the user's; else a name that `find_data` knows

    def __str__(self) -> str:
        return self.name


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

    name: DataName
    classes: tuple[str, ...]
    fit: Part
    held_out: Part
    test: Part | None
    preprocessing: Preprocessing
    mirror: bool = True  # whether a mirrored image is of the same class


@dataclass(frozen=True)
class Source:
    """A data set as it was found, not yet cut or decoded."""

    name: DataName
    classes: tuple[str, ...]
    train: Part
    test: Part | None
    small: int | None  # pixels, where the images are small and of one size
    mirror: bool

    @property
    def channels(self) -> int:
        """1 for grey digits, 3 for all else: photos are read as RGB whatever their mode."""
        return 3 if self.train.pixels is None else int(self.train.pixels.shape[1])


def cut_data(
    source: Source,
    *,
    seed: int,
    held_out: float = 0.2,  # share of the training images kept for ranking, HELD_OUT_MOST at most
    preprocessing: Preprocessing | None = None,  # None: measured where small, else ImageNet's
    size: int | None = None,  # pixels, where `preprocessing` does not say
    fitting: bool = True,  # False leaves the training images undecoded
) -> ImageData:
    """Cut the training images into fit and held-out; small ones are decoded into memory."""
    check_range("held_out", held_out, 0, 1, open=True)
    share = min(held_out, HELD_OUT_MOST / len(source.train))
    fit, rest = cut_part(source.train, seed, share, source.classes)
    wanted = size if preprocessing is None else preprocessing.size
    in_memory = source.small is not None and wanted in (None, source.small)
    if in_memory:
        rest = _in_memory(rest)
        fit = _in_memory(fit) if fitting else fit
    if preprocessing is None:
        if in_memory:
            preprocessing = _measured(fit)
        else:
            preprocessing = Preprocessing(3, wanted or 224, IMAGENET_MEAN, IMAGENET_STD)
    own = source.train.pixels
    if own is not None and preprocessing.input_shape != own.shape[1:]:
        channels, height, width = own.shape[1:]
        raise PgnasError(
            f"'{source.name}' has images of {width}x{height} pixels and {channels} channel(s);"
            f" they are not resized to {preprocessing.size}, leave out `img_size`"
        )
    return ImageData(
        source.name, source.classes, fit, rest, source.test, preprocessing, source.mirror
    )


def digest(part: Part) -> str:
    """Changes when an image comes, goes, or changes its class; not when its pixels change."""
    lines = sorted(
        f"{key}\t{label}" for key, label in zip(part.keys, part.labels.tolist(), strict=True)
    )
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def cut_part(train: Part, seed: int, share: float, classes: Sequence[str]) -> tuple[Part, Part]:
    """Stratified by class; within a class the images with the smallest hashes are held out."""
    held: list[int] = []
    for label, name in enumerate(classes):
        members = (train.labels == label).nonzero().flatten().tolist()
        if len(members) < 2:
            raise PgnasError(
                f"class '{name}' has {len(members)} training image(s); at least 2 are needed, one"
                " to train on and one to rank on"
            )
        members.sort(key=lambda i: derived_seed(seed, f"held-out {train.keys[i]}"))
        held += members[: min(max(1, round(share * len(members))), len(members) - 1)]
    chosen = set(held)
    return (
        train.subset([i for i in range(len(train)) if i not in chosen]),
        train.subset(sorted(held)),
    )


def _open_at(
    inner: Callable[[int], Image.Image], chosen: tuple[int, ...], index: int
) -> Image.Image:
    return inner(chosen[index])


def _in_memory(part: Part) -> Part:
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
                f" {first.shape[2]}x{first.shape[1]}; give `img_size` to resize all"
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
