"""Image data sets, split once and for all into training, held-out and test images.

A data set is a list of named images with labels. The images of train/ are split by class into a
part to train on and a part to rank on. A hash of each image's name and the seed decides the split,
so it depends on neither order nor platform. Only reporting reads the test images.

Small images of one size (CIFAR, digits) live in memory as bytes; photos are opened when read.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from ..errors import PgnasError
from ..progress import track
from ..seeds import derived_seed
from .names import Names

Found = TypeVar("Found")
ROUNDED = 0.02  # of a number of held-out images: a difference that is not worth a word
HELD_OUT_MOST = 10_000  # images: errors to half a point, decoded in 1.5 GB at 224 pixels
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = (0.449,), (0.226,)  # the means of ImageNet's
FEW = 100  # held-out images: an error of 10 % is known to 6 points
UNEQUAL = 10  # times as many images in one class as in another


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
        mean, std = (
            levels(shares, images.device).flatten().repeat(images.shape[-1])
            for shares in (self.mean, self.std)
        )
        floats = images.to(torch.float32, copy=True, memory_format=torch.channels_last)
        # A row of pixels at a time: a processor is twice as fast as with three numbers at a time.
        floats.permute(0, 2, 3, 1).view(-1, len(mean)).sub_(mean).div_(std)
        return floats


@cache
def levels(shares: tuple[float, ...], device: torch.device) -> Tensor:
    """Of bytes, (1, channels, 1, 1); copied to a device once."""
    return torch.tensor(shares, device=device).view(1, -1, 1, 1) * 255


@dataclass(frozen=True)
class Part:
    """Some images of a data set: in memory as bytes, or to be opened one by one."""

    labels: Tensor  # int64 (images,)
    keys: Sequence[str]  # a name for each image, unique within the data set
    pixels: Tensor | None = None  # uint8 (images, channels, height, width)
    open: Callable[[int], Image.Image] | None = None
    file: Callable[[int], Path] | None = None  # where each image is a file of its own
    # Positions of images that do not decode. They are not read but keep their place, so that the
    # cut, the order of the batches and the digest stay the same when a file goes bad.
    damaged: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.labels)

    def readable(self) -> "Part":
        """The images that decode."""
        if not self.damaged:
            return self
        good = torch.ones(len(self), dtype=torch.bool)
        good[list(self.damaged)] = False
        return self.subset(good.nonzero()[:, 0])

    def subset(self, chosen: Sequence[int] | Tensor) -> "Part":
        """The images at the positions `chosen`."""
        index = torch.as_tensor(chosen, dtype=torch.int64)
        places = index.tolist() if self.damaged else []
        return Part(
            self.labels[index],
            _keys_at(self.keys, index),
            None if self.pixels is None else self.pixels[index],
            None if self.open is None else partial(_at, self.open, index),
            None if self.file is None else partial(_at, self.file, index),
            frozenset(place for place, i in enumerate(places) if i in self.damaged),
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
    remarks: tuple[str, ...] = ()  # what the user should know of the images


@dataclass(frozen=True)
class Source:
    """A data set as it was found, not yet cut or decoded."""

    name: DataName
    classes: tuple[str, ...]
    train: Part
    test: Part | None
    small: int | None  # pixels, where the images are small and of one size
    mirror: bool = True
    copy_of: Tensor | None = None  # int64: the first of the same bytes; None: all differ
    remarks: tuple[str, ...] = ()  # as of ImageData

    @property
    def channels(self) -> int:
        """1 for grey digits, 3 for all else: photos are read as RGB whatever their mode."""
        return 3 if self.train.pixels is None else int(self.train.pixels.shape[1])


def cut_data(
    source: Source,
    *,
    seed: int,
    held_out: float = 0.2,  # kept for ranking: a share, HELD_OUT_MOST at most, or a number
    preprocessing: Preprocessing | None = None,  # None: measured where small, else ImageNet's
    size: int | None = None,  # pixels, where `preprocessing` does not say
    channels: int | None = None,  # the same; 1 reads photos as grey
    fitting: bool = True,  # False leaves the training images undecoded
) -> ImageData:
    """Cut the training images into fit and held-out; small ones are decoded into memory."""
    share = held_out_share(held_out, len(source.train))
    fit, rest = cut_part(source.train, seed, share, source.classes, source.copy_of)
    for label in missing(fit.labels, fit.readable().labels):
        raise PgnasError(f"class '{source.classes[label]}' has no training image that decodes")
    wanted = size if preprocessing is None else preprocessing.size
    channels = (channels or source.channels) if preprocessing is None else preprocessing.channels
    in_memory = source.small is not None and wanted in (None, source.small)
    if in_memory:
        rest = _in_memory(rest, channels)
        fit = _in_memory(fit, channels) if fitting else fit
    if preprocessing is None:
        if in_memory:
            preprocessing = _measured(fit.readable())
        else:
            grey = channels == 1
            mean, std = (GREY_MEAN, GREY_STD) if grey else (IMAGENET_MEAN, IMAGENET_STD)
            preprocessing = Preprocessing(channels, wanted or 224, mean, std)
    own = source.train.pixels
    if own is not None and (channels, preprocessing.size) != own.shape[1:3]:
        found, height, width = own.shape[1:]
        raise PgnasError(
            f"'{source.name}' has images of {width}x{height} pixels and {found} channel(s); they"
            f" are not changed to {preprocessing.size} and {channels}; leave out `img_size`, or"
            " choose another `backbone`"
        )
    remarks = source.remarks
    if share < held_out < 1:
        remarks += (
            f"{len(rest)} images are held out, not {held_out:g} of them: more than {HELD_OUT_MOST}"
            f" only by number, as `held_out` {round(held_out * len(source.train))}",
        )
    elif held_out >= 2 and abs(len(rest) - held_out) > ROUNDED * held_out:
        remarks += (
            f"{len(rest)} images are held out, not {held_out:g}: as large a share of each class",
        )
    return ImageData(
        source.name, source.classes, fit, rest, source.test, preprocessing, source.mirror, remarks
    )


def held_out_share(held_out: float, images: int) -> float:
    """The share of so many training images that is held out, from a share or a number of them."""
    if 0 < held_out < 1:
        return min(held_out, HELD_OUT_MOST / images)
    if 2 <= held_out < images and held_out == int(held_out):
        return held_out / images
    raise PgnasError(
        f"`held_out` {held_out:g} is out of range; possible: above 0 and below 1, or a number of"
        f" images from 2 to {images - 1}"
    )


def remarks_on(data: ImageData) -> list[str]:
    """What the numbers of images do not allow."""
    found = []
    held_out = len(data.held_out.readable())
    if held_out < FEW:
        found.append(
            f"{held_out} held-out images cannot rank candidates: one image is"
            f" {100 / held_out:.2g} points of error; give more images, or raise `held_out`"
        )
    counts = torch.bincount(data.fit.readable().labels, minlength=len(data.classes)).tolist()
    least, most = (pick(range(len(counts)), key=counts.__getitem__) for pick in (min, max))
    if counts[most] >= UNEQUAL * counts[least]:
        found.append(
            f"classes of very different size: {counts[most]} training images of"
            f" '{data.classes[most]}', {counts[least]} of '{data.classes[least]}'; an error counts"
            " images, so look at the error of each class in the report; `class_weights` balanced"
            " lets each class count alike in training"
        )
    return found


def missing(wanted: Tensor, labels: Tensor) -> list[int]:
    """The classes of `wanted` of which `labels` has none; both int64 (images,)."""
    classes = wanted.unique()
    return classes[~torch.isin(classes, labels)].tolist()  # type: ignore[no-any-return]


def digest(part: Part) -> str:
    """Changes when an image comes, goes, or changes its class; not when its pixels change."""
    lines = sorted(
        f"{key}\t{label}"
        for key, label in zip(part.keys, part.labels.numpy().tolist(), strict=True)
    )
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def cut_part(
    train: Part,
    seed: int,
    share: float,
    classes: Sequence[str],
    copy_of: Tensor | None = None,  # int64: for each the first of the same bytes; None: all differ
) -> tuple[Part, Part]:
    """Stratified by class; within a class the images with the smallest hashes are held out.

    Copies have the hash of the first of them, and are all held out where one of them is.
    """
    first = torch.arange(len(train)) if copy_of is None else copy_of
    held = torch.zeros(len(train), dtype=torch.bool)
    sizes = torch.bincount(train.labels, minlength=len(classes)).tolist()
    for name, members in zip(classes, train.labels.argsort(stable=True).split(sizes), strict=True):
        pictures = first[members].unique()
        if len(pictures) < 2:
            raise PgnasError(
                f"class '{name}' has {len(pictures)} different training image(s); at least 2 are"
                " needed, one to train on and one to rank on"
            )
        hashes = [derived_seed(seed, f"held-out {key}") for key in _keys_at(train.keys, pictures)]
        number = min(max(1, round(share * len(pictures))), len(pictures) - 1)
        held[pictures[torch.tensor(hashes).argsort()[:number]]] = True
    fit = train.subset((~held[first]).nonzero()[:, 0])
    for label in missing(train.labels, fit.labels):
        raise PgnasError(f"all images of class '{classes[label]}' are copies of held-out images")
    return fit, train.subset(held[first].nonzero()[:, 0])


def _keys_at(keys: Sequence[str], places: Tensor) -> Sequence[str]:
    if isinstance(keys, Names):
        return keys.take(places)
    return tuple(keys[i] for i in places.tolist())


def _at(inner: Callable[[int], Found], chosen: Tensor, index: int) -> Found:
    return inner(int(chosen[index]))


def _in_memory(part: Part, channels: int) -> Part:
    if part.pixels is not None:
        return part
    opener = part.open
    assert opener is not None
    mode = "L" if channels == 1 else "RGB"
    good = [index for index in range(len(part)) if index not in part.damaged]
    first = _bytes(opener(good[0]).convert(mode))
    pixels = torch.zeros(len(part), *first.shape, dtype=torch.uint8)
    for index in track(good, "decoding images"):
        image = _bytes(opener(index).convert(mode))
        if image.shape != first.shape:
            raise PgnasError(
                f"image '{part.keys[index]}' is {image.shape[2]}x{image.shape[1]}, the others"
                f" {first.shape[2]}x{first.shape[1]}; give `img_size` to resize all"
            )
        pixels[index] = image
    return Part(part.labels, part.keys, pixels, damaged=part.damaged)


def _bytes(image: Image.Image) -> Tensor:
    """uint8 (channels, height, width)"""
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
