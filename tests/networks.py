"""Small networks and candidates for tests and benches; every random number has a seed."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pgnas_cli.gates import draw, gates, masked
from pgnas_cli.registry.build import create_supernet
from pgnas_cli.sizes import count
from pgnas_cli.slimming import Layout, arranged, largest_difference, slim, wire
from pgnas_cli.timing import StepTime, TimeTable, fingerprint, milliseconds


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random batch-norm, biases, per-channel parameters, zero weights, in place; evaluation mode.

    Fresh scales of one, biases and heads of zero hide mistakes.
    """
    g = seeded(seed)
    done = set()
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.affine:
            for tensor in (module.weight, module.bias, module.running_mean):
                tensor.data.normal_(generator=g)
                done.add(id(tensor))
            module.running_var.uniform_(0.5, 2.0, generator=g)
    for name, parameter in network.named_parameters():
        vector = sum(n > 1 for n in parameter.shape) <= 1
        if not vector and not parameter.any():
            parameter.data.normal_(std=0.1, generator=g)
        if not vector or id(parameter) in done or name.startswith("gates."):
            continue
        if name.endswith("bias"):
            parameter.data.normal_(std=0.3, generator=g)
        else:  # layer scale, skip gains, layer norm
            parameter.data.uniform_(0.5, 1.5, generator=g)
    return network.eval()


def tiny(size: int = 8, channels: int = 1, **options: object) -> nn.Module:
    """multibranch-tiny with randomised batch-norm, evaluation mode."""
    network = create_supernet("multibranch-tiny", 10, input_shape=(channels, size, size), **options)
    return randomised(network)


def random_keep(network: nn.Module, drop: float, seed: int = 0) -> Tensor:
    """One candidate at a single drop probability, bool (gates,)."""
    return draw(network, generator=seeded(seed), drop_probability=drop)


def supernet(name: str, **options: object) -> nn.Module:
    """`tiny`, or a network of timm or "torchvision/NAME", with gates, for images of 64 pixels;
    randomised."""
    if name == "multibranch-tiny":
        return tiny(**options)
    called = name if "/" in name else f"timm/{name}"
    network = create_supernet(called, 10, input_shape=(3, 64, 64), **options)
    return randomised(network)


def made_up_times(network: nn.Module, block: int = 16) -> TimeTable:
    """A time table with coefficients of their own for every step, as if it had been measured."""
    draw, steps = seeded(7), []
    for node in gates(network).graph.nodes:
        fixed, both, inputs, outputs, picked, picking = torch.rand(6, generator=draw).tolist()
        mix = node.kind == "mix"
        steps.append(
            StepTime(
                node.name, fixed * 1e-2, both * 1e-4 if mix else 0.0, inputs * 1e-3,
                outputs * 1e-3, picked * 1e-3, picking * 1e-2, block if mix else 1,
            )
        )  # fmt: skip
    table = TimeTable(
        "torch", "a device", 1, 1, "float32", gates(network).graph.input_shape, tuple(steps), 1.1,
        0.05, 1.0, fingerprint(network),
    )  # fmt: skip
    everything = wire(network, torch.ones(1, gates(network).count, dtype=torch.bool))
    return dataclasses.replace(table, whole=float(milliseconds(table, everything)))


class Five(nn.Module):
    """Five layers in whatever order `steps` calls them; `extra` adds or replaces some."""

    def __init__(self, steps: Callable[[Any, Tensor], Tensor], **extra: nn.Module) -> None:
        super().__init__()
        self.stem, self.b = (nn.Conv2d(i, 16, 3, padding=1) for i in (3, 16))
        self.a, self.c = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.bn, self.head = nn.BatchNorm2d(16), nn.Linear(16, 5)
        for name, module in extra.items():
            setattr(self, name, module)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.steps(self, self.stem(x).relu()))


def settled(network: nn.Module, closed: float = 0.4, opened: float = 0.3, seed: int = 1) -> Tensor:
    """Make p of random groups exactly 1 or 0, in place; bool (gates,), True where it is 1.

    What the last layer reads stays undecided.
    """
    bank = gates(network)
    draws = torch.rand(len(bank.groups), generator=seeded(seed))
    last = bank.groups[-1].layer
    draws[[group.layer == last for group in bank.groups]] = 1.0
    logits = bank.drop_logit.data
    logits[draws < closed] = torch.inf
    logits[(closed <= draws) & (draws < closed + opened)] = -torch.inf
    return logits.isposinf()[bank.group]


def everything(network: nn.Module) -> Tensor:
    """The candidate that keeps every gate."""
    return torch.ones(gates(network).count, dtype=torch.bool)


def without(network: nn.Module, layer: str, keep: Tensor | None = None) -> Tensor:
    """`keep`, or everything, with every input of `layer` dropped."""
    first, last = gates(network).spans[layer]
    keep = everything(network) if keep is None else keep.clone()
    keep[first:last] = False
    return keep


def assert_exact(network: nn.Module, keep: Tensor, size: int | None = None, rows: int = 8) -> None:
    """Design law: 1e-4 of the largest logit, same arg-max, and the count that was announced."""
    channels, pixels, _ = gates(network).graph.input_shape
    size = size or pixels
    images = torch.randn(rows, channels, size, size, generator=seeded(1))
    with torch.no_grad(), masked(network, keep):
        expected = network(images)
    assert expected.abs().max() > 0
    smaller = slim(network, keep)
    assert sum(p.numel() for p in smaller.parameters()) == int(count(network, keep[None]).params)
    for layout in get_args(Layout):
        found = arranged(copy.deepcopy(smaller), layout, gates(network).graph)
        assert largest_difference(network, keep, found, [images]) <= 1e-4, (size, layout)
        with torch.no_grad():
            assert torch.equal(found(images).argmax(1), expected.argmax(1))
