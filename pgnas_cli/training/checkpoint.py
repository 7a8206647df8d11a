"""Unfinished training on disk.

Randomness has no state (seeds.py), so that weights, optimizers and a few numbers are all.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..storage import from_json, to_json, typed
from ..tensors import checked, read_tensors, write_tensors

CHECKPOINT = "pgnas.checkpoint/1"
NETWORK = "network."  # before the names of its tensors
Plan = TypeVar("Plan")


@dataclass(frozen=True)
class State:
    """All that training needs to resume between two steps."""

    step: int  # steps done
    tensors: dict[str, Tensor]  # network.*, weights.*, drops.*, epoch.*
    numbers: dict[str, float]

    @property
    def network(self) -> dict[str, Tensor]:
        """The state dict of the network."""
        return {
            k.removeprefix(NETWORK): v for k, v in self.tensors.items() if k.startswith(NETWORK)
        }


def write_checkpoint(path: Path, state: State, plan: Any) -> None:
    """Store unfinished training and the record of what it is."""
    content = {"step": state.step, "numbers": state.numbers, "plan": to_json(plan)}
    write_tensors(path, CHECKPOINT, state.tensors, content)


def read_checkpoint(path: Path, plan: type[Plan]) -> tuple[State, Plan]:
    """The unfinished training in `path`, and what it is, a record of the class `plan`."""
    tensors, content = read_tensors(path, CHECKPOINT)
    step = typed(int, content.get("step"), "step", path)
    numbers = typed(dict[str, float], content.get("numbers"), "numbers", path)
    return State(step, tensors, numbers), from_json(plan, content.get("plan"), path)


def fits(state: State, network: nn.Module, numbers: set[str], path: Path) -> bool:
    """Whether `state` holds what resuming reads; raises PgnasError for another network."""
    checked(state.network, network.state_dict(), path)
    wanted = {"epoch.loss_sum", "epoch.wrong"}
    return state.step >= 1 and numbers <= set(state.numbers) and wanted <= set(state.tensors)


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
