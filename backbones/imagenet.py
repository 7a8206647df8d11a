"""The paper's super-networks for ImageNet, made from timm's networks.

    name                    made from    convolutions of 3x3
    resnet50                resnet50     1x1, 3x3, 5x5 and 9x9 side by side: SupNet-R-50
    densenet121             densenet121  as they are; a drop probability per segment: SupNet-D-121
    densenet121-inflated    densenet121  as in SupNet-R-50
    densenet121-deep        densenet121  as they are; the stem of the released code

timm's pretrained weights load. Where the 3x3 are inflated, the branches begin with their filters.
"""

import dataclasses
from functools import partial

import timm
from pgnas_backbones import from_timm

from pgnas_cli.registry import Backbone, Inflation


def _built(
    model: str,
    inflation: Inflation | None,
    *,
    classes: int,
    channels: int = 3,
    size: int | None = None,
    pretrained: bool = False,
) -> Backbone:
    found: Backbone = from_timm.build(
        model=model, classes=classes, channels=channels, size=size, pretrained=pretrained
    )
    return dataclasses.replace(found, inflation=inflation)


PAPERS = Inflation((1, 3, 5, 9))  # a quarter of the outputs each

resnet50 = partial(_built, "resnet50", PAPERS)
densenet121 = partial(_built, "densenet121", None)
densenet121_inflated = partial(_built, "densenet121", PAPERS)


def densenet121_deep(*, classes: int, channels: int = 3, size: int | None = None) -> Backbone:
    """DenseNet-121 with a stem of three 3x3 convolutions, without gates."""
    found = densenet121(classes=classes, channels=channels, size=size)
    network = timm.create_model(
        "densenet121", num_classes=classes, in_chans=channels, stem_type="deep"
    )
    stem = tuple(name for name, _ in network.named_modules() if name.startswith("features.conv"))
    return dataclasses.replace(found, network=network, ungated=stem)
