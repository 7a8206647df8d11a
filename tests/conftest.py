"""What tests of all rooms share: a fitted run, photos, the command line in this process."""

import functools
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

# One thread: these networks gain nothing from two, and lose minutes on a machine that is busy.
os.environ["OMP_NUM_THREADS"] = "1"
# Pretrained weights are neither downloaded nor those of the user.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_CACHE"] = os.environ["TORCH_HOME"] = "/nowhere"

import pytest
import torch
from PIL import Image

from pgnas_cli import latency
from pgnas_cli.cli import main
from pgnas_cli.run import Run

torch.set_num_threads(1)

FITTED = (
    ["fit", "--epochs", "3", "--target-params", "60%"], ["sample", "-n", "60"],
    ["rank", "--top", "5"],
)  # fmt: skip
SEARCH = ["search", "--epochs", "2", "-n", "40"]


def run(*arguments: str) -> int:
    """Exit status of the command line."""
    try:
        main(list(arguments))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def said(*arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command line."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        status = run(*arguments)
    return status, out.getvalue(), err.getvalue()


def object_of(*arguments: str) -> dict[str, Any]:
    """The one object that a command prints with --json."""
    status, out, err = said(*arguments, "--json")
    assert status == 0, err
    assert out.count("\n") == 1
    value = json.loads(out)
    assert isinstance(value, dict)
    return value


def refused(*arguments: str) -> str:
    """The error line of a command that ends with status 1."""
    status, _, err = said(*arguments)
    assert status == 1, err
    return err.strip().splitlines()[-1]


@pytest.fixture(scope="session", autouse=True)
def _brief_timings() -> Iterator[None]:
    """Exported networks are timed in a twentieth of a second, not in whole ones."""
    with pytest.MonkeyPatch.context() as patch:
        brief = functools.partial(latency.forward_times, seconds=0.05)
        patch.setattr(latency, "forward_times", brief)
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered of checked images is not that of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def fitted_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits: a fit of three epochs, 60 candidates, the first 5 ranked, the best exported.

    Made once per session; tests that write take a copy (`fitted`).
    """
    folder = tmp_path_factory.mktemp("fitted") / "run"
    best = str(folder / "best.safetensors")
    for given in (*FITTED, ["export", best]):
        assert run(*given, "--run", str(folder), "-q") == 0
    return folder


@pytest.fixture
def fitted(fitted_once: Path, tmp_path: Path) -> Run:
    """A copy of the fitted run."""
    shutil.copytree(fitted_once, tmp_path / "run")
    return Run(tmp_path / "run")


@pytest.fixture(scope="session")
def searched_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search on digits, the original network beside; made once per session."""
    folder = tmp_path_factory.mktemp("once") / "search"
    assert run(*SEARCH, "-q", "--run", str(folder)) == 0
    return folder


@pytest.fixture
def searched(searched_once: Path, tmp_path: Path) -> Run:
    """A copy of the finished search."""
    return Run(Path(shutil.copytree(searched_once, tmp_path / "search")))


@pytest.fixture
def photo_folder(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder of photos: three classes told apart by colour, some of them greyscale.

    No two of them have the same bytes.
    """

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
                    lighter = 7 * index + (3 if part == "train" else 0)
                    shade = tuple(min(255, c + lighter) for c in colour)
                    image = Image.new("RGB", size, shade)
                    mode = "L" if index == 1 else "RGB"
                    image.convert(mode).save(place / f"{index:02d}.jpg", quality=90)
        return folder

    return make
