"""Small networks and data of a second or two; every random number has a seed."""

import os
from collections.abc import Callable
from pathlib import Path

# One thread: these networks gain nothing from two, and lose minutes on a machine that is busy.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pgnas_cli.cli import main
from pgnas_cli.gates import draw, gates
from pgnas_cli.registry.build import create_supernet

from .randomised import randomised

torch.set_num_threads(1)


def tiny(size: int = 8, channels: int = 1, **options: object) -> nn.Module:
    """multibranch-tiny with randomised batch-norm, evaluation mode."""
    network = create_supernet("multibranch-tiny", 10, input_shape=(channels, size, size), **options)
    return randomised(network)


def random_keep(network: nn.Module, drop: float, seed: int = 0) -> Tensor:
    """One candidate at a single drop probability, bool (gates,)."""
    probability = torch.full((len(gates(network).groups),), drop)
    return draw(
        network, generator=torch.Generator().manual_seed(seed), drop_probability=probability
    )


@pytest.fixture
def photo_folder(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder of photos: three classes told apart by colour, some of them greyscale."""

    def make(
        train: int = 8, test: int = 4, size: tuple[int, int] = (96, 80), split: str = "val"
    ) -> Path:
        folder = tmp_path / "photos"
        colours = {"blue": (30, 40, 200), "green": (40, 190, 30), "red": (210, 30, 40)}
        for part, count in (("train", train), (split, test)):
            for name, colour in colours.items():
                place = folder / part / name
                place.mkdir(parents=True)
                for index in range(count):
                    shade = tuple(min(255, c + 7 * index) for c in colour)
                    image = Image.new("RGB", size, shade)
                    mode = "L" if index == 1 else "RGB"
                    image.convert(mode).save(place / f"{index:02d}.jpg", quality=90)
        return folder

    return make


def run(*arguments: str) -> int:
    """Exit status of the command line."""
    try:
        main(list(arguments))
    except SystemExit as end:
        return int(end.code or 0)
    return 0
