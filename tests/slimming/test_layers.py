"""Picking channels against index_select."""

import pytest
import torch

from pgnas_cli.slimming.layers import picked

from ..networks import seeded


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((2, 5, 4, 3), 1), ((2, 4, 3, 5), 3), ((2, 5, 1, 1), 1), ((2, 5), 1), ((2, 3, 5), 2)],
)
def test_picking_channels_keeps_the_memory_format(shape: tuple[int, ...], axis: int) -> None:
    """Against index_select, which is slow on channels_last and leaves it."""
    features, read = torch.randn(shape, generator=seeded()), torch.tensor([0, 2])
    expected = features.index_select(axis, read)
    assert torch.equal(picked(features, read, axis), expected)
    if len(shape) == 4:
        last = features.contiguous(memory_format=torch.channels_last)
        found = picked(last, read, axis)
        assert torch.equal(found, expected)
        assert axis != 1 or found.is_contiguous(memory_format=torch.channels_last)
