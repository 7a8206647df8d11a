"""The three-way cut, reading photos right, and randomness that no worker can change."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pgnas_cli.data import (
    Part,
    digest,
    evaluation_images,
    load_data,
    steps_per_epoch,
    training_batches,
)
from pgnas_cli.data.batches import augmented, order
from pgnas_cli.errors import PgnasError
from pgnas_cli.seeds import derived_seed, generator, seeded_globals

Folder = Callable[..., Path]


def test_the_three_parts_of_digits_are_disjoint_and_complete() -> None:
    data = load_data("digits", seed=0)
    assert data.test is not None
    keys = [*data.fit.keys, *data.held_out.keys, *data.test.keys]
    assert len(keys) == len(set(keys)) == 1797
    assert abs(len(data.held_out) / (len(data.fit) + len(data.held_out)) - 0.2) < 0.01


def test_the_cut_is_stratified() -> None:
    data = load_data("digits", seed=0)
    whole = torch.bincount(torch.cat([data.fit.labels, data.held_out.labels]))
    held = torch.bincount(data.held_out.labels)
    assert (held == (0.2 * whole).round()).all()


def test_no_more_is_held_out_than_ranking_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of ImageNet would not fit into memory."""
    monkeypatch.setattr("pgnas_cli.data.dataset.HELD_OUT_MOST", 100)
    data = load_data("digits", seed=0)
    assert abs(len(data.held_out) - 100) <= len(data.classes) / 2
    assert len(data.fit) + len(data.held_out) == 1438


def test_the_seed_changes_what_is_held_out_but_never_the_test_split() -> None:
    a, b = (load_data("digits", seed=s) for s in (0, 1))
    assert a.test is not None
    assert b.test is not None
    assert a.test.keys == b.test.keys
    assert a.held_out.keys != b.held_out.keys
    assert load_data("digits", seed=0).held_out.keys == a.held_out.keys


def test_a_new_photo_moves_no_other_photo_across_the_cut(photo_folder: Folder) -> None:
    folder = photo_folder(train=20)
    before = set(load_data(str(folder), seed=0, size=32).held_out.keys)
    Image.new("RGB", (96, 80)).save(folder / "train" / "red" / "new.jpg")
    after = set(load_data(str(folder), seed=0, size=32).held_out.keys)
    assert len(before ^ after) <= 1


def test_digest_sees_names_and_classes_but_not_order() -> None:
    part = Part(torch.tensor([0, 1, 1]), ("a", "b", "c"))
    assert digest(part) == digest(part.subset([2, 0, 1]))
    assert digest(part) != digest(Part(torch.tensor([0, 0, 1]), ("a", "b", "c")))
    assert digest(part) != digest(part.subset([0, 1]))


@pytest.mark.parametrize("split", ["val", "validation", "valid", "test"])
def test_the_test_folder_may_have_any_of_its_usual_names(photo_folder: Folder, split: str) -> None:
    data = load_data(str(photo_folder(split=split)), seed=0, size=32)
    assert data.test is not None
    assert len(data.test) == 12
    assert data.classes == ("blue", "green", "red")


def test_greyscale_palette_and_transparent_images_are_read_as_rgb(photo_folder: Folder) -> None:
    folder = photo_folder(train=4)
    extra = folder / "train" / "red"
    Image.new("LA", (96, 80), (200, 255)).save(extra / "la.png")
    Image.new("P", (96, 80)).save(extra / "p.png")
    Image.new("RGBA", (96, 80), (210, 30, 40, 128)).save(extra / "rgba.png")
    Image.new("CMYK", (96, 80)).save(extra / "cmyk.jpg")
    data = load_data(str(folder), seed=0, size=32)
    batches = list(training_batches(data, batch=4, seed=0, first_step=0, steps=3, workers=0))
    assert all(images.shape == (4, 3, 32, 32) for images, _ in batches)
    assert data.test is not None
    grey = data.test.keys.index("red/01.jpg")
    pixels = torch.cat(list(evaluation_images(data.test, data.preprocessing)))[grey].int()
    assert (pixels[0] - pixels[1]).abs().max() == 0
    luma = 0.299 * 217 + 0.587 * 37 + 0.114 * 47
    assert (pixels.float().mean() - luma).abs() < 3


def test_sixteen_bit_grey_is_scaled_not_clipped(photo_folder: Folder) -> None:
    folder = photo_folder()
    ramp = np.linspace(0, 65535, 96 * 80).reshape(80, 96).astype(np.uint16)
    Image.fromarray(ramp).save(folder / "val" / "red" / "16.png")
    data = load_data(str(folder), seed=0, size=32)
    assert data.test is not None
    pixels = torch.cat(list(evaluation_images(data.test, data.preprocessing)))
    found = pixels[data.test.keys.index("red/16.png")].float()
    assert abs(float(found.mean()) - 127.5) < 3
    assert found.std() > 30


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


def test_normalised_training_images_have_zero_mean_and_unit_deviation() -> None:
    data = load_data("digits", seed=0)
    assert data.fit.pixels is not None
    scaled = data.preprocessing.normalised(data.fit.pixels)
    assert abs(float(scaled.mean())) < 1e-3
    assert abs(float(scaled.std()) - 1) < 1e-3


def test_small_images_of_one_size_live_in_memory(photo_folder: Folder) -> None:
    data = load_data(str(photo_folder(size=(32, 32))), seed=0)
    assert data.fit.pixels is not None
    assert data.preprocessing.input_shape == (3, 32, 32)
    assert data.held_out.pixels is not None


def test_seeded_globals_restores_what_was_there() -> None:
    import random

    torch.manual_seed(3)
    random.seed(3)
    expected = torch.rand(2), random.random()
    torch.manual_seed(3)
    random.seed(3)
    with seeded_globals(11):
        torch.rand(5)
        random.random()
    assert torch.equal(torch.rand(2), expected[0])
    assert random.random() == expected[1]


def test_seeds_differ_by_purpose_and_by_each_coordinate() -> None:
    seeds = {
        derived_seed(s, purpose, *c)
        for s in (0, 1)
        for purpose in ("order", "gates")
        for c in ((), (0,), (1,), (0, 1), (1, 0), (11,), (1, 1))
    }
    assert len(seeds) == 28
    a, b = (torch.rand(3, generator=generator(0, "order", 5)) for _ in range(2))
    assert torch.equal(a, b)


# --- what a user can do wrong ------------------------------------------------------------------


def test_refusals_say_what_was_found_and_what_is_possible(photo_folder: Folder) -> None:
    folder = photo_folder()

    def refused(name: str, **options: object) -> str:
        with pytest.raises(PgnasError) as caught:
            load_data(name, seed=0, **options)
        return str(caught.value)

    assert "no data set 'nowhere'; possible: digits, a folder" in refused("nowhere")
    assert "held-out share 1.5 is not between 0 and 1" in refused("digits", held_out=1.5)
    assert f"no folder '{folder}/val/train'" in refused(str(folder / "val"))
    empty = folder / "train" / "empty"
    empty.mkdir()
    assert f"no images in '{empty}'; read are .jpg" in refused(str(folder))
    Image.new("RGB", (80, 80)).save(empty / "a.png")
    assert "has other classes than" in refused(str(folder))
    assert "missing empty; extra none" in refused(str(folder))


def test_one_class_and_one_image_are_too_few(tmp_path: Path) -> None:
    place = tmp_path / "train" / "only"
    place.mkdir(parents=True)
    Image.new("RGB", (80, 80)).save(place / "a.png")
    with pytest.raises(PgnasError, match="has one class"):
        load_data(str(tmp_path), seed=0)
    other = tmp_path / "train" / "other"
    other.mkdir()
    Image.new("RGB", (80, 80)).save(other / "a.png")
    with pytest.raises(PgnasError, match="at least 2 are needed, one to fit on and one to rank on"):
        load_data(str(tmp_path), seed=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_photo_is_named_and_can_be_skipped(photo_folder: Folder, workers: int) -> None:
    folder = photo_folder()
    broken = folder / "train" / "green" / "05.jpg"
    good = broken.read_bytes()
    data = load_data(str(folder), seed=0, size=32)
    broken.write_bytes(good[:400])
    for part in (data.fit, data.held_out):
        if "green/05.jpg" in part.keys:
            with pytest.raises(PgnasError, match=r"05\.jpg' does not decode .*--skip-corrupt"):
                list(evaluation_images(part, data.preprocessing, workers=workers))
    rest = load_data(str(folder), seed=0, size=32, skip_corrupt=True)
    assert len(rest.fit) + len(rest.held_out) == 23


def test_timm_named_data_sets_are_read_through_timm(tmp_path: Path) -> None:
    """torch/mnist from files in its own format, so that nothing is downloaded."""
    raw = tmp_path / "mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    g = np.random.default_rng(0)
    for prefix, count in (("train", 60), ("t10k", 20)):
        pixels = g.integers(0, 255, (count, 28, 28), dtype=np.uint8)
        header = np.array([0x803, count, 28, 28], dtype=">i4").tobytes()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = np.array([0x801, count], dtype=">i4").tobytes()
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    data = load_data("torch/mnist", seed=0, root=tmp_path / "mnist")
    assert data.test is not None
    assert (len(data.fit), len(data.held_out), len(data.test)) == (50, 10, 20)
    assert data.fit.pixels is not None
    assert len(data.classes) == 10


def test_an_unknown_timm_name_is_one_error_line(tmp_path: Path) -> None:
    with pytest.raises(PgnasError, match="timm cannot open data set 'torch/nothing'"):
        load_data("torch/nothing", seed=0, root=tmp_path)
