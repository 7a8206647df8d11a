"""What merely runs a network is taken off, and what cannot be analysed is named."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from pgnas_cli.errors import PgnasError
from pgnas_cli.graph import trace
from pgnas_cli.registry.wrappers import unwrapped

from ..networks import Five


def _compiled_in_place(network: nn.Module) -> nn.Module:
    network.compile()
    return network


def _compiled_inside(network: Any) -> nn.Module:
    network.b = torch.compile(nn.DataParallel(network.b))
    return network


@pytest.mark.parametrize(
    "wrap",
    [torch.compile, nn.DataParallel, lambda n: nn.DataParallel(torch.compile(n)),
     _compiled_in_place, _compiled_inside],
)  # fmt: skip
def test_the_network_inside_a_wrapper_is_taken(wrap: Any) -> None:
    network = Five(lambda m, x: m.c(m.b(m.a(x))).mean((2, 3)))
    names = list(network.state_dict())
    assert unwrapped(wrap(network), "it") is network
    assert list(network.state_dict()) == names
    assert network._compiled_call_impl is None
    assert trace(network, (3, 8, 8)).opaque() == []


def test_torchscript_is_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        inside = nn.Sequential(torch.jit.script(nn.Conv2d(3, 4, 1)))
    with pytest.raises(
        PgnasError, match=r"^it gives a network of TorchScript, which cannot be pruned; give"
    ):
        unwrapped(inside, "it")
