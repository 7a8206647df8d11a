"""Unfinished training on disk.

Randomness has no state (seeds.py), so that weights, optimizers and a few numbers are all. A file
may come from a stranger: its tensors must be those that a step of this training would leave.
"""

import contextlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import PgnasError
from ..run.posterior import is_sound
from ..storage import from_json, to_json, typed
from ..tensors import checked, read_header, read_values, write_tensors

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
    header, content = read_header(path, CHECKPOINT)
    step = typed(int, content.get("step"), "step", path)
    numbers = typed(dict[str, float], content.get("numbers"), "numbers", path)
    what = from_json(plan, content.get("plan"), path)
    return State(step, read_values(path, header), numbers), what


def fits(state: State, network: nn.Module, numbers: set[str], path: Path) -> bool:
    """Whether `state` holds what resuming reads; raises PgnasError for another network."""
    checked(state.network, network.state_dict(), path)
    sums: dict[str, tuple[int, ...]] = {"epoch.loss_sum": (), "epoch.wrong": ()}
    bank = getattr(network, "gates", None)
    shapes = sums if bank is None else {**sums, "epoch.before": (2, len(bank.groups))}
    found = {name: state.tensors.get(name) for name in shapes}
    return (
        all(t is not None and tuple(t.shape) == shapes[name] for name, t in found.items())
        and all(is_sound(name, tensor) for name, tensor in state.tensors.items())
        and numbers | {"seen", "steps"} <= set(state.numbers)
        and 0 <= state.numbers["seen"] < 2**53
        and 1 <= state.step <= state.numbers["steps"] < 2**53
    )


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
    groups: dict[int, int] = {}
    for key, value in [*state.tensors.items(), *state.numbers.items()]:
        if not key.startswith(f"{name}."):
            continue
        index, _, slot = key.removeprefix(f"{name}.").partition(".")
        place = slot if index == "group" else index
        if not place.isdecimal() or len(place) > 9:
            raise _no_optimizer(key)
        if index == "group":
            groups[int(place)] = int(state.numbers[key])
        else:
            slots.setdefault(int(index), {})[slot] = value
    _check_slots(optimizer, name, slots)
    for place_of, step in groups.items():
        if place_of >= len(optimizer.param_groups) or not 0 <= step < 2**53:
            raise _no_optimizer(f"{name}.group.{place_of}")
        optimizer.param_groups[place_of]["step"] = step
    whole = optimizer.state_dict()
    optimizer.load_state_dict({"state": slots, "param_groups": whole["param_groups"]})


def _check_slots(
    optimizer: torch.optim.Optimizer, name: str, slots: dict[int, dict[str, Any]]
) -> None:
    """Raise PgnasError unless each parameter has the state that a step gives it, or none."""
    expected = _after_a_step(optimizer)
    for index, found in slots.items():
        if index >= len(expected):
            raise _no_optimizer(f"{name}.{index}")
        wanted = expected[index]
        if wanted is None:
            continue
        for slot in sorted(set(wanted) ^ set(found)):
            raise _no_optimizer(f"{name}.{index}.{slot}")
        for slot, value in found.items():
            if _kind(value) != _kind(wanted[slot]):
                raise _no_optimizer(f"{name}.{index}.{slot}")


def _kind(value: Any) -> Any:
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else float


def _no_optimizer(key: str) -> PgnasError:
    return PgnasError(
        f"the checkpoint is damaged: its state of the optimizer, {key}, is not what a step leaves;"
        " start again with `force`"
    )


def _after_a_step(optimizer: torch.optim.Optimizer) -> list[dict[str, Any] | None]:
    """The state of each parameter after one step, on the meta device if it can be had there.

    None where the optimizer fails on gradients of zero.
    """
    for device in ("meta", "cpu"):
        twin = object.__new__(type(optimizer))
        twin.__dict__.update(optimizer.__dict__)
        twin.param_groups = [
            {**g, "params": [torch.zeros_like(p, device=device) for p in g["params"]]}
            for g in optimizer.param_groups
        ]
        parameters = [p for group in twin.param_groups for p in group["params"]]
        originals = [p for group in optimizer.param_groups for p in group["params"]]
        twin.state = defaultdict(dict)
        for parameter, original in zip(parameters, originals, strict=True):
            parameter.grad = torch.zeros_like(parameter)
            for slot, value in optimizer.state.get(original, {}).items():  # some have it at once
                there = isinstance(value, Tensor)
                twin.state[parameter][slot] = value.to(device, copy=True) if there else value
        with contextlib.suppress(RuntimeError):
            twin.step()
            return [
                {slot: v for slot, v in twin.state[p].items() if v is not None} for p in parameters
            ]
    return [None] * len(parameters)
