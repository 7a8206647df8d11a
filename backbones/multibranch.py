"""Multi-branch residual networks (Gastaldi 2017): each block adds two equal branches to its skip.

The whole family is one builder; a member is a row of a table. The networks of the paper mix the
branches at random in training (shake-shake); candidates and the whole network take the mean.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgnas_cli.registry import OBJECTIVE, Backbone, Recipe, shortened


class Branch(nn.Sequential):
    """Conv-BN-ReLU-Conv-BN; its input has been through a ReLU already."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )


class Downsample(nn.Module):
    """The skip of a block that halves the image: two grids of pixels, one shifted by a pixel.

    Each grid goes through a 1x1 convolution to half of the channels.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(inputs, outputs // 2, 1, bias=False)
        self.odd = nn.Conv2d(inputs, outputs - outputs // 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:  # (batch, inputs, h, w) -> (batch, outputs, h/2, w/2)
        even = F.avg_pool2d(x, 1, 2)
        odd = F.avg_pool2d(F.pad(x, (-1, 1, -1, 1)), 1, 2)
        return self.norm(torch.cat([self.even(even), self.odd(odd)], 1))  # type: ignore[no-any-return]


def shaken(first: Tensor, second: Tensor) -> Tensor:
    """A convex mix of two branches: random per image, and another one for the gradient.

    The weights come from torch's global generator, which a fit seeds in each step.
    """
    shape = (len(first), *[1] * (first.dim() - 1))
    forward, backward = (torch.rand(shape, device=first.device, dtype=first.dtype) for _ in "fb")
    mixed = backward * first + (1 - backward) * second
    return mixed + ((forward - backward) * (first - second)).detach()


class Block(nn.Module):
    """Skip plus the mean of two branches, which training may mix at random."""

    def __init__(self, inputs: int, outputs: int, stride: int, shake: bool = False) -> None:
        super().__init__()
        self.shake = shake
        self.branch1 = Branch(inputs, outputs, stride)
        self.branch2 = Branch(inputs, outputs, stride)
        self.skip: nn.Module | None = None
        if stride == 2:
            self.skip = Downsample(inputs, outputs)
        elif inputs != outputs:
            self.skip = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(x)
        skip = x if self.skip is None else self.skip(active)
        first, second = self.branch1(active), self.branch2(active)
        if self.shake and self.training:
            return skip + shaken(first, second)
        return skip + (first + second) * 0.5  # type: ignore[no-any-return]


class MultiBranch(nn.Module):
    """Stem, stages of blocks (each but the first halves the image), ReLU, mean, linear layer."""

    def __init__(
        self,
        widths: tuple[int, ...],
        blocks: int,
        stem_width: int,
        input_shape: tuple[int, int, int],
        classes: int,
        shake: bool = False,
    ) -> None:
        super().__init__()
        self.stem = stem(input_shape, stem_width)
        stages = []
        inputs = stem_width
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                stages.append(Block(inputs, width, stride, shake))
                inputs = width
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:  # (batch, channels, h, w) -> (batch, classes)
        x = F.relu(self.blocks(self.stem(x)))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))  # type: ignore[no-any-return]


def stem(input_shape: tuple[int, int, int], width: int) -> nn.Sequential:
    """The CIFAR stem up to 40 pixels; above, a quarter of the height and width goes on."""
    channels, height, _ = input_shape
    small = height <= 40
    layers = [
        nn.Conv2d(channels, width, 3, stride=1 if small else 2, padding=1, bias=False),
        nn.BatchNorm2d(width),
    ]
    return nn.Sequential(*layers, *([] if small else [nn.MaxPool2d(3, 2, padding=1)]))


@dataclass(frozen=True)
class Member:
    """A row of the family."""

    widths: tuple[int, ...]  # of the stages
    blocks: int  # in each stage
    pixels: int  # of its images, where nothing else is said
    shake: bool
    recipe: Recipe
    presets: dict[str, dict[str, Any]]


# Supplement of the paper: SGD with Nesterov 0.9, cosine to 0, 1,800 epochs, N = 500,000.
_PUBLISHED: dict[str, Any] = {
    **OBJECTIVE, "opt": "nesterov", "lr": 0.01, "sched": "cosine", "epochs": 1800,
    "batch_size": 128, "cutout": 16, "kl_images": 5e5, "drop_opt": "weights",
}  # fmt: skip
_SHORT = 60  # epochs, where nothing else is said


def _stretched(l2: float) -> Recipe:
    return shortened(Recipe(**_PUBLISHED, l2=l2), _SHORT)


MEMBERS = {
    # About 0.15 M parameters, for a first look; recipe chosen on held-out digits (docs/log.md).
    "tiny": Member(
        (16, 32, 64), 1, 64, False,
        Recipe(epochs=30, batch_size=32, lr=0.1, weight_decay=1e-3, initial_drop=0.03,
               drop_lr=0.05, drop_delay_epochs=1.0),
        {},
    ),
    "m": Member(
        (96, 192, 384), 4, 32, True, _stretched(50), {"published": {**_PUBLISHED, "l2": 50}}
    ),
    "mi": Member(
        (160, 320, 640), 4, 32, True, _stretched(150),
        {
            "published": {**_PUBLISHED, "l2": 150},
            "published-cifar100": {**_PUBLISHED, "l2": 2500},
        },
    ),
}  # fmt: skip


def _built(name: str, classes: int, channels: int, size: int | None) -> Backbone:
    member = MEMBERS[name]
    pixels = size or member.pixels
    shape = (channels, pixels, pixels)
    network = MultiBranch(member.widths, member.blocks, 16, shape, classes, member.shake)
    origin = "of the paper" if member.presets else "for digits"
    return Backbone(network, shape, member.recipe, origin, heads=("head",), presets=member.presets)


def tiny(*, classes: int, channels: int = 3, size: int | None = None) -> Backbone:
    """Two branches of 16 to 64 channels."""
    return _built("tiny", classes, channels, size)


def m(*, classes: int, channels: int = 3, size: int | None = None) -> Backbone:
    """SupNet-M: shake-shake 26 2x96d."""
    return _built("m", classes, channels, size)


def mi(*, classes: int, channels: int = 3, size: int | None = None) -> Backbone:
    """SupNet-MI: SupNet-M with a base width of 160."""
    return _built("mi", classes, channels, size)
