"""ResNet-50 whose 3x3 convolutions are four kernels side by side: SupNet-R-50 of the paper."""

import dataclasses

from pgnas_backbones import from_timm

from pgnas_cli.registry import Backbone, Inflation

# Supplement of the paper: 90 epochs, a tenth of the rate every 30; N = 1.2 M images.
PUBLISHED = {
    "opt": "nesterov", "lr": 0.1, "sched": "multistep", "decay_milestones": (30, 60),
    "epochs": 90, "batch_size": 256, "kl_images": 1.2e6, "l2": 80.0, "initial_drop": 0.1,
    "temperature": 0.2, "gates": "all", "groups": "layer", "drop_lr": 0.05,
}  # fmt: skip


def resnet50(
    *, classes: int, channels: int = 3, size: int | None = None, pretrained: bool = False
) -> Backbone:
    """timm's resnet50, each 3x3 as 1x1, 3x3, 5x5 and 9x9, a quarter of the outputs each.

    Starting weights are those of the ordinary network; the branches begin with its filters.
    """
    found: Backbone = from_timm.build(
        model="resnet50", classes=classes, channels=channels, size=size, pretrained=pretrained
    )
    return dataclasses.replace(
        found, inflation=Inflation((1, 3, 5, 9)), presets={"published": PUBLISHED}
    )
