"""Records of a super-network: how it is built, how it is fitted."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import PgnasError

if TYPE_CHECKING:
    from torch import nn


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
class Inflation:
    """How convolutions are inflated."""

    kernels: tuple[int, ...] = (1, 3, 5, 9)  # odd sizes, one branch each
    width: float = 1.0  # outputs of all branches together, in those of the original
    keep_original: bool = False  # beside the branches


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
