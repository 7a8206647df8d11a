"""The three-way cut, and how bytes become numbers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from pgnas_cli.data import Part, Preprocessing, digest, load_data
from pgnas_cli.errors import PgnasError


def test_the_parts_of_digits_are_disjoint_complete_and_stratified() -> None:
    data = load_data("digits", seed=0)
    keys = [*data.fit.keys, *data.held_out.keys, *data.test.keys]
    assert len(keys) == len(set(keys)) == 1797
    whole = torch.bincount(torch.cat([data.fit.labels, data.held_out.labels]))
    assert (torch.bincount(data.held_out.labels) == (0.2 * whole).round()).all()


def test_no_more_is_held_out_than_ranking_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of ImageNet would not fit into memory."""
    monkeypatch.setattr("pgnas_cli.data.dataset.HELD_OUT_MOST", 100)
    data = load_data("digits", seed=0)
    assert abs(len(data.held_out) - 100) <= len(data.classes) / 2
    assert len(data.fit) + len(data.held_out) == 1438
    assert data.remarks == (
        f"{len(data.held_out)} images are held out, not 0.2 of them: more than 100 only by number,"
        " as `held_out` 288",
    )


def test_so_many_images_are_held_out_as_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many; of each class its part, which is rounded."""
    monkeypatch.setattr("pgnas_cli.data.dataset.HELD_OUT_MOST", 100)
    for number in (20, 300, 700):
        data = load_data("digits", seed=0, held_out=number)
        assert abs(len(data.held_out) - number) <= len(data.classes) / 2
        assert data.remarks == ()
    few = load_data("digits", seed=0, held_out=14)
    assert few.remarks == (
        f"{len(few.held_out)} images are held out, not 14: as large a share of each class",
    )
    same = load_data("digits", seed=0, held_out=100 / 1438)
    assert load_data("digits", seed=0, held_out=100).held_out.keys == same.held_out.keys
    for wrong in (0, 1, 1438, 20.5):
        with pytest.raises(PgnasError, match="a number of images from 2 to 1437"):
            load_data("digits", seed=0, held_out=wrong)


def test_the_seed_changes_what_is_held_out_but_never_the_test_split() -> None:
    a, again, b = (load_data("digits", seed=seed) for seed in (0, 0, 1))
    assert a.test.keys == b.test.keys
    assert a.held_out.keys == again.held_out.keys != b.held_out.keys


def test_a_new_photo_moves_no_other_photo_across_the_cut(
    photo_folder: Callable[..., Path],
) -> None:
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


def test_normalised_training_images_have_zero_mean_and_unit_deviation() -> None:
    data = load_data("digits", seed=0)
    scaled = data.preprocessing.normalised(data.fit.pixels)
    assert abs(float(scaled.mean())) < 1e-3
    assert abs(float(scaled.std()) - 1) < 1e-3


def test_small_images_of_one_size_live_in_memory(photo_folder: Callable[..., Path]) -> None:
    data = load_data(str(photo_folder(size=(32, 32))), seed=0)
    assert data.preprocessing.input_shape == (3, 32, 32)
    assert data.fit.pixels is not None
    assert data.held_out.pixels is not None


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_normalised_to_the_same_bits_as_by_the_formula(channels: int) -> None:
    about = Preprocessing(channels, 9, (0.485, 0.456, 0.406)[:channels], (0.2, 0.3, 0.1)[:channels])
    generator = torch.Generator().manual_seed(0)
    shape = (5, channels, 9, 9)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) * 255 for v in (about.mean, about.std))
    for images in (pixels, pixels.contiguous(memory_format=torch.channels_last)):
        found = about.normalised(images)
        assert torch.equal(found, (images.float() - mean) / std)
        assert found.is_contiguous(memory_format=torch.channels_last)
