"""What a fit needs to go on from between two steps.

Randomness has no state (randomness.py), so that weights, optimizers and a few numbers are all.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class State:
    """All that a fit needs to go on from between two steps; randomness has none (randomness.py)."""

    step: int  # steps done
    tensors: dict[str, Tensor]  # network.*, weights.*, drops.*, epoch.*
    numbers: dict[str, float]


def save_optimizer(
    optimizer: torch.optim.Optimizer,
    name: str,
    tensors: dict[str, Tensor],
    numbers: dict[str, float],
) -> None:
    """Add the state of `optimizer` to `tensors` and `numbers`, keys beginning with `name`."""
    for index, slots in optimizer.state_dict()["state"].items():
        for slot, value in slots.items():
            key = f"{name}.{index}.{slot}"
            if isinstance(value, Tensor):
                tensors[key] = value
            elif value is not None:
                numbers[key] = float(value)
    for index, group in enumerate(optimizer.param_groups):
        if "step" in group:  # some optimizers of timm count here
            numbers[f"{name}.group.{index}"] = float(group["step"])


def restore_optimizer(optimizer: torch.optim.Optimizer, name: str, state: State) -> None:
    """The inverse of `save_optimizer`."""
    slots: dict[int, dict[str, Any]] = {}
    for key, value in [*state.tensors.items(), *state.numbers.items()]:
        if key.startswith(f"{name}.group."):
            group = optimizer.param_groups[int(key.rpartition(".")[2])]
            group["step"] = int(state.numbers[key])
        elif key.startswith(f"{name}."):
            _, index, slot = key.split(".", 2)
            slots.setdefault(int(index), {})[slot] = value
    whole = optimizer.state_dict()
    optimizer.load_state_dict({"state": slots, "param_groups": whole["param_groups"]})
