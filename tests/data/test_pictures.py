"""One image file: upright, in 8 bits by one rule, of every kind that Pillow opens."""

import struct
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from pgnas_cli.data.pictures import endings, facts_of, open_picture
from pgnas_cli.errors import PgnasError

LAY = {  # how a photo with this EXIF orientation is stored, from how it is shown
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def picture(size: tuple[int, int] = (40, 24)) -> Image.Image:
    """Brighter to the right, greener to the bottom: no two ways to lay it look alike."""
    right, down = np.meshgrid(np.linspace(0, 250, size[0]), np.linspace(0, 250, size[1]))
    return Image.fromarray(np.stack([right, down, 0 * down], 2).astype(np.uint8))


def saved(values: np.ndarray, path: Path) -> Path:
    Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", LAY)
def test_a_photo_that_lies_on_its_side_is_read_upright(
    tmp_path: Path, orientation: int, ending: str
) -> None:
    tag = Image.Exif()
    tag[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"photo.{ending}"
    picture().transpose(LAY[orientation]).save(path, exif=tag, quality=95)
    found = open_picture(path)
    assert found.size == (40, 24)
    assert np.abs(np.asarray(found).astype(int) - np.asarray(picture())).mean() < 4
    assert facts_of(path).turned


def test_a_damaged_exif_block_leaves_the_photo_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    picture().save(path, exif=b"Exif\0\0MM\0*\0\0\0\xff" + bytes(range(40)))
    assert np.array_equal(np.asarray(open_picture(path)), np.asarray(picture()))
    assert not facts_of(path).turned


@pytest.mark.parametrize(
    ("kind", "white"), [(np.uint16, 65535), (np.int32, 65535), (np.float32, 1.0)]
)
def test_deep_images_are_scaled_by_one_rule_whatever_else_is_in_the_file(
    tmp_path: Path, kind: type, white: float
) -> None:
    """The same value becomes the same grey in a dark file and in a bright one."""
    shares = np.linspace(0, 0.1, 80).reshape(8, 10)
    dark = saved((shares * white).astype(kind), tmp_path / "dark.tif")
    shares[0, 1:] = 1
    bright = saved((shares * white).astype(kind), tmp_path / "bright.tif")
    found = [np.asarray(open_picture(path))[..., 0].astype(int) for path in (dark, bright)]
    assert np.array_equal(found[0][1:], found[1][1:])
    assert np.abs(found[1] - 255 * shares).max() <= 1
    assert facts_of(dark).brightest == pytest.approx(0.1, abs=1e-3)


def test_a_tiff_in_which_0_is_white_is_read_as_one_in_which_0_is_black(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 80).reshape(8, 10).astype(np.uint16)
    path = saved(values, tmp_path / "black.tif")
    other = tmp_path / "white.tif"
    Image.fromarray(65535 - values).save(other, tiffinfo={262: 0})
    with Image.open(other) as stored:
        assert stored.mode == "I;16"
        assert np.array_equal(stored, 65535 - values)  # Pillow leaves it to the reader
    assert np.array_equal(open_picture(other), open_picture(path))
    assert facts_of(other).brightest == facts_of(path).brightest == 1


@pytest.mark.parametrize("bits", [12, 16])
def test_the_brightest_colour_of_16_bits_is_found(tmp_path: Path, bits: int) -> None:
    """In a PNG that is made by hand: Pillow writes none."""
    values = np.full((4, 5, 3), 2**bits - 1, ">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
    )
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in (*chunks, (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + kind + body
        content += struct.pack(">I", zlib.crc32(kind + body))
    path = tmp_path / "colour.png"
    path.write_bytes(content)
    assert facts_of(path).brightest == pytest.approx(2.0 ** (bits - 16), abs=1 / 255)
    assert facts_of(saved(np.zeros((4, 5, 3), np.uint8), tmp_path / "plain.png")).brightest == -1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((8, 8), -200, np.int32), "values from -200 to -200; integers are read from 0 to"),
        (np.full((8, 8), 70000, np.int32), "values from 70000 to 70000; integers"),
        (np.full((8, 8), 254.5, np.float32), "254.5; floats are read from 0 to 1"),
        (np.full((8, 8), np.nan, np.float32), "values from nan to nan"),
    ],
    ids=["below", "above", "0-255", "nan"],
)
def test_values_out_of_range_are_refused_by_name(
    tmp_path: Path, values: np.ndarray, message: str
) -> None:
    path = saved(values, tmp_path / "odd.tif")
    with pytest.raises(PgnasError, match=rf"odd\.tif' does not decode \(.*{message}"):
        open_picture(path)
    assert message in facts_of(path)


@pytest.mark.parametrize("ending", ["jfif", "gif", "bmp", "webp", "avif", "jp2", "tga", "ppm"])
def test_whatever_pillow_opens_is_read(tmp_path: Path, ending: str) -> None:
    assert f".{ending}" in endings()
    path = tmp_path / f"picture.{ending}"
    picture().save(path)
    found = np.asarray(open_picture(path)).astype(int)
    assert np.abs(found - np.asarray(picture())).mean() < 8


def test_what_pillow_runs_or_only_recognises_is_not_read() -> None:
    assert not {".eps", ".ps", ".pdf", ".mpg", ".h5", ".wmf"} & endings()


def test_the_plug_in_for_heic_is_used_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "EXTENSION", {**Image.registered_extensions()})
    plugin = types.ModuleType("pillow_heif")
    plugin.__spec__ = types.SimpleNamespace()
    plugin.register_heif_opener = lambda: Image.register_extension("JPEG", ".heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    endings.cache_clear()
    try:
        assert ".heic" in endings()
    finally:
        endings.cache_clear()


def test_the_photos_of_the_largest_phones_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow's limit, by default 179 million pixels, is above 200 million; beyond, it is said."""
    assert 2 * Image.MAX_IMAGE_PIXELS > 16320 * 12240
    path = tmp_path / "large.png"
    picture((400, 300)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400 * 300 / 1.5)
    assert open_picture(path).size == (400, 300)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    with pytest.raises(PgnasError, match=r"large\.png' .*more than 0 million pixels"):
        open_picture(path)


@pytest.mark.parametrize("damage", ["empty", "half", "other"])
def test_a_check_and_a_reader_refuse_the_same_files(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "photo.jpg"
    picture((1600, 1200)).save(path)
    whole = path.read_bytes()
    assert not isinstance(facts_of(path), str)
    path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "other": b"text"}[damage])
    assert isinstance(facts_of(path), str)
    with pytest.raises(PgnasError, match=r"photo\.jpg' does not decode"):
        open_picture(path)
