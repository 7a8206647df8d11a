"""Options of a fit: what takes precedence, what contradicts, what a resumed fit keeps."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from pgnas_cli.errors import PgnasError
from pgnas_cli.registry import Recipe, Start
from pgnas_cli.registry.build import build_backbone
from pgnas_cli.run import (
    FitSettings,
    Run,
    check_recipe,
    read_settings,
    run_to_fit,
    write_settings,
)
from pgnas_cli.storage import from_json, to_json

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
    recipe, origin = FitSettings(preset="published", recipe=given).recipe_of(backbone)
    assert (recipe.l2, recipe.weight_decay, recipe.epochs) == (l2, decay, 1800)
    assert (origin, recipe.drop_opt) == ("the preset published", "weights")


def test_another_schedule_drops_the_milestones_of_a_preset() -> None:
    backbone = build_backbone("densenet121", classes=10)
    for given, there in (({}, True), ({"sched": "cosine"}, False)):
        recipe, _ = FitSettings(preset="published", recipe=given).recipe_of(backbone)
        assert bool(recipe.decay_milestones) == there
    with pytest.raises(PgnasError, match="no preset 'mine'; possible: paper, published"):
        FitSettings(preset="mine").recipe_of(backbone)


@pytest.mark.parametrize(
    ("name", "epochs", "milestones", "cycle"),
    [("densenet121", 18, (9, 14, 16), 0), ("densenet121", 360, (180, 280, 320), 0),
     ("densenet121", 2, (1,), 0), ("enas-e", 63, (), 1.0)],
)  # fmt: skip
def test_a_schedule_is_stretched_to_epochs_that_are_named_alone(
    name: str, epochs: int, milestones: tuple[int, ...], cycle: float
) -> None:
    backbone = build_backbone(name, classes=10, size=32)
    recipe, origin = FitSettings(preset="published", recipe={"epochs": epochs}).recipe_of(backbone)
    assert (recipe.epochs, recipe.decay_milestones) == (epochs, milestones)
    assert recipe.cycle_epochs == pytest.approx(cycle)
    assert recipe.drop_opt == ("weights" if epochs == 360 else "adam")
    assert origin.endswith(f"epochs stretched to {epochs}")


@pytest.mark.parametrize("preset", [None, "published"])
@pytest.mark.parametrize("name", ["multibranch-mi", "enas-e", "resnet50", "densenet121"])
def test_a_recipe_comes_back_from_a_file_letter_for_letter(name: str, preset: str | None) -> None:
    """Else a resumed fit would not end with the same bytes."""
    recipe, _ = FitSettings(preset=preset).recipe_of(build_backbone(name, classes=10, size=32))
    text = json.dumps(to_json(recipe))
    assert json.dumps(to_json(from_json(Recipe, json.loads(text), Path("file")))) == text


def test_recipes_for_pretrained_weights_are_for_pretrained_weights(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    plain = build_backbone("timm/test_resnet", classes=10)
    save_file({k: v.contiguous() for k, v in plain.network.state_dict().items()}, weights)
    given = build_backbone("timm/test_resnet", classes=10, start=Start(weights=weights))
    assert (plain.recipe.gates, given.recipe.gates) == ("all", "hidden")
    assert (plain.recipe.probe, given.recipe.probe) == (False, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_opt": "weights"}, "`drop_opt` weights cannot aim at a target size"),
        ({"until_settled": True}, "`until_settled` waits for p, which a target size freezes"),
        ({"max_epochs": 3}, "`max_epochs` 3 is below `epochs` 30; possible: 30 or more"),
        ({"scale": (1.0, 0.5)}, "`scale` is the least and the most share of a crop"),
        ({"opt": "adahessian"}, "`opt` 'adahessian' is not known"),  # of second order
        ({"lr": 0.1, "min_lr": 0.2}, "`min_lr` 0.2 is above `lr` 0.1"),
        ({"sched": "multistep"}, "`sched` multistep and `decay_milestones` go together"),
        ({"sched": "multistep", "decay_milestones": (9, 5)}, "are epochs in ascending order"),
        ({"freeze": 0.2}, "`freeze` 0.2 comes before the size is met, `size_ramp` 0.25"),
    ],
)
def test_options_that_contradict_each_other_are_named(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PgnasError, match=message):
        check_recipe(Recipe(**options), FitSettings(target_macs="50%"))


def test_a_resumed_fit_keeps_its_options(fitted: Run) -> None:
    assert read_settings(fitted) == FitSettings(target_params="60%", recipe={"epochs": 3})
    for given in ({}, {"epochs": 3}, {"target_params": "60%"}):
        assert run_to_fit(fitted.folder, given, resume=True)[1] == read_settings(fitted)
    with pytest.raises(PgnasError, match="started with `target_params` 60%, not 50%; leave"):
        run_to_fit(fitted.folder, {"target_params": "50%"}, resume=True)
    with pytest.raises(PgnasError, match="a fit has no option `epoch`"):
        run_to_fit(fitted.folder, {"epoch": 3}, resume=True)


def test_a_fit_prints_the_recipe_that_it_follows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--run", str(tmp_path / "run"), "--epochs", "1"]
    given = ["--sched", "multistep", "--decay-milestones", "5", "--cutout", "2", "-b", "300"]
    assert command("fit", *given, *run) == 0
    text = capsys.readouterr().err
    assert "  nesterov, multistep from 0.1, a tenth at 5; batch 300\n  cutout 2\n" in text
    assert "recipe: for digits, its 30 epochs stretched to 1" in text
    assert "note: --decay-milestones [5] lie behind the 1 epochs" in text
    assert "gates all, groups layer" in text


def test_a_misspelt_run_is_not_resumed_as_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_settings(Run(Path("runs/flowers")), FitSettings())
    with pytest.raises(PgnasError, match=r"no run in 'runs/flower' to resume; similar: runs/flow"):
        run_to_fit(Path("runs/flower"), {"epochs": 3}, resume=True)
    for named in ({"data": "digits"}, {"backbone": "multibranch-tiny"}):
        assert run_to_fit(Path("runs/flower"), named, resume=True)[0].folder == Path("runs/flower")
