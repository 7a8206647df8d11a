"""The network that ENAS found for CIFAR-10 by its micro search (Pham et al. 2018).

Two cells are repeated: normal ones, and two that halve the image and double the channels. A cell
has the outputs of the two cells before as its first nodes; each further node is the sum of two
operations on earlier ones, and what no node reads is concatenated. Gates sit on pointwise
convolutions: a depthwise one has one input per output and nothing to choose. Pools and identities
are marked, so that they can have gates as well.

A member of the family is a number of filters.
"""

from typing import Any

import torch
import torch.nn.functional as F
from pgnas_backbones.multibranch import Downsample, stem
from torch import Tensor, nn

from pgnas_cli.graph import OperationGate
from pgnas_cli.registry import OBJECTIVE, Backbone, Recipe, shortened

# Four numbers a node: input, operation, input, operation.
NORMAL = (0, 2, 0, 0, 0, 4, 0, 1, 0, 4, 1, 1, 1, 0, 0, 1, 0, 2, 1, 1)
REDUCTION = (1, 0, 1, 0, 0, 3, 0, 2, 1, 1, 3, 1, 1, 0, 0, 4, 0, 3, 1, 1)
KERNELS = {0: 3, 1: 5}  # separable convolutions
AVERAGE, MAXIMUM, IDENTITY = 2, 3, 4
LAYERS = 15  # normal cells; a reduction cell stands before the sixth and the eleventh
DROP_PATH = 0.4  # of the last cell at the last step


def _pointwise(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
    )


class Separable(nn.Sequential):
    """Twice: ReLU, depthwise convolution, pointwise convolution, batch-norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        layers: list[nn.Module] = []
        for width, step in ((inputs, stride), (outputs, 1)):
            layers += [
                nn.ReLU(),
                nn.Conv2d(width, width, kernel, step, kernel // 2, groups=width, bias=False),
                nn.Conv2d(width, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            ]
        super().__init__(*layers)


class DropPath(nn.Module):
    """Drops an operation for some images in training; what stays is scaled up.

    The rate grows along the network and, in equal steps, over the fit.
    """

    def __init__(self, depth: float) -> None:
        super().__init__()
        self.depth = depth  # of its cell, in (0, 1]
        self.progress = 0.0  # share of the fit that is done

    @property
    def rate(self) -> float:
        return DROP_PATH * self.depth * self.progress

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        stays = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.rate
        return x * (stays.to(x.dtype) / (1 - self.rate))


def _operation(kind: int, filters: int, stride: int, depth: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    if kind in KERNELS:
        layers.append(Separable(filters, filters, KERNELS[kind], stride))
    elif kind == IDENTITY:
        layers += [*([Downsample(filters, filters)] if stride == 2 else []), OperationGate()]
    else:
        pool = nn.AvgPool2d if kind == AVERAGE else nn.MaxPool2d
        extra: dict[str, Any] = {"count_include_pad": False} if kind == AVERAGE else {}
        layers += [pool(3, stride, padding=1, **extra), OperationGate()]
    if kind != IDENTITY:
        layers.append(DropPath(depth))
    return nn.Sequential(*layers)


class Cell(nn.Module):
    """One cell: (output of the cell before the last, of the last) -> concatenated loose ends."""

    def __init__(
        self,
        code: tuple[int, ...],
        channels: tuple[int, int],  # of its two inputs
        halved: bool,  # the first input is twice as large as the second
        filters: int,
        stride: int,
        depth: float,
    ) -> None:
        super().__init__()
        self.code = code
        self.older: nn.Module = nn.Identity()
        if halved:
            self.older = nn.Sequential(nn.ReLU(), Downsample(channels[0], filters))
        elif channels[0] != filters:
            self.older = _pointwise(channels[0], filters)
        fitted = [] if channels[1] == filters else [_pointwise(channels[1], filters)]
        self.newer = nn.Sequential(*fitted, _pointwise(filters, filters))
        self.operations = nn.ModuleList()
        read = set()
        for at in range(0, len(code), 2):
            source, kind = code[at : at + 2]
            read.add(source)
            step = stride if source < 2 else 1
            self.operations.append(_operation(kind, filters, step, depth))
        self.loose = [node for node in range(2 + len(code) // 4) if node not in read]
        self.width = filters * len(self.loose)

    def forward(self, older: Tensor, newer: Tensor) -> Tensor:
        nodes = [self.older(older), self.newer(newer)]
        for node in range(0, len(self.operations), 2):
            first, second = (
                self.operations[at](nodes[self.code[2 * at]]) for at in (node, node + 1)
            )
            nodes.append(first + second)
        return torch.cat([nodes[node] for node in self.loose], 1)


class AuxiliaryPool(nn.Module):
    """To 2x2: 5x5 windows at a stride of 3, as in the released code, where that gives 2x2."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 5, 3) if 8 <= x.shape[-1] <= 10 else F.adaptive_avg_pool2d(x, 2)


class Auxiliary(nn.Sequential):
    """A second classifier, for the gradient; not part of what is exported."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__(
            nn.ReLU(),
            AuxiliaryPool(),
            nn.Conv2d(inputs, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(768, classes),
        )


class Enas(nn.Module):
    """Stem, cells, ReLU, mean, linear layer; in training (logits, those of the auxiliary head)."""

    training_only = ("auxiliary",)

    def __init__(
        self, filters: int, input_shape: tuple[int, int, int], classes: int, layers: int = LAYERS
    ) -> None:
        super().__init__()
        width = 3 * filters
        self.stem = stem(input_shape, width)
        reductions = (layers // 3, 2 * layers // 3 + 1)
        self.beside = reductions[-1] + 1  # the cell that the auxiliary head reads
        count = layers + len(reductions)
        self.cells = nn.ModuleList()
        channels, halved = (width, width), False
        for position in range(count):
            shrinks = position in reductions
            filters *= 2 if shrinks else 1
            cell = Cell(
                REDUCTION if shrinks else NORMAL, channels, halved, filters,
                2 if shrinks else 1, (position + 1) / count,
            )  # fmt: skip
            self.cells.append(cell)
            channels, halved = (channels[1], cell.width), shrinks
            if position == self.beside:
                self.auxiliary: nn.Module | None = Auxiliary(cell.width, classes)
        self.head = nn.Linear(channels[1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Any:  # (batch, channels, h, w) -> (batch, classes)
        older = newer = self.stem(x)
        second = None
        for position, cell in enumerate(self.cells):
            older, newer = newer, cell(older, newer)
            if self.training and self.auxiliary is not None and position == self.beside:
                second = self.auxiliary(newer)
        features = torch.flatten(F.adaptive_avg_pool2d(F.relu(newer), 1), 1)
        logits = self.head(features)
        return logits if second is None else (logits, second)

    def at_progress(self, share: float) -> None:
        """Tell the network which share of the fit is done, in (0, 1]."""
        for module in self.modules():
            if isinstance(module, DropPath):
                module.progress = share


# Supplement of the paper; 630 epochs are the cycles 10, 20, ..., 320.
_PUBLISHED: dict[str, Any] = {
    **OBJECTIVE, "opt": "nesterov", "lr": 0.05, "min_lr": 1e-4,
    "sched": "cosine", "cycle_epochs": 10.0, "lr_cycle_mul": 2.0, "epochs": 630,
    "batch_size": 144, "cutout": 16, "kl_images": 5e5, "l2": 0.1, "drop_opt": "weights",
}  # fmt: skip
_RECIPE = shortened(Recipe(**_PUBLISHED), 70)  # where nothing else is said


def _built(filters: int, classes: int, channels: int, size: int | None) -> Backbone:
    pixels = size or 32
    shape = (channels, pixels, pixels)
    network = Enas(filters, shape, classes)
    return Backbone(
        network, shape, _RECIPE, "of the paper", heads=("head", "auxiliary.9"),
        presets={"published": _PUBLISHED},
    )  # fmt: skip


def e(*, classes: int, channels: int = 3, size: int | None = None) -> Backbone:
    """SupNet-E: 36 filters."""
    return _built(36, classes, channels, size)


def ei(*, classes: int, channels: int = 3, size: int | None = None) -> Backbone:
    """SupNet-EI: 72 filters."""
    return _built(72, classes, channels, size)
