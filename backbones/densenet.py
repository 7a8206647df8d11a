"""DenseNet-121 with a drop probability for each concatenated segment: SupNet-D-121 of the paper."""

import dataclasses

import timm
from pgnas_backbones import from_timm

from pgnas_cli.registry import Backbone

# Supplement of the paper: 180 epochs, a tenth of the rate at 90, 140, 160; N = 1.2 M images.
PUBLISHED = {
    "opt": "nesterov", "lr": 0.1, "sched": "multistep",
    "decay_milestones": (90, 140, 160), "epochs": 180, "batch_size": 300, "kl_images": 1.2e6,
    "l2": 100.0,
    "initial_drop": 0.1, "temperature": 0.2, "gates": "all", "groups": "layer",
    "drop_lr": 0.05,
}  # fmt: skip


def densenet121(
    *, classes: int, channels: int = 3, size: int | None = None, pretrained: bool = False
) -> Backbone:
    """timm's densenet121, so that pretrained weights load."""
    found: Backbone = from_timm.build(
        model="densenet121", classes=classes, channels=channels, size=size, pretrained=pretrained
    )
    return dataclasses.replace(found, presets={"published": PUBLISHED})


def deep(*, classes: int, channels: int = 3, size: int | None = None) -> Backbone:
    """The same with the stem of the released code: three 3x3 convolutions, without gates."""
    found = densenet121(classes=classes, channels=channels, size=size)
    network = timm.create_model(
        "densenet121", num_classes=classes, in_chans=channels, stem_type="deep"
    )
    stem = tuple(name for name, _ in network.named_modules() if name.startswith("features.conv"))
    return dataclasses.replace(found, network=network, ungated=stem)
