"""Records of a super-network: how it is built, how it is fitted."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PgnasError
from ..fields import option

if TYPE_CHECKING:
    from torch import nn

    from ..data import Preprocessing


DROP_OPTIMIZERS = ("adam", "weights")
CLASS_WEIGHTS = ("none", "balanced")
SCHEDULES = ("cosine", "tanh", "multistep", "poly", "none")  # of timm; fixed in advance


@dataclass(frozen=True)
class Recipe:
    """How a super-network is trained; every field is an option of `fit`."""

    epochs: int = option(30, "Passes over the training images.", least=1, most=10**6)
    batch_size: int = option(
        64, "Images in a training step.", least=2, most=10**6, flags=("--batch-size", "-b")
    )
    accumulate: int = option(
        1, "Parts of a batch, computed one after the other; a step is their mean.", least=1,
        most=10**6, advanced=True,
    )  # fmt: skip
    opt: str = option("nesterov", "Optimizer of the weights, a timm name.")
    lr: float = option(0.1, "Learning rate of the weights.", least=0, most=1e3)
    momentum: float = option(
        0.9, "Momentum of the weights' optimizer.", least=0, most=0.9999, advanced=True
    )
    sched: str = option(
        "cosine", "Schedule of the learning rate, a timm name.", choices=SCHEDULES, advanced=True
    )
    warmup_epochs: float = option(
        0.0, "Epochs in which the learning rate of the weights rises to --lr.", least=0, most=10**6,
        advanced=True,
    )  # fmt: skip
    min_lr: float = option(
        0.0, "Learning rate at the end of the schedule.", least=0, most=1e3, advanced=True
    )
    cycle_epochs: float = option(
        0.0, "Length of the first cycle of a cosine with warm restarts; 0: one cycle.", least=0,
        most=10**6, advanced=True,
    )  # fmt: skip
    lr_cycle_mul: float = option(
        2.0, "Length of each later cycle, in lengths of the one before.", least=1, most=100,
        advanced=True,
    )  # fmt: skip
    decay_milestones: tuple[int, ...] = option(
        (), "Epochs at which --sched multistep divides the rate by ten, say 30,60.", advanced=True
    )
    label_smoothing: float = option(
        0.0, "Label smoothing of the cross-entropy.", least=0, most=0.99,
        flags=("--label-smoothing", "--smoothing"), advanced=True,
    )  # fmt: skip
    aa: str = option(
        "", "AutoAugment policy of timm, say rand-m9-mstd0.5-inc1, augmix-m3-w3 or original.",
        advanced=True,
    )  # fmt: skip
    mixup: float = option(
        0.0, "Alpha of mixup: images and labels of a batch, blended in pairs.", least=0, most=100,
        advanced=True,
    )  # fmt: skip
    cutmix: float = option(
        0.0, "Alpha of cutmix: a box of one image in another; with --mixup, in half of the steps.",
        least=0, most=100, advanced=True,
    )  # fmt: skip
    reprob: float = option(
        0.0, "Probability that a box of an image is erased.", least=0, most=1, advanced=True
    )
    class_weights: str = option(
        "none", "Weights of the classes in the loss: none, or balanced: each class counts alike.",
        choices=CLASS_WEIGHTS, advanced=True,
    )  # fmt: skip
    model_ema: bool = option(
        False, "Evaluate and export the moving average of the weights.", flags=("--model-ema",),
        advanced=True,
    )  # fmt: skip
    model_ema_decay: float = option(
        0.9998, "Its decay in each step; it is less in the first ones.", least=0, most=0.999999,
        advanced=True,
    )  # fmt: skip
    layer_decay: float | None = option(
        None, "Factor of the learning rate for each layer further from the end, or auto: 1.",
        least=0.01, most=1, advanced=True,
    )  # fmt: skip
    scale: tuple[float, float] = option(
        (0.35, 1.0), "Share of a photo that a random crop takes, least and most, say 0.08,1.",
        least=0.01, most=1, advanced=True,
    )  # fmt: skip
    cutout: int = option(
        0, "Pixels of the square that is blanked out; small images only.", least=0, most=10**4,
        advanced=True,
    )  # fmt: skip
    auxiliary_weight: float = option(
        0.4, "Weight of the loss of an auxiliary head, where there is one.", least=0, most=1e3,
        advanced=True,
    )  # fmt: skip
    weight_decay: float = option(
        5e-4, "Weight decay that --l2 auto amounts to at the start; of weights without gates.",
        least=0, most=1e3,
    )  # fmt: skip
    drop_delay_epochs: float | None = option(
        None, "Epochs in which only the weights learn, not p, or auto: 0; with a target size 1.",
        least=0, most=10**6, advanced=True,
    )  # fmt: skip
    initial_drop: float = option(
        0.1, "Drop probability p at the start.", least=1e-6, most=0.999, advanced=True
    )
    drop_opt: str = option(
        "adam", "Optimizer of the logits of p: adam, or weights: that of the weights.",
        choices=DROP_OPTIMIZERS, advanced=True,
    )  # fmt: skip
    drop_lr: float | None = option(
        None, "Learning rate of the logits of p, or auto: by the length of the fit.", least=0,
        most=1e6, advanced=True,
    )  # fmt: skip
    temperature: float = option(
        0.2, "Temperature of the relaxed gates (Table 5).", least=1e-3, most=100, advanced=True
    )
    l2: float | None = option(
        None, "Prior strength (Table 4), or auto: from the weight decay.", least=0, most=1e12
    )
    kl_images: float | None = option(
        None, "N of Eq. 15; default: 10 x training images, at least 500000.", least=1, most=1e15,
        advanced=True,
    )  # fmt: skip
    gates: str = option(
        "all", "all, or hidden: only channels that die with their one consumer; +operations: pools"
        " and skips too.",
    )  # fmt: skip
    operation_cost: float = option(
        0.0, "Prior cost of a gated pool or skip, in squared weights.", least=0, most=1e12,
        advanced=True,
    )  # fmt: skip
    groups: str = option(
        "layer", "Gates that share one p: layer, channel, or a number of channels."
    )
    probe: bool = option(
        False, "Start a new head on trained weights as a linear probe of their features."
    )
    until_settled: bool = option(
        False, "Go on past --epochs, round by round, until p no longer moves.",
        flags=("--until-settled",),
    )  # fmt: skip
    max_epochs: int | None = option(
        None, "Most epochs of --until-settled; default: 4 x --epochs.", least=1, most=10**6,
        advanced=True,
    )  # fmt: skip
    certain: float = option(
        1e-3, "p within so much of 0 or 1 becomes 0 or 1 once it stays there, or is frozen; what"
        " that closes is cut out while training goes on. 0: never.", least=0, most=0.1,
        advanced=True,
    )  # fmt: skip
    # With a target size only:
    size_ramp: float = option(
        0.25, "Share of the fit after which the expected size is the target.", least=0, most=1,
        advanced=True,
    )  # fmt: skip
    freeze: float = option(
        0.4, "Share of the fit after which p stays, with a target.", least=0.01, most=1,
        advanced=True,
    )  # fmt: skip
    sharpen: float = option(
        8.0, "Factor that drives p to 0 and 1 before the freeze, with a target.", least=1, most=1e3,
        advanced=True,
    )  # fmt: skip


# The paper's gates and objective, the rate of p by the rule.
OBJECTIVE: dict[str, Any] = {
    "gates": "all", "groups": "layer", "initial_drop": 0.1, "temperature": 0.2, "drop_lr": None,
    "drop_delay_epochs": None,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    # Optimizer, schedule and epochs stay the backbone's.
    "paper": {**OBJECTIVE, "freeze": 1.0, "sharpen": 1.0},
}


@dataclass(frozen=True)
class Inflation:
    """How convolutions are inflated."""

    kernels: tuple[int, ...] = (1, 3, 5, 9)  # odd sizes, one branch each
    width: float = 1.0  # outputs of all branches together, in those of the original
    keep_original: bool = False  # beside the branches


@dataclass(frozen=True)
class Start:
    """Where the initial weights of a network come from."""

    pretrained: bool = False  # timm's or torchvision's, downloaded
    weights: Path | None = None  # a plain state dict in a safetensors file
    seed: int = 0  # of random ones
    keep_original: bool = False  # beside the branches of a network that is inflated


@dataclass(frozen=True)
class Backbone:
    """A network, not yet gated, and what belongs to it."""

    network: "nn.Module"
    input_shape: tuple[int, int, int]  # channels, height, width of an image
    recipe: Recipe = Recipe()
    recipe_of: str = "of the backbone"  # where the recipe comes from, for the user
    pretrained_recipe: Recipe | None = None  # for given weights; None: the same
    ungated: tuple[str, ...] = ()  # layers that the author wants without gates
    options: dict[str, Any] = field(default_factory=dict)  # what else rebuilds the same network
    images: "Preprocessing | None" = None  # None: measured on the data, or ImageNet's for photos
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


def shortened(recipe: Recipe, epochs: int) -> Recipe:
    """`recipe` with its schedule stretched to so many epochs: milestones, cycles.

    Fewer epochs than p needs to converge with the optimizer of the weights leave p to Adam.
    """
    share = epochs / recipe.epochs
    stretched = (round(share * milestone) for milestone in recipe.decay_milestones)
    milestones = tuple(sorted({m for m in stretched if 0 < m < epochs}))
    lost = bool(recipe.decay_milestones) and not milestones
    return dataclasses.replace(
        recipe,
        epochs=epochs,
        decay_milestones=milestones,
        sched="none" if lost else recipe.sched,
        cycle_epochs=share * recipe.cycle_epochs,
        warmup_epochs=share * recipe.warmup_epochs,
        drop_opt="adam" if share < 1 else recipe.drop_opt,
    )


Builder = Callable[..., Backbone]
