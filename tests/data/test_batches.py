"""Batches of images: what evaluation sees, and augmentation that no worker can change."""

import dataclasses
import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pgnas_cli.data import (
    ImageData,
    digest,
    evaluation_images,
    held_out_decoded,
    load_data,
    steps_per_epoch,
    training_batches,
)
from pgnas_cli.data.batches import augmented, cut_out, order
from pgnas_cli.errors import PgnasError
from pgnas_cli.progress import listening

from ..listeners import Heard
from ..networks import seeded

Folder = Callable[..., Path]


def noise() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (80, 96, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def batches(data: ImageData, batch: int, steps: int, **more: int) -> list[tuple[Tensor, Tensor]]:
    given = {"seed": 1, "first_step": 0, "workers": 0, **more}
    return list(training_batches(data, batch=batch, steps=steps, **given))


def test_evaluation_images_equal_resize_and_centre_crop_by_hand(photo_folder: Folder) -> None:
    folder, noisy = photo_folder(), noise()
    noisy.save(folder / "val" / "red" / "00.png")
    data = load_data(str(folder), seed=0, size=56)
    found = torch.cat(list(evaluation_images(data.test, data.preprocessing)))
    place = data.test.keys.index("red/00.png")
    scaled = noisy.resize((round(64 * 96 / 80 - 0.5), 64), Image.Resampling.BILINEAR)
    left, top = round((scaled.width - 56) / 2), 4
    by_hand = np.asarray(scaled)[top : top + 56, left : left + 56].transpose(2, 0, 1)
    assert np.abs(found[place].numpy().astype(int) - by_hand).max() <= 1


def test_an_image_that_cannot_be_changed_is_one_line_and_the_process_ends(
    photo_folder: Folder, tmp_path: Path
) -> None:
    """Also from a worker, whose end nobody waits for."""
    code = (
        "import sys\nfrom pgnas_cli.data import policies\nfrom pgnas_cli.cli import main\n"
        "def broken(self, pixels, seed): raise ValueError('bits must be more')\n"
        "policies.Policy.__call__ = broken\n"
        "policies.check_policy.__code__ = (lambda text: None).__code__\n"
        "main(sys.argv[1:])"
    )
    line = ["fit", "--data", str(photo_folder()), "--img-size", "24", "-b", "4", "--epochs", "1",
            "--backbone", "multibranch-tiny", "--aa", "v0", "--run", "r", "-j", "1",
            "-q"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, *line], cwd=tmp_path,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    (line_of_it,) = done.stderr.splitlines()
    assert line_of_it.startswith("error: '")
    assert line_of_it.endswith("cannot be read (bits must be more)")


def data_and_batch(photo_folder: Folder, source: str) -> tuple[ImageData, int]:
    if source == "digits":
        return load_data("digits", seed=0), 100
    return load_data(str(photo_folder()), seed=0, size=32), 4


@pytest.mark.parametrize("source", ["digits", "photos"])
def test_neither_workers_nor_a_later_start_change_batches(
    photo_folder: Folder, source: str
) -> None:
    data, batch = data_and_batch(photo_folder, source)
    per_epoch = steps_per_epoch(len(data.fit), batch)
    steps = 2 * per_epoch + 1
    whole = batches(data, batch, steps)
    assert len(whole) == steps
    for first, workers in ((0, 2), (per_epoch + 1, 0)):
        again = batches(data, batch, steps, first_step=first, workers=workers)
        for (images, labels), (same, alike) in zip(whole[first:], again, strict=True):
            assert torch.equal(images, same)
            assert torch.equal(labels, alike)
    assert not torch.equal(whole[0][0], whole[per_epoch][0])


@pytest.mark.parametrize("source", ["digits", "photos"])
def test_an_image_that_does_not_decode_is_left_out_of_its_batch_and_changes_no_other(
    photo_folder: Folder, source: str
) -> None:
    data, batch = data_and_batch(photo_folder, source)
    bad = frozenset({3, 5, 11})
    rest = dataclasses.replace(data, fit=dataclasses.replace(data.fit, damaged=bad))
    assert len(rest.fit.readable()) == len(data.fit) - 3
    assert digest(rest.fit) == digest(data.fit)
    whole, found = (batches(one, batch, len(data.fit) // batch) for one in (data, rest))
    for chosen, (images, labels), (fewer, left) in zip(
        order(len(data.fit), batch, 1, 0), whole, found, strict=True
    ):
        good = torch.tensor([int(i) not in bad for i in chosen])
        assert torch.equal(images[good], fewer)
        assert torch.equal(labels[good], left)
    (images, labels), *_ = batches(rest, 1, 1, first_step=0, seed=seed_that_begins_with(bad, data))
    assert len(images) == len(labels) == 1


def seed_that_begins_with(bad: frozenset[int], data: ImageData) -> int:
    """A seed whose first image does not decode: the batch of it takes another one."""
    return next(s for s in range(10**4) if int(order(len(data.fit), 1, s, 0)[0]) in bad)


@pytest.mark.parametrize("source", ["digits", "photos"])
def test_augmentation_differs_by_epoch_and_by_image(photo_folder: Folder, source: str) -> None:
    """The same picture under two names, and the same name in two epochs, is cropped otherwise."""
    if source == "digits":
        data = load_data("digits", seed=0)
        data.fit.pixels[:] = data.fit.pixels[:1]
    else:
        folder = photo_folder()
        for path in (folder / "train").rglob("*.jpg"):
            noise().save(path, comment=str(path))  # the same picture, no copy of the file
        data = load_data(str(folder), seed=0, size=32)
    first, second = (images.flatten(1) for images, _ in batches(data, len(data.fit), 2))
    assert min(len(images.unique(dim=0)) for images in (first, second)) > 5
    sums = [images.double().sum(1).sort().values for images in (first, second)]
    assert not torch.equal(*sums)


def test_an_epoch_visits_each_image_at_most_once() -> None:
    seen = torch.cat(order(103, 10, 0, 3))
    assert [len(b) for b in order(103, 10, 0, 3)] == 10 * [10]
    assert len(seen.unique()) == 100
    assert [len(b) for b in order(7, 10, 0, 0)] == [7]


def test_augmentation_is_a_crop_of_the_padded_image_mirrored_or_not() -> None:
    images = torch.randint(1, 255, (50, 3, 8, 8), generator=seeded(), dtype=torch.uint8)
    draws = torch.rand(50, 3, generator=seeded(1))
    found = augmented(images, draws, pad=2, mirror=True)
    for image, draw, out in zip(images, draws, found, strict=True):
        down, right = int(draw[0] * 5), int(draw[1] * 5)
        padded = np.pad(image.numpy(), ((0, 0), (2, 2), (2, 2)))
        expected = padded[:, down : down + 8, right : right + 8]
        if draw[2] < 0.5:
            expected = expected[:, :, ::-1]
        assert np.array_equal(out.numpy(), expected)


def test_cutout_fills_a_square_around_its_centre_with_the_mean() -> None:
    """Where the square sticks out of the image, less of it is filled."""
    images = torch.randint(0, 255, (50, 3, 8, 8), generator=seeded(), dtype=torch.uint8)
    centres = torch.rand(50, 2, generator=seeded(1))
    expected = images.clone()
    for image, (down, right) in zip(expected, centres.tolist(), strict=True):
        top, left = int(8 * down) - 2, int(8 * right) - 2
        for channel, level in enumerate((51, 102, 153)):
            image[channel, max(0, top) : top + 4, max(0, left) : left + 4] = level
    assert torch.equal(cut_out(images, centres, 4, (0.2, 0.4, 0.6)), expected)


def test_held_out_images_that_do_not_fit_into_memory_are_read_from_a_file(
    photo_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes; the file has no name, and a full disk is said."""
    data = load_data(str(photo_folder()), seed=0, size=32)
    resident = held_out_decoded(data, 0).held_out
    monkeypatch.setattr("pgnas_cli.data.batches.free_memory", lambda device: 2 * 32 * 32 * 3)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mapped: list[object] = []

    def mapping(*given: object, **named: object) -> object:
        mapped.append(memmap(*given, **named))
        return mapped[-1]

    memmap = np.memmap
    monkeypatch.setattr(np, "memmap", mapping)
    heard = Heard()
    with listening(heard):
        found = held_out_decoded(data, 0).held_out
    assert torch.equal(found.pixels, resident.pixels)
    assert np.array_equal(mapped[0], resident.pixels)
    assert not any(path.is_file() for path in tmp_path.rglob("*") if "photos" not in path.parts)
    (told,) = heard.notes
    assert told.startswith("held-out images take 18.43 KB, 6.144 KB of memory are free")

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(PgnasError, match=r"has no room for .* No space left on device"):
        held_out_decoded(data, 0)
