"""Multi-branch residual networks (Gastaldi 2017): each block adds two equal branches to its skip.

The whole family is one builder; a member is a row of numbers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgnas_cli.registry import Backbone, Recipe


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


class Block(nn.Module):
    """Skip plus the mean of two branches."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
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
        return skip + (self.branch1(active) + self.branch2(active)) * 0.5  # type: ignore[no-any-return]


class MultiBranch(nn.Module):
    """Stem, stages of blocks (each but the first halves the image), ReLU, mean, linear layer."""

    def __init__(
        self,
        widths: tuple[int, ...],
        blocks: int,
        stem_width: int,
        input_shape: tuple[int, int, int],
        classes: int,
    ) -> None:
        super().__init__()
        self.stem = _stem(input_shape, stem_width)
        stages = []
        inputs = stem_width
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stages.append(Block(inputs, width, stride=2 if stage and not block else 1))
                inputs = width
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:  # (batch, channels, h, w) -> (batch, classes)
        x = F.relu(self.blocks(self.stem(x)))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))  # type: ignore[no-any-return]


def _stem(input_shape: tuple[int, int, int], width: int) -> nn.Sequential:
    """The CIFAR stem up to 40 pixels; above, a quarter of the height and width goes on."""
    channels, height, _ = input_shape
    small = height <= 40
    layers = [
        nn.Conv2d(channels, width, 3, stride=1 if small else 2, padding=1, bias=False),
        nn.BatchNorm2d(width),
    ]
    return nn.Sequential(*layers, *([] if small else [nn.MaxPool2d(3, 2, padding=1)]))


def tiny(*, classes: int, channels: int = 3, size: int | None = None) -> Backbone:
    """About 0.15 M parameters: for a first look on two cores."""
    pixels = size or 64
    input_shape = (channels, pixels, pixels)
    network = MultiBranch((16, 32, 64), 1, 16, input_shape, classes)
    # Chosen on held-out digits (docs/log.md).
    recipe = Recipe(
        epochs=30, batch_size=32, learning_rate=0.1, weight_decay=1e-3, initial_drop=0.03
    )
    return Backbone(network, input_shape, recipe, heads=("head",))
