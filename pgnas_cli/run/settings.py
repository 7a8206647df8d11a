"""The options of a fit: what a run was started with, and whether it makes sense."""

import dataclasses
import difflib
import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from ..distributed import first_here, launched, of_first
from ..errors import PgnasError
from ..fields import check_choice, check_fields, one_given, option, parsed
from ..naming import (
    PRECISIONS,
    RUNTIMES,
    check_data_name,
    check_forward,
    check_policy_name,
    no_table,
)
from ..progress import note, task
from ..registry import (
    PHOTOS,
    SMALL_IMAGES,
    Backbone,
    Recipe,
    Start,
    full_name,
    preset,
    shortened,
)
from ..storage import as_read, from_json, read_json, to_json, write_text
from ..units import UNITS, parsed_size
from .directory import RUNS, Run, newest_run

# Second-order, or only with packages for CUDA.
_UNFIT_OPTIMIZERS = (
    "adahessian", "fusedadam", "fusedadamw", "fusedlamb", "fusednovograd", "fusedsgd",
)  # fmt: skip


@dataclass(frozen=True)
class FitSettings:
    """The options of a fit beside its recipe; every field is an option of `fit`."""

    backbone: str = option(
        SMALL_IMAGES,
        "Super-network: a name (see backbones), timm's or torchvision's, FILE.safetensors, or"
        " module:function; default: by the images, for photos a pretrained one.",
        flags=("--backbone", "--model"),
    )
    data: str = option(
        "digits",
        "digits, cifar10, cifar100, imagenet, a folder with train/ and val/, or a timm name.",
        flags=("--data", "--data-dir"),
    )
    data_root: str = option("data", "Where named data sets live.", advanced=True)
    img_size: int | None = option(None, "Image size in pixels; default: as is, photos 224.")
    pretrained: bool | Literal["auto"] = option(
        False, "Start from the weights of timm or torchvision, downloaded; --pretrained auto: where"
        " they can be had, as by default for photos without --backbone.",
    )  # fmt: skip
    weights: str | None = option(
        None, "Start from a plain state dict, FILE.safetensors.",
        flags=("--weights", "--initial-checkpoint"),
    )  # fmt: skip
    keep_original: bool = option(
        False, "Of an inflated super-network: keep each convolution beside its branches.",
        flags=("--keep-original",), advanced=True,
    )  # fmt: skip
    held_out: float = option(
        0.2, "Training images kept for ranking: a share, 10000 images at most, or their number."
    )
    skip_corrupt: bool = option(
        False, "Leave out images that do not decode.", flags=("--skip-corrupt",)
    )
    fixed_drop: float | None = option(
        None, "One p for all gates; or a run, whose candidates are as large.", least=0, most=0.999,
        advanced=True,
    )  # fmt: skip
    constant_l2: bool = option(
        False, "l2 without its factor 1-p (Table 2).", flags=("--constant-l2",), advanced=True
    )
    target_params: str | None = option(None, "Mean size of the candidates: 60%, or 10M parameters.")
    target_macs: str | None = option(None, "The same in MACs: 60%, or 2G.")
    target_time: str | None = option(
        None, "The same in time of a forward on this device, measured first: 60%, or 4ms."
    )
    time_runtime: str = option(
        "torch", "What runs the forward that is timed: torch, or onnxruntime on a CPU.",
        choices=RUNTIMES, advanced=True,
    )  # fmt: skip
    time_batch: int = option(
        1, "Images of the forward that is timed.", least=1, most=65536, advanced=True
    )
    time_threads: int = option(
        0, "Its threads on a CPU; 0: as many as this process uses.", least=0, most=1024,
        advanced=True,
    )  # fmt: skip
    time_precision: str = option(
        "float32", "What it computes in: float32, or bfloat16.", choices=PRECISIONS, advanced=True
    )
    time_table: str | None = option(
        None, "Times of another device, FILE.json that profile wrote there.", advanced=True
    )
    precision: str = option(
        "float32", "float32, bfloat16, or auto: bfloat16 where the device computes in it.",
        choices=("float32", "bfloat16", "auto"), advanced=True,
    )  # fmt: skip
    compile: bool = option(
        False, "Compile the network first, for long fits on a GPU.", flags=("--compile",),
        advanced=True,
    )  # fmt: skip
    sync_bn: bool = option(
        False, "Batch-norm statistics over all processes of torchrun; on GPUs.",
        flags=("--sync-bn",), advanced=True,
    )  # fmt: skip
    seed: int = option(0, "Seed of every random draw.")
    preset: str | None = option(
        None, "published: the backbone's recipe in the paper; paper: its gates alone."
    )
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)  # fields that were named

    @property
    def targeted(self) -> bool:
        """Whether a size is aimed at."""
        return bool(self.target_params or self.target_macs or self.target_time)

    def recipe_of(self, backbone: Backbone) -> tuple[Recipe, str]:
        """The recipe to follow, and where it comes from.

        Preset and options override the backbone's own; a schedule whose epochs alone are named is
        stretched to them.
        """
        fields = preset(backbone, self.preset) if self.preset else {}
        named: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in self.recipe.items()
        }
        origin = f"the preset {self.preset}" if self.preset else backbone.recipe_of
        found = dataclasses.replace(backbone.recipe, **fields)
        epochs = named.get("epochs", found.epochs)
        if epochs != found.epochs and epochs > 0:
            origin += f", its {found.epochs} epochs stretched to {epochs}"
            found = shortened(found, epochs)
        if self.targeted:  # p follows the size: no task for SGD
            found = dataclasses.replace(found, drop_opt="adam")
        if named.get("sched", "multistep") != "multistep":
            named.setdefault("decay_milestones", ())
        if named.get("decay_milestones"):
            named.setdefault("sched", "multistep")
        if "weight_decay" in named and "l2" not in named:
            named["l2"] = None  # else the preset's would stand
        found = dataclasses.replace(found, **named)
        # A backbone may give 50 for 50.0: a fit that is resumed has read 50.0 from its checkpoint.
        return Recipe(**{k: parsed(Recipe, k, value) for k, value in vars(found).items()}), origin


def settings_of(given: dict[str, Any]) -> FitSettings:
    """The settings that options name: fields of `FitSettings`, and of `Recipe`.

    Paths become absolute: a run is read again from other folders.
    """
    own = {field.name for field in dataclasses.fields(FitSettings) if field.metadata}
    found = {k: parsed(FitSettings, k, value) for k, value in given.items() if k in own}
    data, backbone = found.get("data"), str(found.get("backbone", ""))
    if data not in (None, "digits") and Path(str(data)).is_dir():
        found["data"] = str(Path(str(data)).resolve())
    for file in ("weights", "time_table"):
        if found.get(file):
            found[file] = str(Path(found[file]).resolve())
    if backbone.endswith(".safetensors"):
        found["backbone"] = str(Path(backbone).resolve())
    elif backbone:
        found["backbone"] = full_name(backbone)
    known = {field.name for field in dataclasses.fields(Recipe)}
    unknown = sorted(set(given) - own - known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], own | known, n=3) or sorted(own | known)
        raise PgnasError(f"a fit has no option `{unknown[0]}`; possible: {', '.join(near)}")
    recipe = {k: parsed(Recipe, k, value) for k, value in given.items() if k in known}
    settings = FitSettings(**found, recipe=recipe)
    _check_alone(settings)
    return settings


def _check_alone(settings: FitSettings) -> None:
    """Raise PgnasError for what is wrong whatever the data, the network and its recipe are."""
    check_data_name(settings.data)
    check_fields(settings)
    check_fields(dataclasses.replace(Recipe(), **settings.recipe))
    check_policy_name(settings.recipe.get("aa", ""))
    _check_together(_otherwise_harmless(settings.recipe), settings)
    if settings.weights and settings.pretrained is True:
        raise PgnasError("`pretrained` and `weights` are mutually exclusive; give one")
    check_forward(settings.time_runtime, settings.time_precision)
    if settings.time_table and not Path(settings.time_table).exists():
        raise no_table(settings.time_table)
    sizes = {kind: getattr(settings, f"target_{kind}") for kind in UNITS}
    if target := one_given("target", sizes):
        parsed_size(target[1], f"`target_{target[0]}`", target[0])


def _otherwise_harmless(named: dict[str, Any]) -> Recipe:
    """A recipe with the fields that are named, and others that contradict none of them."""
    usual: dict[str, Any] = {
        "epochs": named.get("max_epochs") or 10**9, "lr": math.inf, "drop_opt": "adam",
        "size_ramp": 0.0, "freeze": 1.0,
        "sched": "multistep" if named.get("decay_milestones") else "cosine",
    }  # fmt: skip
    found = {**usual, **named}
    if found["sched"] == "multistep":
        found.setdefault("decay_milestones", (1,))
    return dataclasses.replace(Recipe(), **found)


def check_with_timm(recipe: dict[str, Any]) -> None:
    """Raise PgnasError for an optimizer or a policy, of the fields that are named, timm has not."""
    from ..data import check_policy

    if "opt" in recipe:
        _check_optimizer(recipe["opt"])
    if recipe.get("aa"):
        check_policy(recipe["aa"])


def _check_optimizer(name: str) -> None:
    from timm.optim import list_optimizers

    fit = [str(known) for known in list_optimizers() if str(known) not in _UNFIT_OPTIMIZERS]
    check_choice("opt", name, fit)


def with_network(settings: FitSettings, given: Collection[str]) -> FitSettings:
    """`settings` with the network of their images, where `given`, the options named, has none.

    `PHOTOS`, unless images are small, or made so.
    """
    check_with_timm(settings.recipe)
    if "backbone" in given:
        return settings
    from ..data import SMALL, find_data

    with first_here():
        source = find_data(
            settings.data, root=Path(settings.data_root), skip_corrupt=settings.skip_corrupt,
            reads=(),
        )  # fmt: skip
    small = source.small is not None or (settings.img_size or SMALL) < SMALL
    return dataclasses.replace(settings, backbone=SMALL_IMAGES if small else PHOTOS)


def with_weights(
    settings: FitSettings, given: Collection[str], run: Run | None = None
) -> FitSettings:
    """`settings` of `with_network`, `pretrained` auto as True or False.

    It is auto for photos where no network or start is named. It is as in `run`, where that was
    begun. Weights that cannot be had are a warning.
    """
    named = {"backbone", "pretrained", "weights"} & set(given)
    if settings.pretrained != "auto" and (named or settings.backbone != PHOTOS):
        return settings
    if settings.weights:  # a start that is named
        return dataclasses.replace(settings, pretrained=False)
    if run is not None and run.settings.exists():
        return dataclasses.replace(settings, pretrained=read_settings(run).pretrained)
    from ..registry.lookup import load_backbone

    missing, backbone = "", settings.backbone
    with first_here(), task(f"fetching the weights of {backbone}"):
        try:
            load_backbone(backbone, classes=2, start=Start(pretrained=True))
        except PgnasError as error:
            missing = str(error)
    missing = of_first(missing)
    if missing:
        note(f"warning: {missing}")
        note(
            f"warning: {backbone} starts from random weights, which needs far more images and"
            " epochs; to start from a file: `weights` FILE.safetensors"
        )
    return dataclasses.replace(settings, pretrained=not missing)


def check_recipe(recipe: Recipe, settings: FitSettings) -> None:
    """Raise PgnasError for options out of range, and for those that contradict each other."""
    check_fields(settings)
    check_fields(recipe)
    check_with_timm({"opt": recipe.opt, "aa": recipe.aa})
    _check_together(recipe, settings)


def _check_together(recipe: Recipe, settings: FitSettings) -> None:
    """Raise PgnasError for options that contradict each other."""
    _check_schedule(recipe)
    if recipe.scale[0] > recipe.scale[1]:
        raise PgnasError("`scale` is the least and the most share of a crop, say 0.35,1")
    if recipe.until_settled and (settings.targeted or settings.fixed_drop is not None):
        raise PgnasError(
            "`until_settled` waits for p, which a target size freezes and a fixed rate never moves;"
            " leave it out"
        )
    if not settings.targeted:
        return
    if settings.fixed_drop is not None:
        raise PgnasError("`fixed_drop` sets the size; leave the target size out")
    if recipe.drop_opt != "adam":
        raise PgnasError(
            f"`drop_opt` {recipe.drop_opt} cannot aim at a target size; leave it out, or choose"
            " adam"
        )
    if recipe.size_ramp > recipe.freeze:
        raise PgnasError(
            f"`freeze` {recipe.freeze:g} comes before the size is met, `size_ramp`"
            f" {recipe.size_ramp:g}; possible: {recipe.size_ramp:g} or more for `freeze`"
        )


def _check_schedule(recipe: Recipe) -> None:
    """Raise PgnasError for a schedule of the learning rate that cannot be."""
    if recipe.min_lr > recipe.lr:
        raise PgnasError(f"`min_lr` {recipe.min_lr:g} is above `lr` {recipe.lr:g}")
    milestones = recipe.decay_milestones
    if list(milestones) != sorted({m for m in milestones if m >= 1}):
        raise PgnasError("`decay_milestones` are epochs in ascending order, say 30,60")
    if bool(milestones) != (recipe.sched == "multistep"):
        raise PgnasError(
            "`sched` multistep and `decay_milestones` go together; give both or neither"
        )
    if recipe.max_epochs is not None and not recipe.epochs <= recipe.max_epochs:
        raise PgnasError(
            f"`max_epochs` {recipe.max_epochs} is below `epochs` {recipe.epochs}; possible:"
            f" {recipe.epochs} or more"
        )
    for name in ("epochs", "cycle_epochs"):
        length = getattr(recipe, name)
        if 0 < length <= recipe.warmup_epochs:
            raise PgnasError(
                f"`warmup_epochs` {recipe.warmup_epochs:g} leaves nothing of `{name}` {length:g};"
                f" possible: below {length:g}"
            )
    if recipe.warmup_epochs and recipe.sched == "none":
        raise PgnasError("`warmup_epochs` needs a schedule; choose another `sched` than none")


def run_name(backbone: str) -> str:
    """What a run of this backbone is called."""
    name = Path(backbone).stem if backbone.endswith(".safetensors") else backbone
    return name.replace("/", "-").replace(":", "-")


def check_named(folder: Path | None) -> None:
    """Raise PgnasError where several processes would each find a folder of their own."""
    if folder is None and launched().world_size > 1:
        raise PgnasError("name the folder of the run with `run`: several processes share it")


def run_to_fit(
    folder: Path | None, given: dict[str, Any], *, resume: bool
) -> tuple[Run, FitSettings]:
    """The run directory and the settings; a run that is resumed keeps those it was started with.

    `given` holds the options that the user named, as `settings_of` takes them.
    """
    check_named(folder)
    asked = settings_of(given)
    run = Run(folder) if folder is not None else newest_run() if resume else None
    if run is None or not (resume and run.settings.exists()):
        if run is not None and resume and not {"data", "backbone"} & set(given):
            raise PgnasError(
                f"no run in '{run.folder}' to resume{_like(run.folder)}; to start one, name `data`"
                " or `backbone`"
            )
        asked = with_weights(with_network(asked, given), given)
        name = f"{run_name(asked.backbone)}-{datetime.now():%Y%m%d-%H%M%S}"
        return run or Run(_unused(RUNS / name)), asked
    stored = read_settings(run)
    auto = {"pretrained"} if asked.pretrained == "auto" else set()  # as it was decided then
    for key in (key for key in given if key not in {"skip_corrupt", *auto}):
        if key in asked.recipe:  # one that was not named has the backbone's value: compared later
            value = as_read(asked.recipe[key])
            then = as_read(stored.recipe.get(key, value))
        else:
            then, value = getattr(stored, key), getattr(asked, key)
        if then != value:
            raise PgnasError(
                f"'{run.folder}' was started with `{key}` {_typed(then)}, not {_typed(value)};"
                " leave the option out to resume, or choose another `run`"
            )
    return run, dataclasses.replace(
        stored, recipe={**asked.recipe, **stored.recipe},
        skip_corrupt=asked.skip_corrupt or stored.skip_corrupt,
    )  # fmt: skip


def _typed(value: Any) -> str:
    """A value as it is typed."""
    return "auto" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _like(folder: Path) -> str:
    """The runs whose names are most like that of a folder."""
    there = [path.parent for root in (RUNS, folder.parent) for path in root.glob("*/run.json")]
    by_name = {path.name: path for path in there}
    near = difflib.get_close_matches(folder.name, by_name, n=3, cutoff=0.5)
    return f"; similar: {', '.join(str(by_name[name]) for name in near)}" if near else ""


def _unused(folder: Path) -> Path:
    """`folder`, or one with a number behind its name where another fit began in the same second."""
    found, number = folder, 2
    while found.exists():
        found, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return found


def write_settings(run: Run, settings: FitSettings) -> None:
    """Keep the options that a run is started with."""
    write_text(run.settings, json.dumps(to_json(settings), indent=1, sort_keys=True) + "\n")


def keep_skipping(run: Run, settings: FitSettings) -> None:
    """Later stages skip as well: with `skip_corrupt` a run goes on as the same one."""
    if settings.skip_corrupt and run.settings.exists():
        write_settings(run, dataclasses.replace(read_settings(run), skip_corrupt=True))


def keep_data(run: Run, folder: Path) -> None:
    """Later stages find the images of a fit in `folder`, where they no longer lie in their own."""
    stored = read_settings(run)
    if not Path(stored.data).is_dir() and launched().rank == 0:
        write_settings(run, dataclasses.replace(stored, data=str(folder.resolve())))


def read_settings(run: Run) -> FitSettings:
    """The options that a run was started with."""
    try:
        stored = read_json(run.settings)
        from_json(Recipe, stored["recipe"], run.settings)
        return from_json(FitSettings, stored, run.settings)
    except FileNotFoundError:
        raise PgnasError(f"no run in '{run.folder}'; start one with pgnas fit") from None
    except (ValueError, TypeError, KeyError, OSError):
        raise PgnasError(f"'{run.settings}' is damaged; fit again in another `run`") from None
