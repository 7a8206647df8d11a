"""Photos that do not decode, or go bad while a search runs; shapes that photos do not have."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pgnas_cli.errors import PgnasError
from pgnas_cli.run import Run, read_settings, run_to_fit
from pgnas_cli.run.posterior import read_posterior
from pgnas_cli.training import fit_events

from ..conftest import object_of, refused, run, said

Folder = Callable[..., Path]
TINY = ["--backbone", "multibranch-tiny", "--img-size", "24", "-b", "8", "-j", "0"]


def break_(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def test_damaged_photos_are_named_before_anything_is_trained(photo_folder: Folder) -> None:
    folder = photo_folder()
    break_(folder / "train" / "red" / "05.jpg")
    break_(folder / "val" / "blue" / "01.jpg")
    fit = ["fit", "--data", str(folder), *TINY, "--epochs", "1", "--run", "r"]
    line = refused(*fit)
    assert "2 of 36 images do not decode (by class: red 1, blue 1)" in line
    assert "train/red/05.jpg" in line
    assert line.endswith("remove them or add --skip-corrupt")
    assert not Path("r").exists()
    status, _, err = said(*fit, "--skip-corrupt")
    assert status == 0
    assert (
        "note: 2 of 36 images do not decode and are left out (by class: red 1, blue 1):"
        " train/red/05.jpg, val/blue/01.jpg" in err
    )
    assert "images: 18 for training, 5 held out for ranking" in err
    assert "note: 5 held-out images cannot rank candidates" in err


@pytest.mark.parametrize("size", ["64", "24"], ids=["photos", "in memory"])
def test_a_fit_whose_photos_go_bad_is_saved_and_goes_on_without_them(
    photo_folder: Folder, size: str
) -> None:
    """With --skip-corrupt it is the same fit: sample and rank follow as ever."""
    folder = photo_folder(size=(24, 24) if size == "24" else (96, 80))
    fit = ["fit", "--data", str(folder), *TINY, "--epochs", "3", "--img-size", size]
    run_, keys = Run(Path("r")), ("red/00.jpg", "red/01.jpg", "blue/02.jpg", "blue/03.jpg")
    given = {"data": str(folder), "backbone": "multibranch-tiny", "img_size": int(size),
             "batch_size": 8, "epochs": 3}  # fmt: skip
    _, settings = run_to_fit(run_.folder, given, resume=False)
    events = fit_events(run_, settings, save_minutes=0)
    next(events), next(events)
    for key in keys:
        break_(folder / "train" / key)
    if size == "24":
        events.close()
    else:
        with pytest.raises(PgnasError, match="does not decode"):
            list(events)
    assert run_.checkpoint.exists()
    assert "4 of 36 images do not decode" in refused("fit", "--resume", "--run", "r")
    assert run("fit", "--resume", "--skip-corrupt", "--run", "r", "-q") == 0
    assert read_settings(run_).skip_corrupt
    assert len(run_.metrics.read_text().splitlines()) == 3
    for command in (["sample", "-n", "3"], ["rank"]):
        assert run(*command, "--run", "r", "-q") == 0
    _, posterior = read_posterior(run_.posterior)
    assert posterior.split.fit_images == 18
    assert refused(*fit, "--run", "r").startswith("error: 'r' holds a fitted posterior")


def test_a_photo_that_goes_bad_behind_the_fit_is_skipped_by_the_line_that_the_error_names(
    photo_folder: Folder,
) -> None:
    folder = photo_folder()
    assert run("fit", "--data", str(folder), *TINY, "--epochs", "1", "--run", "r", "-q") == 0
    assert run("sample", "-n", "3", "--run", "r", "-q") == 0
    for path in (folder / "train").rglob("*.jpg"):
        if path.name < "04.jpg":
            break_(path)
    before = Path("r/posterior.safetensors").read_bytes()
    assert refused("rank", "--run", "r").endswith("pgnas fit --resume --skip-corrupt")
    assert run("fit", "--resume", "--skip-corrupt", "--run", "r", "-q") == 0
    assert run("rank", "--run", "r", "-q") == 0
    assert Path("r/posterior.safetensors").read_bytes() == before


def test_a_search_goes_on_with_skip_corrupt_in_the_same_folder(photo_folder: Folder) -> None:
    folder = photo_folder(size=(24, 24))
    search = ["search", "--data", str(folder), *TINY, "--epochs", "1", "-n", "3", "--no-compare"]
    assert run(*search, "-q") == 0
    (made,) = Path("runs").iterdir()
    fitted = Run(made).posterior.read_bytes()
    assert "data:image/jpeg" in Run(made).report.read_text(encoding="utf-8")  # its mistakes
    for split in ("train", "val"):
        break_(folder / split / "red" / "02.jpg")
    assert "1 of 12 images do not decode (by class: red 1)" in refused(*search)
    found = object_of(*search, "--skip-corrupt", "--no-photos")["networks"]
    assert "data:image/jpeg" not in Run(made).report.read_text(encoding="utf-8")
    assert [row["images"] for row in found] == [11, 11]
    _, _, err = said("evaluate", str(made / "best.safetensors"), "--data", str(folder),
                     "--skip-corrupt", "-j", "0")  # fmt: skip
    assert "2 of 36 images do not decode" not in err  # the training images are not read
    assert "note: 1 of 12 images do not decode and are left out (by class: red 1)" in err
    assert [*Path("runs").iterdir()] == [made]
    assert Run(made).posterior.read_bytes() == fitted


NET = """
from torch import nn
from pgnas_cli.registry import Backbone, Recipe


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.stem, self.body = nn.Conv2d(SHAPE[0], 8, 3, 2), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.body(self.stem(x).relu()).relu().mean((2, 3)))


def build(*, classes, channels=3, size=None):
    return Backbone(Net(classes), SHAPE, Recipe(epochs=1, batch_size=8), heads=("head",))
"""


@pytest.fixture
def module_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[tuple[int, int, int]], str]:
    """Write a network that wants images of a shape into a module; its `--backbone`."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(shape: tuple[int, int, int]) -> str:
        name = "net_" + "_".join(map(str, shape))
        (tmp_path / f"{name}.py").write_text(f"SHAPE = {shape}\n{NET}")
        return f"{name}:build"

    return write


@pytest.mark.parametrize("size", [(96, 80), (24, 24)], ids=["photos", "in memory"])
def test_a_network_of_one_channel_reads_photos_as_grey(
    photo_folder: Folder, module_of: Callable[..., str], size: tuple[int, int]
) -> None:
    folder = photo_folder(size=size)
    fit = ["fit", "--data", str(folder), "--backbone", module_of((1, 24, 24)), "-j", "0"]
    for step in (fit, ["sample", "-n", "3"], ["rank"], ["export", "a.safetensors"]):
        assert run(*step, "--run", "r", "-q") == 0
    assert object_of("evaluate", "a.safetensors", "--data", str(folder), "-j", "0")["images"] == 12
    _, posterior = read_posterior(Path("r/posterior.safetensors"))
    assert posterior.supernet.preprocessing.input_shape == (1, 24, 24)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 24, 24), "takes images of 4 channels, here are 3 channels; let it"),
        ((2, 8, 8), "takes images of 2 channels, here are 3 channels; let it"),
        ((3, 24, 48), "takes images of 3x24x48; possible: (channels, size, size), square images"),
    ],
)  # fmt: skip
def test_a_shape_that_images_do_not_have_is_refused_before_the_run(
    photo_folder: Folder,
    module_of: Callable[..., str],
    shape: tuple[int, int, int],
    message: str,
) -> None:
    fit = ["fit", "--data", str(photo_folder()), "--backbone", module_of(shape), "--run", "r"]
    assert message in refused(*fit)
    assert not Path("r").exists()


def test_an_image_size_that_the_network_does_not_take_is_refused(
    photo_folder: Folder, module_of: Callable[..., str]
) -> None:
    fit = ["fit", "--data", str(photo_folder()), "--backbone", module_of((3, 24, 24))]
    line = refused(*fit, "--img-size", "32", "--run", "r")
    assert line.endswith("takes images of 24x24 pixels only; leave out --img-size")
    assert not Path("r").exists()


def test_digits_are_not_given_to_a_network_of_colours(module_of: Callable[..., str]) -> None:
    line = refused("fit", "--backbone", module_of((3, 8, 8)), "--run", "r")
    assert "takes images of 3 channels, here are 1 channel; let it" in line
    assert not Path("r").exists()
