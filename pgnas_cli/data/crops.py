"""Random crops of photos, to train on: decoded no larger than serves, resized once, as bytes.

A JPEG can be decoded at a half, a quarter or an eighth of its size, which is done where the crop
still has as many pixels as are wanted of it.
"""

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from .pictures import as_rgb, orientation_of, read_picture

RATIO = (3 / 4, 4 / 3)  # width / height of a crop, as everywhere since Inception
_TRIES = 10
_LARGEST_SHRINK = 8
# Pillow's other filters, which tensors lack, are near to these.
_FILTERS = {"lanczos": "bicubic", "hamming": "bilinear", "box": "bilinear"}


# torchvision's decoder takes three quarters of Pillow's time; later versions will be without it.
_decode_jpeg: Any = getattr(torch.ops.image, "decode_jpeg", None)


def _whole_jpeg(image: Any, mode: str) -> Tensor:
    """A JPEG, opened and not yet decoded, as uint8 (channels, height, width)."""
    image.fp.seek(0)
    content = torch.frombuffer(bytearray(image.fp.read()), dtype=torch.uint8)
    found: Tensor = _decode_jpeg(content, ImageReadMode["GRAY" if mode == "L" else mode].value)
    return found


@dataclass(frozen=True)
class Box:
    """A crop, in pixels of an image."""

    left: int
    top: int
    width: int
    height: int


def random_box(size: tuple[int, int], scale: tuple[float, float], dice: Random) -> Box:
    """A crop of a share in `scale` of an image of `size` (width, height), its ratio in `RATIO`.

    torchvision's RandomResizedCrop: the share is uniform, the ratio uniform in its logarithm; where
    none fits in ten tries, the largest in the middle.
    """
    width, height = size
    for _ in range(_TRIES):
        area = width * height * dice.uniform(*scale)
        ratio = math.exp(dice.uniform(*map(math.log, RATIO)))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            return Box(dice.randint(0, width - wide), dice.randint(0, height - high), wide, high)
    wide = min(width, round(height * RATIO[1]))
    high = min(height, round(width / RATIO[0]))
    return Box((width - wide) // 2, (height - high) // 2, wide, high)


@dataclass(frozen=True)
class RandomCrops:
    """How a photo becomes a training image."""

    size: int  # pixels, height = width
    mode: str  # of Pillow: RGB or L
    scale: tuple[float, float]  # shares that a crop takes, least and most
    interpolation: str
    mirror: bool

    def of_file(self, path: Path, dice: Random) -> Tensor:
        """A random crop of an image file, uint8 (channels, size, size)."""
        return read_picture(path, lambda image: self._of_opened(image, dice))

    def of_image(self, image: Image.Image, dice: Random) -> Tensor:
        """The same of an image that is decoded, upright, in 8 bits."""
        return self._cut(image, random_box(image.size, self.scale, dice), dice)

    def _of_opened(self, image: Image.Image, dice: Random) -> Tensor:
        whole = image.size[::-1] if orientation_of(image) >= 5 else image.size
        box = random_box(whole, self.scale, dice)
        enough = min(box.width, box.height) / self.size
        if enough >= 2:
            shrink = min(_LARGEST_SHRINK, 2 ** int(math.log2(enough)))
            image.draft(None, (-(-image.width // shrink), -(-image.height // shrink)))
        # Of upright photos in 8 bits, which most are, only the crop is copied.
        plain = image.mode in ("RGB", "L") and orientation_of(image) == 1
        if plain and enough < 2 and image.format == "JPEG" and _decode_jpeg is not None:
            with contextlib.suppress(RuntimeError):  # Pillow reads more of a damaged file
                pixels = _whole_jpeg(image, self.mode)
                rows = slice(box.top, box.top + box.height)
                columns = slice(box.left, box.left + box.width)
                return self._resized(pixels[:, rows, columns], dice)
            image.fp.seek(0)  # type: ignore[attr-defined]
        found = image if plain else as_rgb(image)
        across, down = found.width / whole[0], found.height / whole[1]
        left, top = round(box.left * across), round(box.top * down)
        wide, high = max(1, round(box.width * across)), max(1, round(box.height * down))
        return self._cut(found, Box(left, top, wide, high), dice)

    def _cut(self, image: Image.Image, box: Box, dice: Random) -> Tensor:
        part = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        rows = torch.from_numpy(
            np.array(part if part.mode == self.mode else part.convert(self.mode))
        )
        pixels = rows.view(box.height, box.width, -1).permute(2, 0, 1)
        return self._resized(pixels, dice)

    def _resized(self, pixels: Tensor, dice: Random) -> Tensor:
        kind = InterpolationMode(_FILTERS.get(self.interpolation, self.interpolation))
        found: Tensor = resize(pixels, [self.size, self.size], kind, antialias=True)
        return found.flip(-1) if self.mirror and dice.random() < 0.5 else found
