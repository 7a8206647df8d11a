"""What a fit starts from that names no network: on photos timm's weights, where they can be had."""

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pgnas_backbones.from_timm as from_timm
import pytest
import timm
import torch
from safetensors.torch import save_file

from pgnas_cli.cli.search import _folder
from pgnas_cli.errors import PgnasError
from pgnas_cli.registry import PHOTOS, SMALL_IMAGES, Start
from pgnas_cli.registry.lookup import load_backbone
from pgnas_cli.run import Run, settings_of, with_network, with_weights, write_settings

from ..conftest import refused, said

QUICK = ["--img-size", "64", "--epochs", "1", "-b", "8", "-j", "0"]


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """timm's cache with weights of our own for the network of photos; returns them."""
    torch.manual_seed(3)
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    place = tmp_path / "hub" / "models--timm--tf_efficientnet_lite0.in1k"
    (place / "snapshots" / "0123").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0123")
    save_file(state, place / "snapshots" / "0123" / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return state


@pytest.mark.parametrize(
    ("more", "backbone"),
    [
        ({}, PHOTOS),
        ({"img_size": 64}, PHOTOS),
        ({"img_size": 32}, SMALL_IMAGES),
        ({"data": "digits"}, SMALL_IMAGES),
        ({"backbone": "test_resnet"}, "timm/test_resnet"),
    ],
)
def test_photos_get_a_network_of_timm_unless_they_are_made_small_or_one_is_named(
    more: dict[str, object], backbone: str, photo_folder: Callable[..., Path]
) -> None:
    given = {"data": photo_folder(), **more}
    assert with_network(settings_of(given), given).backbone == backbone


def test_photos_that_are_small_and_square_get_the_network_of_small_images(
    photo_folder: Callable[..., Path],
) -> None:
    given = {"data": photo_folder(size=(48, 48))}
    assert with_network(settings_of(given), given).backbone == SMALL_IMAGES


def test_the_weights_are_those_in_timms_cache(
    cached: dict[str, torch.Tensor], photo_folder: Callable[..., Path]
) -> None:
    status, _, err = said("fit", "--data", str(photo_folder()), *QUICK, "--run", "r")
    assert status == 0, err
    assert "recipe: for pretrained weights" in err
    assert "warning: timm" not in err
    stored = json.loads(Path("r/run.json").read_text())
    assert (stored["backbone"], stored["pretrained"]) == (PHOTOS, True)
    found = load_backbone(PHOTOS, classes=3, start=Start(pretrained=True)).network.state_dict()
    assert torch.equal(found["conv_stem.weight"], cached["conv_stem.weight"])
    assert found["classifier.weight"].shape == (3, 1280)


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("named", ["pretrained", "weights", "backbone"])
def test_a_start_that_is_named_is_kept(named: str) -> None:
    values = {"pretrained": False, "weights": "w.safetensors", "backbone": PHOTOS}
    settings = settings_of({"backbone": PHOTOS, "data": "digits"})
    assert with_weights(settings, ["data"]).pretrained
    assert not with_weights(settings_of({named: values[named]}), [named]).pretrained


def test_without_weights_a_fit_says_so_and_starts_at_random(
    photo_folder: Callable[..., Path],
) -> None:
    photos = ["--data", str(photo_folder()), *QUICK]
    assert "cannot fetch the pretrained weights" in refused("fit", *photos, "--pretrained")
    assert not Path("runs").exists()
    status, _, err = said("fit", *photos)
    assert status == 0
    told = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert "cannot fetch the pretrained weights of 'tf_efficientnet_lite0'" in told[0]
    assert f"{PHOTOS} starts from random weights" in told[1]
    assert "--weights FILE.safetensors" in told[1]
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("timm-tf_efficientnet_lite0-")
    assert not json.loads((folder / "run.json").read_text())["pretrained"]
    assert "recipe: for random weights" in err


@pytest.mark.usefixtures("cached")
def test_auto_takes_what_the_cache_holds_of_any_network_and_warns_of_the_rest() -> None:
    def started(backbone: str, **more: object) -> object:
        given = {"backbone": backbone, "pretrained": "auto", "data": "digits", **more}
        return with_weights(settings_of(given), given).pretrained

    assert started(PHOTOS) is True
    assert started("timm/resnet18") is False
    assert started(SMALL_IMAGES) is False
    assert started(PHOTOS, weights="w.safetensors") is False


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("words", [["--pretrained", "auto"], ["--pretrained=auto"]])
def test_auto_can_be_typed_and_a_fit_that_goes_on_keeps_what_it_found(
    words: list[str], photo_folder: Callable[..., Path]
) -> None:
    line = ["fit", "--data", str(photo_folder()), *QUICK, "--run", "r", *words]
    assert said(*line)[0] == 0
    assert json.loads(Path("r/run.json").read_text())["pretrained"] is True
    status, _, err = said(*line, "--resume")
    assert status == 0, err
    assert "fitted already" in err


@pytest.mark.usefixtures("cached")
def test_a_file_of_the_cache_that_was_cut_off_is_named(tmp_path: Path) -> None:
    (file,) = (tmp_path / "hub").rglob("model.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(PgnasError) as raised:
        load_backbone(PHOTOS, classes=3, start=Start(pretrained=True))
    assert str(raised.value).endswith(f"remove '{file}', to download it again")


def test_weights_of_the_cache_that_are_not_finite_are_not_taken(
    cached: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cached["conv_stem.weight"][0] = torch.nan
    (file,) = (tmp_path / "hub").rglob("model.safetensors")
    save_file(cached, file)
    with pytest.raises(PgnasError, match="are not finite; remove them from the cache"):
        load_backbone(PHOTOS, classes=3, start=Start(pretrained=True))
    assert not with_weights(settings_of({"backbone": PHOTOS, "data": "digits"}), []).pretrained


def test_the_folder_of_a_search_is_the_same_with_auto() -> None:
    folders = {
        _folder(settings_of({"data": "digits", **more}), "params", "60%", 3)
        for more in ({}, {"pretrained": "auto"})
    }
    assert len(folders) == 1


def test_a_search_that_goes_on_keeps_the_start_that_it_began_with(tmp_path: Path) -> None:
    """Whatever can be had by then."""
    settings = settings_of({"backbone": PHOTOS, "pretrained": True})
    write_settings(Run(tmp_path), settings)
    again = settings_of({"backbone": PHOTOS})
    assert with_weights(again, [], Run(tmp_path)).pretrained
    assert not with_weights(again, []).pretrained


def test_a_hub_that_takes_no_connection_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client would try again for a minute."""
    monkeypatch.setattr(from_timm, "getproxies", dict)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert from_timm._answers(address)
    assert not from_timm._answers(address)
    asked = []

    def create(*_: object, **__: object) -> None:
        asked.append(from_timm.constants.HF_HUB_OFFLINE)
        raise OSError("no file")

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr(from_timm.constants, "HF_HUB_OFFLINE", False)
    for reachable, offline in ((False, [True]), (True, [True, False])):
        asked.clear()
        monkeypatch.setattr(from_timm, "_answers", lambda _, there=reachable: there)
        with pytest.raises(PgnasError, match="cannot fetch"):
            load_backbone("timm/resnet18", classes=3, start=Start(pretrained=True))
        assert asked == offline
        assert from_timm.constants.HF_HUB_OFFLINE is False
