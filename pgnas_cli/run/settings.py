"""The options of a fit: what a run was started with, and whether it makes sense."""

import dataclasses
import difflib
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from timm.optim import list_optimizers

from ..errors import PgnasError
from ..registry import Backbone, Recipe, preset
from ..storage import from_json
from .directory import Run, newest_run

# Second-order, or only with packages for CUDA.
_UNFIT_OPTIMIZERS = (
    "adahessian", "fusedadam", "fusedadamw", "fusedlamb", "fusednovograd", "fusedsgd",
)  # fmt: skip

PRECISIONS = ("float32", "bfloat16")

SCHEDULES = ("cosine", "tanh", "multistep", "poly", "none")  # of timm; fixed in advance


@dataclass(frozen=True)
class FitSettings:
    """The options of a fit; None in a recipe field leaves it to the backbone's recipe."""

    backbone: str = "multibranch-tiny"
    data: str = "digits"
    data_root: str = "data"
    img_size: int | None = None
    pretrained: bool = False
    weights: str | None = None
    held_out: float = 0.2
    skip_corrupt: bool = False
    fixed_drop: float | None = None
    constant_l2: bool = False
    target_params: str | None = None
    target_macs: str | None = None
    precision: str = "float32"
    seed: int = 0
    preset: str | None = None
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)

    def recipe_of(self, backbone: Backbone) -> Recipe:
        """The recipe to follow: preset and options override the backbone's own."""
        fields = preset(backbone, self.preset) if self.preset else {}
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in self.recipe.items()}
        if given.get("schedule", "multistep") != "multistep" and "milestones" not in given:
            given["milestones"] = ()
        if "weight_decay" in given and "l2" not in given:
            given["l2"] = None  # else the preset's would stand
        return dataclasses.replace(backbone.recipe, **{**fields, **given})


def check_recipe(recipe: Recipe, settings: FitSettings) -> None:
    if settings.precision not in PRECISIONS:
        raise PgnasError(f"no precision '{settings.precision}'; possible: {', '.join(PRECISIONS)}")
    names = [str(name) for name in list_optimizers() if str(name) not in _UNFIT_OPTIMIZERS]
    if recipe.optimizer not in names:
        near = difflib.get_close_matches(recipe.optimizer, names, n=3)
        raise PgnasError(f"no optimizer '{recipe.optimizer}'; near: {', '.join(near) or 'sgd'}")
    if recipe.schedule not in SCHEDULES:
        raise PgnasError(f"no schedule '{recipe.schedule}'; possible: {', '.join(SCHEDULES)}")
    if list(recipe.milestones) != sorted({m for m in recipe.milestones if m >= 1}):
        raise PgnasError("--milestones are epochs in ascending order, say 30,60")
    if bool(recipe.milestones) != (recipe.schedule == "multistep"):
        raise PgnasError("--sched multistep and --milestones go together; give both or neither")
    for name, value, low, high in (
        ("--epochs", recipe.epochs, 1, 10**6),
        ("--batch-size", recipe.batch_size, 2, 10**6),
        ("--temperature", recipe.temperature, 1e-3, 100),
        ("--initial-drop", recipe.initial_drop, 1e-6, 0.999),
        ("--l2", recipe.l2, 0, 1e12),
        ("--kl-images", recipe.kl_images, 1, 1e15),
        ("--min-lr", recipe.min_learning_rate, 0, recipe.learning_rate),
        ("--cycle-epochs", recipe.cycle_epochs, 0, 10**6),
        ("--cycle-factor", recipe.cycle_factor, 1, 100),
        ("--momentum", recipe.momentum, 0, 0.9999),
        ("--auxiliary-weight", recipe.auxiliary_weight, 0, 1e3),
        ("--cutout", recipe.cutout, 0, 10**4),
        ("--operation-cost", recipe.operation_cost, 0, 1e12),
        ("--fixed-drop", settings.fixed_drop, 0, 0.999),
        ("--lr", recipe.learning_rate, 0, 1e3),
        ("--drop-lr", recipe.drop_learning_rate, 0, 1e3),
        ("--weight-decay", recipe.weight_decay, 0, 1e3),
        ("--warmup-epochs", recipe.warmup_epochs, 0, 10**6),
        ("--size-ramp", recipe.size_ramp, 0, 1),
        ("--freeze", recipe.freeze, 0.01, 1),
        ("--sharpen", recipe.sharpen, 1, 1e3),
    ):
        if value is not None and not low <= value <= high:
            raise PgnasError(f"{name} {value:g} is out of range; possible: {low:g} to {high:g}")
    if (settings.target_params or settings.target_macs) and recipe.size_ramp > recipe.freeze:
        raise PgnasError(
            f"--freeze {recipe.freeze:g} comes before the size is met, --size-ramp"
            f" {recipe.size_ramp:g}; possible: {recipe.size_ramp:g} or more for --freeze"
        )


def placed_paths(given: dict[str, Any]) -> dict[str, Any]:
    """Options with their paths made absolute: a run is read again from other folders."""
    found = dict(given)
    data, backbone = given.get("data"), str(given.get("backbone", ""))
    if data not in (None, "digits") and Path(str(data)).is_dir():
        found["data"] = str(Path(str(data)).resolve())
    if given.get("weights"):
        found["weights"] = str(Path(given["weights"]).resolve())
    if backbone.endswith(".safetensors"):
        found["backbone"] = str(Path(backbone).resolve())
    return found


def run_name(backbone: str) -> str:
    """What a run of this backbone is called."""
    name = Path(backbone).stem if backbone.endswith(".safetensors") else backbone
    return name.replace("/", "-").replace(":", "-")


def run_to_fit(
    folder: Path | None, given: dict[str, Any], *, resume: bool
) -> tuple[Run, FitSettings]:
    """The run directory and the settings; a run that goes on keeps those it was started with.

    `given` holds the options that the user named, those of the recipe under "recipe".
    """
    given = placed_paths(given)
    if folder is None and resume:
        run = newest_run()
    elif folder is None:
        name = run_name(given.get("backbone", FitSettings.backbone))
        run = Run(_unused(Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"))
    else:
        run = Run(folder)
    if not (resume and run.settings.exists()):
        return run, FitSettings(**given)
    stored = read_settings(run)
    # A field of the recipe that was not named then has the backbone's value: compared later.
    for key, value in [*given.items(), *given["recipe"].items()]:
        value = list(value) if isinstance(value, tuple) else value  # as JSON has it
        now = stored.recipe.get(key, value) if key in given["recipe"] else getattr(stored, key)
        if key != "recipe" and now != value:
            raise PgnasError(
                f"'{run.folder}' was started with {key} {now}, not {value}; leave the option out to"
                " go on, or start another run"
            )
    return run, dataclasses.replace(stored, recipe={**given["recipe"], **stored.recipe})


def _unused(folder: Path) -> Path:
    """`folder`, or one with a number behind its name where another fit began in the same second."""
    found, number = folder, 2
    while found.exists():
        found, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return found


def read_settings(run: Run) -> FitSettings:
    """The options that a run was started with."""
    try:
        stored = json.loads(run.settings.read_text(encoding="utf-8"))
        from_json(Recipe, stored["recipe"], run.settings)
        return from_json(FitSettings, stored, run.settings)
    except FileNotFoundError:
        raise PgnasError(f"no run in '{run.folder}'; start one with pgnas fit") from None
    except (ValueError, TypeError, KeyError, OSError):
        raise PgnasError(f"'{run.settings}' is damaged; fit again with --force") from None


def milestones_of(text: str | None) -> tuple[int, ...] | None:
    """The epochs that "30,60" names."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise PgnasError(
            f"--milestones '{text}' are no epochs; possible: whole numbers, say 30,60"
        ) from None


def l2_of(text: str | None) -> float | None:
    """A prior strength; None for "auto", which the recipe's weight decay decides."""
    if text is None or text == "auto":
        return None
    try:
        return float(text)
    except ValueError:
        raise PgnasError(f"--l2 '{text}' is not a number; possible: a number, or auto") from None
