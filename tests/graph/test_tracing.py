"""Forwards that cannot be analysed: refused, with the reason, before any training."""

from typing import Any

import pytest
from torch import Tensor, nn

from pgnas_cli.errors import PgnasError
from pgnas_cli.graph import trace

from ..networks import Five
from ..networks import supernet as timm_network


class Twice(nn.Linear):
    def forward(self, input: Tensor) -> Any:
        return super().forward(input), input


def _branches_on_values(m: Any, x: Tensor) -> Tensor:
    return m.a(x if x.sum() > 0 else -x).mean((2, 3))


def _divides_in_place(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    z = y
    z /= 3.0
    return (m.b(y) + m.c(z)).mean((2, 3))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            Five(_branches_on_values),
            r"^Five cannot be traced: behind step gt: step gt asks for the value of a tensor"
            r" \(test_tracing\.py:\d+: return m\.a\(x if x\.sum\(\) > 0 else -x\).*\);"
            " a forward that branches on tensor values cannot be searched",
        ),
        (
            Five(lambda m, x: m.b(x).mean((2, 3)).view(len(x), 7)),
            r"^Five does not take images of 8x8 .*\(test_tracing\.py:\d+: Five\(lambda m, x: m",
        ),
        (Five(_divides_in_place), "computes something else when traced"),
        (Five(lambda m, x: x.mean((2, 3)), head=Twice(16, 5)), "does not give one row of logits"),
        (nn.Conv2d(3, 4, 3), "Conv2d does not give one row of logits per image"),
    ],
)
def test_what_cannot_be_analysed_is_refused(network: nn.Module, message: str) -> None:
    with pytest.raises(PgnasError, match=message):
        trace(network, (3, 8, 8))


def test_an_image_too_small_for_the_network_is_said_so() -> None:
    message = r"InceptionV3 does not take images of 64x64.*try another `img_size`"
    with pytest.raises(PgnasError, match=message):
        timm_network("inception_v3")
