"""Batches of images: what evaluation sees, and augmentation that no worker can change."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pgnas_cli.data import evaluation_images, load_data, steps_per_epoch, training_batches
from pgnas_cli.data.batches import augmented, cut_out, order

Folder = Callable[..., Path]


def test_evaluation_images_equal_resize_and_centre_crop_by_hand(photo_folder: Folder) -> None:
    folder = photo_folder()
    g = np.random.default_rng(0)
    noisy = Image.fromarray(g.integers(0, 255, (80, 96, 3), dtype=np.uint8))
    noisy.save(folder / "val" / "red" / "00.png")
    data = load_data(str(folder), seed=0, size=56)
    assert data.test is not None
    found = torch.cat(list(evaluation_images(data.test, data.preprocessing)))
    place = data.test.keys.index("red/00.png")
    scaled = noisy.resize((round(64 * 96 / 80 - 0.5), 64), Image.Resampling.BILINEAR)
    left, top = round((scaled.width - 56) / 2), 4
    by_hand = np.asarray(scaled)[top : top + 56, left : left + 56].transpose(2, 0, 1)
    assert np.abs(found[place].numpy().astype(int) - by_hand).max() <= 1


def test_workers_change_nothing(photo_folder: Folder) -> None:
    data = load_data(str(photo_folder()), seed=0, size=32)
    runs = [
        list(training_batches(data, batch=4, seed=7, first_step=0, steps=6, workers=workers))
        for workers in (0, 2)
    ]
    for (a, la), (b, lb) in zip(*runs, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(la, lb)


@pytest.mark.parametrize("name", ["digits", "folder"])
def test_going_on_from_a_step_gives_the_same_batches(photo_folder: Folder, name: str) -> None:
    source = name if name == "digits" else str(photo_folder())
    data = load_data(source, seed=0, size=None if name == "digits" else 32)
    batch = 100 if name == "digits" else 4
    per_epoch = steps_per_epoch(len(data.fit), batch)
    steps = 2 * per_epoch + 1
    whole = list(training_batches(data, batch=batch, seed=1, first_step=0, steps=steps, workers=0))
    assert len(whole) == steps
    rest = list(
        training_batches(
            data, batch=batch, seed=1, first_step=per_epoch + 1, steps=steps, workers=0
        )
    )
    for (a, _), (b, _) in zip(whole[per_epoch + 1 :], rest, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(whole[0][0], whole[per_epoch][0])


@pytest.mark.parametrize("name", ["digits", "folder"])
def test_augmentation_differs_by_epoch_and_by_image(photo_folder: Folder, name: str) -> None:
    """The same picture under two names, and the same name in two epochs, is cropped otherwise."""
    if name == "digits":
        data = load_data("digits", seed=0)
        assert data.fit.pixels is not None
        data.fit.pixels[:] = data.fit.pixels[:1]
    else:
        folder = photo_folder()
        noise = np.random.default_rng(0).integers(0, 255, (80, 96, 3), dtype=np.uint8)
        for path in (folder / "train").rglob("*.jpg"):
            Image.fromarray(noise).save(path)
        data = load_data(str(folder), seed=0, size=32)
    batch = len(data.fit)
    epochs = list(training_batches(data, batch=batch, seed=0, first_step=0, steps=2, workers=0))
    unlike = [len(images.flatten(1).unique(dim=0)) for images, _ in epochs]
    assert min(unlike) > 5
    assert not torch.equal(
        *(images.flatten(1).double().sum(1).sort().values for images, _ in epochs)
    )


def test_an_epoch_visits_each_image_at_most_once() -> None:
    batches = order(103, 10, 0, 3)
    seen = torch.cat(batches)
    assert len(batches) == 10
    assert len(seen.unique()) == len(seen) == 100
    assert [len(b) for b in order(7, 10, 0, 0)] == [7]


def test_augmentation_is_a_crop_of_the_padded_image_mirrored_or_not() -> None:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(1, 255, (50, 3, 8, 8), generator=g, dtype=torch.uint8)
    draws = torch.rand(50, 3, generator=g)
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
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (50, 3, 8, 8), generator=g, dtype=torch.uint8)
    centres = torch.rand(50, 2, generator=g)
    found = cut_out(images, centres, 4, (0.2, 0.4, 0.6))
    for image, (down, right), out in zip(images, centres.tolist(), found, strict=True):
        expected = image.clone()
        top, left = int(8 * down) - 2, int(8 * right) - 2
        for channel, level in enumerate((51, 102, 153)):
            expected[channel, max(0, top) : top + 4, max(0, left) : left + 4] = level
        assert torch.equal(out, expected)
