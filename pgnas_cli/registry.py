"""Find super-networks by name.

A backbone is one function, named by an entry point of the group `pgnas.backbones`, that returns a
`Backbone` record. Those of this package come through the same door as anybody else's. Listing them
imports none of them.
"""

import dataclasses
import difflib
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import PgnasError

if TYPE_CHECKING:
    from torch import nn

    from .inflation import Inflation

GROUP = "pgnas.backbones"


@dataclass(frozen=True)
class Recipe:
    """How a super-network is fitted; every field can be overridden on the command line."""

    epochs: int = 30
    batch_size: int = 64
    optimizer: str = "nesterov"  # a name of timm.optim
    learning_rate: float = 0.1
    momentum: float = 0.9
    schedule: str = "cosine"  # a name of timm.scheduler
    min_learning_rate: float = 0.0  # at the end of the schedule
    cycle_epochs: int = 0  # first cycle of a cosine with warm restarts; 0: a single one
    cycle_factor: float = 2.0  # length of each cycle after the first, in lengths of the one before
    milestones: tuple[int, ...] = ()  # epochs after which "multistep" divides the rate by ten
    cutout: int = 0  # pixels of the square that is blanked out (small images only)
    auxiliary_weight: float = 0.4  # of the loss of an auxiliary head, where there is one
    weight_decay: float = 5e-4  # of weights without gates; sets l2 where that is None
    warmup_epochs: float = 1.0  # in which only the weights learn
    initial_drop: float = 0.1  # drop probability at the start
    drop_learning_rate: float = 0.05  # Adam on the drop logits
    temperature: float = 0.2  # of the relaxed draw (Table 5)
    l2: float | None = None  # prior strength, released convention; None: from weight_decay
    kl_images: float | None = None  # N of Eq. 15; None: 10 x the images fitted, >= 500,000
    gates: str = "all"  # which layers carry them: all, hidden, all+operations (supernet.py)
    operation_cost: float = 0.0  # of a gated operation without weights, in squared weights
    groups: str = "layer"  # gates with a common p: "layer", "channel", or a number of channels
    probe: bool = False  # a new head on trained weights starts as a linear probe of them
    # With a target size only:
    size_ramp: float = 0.25  # share of the fit after which the expected size is the target
    freeze: float = 0.4  # share of the fit after which p stays and the weights learn under draws
    sharpen: float = 8.0  # factor on the drop logits from the end of the ramp to the freeze


PRESETS: dict[str, dict[str, Any]] = {
    # The paper's gates and objective; optimizer, schedule and epochs stay the backbone's.
    "paper": {
        "gates": "all", "groups": "layer", "initial_drop": 0.1, "drop_learning_rate": 0.05,
        "temperature": 0.2, "freeze": 1.0, "sharpen": 1.0,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Normalisation:
    """How a network wants its images."""

    mean: tuple[float, ...]  # of values scaled to [0, 1], per channel
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop: float = 0.875  # share of the resized image that the centre crop keeps


@dataclass(frozen=True)
class Backbone:
    """A network, not yet gated, and what belongs to it."""

    network: "nn.Module"
    input_shape: tuple[int, int, int]  # channels, height, width of an image
    recipe: Recipe = Recipe()
    ungated: tuple[str, ...] = ()  # layers that the author wants without gates
    options: dict[str, Any] = field(default_factory=dict)  # what else rebuilds the same network
    images: Normalisation | None = None  # None: measured on the data, or ImageNet's for photos
    heads: tuple[str, ...] = ()  # layers whose outputs are the classes
    new_heads: tuple[str, ...] = ()  # of them: fresh ones on weights that were trained before
    inflation: "Inflation | None" = None  # to be done once starting weights are loaded
    presets: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> fields of the recipe
    name: str = ""  # that builds it again; set on loading
    remarks: tuple[str, ...] = ()  # for the user, on how it was built


def preset(backbone: Backbone, name: str) -> dict[str, Any]:
    """The fields of a recipe that the preset `name` sets for this backbone."""
    known = {**PRESETS, **backbone.presets}
    if name not in known:
        raise PgnasError(f"no preset '{name}'; possible: {', '.join(known)}")
    return known[name]


Builder = Callable[..., Backbone]


def backbone_names() -> dict[str, str]:
    """Registered names and the packages that they come from, without importing any."""
    return {
        name: " and ".join(_package(entry) for entry in found)
        for name, found in sorted(_entries().items())
    }


def admit(name: str) -> str:
    """Let "module:function", named on the command line, be built; other names pass through.

    Files that name one are built only where it has been admitted: nothing that a file says is
    imported. The module is looked for in the working directory as well.
    """
    if ":" not in name:
        return name
    if not _FUNCTION.fullmatch(name):
        raise PgnasError(f"'{name}' names no function; possible: module:function")
    _ADMITTED.add(name)
    return name


_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_ADMITTED: set[str] = set()  # by the user of this process


def load_backbone(
    name: str,
    *,
    classes: int,
    channels: int = 3,
    size: int | None = None,  # pixels; None: the backbone's own
    options: dict[str, Any] | None = None,
    pretrained: bool = False,
    weights: Path | None = None,  # a plain state dict, safetensors
    seed: int = 0,
) -> Backbone:
    """Build the backbone called `name`; "timm/NAME" goes to the entry point "timm".

    The initial weights are a function of `seed`, or come from `pretrained` or `weights`.
    Inflation, where the backbone asks for it, is still to be done (inflation.py).
    Raises PgnasError for an unknown name (with the nearest known one), for a backbone whose package
    does not import, and for weights that do not fit.
    """
    entries = {**_entries(), **{own: [EntryPoint(own, own, GROUP)] for own in _ADMITTED}}
    entry_name, _, model = name.partition("/")
    if _FUNCTION.fullmatch(name) and name not in _ADMITTED:
        raise PgnasError(
            f"backbone '{name}' is a function that is not installed; if it is yours, name it again"
            f" on the command line: --backbone {name}"
        )
    if entry_name not in entries or (bool(model) != (entry_name == "timm")):
        near = difflib.get_close_matches(name, entries, n=1)
        listed = ", ".join("timm/NAME" if n == "timm" else n for n in sorted(entries))
        hint = f"did you mean {near[0]}?" if near and near[0] != "timm" else f"known: {listed}"
        raise PgnasError(f"no backbone named '{name}'; {hint}")
    if size is not None and size < 1:
        raise PgnasError(f"--img-size {size} is out of range; possible: 1 or more")
    entry, *others = entries[entry_name]
    if others:
        raise PgnasError(
            f"two packages offer a backbone named '{entry_name}': {_package(entry)} and"
            f" {_package(others[0])}; remove one of them"
        )
    sought = sys.path
    try:
        if name in _ADMITTED:
            sys.path = [str(Path.cwd()), *sought]
        build: Builder = entry.load()
    except (Exception, SystemExit) as error:  # a stranger's module may fail in any way
        advice = "mend it" if name in _ADMITTED else "reinstall or remove that package"
        raise PgnasError(
            f"backbone '{name}' (from {_package(entry)}, {entry.value}) does not load:"
            f" {type(error).__name__}: {error}; {advice}"
        ) from None
    finally:
        sys.path = sought
    if not callable(build):
        raise PgnasError(
            f"backbone '{name}' (from {_package(entry)}): {entry.value} is no function that builds"
            " one"
        )
    from .randomness import derived_seed, seeded_globals  # imports torch, as `build` just did
    from .weights import load_weights_

    for option in set(options or {}) & {"pretrained", "classes", "channels", "size", "model"}:
        raise PgnasError(f"a backbone has no option '{option}' of its own")
    extra: dict[str, Any] = {"model": model} if model else {}
    if pretrained:
        if weights is not None:
            raise PgnasError("--pretrained and --weights both name a start; give one")
        if "pretrained" not in inspect.signature(build).parameters:
            raise PgnasError(f"'{name}' has no pretrained weights to fetch; give a file: --weights")
        extra["pretrained"] = True
    try:
        with seeded_globals(derived_seed(seed, "initial weights")):
            backbone = build(
                classes=classes, channels=channels, size=size, **extra, **(options or {})
            )
    except PgnasError:
        raise
    except Exception as error:  # as above
        raise PgnasError(
            f"backbone '{name}' (from {_package(entry)}) cannot be built:"
            f" {type(error).__name__}: {error}"
        ) from None
    if not isinstance(backbone, Backbone):
        raise PgnasError(
            f"backbone '{name}' (from {_package(entry)}) gives a {type(backbone).__name__}; a"
            " pgnas_cli.registry.Backbone is wanted"
        )
    if weights is not None:
        backbone = with_replaced(backbone, load_weights_(backbone.network, weights, backbone.heads))
    layers = dict(backbone.network.named_modules())
    unknown = [head for head in backbone.new_heads if head not in layers]
    if unknown:
        raise PgnasError(
            f"backbone '{name}' (from {_package(entry)}) has no layer '{unknown[0]}', one of its"
            " new_heads"
        )
    return dataclasses.replace(backbone, name=name)


def with_replaced(backbone: Backbone, heads: dict[str, str]) -> Backbone:
    """The same record of a network in which `heads` were replaced, with a remark on each."""
    return dataclasses.replace(
        backbone, remarks=(*backbone.remarks, *heads.values()), new_heads=tuple(heads)
    )


def _entries() -> dict[str, list[EntryPoint]]:
    """Entry points by name; several where packages offer the same name."""
    found: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda e: (e.name, e.value)):
        found.setdefault(entry.name, {})[_package(entry), entry.value] = entry
    return {name: list(same.values()) for name, same in found.items()}


def _package(entry: EntryPoint) -> str:
    if entry.name in _ADMITTED:
        return "the command line"
    return entry.dist.name if entry.dist is not None else "an unknown package"
