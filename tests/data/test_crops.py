"""Random crops of photos: which part, how large it is decoded, and what is seen of it."""

import math
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile
from torchvision.transforms import RandomResizedCrop

from pgnas_cli.data import crops
from pgnas_cli.data.crops import RATIO, Box, RandomCrops, random_box
from pgnas_cli.data.pictures import open_picture


def photo(path: Path, size: tuple[int, int] = (1600, 1200), **more: object) -> Path:
    """Brighter to the right, greener to the bottom, a coarse grid in blue."""
    right, down = np.meshgrid(np.linspace(0, 250, size[0]), np.linspace(0, 250, size[1]))
    grid = 120 + 100 * np.sin(right / 8) * np.sin(down / 8)
    Image.fromarray(np.stack([right, down, grid], 2).astype(np.uint8)).save(path, **more)
    return path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes at which images were decoded."""
    found: list[tuple[int, int]] = []

    load = JpegImageFile.load

    def watched(image: JpegImageFile) -> object:
        loaded = load(image)
        found.append(image.size)
        return loaded

    monkeypatch.setattr(JpegImageFile, "load", watched)
    return found


@pytest.mark.parametrize(
    ("size", "share", "expected"),
    [(32, 1.0, 8), (100, 1.0, 8), (224, 1.0, 4), (224, 0.25, 2), (448, 0.25, 1), (700, 1.0, 1)],
)
def test_a_jpeg_is_decoded_no_larger_than_its_crop_needs(
    tmp_path: Path, decoded: list[tuple[int, int]], size: int, share: float, expected: int
) -> None:
    """The crop of a share s has a side of about sqrt(s) of 1200; it is never made larger."""
    path = photo(tmp_path / "photo.jpg", quality=92)
    made = RandomCrops(size, "RGB", (share, share), "bilinear", mirror=False)
    for seed in range(4):
        found = made.of_file(path, Random(seed))
        box = random_box((1600, 1200), (share, share), Random(seed))
        shrink = 1600 // decoded[-1][0] if decoded else 1  # else torchvision decoded it whole
        smallest = min(box.width, box.height)
        assert shrink == 1 or smallest / shrink >= size
        assert shrink == 8 or smallest / (2 * shrink) < size
        assert abs(math.log2(shrink / expected)) <= 1
        corners = (box.left, box.top, box.left + box.width, box.top + box.height)
        by_hand = open_picture(path).resize((size, size), Image.Resampling.BILINEAR, box=corners)
        decoded.clear()
        off = np.abs(np.asarray(by_hand).transpose(2, 0, 1).astype(int) - found.numpy())
        assert off[:2].mean() < 1.5 and off[2].mean() < 5


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_both_decoders_of_a_jpeg_show_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, grey: bool
) -> None:
    path = photo(tmp_path / "photo.jpg", (500, 375), quality=90)
    if grey:
        with Image.open(path) as image:
            image.convert("L").save(path)
    made = RandomCrops(128, mode, (0.08, 1.0), "bilinear", mirror=True)
    found = [made.of_file(path, Random(seed)).int() for seed in range(5)]
    monkeypatch.setattr(crops, "_decode_jpeg", None)
    for seed, one in enumerate(found):
        assert (one - made.of_file(path, Random(seed)).int()).abs().float().mean() < 1


@pytest.mark.parametrize("lost", [4, 60, 512, 2000])
def test_a_jpeg_with_a_torn_end_is_read_as_pillow_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    path = tmp_path / "photo.jpg"
    walk = np.random.default_rng(0).normal(0, 3, (150, 160, 3)).cumsum(0).cumsum(1)
    Image.fromarray((walk % 256).astype(np.uint8)).save(path, quality=90)
    content = path.read_bytes()
    path.write_bytes(content[:-lost] + bytes(lost))
    made = RandomCrops(128, "RGB", (0.9, 1.0), "bilinear", mirror=False)
    found = made.of_file(path, Random(0))
    monkeypatch.setattr(crops, "_decode_jpeg", None)
    assert torch.equal(found, made.of_file(path, Random(0)))


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("turned", [1, 3, 6])
def test_a_photo_on_its_side_is_cropped_upright(tmp_path: Path, ending: str, turned: int) -> None:
    tag = Image.Exif()
    tag[ExifTags.Base.Orientation] = turned
    path = photo(tmp_path / f"photo.{ending}", (900, 600), quality=90, exif=tag)
    made = RandomCrops(128, "RGB", (0.3, 0.9), "bicubic", mirror=False)
    for seed in range(3):
        upright = open_picture(path)
        expected = made.of_image(upright, Random(seed)).int()
        found = made.of_file(path, Random(seed)).int()
        assert found.shape == (3, 128, 128)
        assert (found - expected)[:2].abs().float().mean() < 2


def test_boxes_are_shares_of_the_image_in_every_place() -> None:
    size, scale = (500, 375), (0.08, 0.6)
    boxes = [random_box(size, scale, Random(seed)) for seed in range(4000)]
    shares = torch.tensor([box.width * box.height / (500 * 375) for box in boxes])
    ratios = torch.tensor([box.width / box.height for box in boxes])
    assert all(0 <= b.left <= 500 - b.width and 0 <= b.top <= 375 - b.height for b in boxes)
    assert 0.075 < shares.min() < 0.09 and 0.58 < shares.max() < 0.605
    torch.manual_seed(0)
    image = torch.empty(3, 375, 500)
    usual = [RandomResizedCrop.get_params(image, scale, RATIO) for _ in range(4000)]
    of_usual = torch.tensor([high * wide / (500 * 375) for _, _, high, wide in usual])
    for share in (0.1, 0.5, 0.9):
        assert abs(shares.quantile(share) - of_usual.quantile(share)) < 0.02
    usual_ratios = torch.tensor([wide / high for _, _, high, wide in usual])
    assert abs(ratios.log().std() - usual_ratios.log().std()) < 0.01
    lefts = torch.tensor([b.left / max(1, 500 - b.width) for b in boxes])
    assert abs(lefts.mean() - 0.5) < 0.02


@pytest.mark.parametrize("size", [(3000, 20), (20, 3000), (1, 1), (2, 3)])
def test_where_no_crop_fits_the_middle_is_taken(size: tuple[int, int]) -> None:
    image = torch.empty(3, size[1], size[0])
    top, left, high, wide = RandomResizedCrop.get_params(image, (1.0, 1.0), RATIO)
    assert random_box(size, (1.0, 1.0), Random(0)) == Box(left, top, wide, high)


def test_half_of_the_crops_are_mirrored_where_a_mirror_image_is_of_the_same_class() -> None:
    right = np.tile(np.linspace(0, 250, 64).astype(np.uint8), (64, 1))
    image = Image.fromarray(right).convert("RGB")
    for mirror, least, most in ((True, 70, 130), (False, 0, 0)):
        made = RandomCrops(32, "L", (0.5, 1.0), "lanczos", mirror)
        found = [made.of_image(image, Random(seed)) for seed in range(200)]
        assert found[0].shape == (1, 32, 32)
        assert least <= sum(int(one[0, 0, 0] > one[0, 0, -1]) for one in found) <= most
