"""What timm's recipes do to a batch: mixup, cutmix, random erasing, weights of classes and layers.

Randomness is a function of seed, step and process. A process of several mixes its own images.
"""

from types import SimpleNamespace
from typing import Any

import torch
from timm.data.random_erasing import RandomErasing
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torchvision.transforms.v2 import CutMix, MixUp

from ..distributed import rank
from ..registry import Recipe
from ..seeds import derived_seed, seeded_globals


def perturbed(
    images: Tensor,  # normalised, (batch, channels, height, width)
    labels: Tensor,  # int64 (batch,)
    recipe: Recipe,
    *,
    classes: int,
    seed: int,
    step: int,
) -> tuple[Tensor, Tensor]:
    """A batch with parts erased and images mixed; mixed labels are float (batch, classes)."""
    mixes = [
        make(alpha=float(alpha), num_classes=classes)
        for make, alpha in ((MixUp, recipe.mixup), (CutMix, recipe.cutmix))
        if alpha
    ]
    if not (mixes or recipe.reprob):
        return images, labels
    with seeded_globals(derived_seed(seed, "perturbed", step, rank())):
        if recipe.reprob:
            erase = RandomErasing(recipe.reprob, mode="pixel", device=images.device)
            images = erase(images)
        if mixes:
            mix = mixes[int(torch.randint(len(mixes), ()))]
            images, labels = mix(images, labels)
    return images, labels


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Weights inverse to the numbers of images, their mean over the images 1; float (classes,)."""
    counts = torch.bincount(labels, minlength=classes)
    return len(labels) / (classes * counts).float()


def layer_scales(network: nn.Module, decay: float) -> dict[str, float] | None:
    """Share of the learning rate for each parameter: `decay` to the power of its layers to the end.

    By timm's groups of layers; None for a network that names none.
    """
    if not hasattr(network, "group_matcher"):
        return None
    # timm's matcher would take the gates for a layer.
    without_gates: Any = SimpleNamespace(
        group_matcher=network.group_matcher,
        named_parameters=lambda: (
            (name, p) for name, p in network.named_parameters() if not name.startswith("gates.")
        ),
    )
    groups = param_groups_layer_decay(without_gates, layer_decay=decay)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    return {name: scale.get(id(p), 1.0) for name, p in network.named_parameters()}
