"""The tasks of the yardstick (fit.py): which network on which images.

t1: timm/tf_efficientnet_lite0 with pretrained weights, photos of 112 px, 350 batches of 40 images
in all; where the head starts as a linear probe, its pass over the images is the first fifty.
t1c: the same on 2,000 CIFAR images as JPEG, which the weights have never seen, enlarged to 112 px;
1,500 held out. t2: multibranch-tiny from scratch on 10,000 of them, 2,500 held out. t3: digits.
t4: timm/resnet50 from scratch on the images of t2, 20 epochs.
"""

import argparse
import dataclasses

import torch
from pgnas_backbones.multibranch import MultiBranch

from bench import CPU
from pgnas_cli.data import ImageData, Source, cut_data, find_data, held_out_decoded
from pgnas_cli.registry import Backbone, Start
from pgnas_cli.registry.build import build_backbone
from pgnas_cli.seeds import derived_seed, generator, seeded_globals
from pgnas_cli.training.probe import probe_

PRETRAINED = ("t1", "t1c")


def backbone_of(task: str, seed: int, options: argparse.Namespace, width: float = 1.0) -> Backbone:
    """The network of a task, at `width` times its usual width (t2, t3)."""
    if task in PRETRAINED:
        weights = options.data / "tf_efficientnet_lite0.safetensors"
        found = build_backbone(
            "timm/tf_efficientnet_lite0", classes=10, size=112,
            start=Start(weights=weights, seed=seed),
        )  # fmt: skip
        return dataclasses.replace(
            found, recipe=dataclasses.replace(found.recipe, epochs=7, batch_size=40)
        )
    if task == "t4":
        found = build_backbone("timm/resnet50", classes=10, size=32, start=Start(seed=seed))
        recipe = dataclasses.replace(
            found.recipe, epochs=20, batch_size=128, opt="adamw", sched="cosine",
            decay_milestones=(), drop_opt="adam",
        )  # fmt: skip
        return dataclasses.replace(found, recipe=recipe)
    channels, size = (3, 32) if task == "t2" else (1, 8)
    found = build_backbone(
        "multibranch-tiny", classes=10, channels=channels, size=size, start=Start(seed=seed)
    )
    if width == 1:
        return found
    widths = [max(1, round(width * w)) for w in (16, 32, 64, 16)]
    with seeded_globals(derived_seed(seed, "initial weights")):
        network = MultiBranch(tuple(widths[:3]), 1, widths[3], found.input_shape, 10)
    return dataclasses.replace(found, network=network)


def some_of(source: Source, total: int) -> Source:
    """The same `total` training images, whatever the seed of a study."""
    chosen = torch.randperm(len(source.train), generator=generator(0, "subset"))[:total]
    return dataclasses.replace(source, train=source.train.subset(chosen.tolist()))


def data_of(task: str, seed: int, backbone: Backbone, options: argparse.Namespace) -> ImageData:
    """Fit, held-out and test images; held-out ones decoded."""
    cifar = str(options.cifar)
    source = find_data(
        {"t1": str(options.photos), "t1c": cifar, "t2": cifar, "t3": "digits", "t4": cifar}[task]
    )
    held_out = 0.2
    if source.small == 32:  # the same images for every seed
        total, held_out = (3500, 3 / 7) if task == "t1c" else (12500, 0.2)
        source = some_of(source, total)
    preprocessing = backbone.images
    if preprocessing is not None and source.small is not None:
        preprocessing = dataclasses.replace(preprocessing, crop=1.0)
    cut = cut_data(
        source, seed=seed, held_out=held_out, preprocessing=preprocessing,
        size=backbone.input_shape[1],
    )  # fmt: skip
    return held_out_decoded(cut, 0)


def task_of(
    task: str, seed: int, options: argparse.Namespace, *, probe: bool, width: float = 1.0
) -> tuple[Backbone, ImageData]:
    """The network of a task and its images; with `probe` a new head starts as a linear probe.

    That is an epoch less of training, since the probe was a pass over the images.
    """
    backbone = backbone_of(task, seed, options, width)
    data = data_of(task, seed, backbone, options)
    if not (probe and backbone.new_heads):
        return backbone, data
    for head in backbone.new_heads:
        probe_(backbone.network, head, data, machine=CPU, seed=seed)
    recipe = dataclasses.replace(backbone.recipe, epochs=backbone.recipe.epochs - 1)
    return dataclasses.replace(backbone, recipe=recipe), data
