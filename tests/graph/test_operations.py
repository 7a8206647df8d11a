"""Forwards that are written in odd ways, and arguments that are no candidates."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, ScaledStdConv2d
from timm.layers.pool2d_same import AvgPool2dSame
from torch import Tensor, nn

from pgnas_cli.errors import PgnasError
from pgnas_cli.gates import draw, gates, make_concrete_, masked
from pgnas_cli.registry.build import create_supernet
from pgnas_cli.sizes import count
from pgnas_cli.slimming import slim

from ..networks import random_keep, randomised, tiny
from .test_slimming import assert_same_logits, seeded


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
        return self.head(self.steps(self, self.stem(x).relu()))  # type: ignore[no-any-return]


class OwnForward(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)


def _adds_without_rebinding(m: Any, x: Tensor) -> Tensor:
    y, z = m.a(x), m.b(x)
    y.add_(z)
    return m.c(y).mean((2, 3))  # type: ignore[no-any-return]


def _reads_what_was_overwritten(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y = m.b(y.relu_()) + y
    return m.c(y).mean((2, 3))  # type: ignore[no-any-return]


def _two_names_for_one_tensor(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    y = x
    x = x.add_(m.b(x))
    return (m.c(x) + y).mean((2, 3))  # type: ignore[no-any-return]


def _writes_through_a_view(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    view = y[:, ::2]
    view.mul_(m.b(x)[:, ::2])
    return m.c(y).mean((2, 3))  # type: ignore[no-any-return]


def _reads_a_layers_weight(m: Any, x: Tensor) -> Tensor:
    x = m.b(m.a(x)) + F.conv2d(x, m.b.weight, m.b.bias, padding=1)
    return m.c(x).mean((2, 3))  # type: ignore[no-any-return]


def _reads_a_norms_weight(m: Any, x: Tensor) -> Tensor:
    x = m.bn(m.a(x)) * m.bn.weight.view(1, -1, 1, 1)
    return m.c(m.b(x)).mean((2, 3))  # type: ignore[no-any-return]


def _in_a_row(m: Any, x: Tensor) -> Tensor:
    return m.c(m.bn(m.b(m.a(x)))).mean((2, 3))  # type: ignore[no-any-return]


def _pooled_in_between(m: Any, x: Tensor) -> Tensor:
    return m.c(m.b(m.pool(m.a(x)))).mean((2, 3))  # type: ignore[no-any-return]


def _squeezes_two_axes(m: Any, x: Tensor) -> Tensor:
    return m.c(m.b(m.a(x))).mean((2, 3), keepdim=True).squeeze((2, 3))  # type: ignore[no-any-return]


def _squeezes_a_long_axis(m: Any, x: Tensor) -> Tensor:
    return m.c(m.b(m.a(x))).squeeze(2).mean((2, 3))  # type: ignore[no-any-return]


def _flattens_in_part(m: Any, x: Tensor) -> Tensor:
    return m.c(m.b(m.a(x))).flatten(1, 2).mean(2)  # type: ignore[no-any-return]


def _names_its_axes(m: Any, x: Tensor) -> Tensor:
    x = m.b(m.a(x)).transpose(dim0=2, dim1=3)
    return m.c(x.unsqueeze(dim=-1).squeeze(-1)).mean((2, 3))  # type: ignore[no-any-return]


ODD = {
    "adds in place without rebinding": (_adds_without_rebinding, {}),
    "reads what was overwritten": (_reads_what_was_overwritten, {}),
    "two names for one tensor": (_two_names_for_one_tensor, {}),
    "writes through a view": (_writes_through_a_view, {}),
    "reads a layer's weight": (_reads_a_layers_weight, {}),
    "reads a norm's weight": (_reads_a_norms_weight, {}),
    "own forward, no padding": (_in_a_row, {"b": OwnForward(16, 16, 3)}),
    "own forward, strided": (_in_a_row, {"b": OwnForward(16, 16, 2, stride=2)}),
    "standardised, strided": (_in_a_row, {"b": ScaledStdConv2d(16, 16, 2, stride=2)}),
    "pool that pads": (_pooled_in_between, {"pool": AvgPool2dSame(3, 2)}),
    "pool with a divisor": (
        _pooled_in_between, {"pool": nn.AvgPool2d(2, ceil_mode=True, divisor_override=4)},
    ),
    "norm that activates": (_in_a_row, {"bn": BatchNormAct2d(16, act_layer=nn.PReLU)}),
    "norm without content": (
        _in_a_row, {"bn": nn.BatchNorm2d(16, affine=False, track_running_stats=False)},
    ),
    "squeezes two axes": (_squeezes_two_axes, {}),
    "squeezes a long axis": (_squeezes_a_long_axis, {}),
    "flattens in part": (_flattens_in_part, {"head": nn.Linear(16 * 9, 5)}),
    "names its axes": (_names_its_axes, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_networks_slim_exactly(name: str) -> None:
    """Ways of writing a forward that have led to wrong or broken slim networks."""
    torch.manual_seed(0)
    steps, extra = ODD[name]
    size = 9
    network = randomised(make_concrete_(Five(steps, **copy.deepcopy(extra)), (3, size, size)))
    keeps = [random_keep(network, drop, seed) for drop in (0.3, 0.9) for seed in range(2)]
    for first, last in gates(network).spans.values():
        keeps.append(random_keep(network, 0.3))
        keeps[-1][first:last] = False
    for keep in keeps:
        assert_same_logits(network, keep, size)
        smaller = slim(network, keep)
        assert sum(p.numel() for p in smaller.parameters()) == int(
            count(network, keep[None]).params
        )


def test_a_forward_that_wants_contiguous_memory_is_refused() -> None:
    """Training is channels_last, where view() fails: said before it starts."""
    network = Five(lambda m, x: m.c(x).view(len(x), -1), head=nn.Linear(16 * 64, 5))
    with pytest.raises(PgnasError, match=r"Use \.reshape"):
        make_concrete_(network, (3, 8, 8))


def test_a_sequential_network_can_be_gated() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()]
    network = make_concrete_(nn.Sequential(*layers, nn.Linear(8 * 16, 5)), (3, 8, 8)).eval()
    assert_same_logits(network, random_keep(network, 0.5), 8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_networks_of_other_types_slim(dtype: torch.dtype) -> None:
    network = tiny().to(dtype)
    keep = random_keep(network, 0.3)
    x = torch.randn(4, 1, 8, 8, generator=seeded()).to(dtype)
    with torch.no_grad(), masked(network, keep):
        expected = network(x)
        found = slim(network, keep)(x)
    assert found.dtype == dtype
    assert (found - expected).abs().max() <= (1e-9 if dtype == torch.float64 else 0.2)


def test_what_was_frozen_stays_frozen() -> None:
    network = tiny()
    layers = list(gates(network).spans)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    keep = random_keep(network, 0.3)
    first, last = gates(network).spans[layers[2]]
    keep[first:last] = False
    assert not any(p.requires_grad for p in slim(network, keep).parameters())


def test_super_and_slim_networks_can_be_pickled() -> None:
    network = tiny()
    keep = random_keep(network, 0.3)
    x = torch.randn(2, 1, 8, 8, generator=seeded())
    for original in (network, slim(network, keep)):
        again = pickle.loads(pickle.dumps(original))
        assert [type(m) for m in again.modules()] == [type(m) for m in original.modules()]
        with torch.no_grad():
            assert torch.equal(again(x), original(x))


@pytest.mark.parametrize(
    "keep",
    [
        torch.ones(3, dtype=torch.bool), torch.ones(10_000, dtype=torch.bool), torch.ones(()),
        [True], "float", "two rows",
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_candidate_is_refused(keep: Any) -> None:
    network = tiny()
    gate_count = gates(network).count
    if keep == "float":
        keep = torch.ones(gate_count)
    elif keep == "two rows":
        keep = torch.ones(2, gate_count, dtype=torch.bool)
    with pytest.raises(PgnasError, match=rf"a candidate is a bool tensor \({gate_count},\), this"):
        slim(network, keep)


def test_wrong_arguments_are_refused() -> None:
    network = tiny()
    keep = random_keep(network, 0.3)
    with pytest.raises(PgnasError, match="round_to 0 is out of range"):
        slim(network, keep, round_to=0)
    with pytest.raises(PgnasError, match="Linear has no gates"):
        slim(nn.Linear(2, 2), keep)
    with pytest.raises(PgnasError, match="a candidate is a bool tensor"):
        masked(network, keep.float())
    for wrong in (torch.full((3,), 0.5), torch.full((len(gates(network).groups),), 1.5)):
        with pytest.raises(PgnasError, match="numbers from 0 to 1"):
            draw(network, generator=seeded(), drop_probability=wrong)
    with pytest.raises(PgnasError, match=r"is not \(channels, size, size\)"):
        create_supernet("multibranch-tiny", 10, input_shape=(3, 64, 96))
    with pytest.raises(PgnasError, match="1 classes are too few"):
        create_supernet("multibranch-tiny", 1)
