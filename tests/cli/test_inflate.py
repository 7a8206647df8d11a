"""inflate: the line that it prints is fitted as it stands, and the winner exported.

bench/inflations.py does the same for ten more networks.
"""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import object_of, refused, said


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/mobilenetv3_small_050", "densenet121"])
def test_the_printed_line_fits_the_inflated_network(
    name: str, photo_folder: Callable[..., Path]
) -> None:
    photo_folder(train=6, size=(40, 40)).rename("DIR")  # as the line says
    _, _, err = said("inflate", name, "-o", "a b.safetensors", "--img-size", "32")
    line = err.splitlines()[-1].removeprefix("next: ")
    command, *given = shlex.split(line)
    assert (command, given[0]) == ("pgnas", "fit")
    quick = ["--epochs", "1", "--batch-size", "8", "--img-size", "32", "-j", "0", "--run", "r"]
    fitted = object_of(*given, *quick)
    assert fitted["gates"] > 0
    assert said("sample", "-n", "3", "--run", "r")[0] == 0
    best = object_of("export", "best.safetensors", "-j", "0", "--run", "r")
    assert 0 < best["params"] <= fitted["params"]


def test_a_fit_keeps_the_original_only_of_what_it_inflates(
    photo_folder: Callable[..., Path],
) -> None:
    given = ["--backbone", "timm/test_resnet", "--data", str(photo_folder()), "--run", "r"]
    expected = "error: --keep-original is for networks that a fit inflates, not for"
    assert expected in refused("fit", *given, "--keep-original")
