"""Options of a fit: what takes precedence, what contradicts, what a resumed fit keeps."""

from pathlib import Path

import pytest

from pgnas_cli.errors import PgnasError
from pgnas_cli.registry import Recipe
from pgnas_cli.registry.build import build_backbone
from pgnas_cli.run import FitSettings, Run, check_recipe, read_settings, run_to_fit, settings_of

from ..conftest import run as command


@pytest.mark.parametrize(
    ("given", "l2", "decay"),
    [({}, 50, 5e-4), ({"l2": None}, None, 5e-4), ({"weight_decay": 1e-3}, None, 1e-3),
     ({"l2": 7.0, "weight_decay": 1e-3}, 7.0, 1e-3)],
)  # fmt: skip
def test_options_take_precedence_over_a_preset(
    given: dict[str, object], l2: float | None, decay: float
) -> None:
    backbone = build_backbone("multibranch-m", classes=10)
    recipe = FitSettings(preset="published", recipe=given).recipe_of(backbone)
    assert (recipe.l2, recipe.weight_decay, recipe.epochs) == (l2, decay, 1800)


def test_another_schedule_drops_the_milestones_of_a_preset() -> None:
    backbone = build_backbone("densenet121", classes=10)
    assert FitSettings(preset="published").recipe_of(backbone).decay_milestones != ()
    cosine = FitSettings(preset="published", recipe={"sched": "cosine"}).recipe_of(backbone)
    assert cosine.decay_milestones == ()
    with pytest.raises(PgnasError, match="no preset 'mine'; possible: paper, published"):
        FitSettings(preset="mine").recipe_of(backbone)


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        (Recipe(epochs=0), FitSettings(), "`epochs` 0 is out of range"),
        (Recipe(), FitSettings(fixed_drop=1.0), "`fixed_drop` 1 is out of range"),
        (Recipe(opt="nothing"), FitSettings(), "`opt` 'nothing' is not known"),
        (Recipe(opt="adahessian"), FitSettings(), "`opt` 'adahessian' is not known"),
        (Recipe(lr=0.1, min_lr=0.2), FitSettings(), "`min_lr` 0.2 is above `lr` 0.1"),
        (Recipe(sched="multistep"), FitSettings(), "`sched` multistep and `decay_milestones` go"),
        (Recipe(decay_milestones=(5,)), FitSettings(), "multistep and `decay_milestones` go tog"),
        (Recipe(sched="multistep", decay_milestones=(9, 5)), FitSettings(), "in ascending order"),
        (Recipe(freeze=0.2), FitSettings(target_macs="50%"), "`freeze` 0.2 comes before the size"),
    ],
)
def test_options_that_contradict_each_other_are_named(
    recipe: Recipe, settings: FitSettings, message: str
) -> None:
    with pytest.raises(PgnasError, match=message):
        check_recipe(recipe, settings)


def test_options_are_those_of_the_settings_and_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    found = settings_of({"data": "photos", "weights": "w.safetensors", "epochs": 3})
    assert found.data == str(tmp_path / "photos")  # a run is read again from other folders
    assert found.weights == str(tmp_path / "w.safetensors")
    assert found.recipe == {"epochs": 3}
    with pytest.raises(PgnasError, match="no option `epoch` of a fit"):
        settings_of({"epoch": 3})


def test_a_resumed_fit_keeps_its_options(fitted: Run) -> None:
    assert read_settings(fitted) == FitSettings(target_params="60%", recipe={"epochs": 3})
    for given in ({}, {"epochs": 3}, {"target_params": "60%"}):
        assert run_to_fit(fitted.folder, given, resume=True)[1] == read_settings(fitted)
    for given, message in (
        ({"epochs": 4}, "was started with epochs 3, not 4; leave the option out"),
        ({"target_params": "50%"}, "was started with target_params 60%, not 50%"),
    ):
        with pytest.raises(PgnasError, match=message):
            run_to_fit(fitted.folder, given, resume=True)
        assert run_to_fit(fitted.folder, given, resume=False)[1] == settings_of(given)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"recipe": {"epochs": "3"}}', '{"recipe": 1}'])
def test_damaged_settings_are_one_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(PgnasError, match="no run in"):
        read_settings(Run(tmp_path))
    Run(tmp_path).settings.write_text(text)
    with pytest.raises(PgnasError, match="is damaged"):
        read_settings(Run(tmp_path))


def test_a_fit_prints_the_recipe_that_it_follows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--run", str(tmp_path / "run"), "--epochs", "1"]
    given = ["--sched", "multistep", "--decay-milestones", "5", "--cutout", "2", "-b", "300"]
    assert command("fit", *given, *run) == 0
    text = capsys.readouterr().err
    assert "recipe: nesterov, multistep from 0.1, a tenth at 5; batch 300, cutout 2" in text
    assert "note: --decay-milestones [5] lie behind the 1 epochs" in text
    assert "gates all, groups layer" in text
    assert command("fit", "--decay-milestones", "5", "--run", str(tmp_path / "other")) == 1
    assert "--sched multistep and --decay-milestones go together" in capsys.readouterr().err
