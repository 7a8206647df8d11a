"""Unfinished training on disk."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pgnas_cli.data import ImageData
from pgnas_cli.training.checkpoint import read_checkpoint, write_checkpoint

from .conftest import loop_of, steps


@dataclass(frozen=True)
class Plan:
    name: str


@pytest.mark.parametrize("optimizer", ["adan", "adamuon", "clamb", "lion"])
def test_every_kind_of_optimizer_state_is_saved(
    digits: ImageData, optimizer: str, tmp_path: Path
) -> None:
    """Adan counts its steps in the parameter groups, AdaMuon keeps flags; through the file."""
    path = tmp_path / "c.safetensors"
    straight, again = (loop_of(digits, opt=optimizer, lr=1e-3, epochs=1) for _ in range(2))
    for step in steps(straight):
        if step == 5:
            write_checkpoint(path, straight.state(), Plan("a"))
    state, plan = read_checkpoint(path, Plan)
    assert plan == Plan("a")
    again.restore(state)
    assert next(steps(again)) == 6
    list(steps(again))
    for name, value in straight.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name
