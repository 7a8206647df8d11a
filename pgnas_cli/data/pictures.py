"""One image file: opened upright in 8-bit RGB, and what a check of it finds."""

import contextlib
import hashlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from ..errors import PgnasError
from ..storage import check_regular

# Ghostscript would run; a video; and formats that Pillow recognises but does not decode.
_NOT_READ = {"EPS", "MPEG", "BUFR", "GRIB", "HDF5", "WMF"}
# Pillow refuses twice as many as a decompression bomb: phones take photos of 200 million pixels.
Image.MAX_IMAGE_PIXELS = 2**27
Read = TypeVar("Read")
SMALL = 64  # pixels: images up to this size are kept in memory


@cache
def endings() -> frozenset[str]:
    """Endings of the files that are read, as ".jpg": what Pillow opens, HEIC with its plug-in."""
    if find_spec("pillow_heif"):
        import_module("pillow_heif").register_heif_opener()
    known = Image.registered_extensions()
    opened = {*Image.OPEN, "MPO"} - _NOT_READ  # MPO is opened as JPEG
    return frozenset(ending for ending, kind in known.items() if kind in opened)


def open_picture(path: Path) -> Image.Image:
    """The image as 8-bit RGB, upright; raises PgnasError that names a file that does not decode."""
    return read_picture(path, as_rgb)


def read_picture(path: Path, read: Callable[[Image.Image], Read]) -> Read:
    """What `read` makes of the image file, opened and not yet decoded; errors as `open_picture`."""
    try:
        return opened(path, read)
    except Exception as error:  # Pillow raises many kinds
        raise PgnasError(
            f"'{path}' does not decode ({reason_of(error)}); bring it back, or leave it out: pgnas"
            " fit `resume` `skip_corrupt`"
        ) from None


def thumbnail(path: Path, most: int) -> Image.Image:
    """The image at most `most` pixels wide and high, without its metadata; errors as
    `open_picture`."""

    def read(image: Image.Image) -> Image.Image:
        image.draft("RGB", (2 * most, 2 * most))  # a large JPEG is decoded smaller, in less time
        small = as_rgb(image)
        small.thumbnail((most, most))
        small.info.clear()  # a comment would be written again
        return small

    return read_picture(path, read)


def opened(path: str | Path, read: Callable[[Image.Image], Read]) -> Read:
    """The same; raises whatever Pillow raises, and OSError for a pipe, which might never end."""
    check_regular(Path(path))
    endings()  # registers the plug-ins, in this process
    with silenced(), Image.open(path) as image:
        return read(image)


def as_rgb(image: Image.Image) -> Image.Image:
    """`image` upright, in 8-bit RGB; raises ValueError for values outside the range of its mode."""
    image.load()
    with contextlib.suppress(Exception):  # Pillow raises many kinds; then the image stays as it is
        ImageOps.exif_transpose(image, in_place=True)
    return eight_bits(image).convert("RGB")


def orientation_of(image: Image.Image) -> int:
    """Of EXIF, 1 to 8; 1 is upright."""
    with contextlib.suppress(Exception):  # as in `as_rgb`
        found = image.getexif().get(ExifTags.Base.Orientation)
        return found if isinstance(found, int) and 2 <= found <= 8 else 1
    return 1


def eight_bits(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float images scaled to 8 bits by one rule; others as they are.

    Integers are read from 0 to 65535, floats from 0 to 1. The rule never depends on the image, so
    the order of brightness across files is kept. Raises ValueError for values outside.
    """
    white = white_of(image)
    if white is None:
        return image
    values = _values(image, white)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= white):  # not-a-number fails both
        raise ValueError(
            f"values from {low:g} to {high:g}; {'floats' if white == 1 else 'integers'} are read"
            f" from 0 to {white}"
        )
    scaled = values.astype(np.float64) * 255 + 0.5 if white == 1 else values.astype(np.int64) // 256
    return Image.fromarray(scaled.astype(np.uint8))


def white_of(image: Image.Image) -> int | None:
    """The value of white where a channel has more than 8 bits, else None."""
    if image.mode == "F":
        return 1
    return 65535 if image.mode.startswith("I") else None


def _values(image: Image.Image, white: int) -> np.ndarray:
    """Of a channel of more than 8 bits, 0 is black: in 8 bits alone, Pillow heeds TIFFs where 0 is
    white."""
    values = np.asarray(image)
    if getattr(image, "tag_v2", {}).get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) != 0:
        return values
    return white - values.astype(np.int64 if white > 1 else values.dtype)


def _deep_colours(image: Image.Image) -> bool:
    """Whether an image, not yet loaded, has colours of 16 bits: Pillow keeps the upper 8."""
    return white_of(image) is None and any(
        ";16" in str(tile.args) for tile in getattr(image, "tile", ())
    )


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Without Pillow's warnings on odd but readable files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def reason_of(error: Exception) -> str:
    """Why a file does not decode, without its path."""
    if isinstance(error, UnidentifiedImageError):
        return "no image that Pillow knows"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@dataclass(frozen=True)
class Facts:
    """What a check of a file finds; nothing here depends on how it is used."""

    digest: str  # of the file's bytes
    small: int  # pixels, of a square image up to SMALL; else 0
    turned: bool  # by its EXIF orientation
    brightest: float  # share of white in an image of more than 8 bits; of others -1


def facts_of(path: Path) -> Facts | str:
    """Decode a file; or why it does not decode.

    Large JPEGs are decoded at an eighth of their size: it reads every byte in half of the time.
    """
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            deep = _deep_colours(image)  # before the orientation, for which a PNG is loaded
            turned = orientation_of(image) > 1
            if min(image.size) > 8 * SMALL:
                image.draft(None, (image.width // 8, image.height // 8))
            read = as_rgb(image)
            width, height = read.size
            white = white_of(image)
            brightest = float(np.asarray(read).max()) / 255 if deep else -1.0
            if white is not None:
                brightest = float(_values(image, white).max()) / white
    except Exception as error:  # Pillow raises many kinds
        return reason_of(error)
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    return Facts(digest, width if width == height <= SMALL else 0, turned, brightest)
