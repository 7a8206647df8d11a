"""Forwards that are written in odd ways, cut exactly all the same."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, ScaledStdConv2d
from timm.layers.pool2d_same import AvgPool2dSame
from torch import Tensor, nn

from pgnas_cli.gates import gates, make_concrete_

from ..networks import Five, assert_exact, random_keep, randomised, without


class OwnForward(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)


def _adds_without_rebinding(m: Any, x: Tensor) -> Tensor:
    y, z = m.a(x), m.b(x)
    y.add_(z)
    return m.c(y).mean((2, 3))


def _reads_what_was_overwritten(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y = m.b(y.relu_()) + y
    return m.c(y).mean((2, 3))


def _two_names_for_one_tensor(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    y = x
    x = x.add_(m.b(x))
    return (m.c(x) + y).mean((2, 3))


def _writes_through_a_view(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    view = y[:, ::2]
    view.mul_(m.b(x)[:, ::2])
    return m.c(y).mean((2, 3))


def _in_a_row(m: Any, x: Tensor) -> Tensor:
    return m.c(m.bn(m.b(m.a(x)))).mean((2, 3))


def _pooled_in_between(m: Any, x: Tensor) -> Tensor:
    return m.c(m.b(m.pool(m.a(x)))).mean((2, 3))


def _norm_behind_a(m: Any, x: Tensor) -> Tensor:
    return m.c(F.leaky_relu(m.bn(m.a(x)), 0.1)).mean((2, 3))


def _norm_behind(**layers: nn.Module) -> tuple[Callable[[Any, Tensor], Tensor], dict[str, Any]]:
    """A constant, where `a` is closed, goes through a norm into a padded reader."""
    return _norm_behind_a, {"bn": nn.BatchNorm2d(5), "head": nn.Linear(4, 5), **layers}


def _in_a_concatenation(m: Any, x: Tensor) -> Tensor:
    x = m.act(x)
    x = m.pool(m.act(m.bn(torch.cat([m.a(x), m.b(x)], 1))))
    return torch.flatten(m.c(x), 1)


def _overwritten(
    step: Callable[[Tensor], Tensor],
) -> tuple[Callable[[Any, Tensor], Tensor], dict[str, Any]]:
    """A step in place, on a view, changes what another layer reads later."""

    def steps(m: Any, x: Tensor) -> Tensor:
        x = m.bn(torch.cat([m.a(x), m.live(x)], 1))
        y = m.b(step(x))
        return (y + m.c(x)).mean((2, 3))

    return steps, {
        "a": nn.Conv2d(16, 5, 1), "live": nn.Conv2d(16, 3, 1), "bn": nn.BatchNorm2d(8),
        "b": nn.Conv2d(8, 4, 1), "c": nn.Conv2d(8, 4, 1), "head": nn.Linear(4, 5),
    }  # fmt: skip


def _keeps_the_chunks_in_a_list(m: Any, x: Tensor) -> Tensor:
    parts = list(m.b(x).chunk(2, 1))
    parts.append(m.a(parts[-1]))
    return m.c(torch.cat(parts, 1)).mean((2, 3))


def _asserts_its_shapes(m: Any, x: Tensor) -> Tensor:
    _, channels, height, width = m.a(x).shape
    assert height == width
    assert channels == 16, "fails on a tensor that was cut"
    for _ in range(len(x.shape) - 3):
        x = m.b(m.a(x))
    return m.c(x).mean((2, 3)).view(len(x), int(channels / 1))


def _flagged(m: Any, x: Tensor) -> Tensor:
    return m.c(m.flag(x)).mean((2, 3))


class Flagged(nn.Module):
    """Takes more than its input, and branches on it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor | None = None, early: bool = False) -> Tensor:
        x = self.a(x) if mask is None else x * mask
        return x if early else self.b(x)


ODD: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, nn.Module]]] = {
    "keeps the chunks in a list": (
        _keeps_the_chunks_in_a_list, {"a": nn.Conv2d(8, 8, 1), "c": nn.Conv2d(24, 16, 1)},
    ),
    "asserts its shapes": (_asserts_its_shapes, {}),
    "counts its channels": (
        lambda m, x: m.c(m.b(m.a(x) * int(m.a(x).shape[1]))).mean((2, 3)), {},
    ),
    "takes flags": (_flagged, {"flag": Flagged()}),
    "flattens by view": (
        lambda m, x: m.c(m.b(m.a(x))).view(x.size(0), -1), {"head": nn.Linear(16 * 81, 5)},
    ),
    "adds in place without rebinding": (_adds_without_rebinding, {}),
    "reads what was overwritten": (_reads_what_was_overwritten, {}),
    "two names for one tensor": (_two_names_for_one_tensor, {}),
    "writes through a view": (_writes_through_a_view, {}),
    "reads a layer's weight": (
        lambda m, x: m.c(
            m.b(m.a(x)) + F.conv2d(x, m.b.weight, m.b.bias, padding=1)
        ).mean((2, 3)), {},
    ),
    "reads a norm's weight": (
        lambda m, x: m.c(m.b(m.bn(m.a(x)) * m.bn.weight.view(1, -1, 1, 1))).mean((2, 3)), {},
    ),
    "own forward, no padding": (_in_a_row, {"b": OwnForward(16, 16, 3)}),
    "own forward, strided": (_in_a_row, {"b": OwnForward(16, 16, 2, stride=2)}),
    "standardised, strided": (_in_a_row, {"b": ScaledStdConv2d(16, 16, 2, stride=2)}),
    "pool that pads": (_pooled_in_between, {"pool": AvgPool2dSame(3, 2)}),
    "pools across channels": (
        lambda m, x: m.pool(m.c(m.b(m.a(x))).permute(0, 2, 3, 1)).mean((1, 2)),
        {"pool": nn.AvgPool2d(3, 1, padding=1)},
    ),
    "pools across channels by a function": (
        lambda m, x: F.max_pool2d(m.c(m.b(m.a(x))).transpose(1, 3), 3, 1, 1).mean((1, 2)), {},
    ),
    "pool with a divisor": (
        _pooled_in_between, {"pool": nn.AvgPool2d(2, ceil_mode=True, divisor_override=4)},
    ),
    "norm that activates": (_in_a_row, {"bn": BatchNormAct2d(16, act_layer=nn.PReLU)}),
    "norm without content": (
        _in_a_row, {"bn": nn.BatchNorm2d(16, affine=False, track_running_stats=False)},
    ),
    "squeezes two axes": (
        lambda m, x: m.c(m.b(m.a(x))).mean((2, 3), keepdim=True).squeeze((2, 3)), {},
    ),
    "squeezes a long axis": (lambda m, x: m.c(m.b(m.a(x))).squeeze(2).mean((2, 3)), {}),
    "flattens in part": (
        lambda m, x: m.c(m.b(m.a(x))).flatten(1, 2).mean(2), {"head": nn.Linear(16 * 9, 5)},
    ),
    "names its axes": (
        lambda m, x: m.c(
            m.b(m.a(x)).transpose(dim0=2, dim1=3).unsqueeze(dim=-1).squeeze(-1)
        ).mean((2, 3)), {},
    ),
    "calls a layer twice": (
        lambda m, x: F.adaptive_avg_pool2d(x + m.b(m.b(x).relu()), 1).flatten(1), {},
    ),
    "closed before padding": _norm_behind(
        a=nn.Conv2d(16, 5, 3, padding=1, bias=False), c=nn.Conv2d(5, 4, 3, padding=1)
    ),
    "closed before no padding": _norm_behind(
        a=nn.Conv2d(16, 5, 3, padding=1, bias=False), c=nn.Conv2d(5, 4, 3)
    ),
    "closed with a stride": _norm_behind(
        a=nn.Conv2d(16, 5, 3, padding=1, stride=2), c=nn.Conv2d(5, 4, 3, padding=1)
    ),
    # The border of a padded 1x1 is bias alone, so that its output is no constant.
    "closed with a border": _norm_behind(
        a=nn.Conv2d(16, 5, 1, padding=1), c=nn.Conv2d(5, 4, 1, padding=1)
    ),
    "closed in a concatenation": (
        _in_a_concatenation,
        {"a": nn.Conv2d(16, 5, 1), "b": nn.Conv2d(16, 3, 1), "bn": nn.BatchNorm2d(8),
         "act": nn.ReLU(inplace=True), "pool": nn.MaxPool2d(2), "head": nn.Linear(4 * 16, 5),
         "c": nn.Conv2d(8, 4, 3, padding=1, bias=False)},
    ),
    "relu_": _overwritten(torch.relu_),
    "relu in place": _overwritten(lambda x: F.relu(x, inplace=True)),
    "relu_ of contiguous": _overwritten(lambda x: x.contiguous().relu_()),
    "relu_ of dropout": _overwritten(lambda x: F.dropout(x, training=False).relu_()),
    "relu_ of a view": _overwritten(lambda x: x.view(x.shape).relu_()),
    "mul_ of detached": _overwritten(lambda x: x.detach().mul_(2.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_networks_slim_exactly(name: str) -> None:
    """Ways of writing a forward that have led to wrong or broken slim networks."""
    torch.manual_seed(0)
    steps, extra = ODD[name]
    network = randomised(make_concrete_(Five(steps, **copy.deepcopy(extra)), (3, 9, 9)))
    for keep in (random_keep(network, drop, seed) for drop in (0.3, 0.9) for seed in range(2)):
        assert_exact(network, keep)
    for layer in gates(network).spans:
        for drop in (0.0, 0.3):
            assert_exact(network, without(network, layer, random_keep(network, drop)))


def test_a_sequential_network_can_be_gated() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()]
    network = make_concrete_(nn.Sequential(*layers, nn.Linear(8 * 16, 5)), (3, 8, 8)).eval()
    assert_exact(network, random_keep(network, 0.5))
