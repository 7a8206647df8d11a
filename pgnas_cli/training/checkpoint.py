"""What a fit needs to go on from between two steps, and signals as requests to stop there.

Randomness has no state (seeds.py), so that weights, optimizers and a few numbers are all.
"""

import signal
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ..run.posterior import Posterior
from ..storage import from_json, read_tensors, to_json, typed, write_tensors


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


class StopRequest:
    """Context in which SIGINT and SIGTERM set `asked`; a second one interrupts at once."""

    def __enter__(self) -> "StopRequest":
        self.asked = False
        self.before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        for number in self.before:
            signal.signal(number, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, old in self.before.items():
            signal.signal(number, old)

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


CHECKPOINT = "pgnas.checkpoint/1"


def write_checkpoint(path: Path, state: State, posterior: Posterior) -> None:
    """Store an unfinished fit and what it is a fit of."""
    content = {"step": state.step, "numbers": state.numbers, "posterior": to_json(posterior)}
    write_tensors(path, CHECKPOINT, state.tensors, content)


def read_checkpoint(path: Path) -> tuple[State, Posterior]:
    """The unfinished fit in `path`, and what it is a fit of."""
    tensors, content = read_tensors(path, CHECKPOINT)
    step = typed(int, content.get("step"), "step", path)
    numbers = typed(dict[str, float], content.get("numbers"), "numbers", path)
    posterior = from_json(Posterior, content.get("posterior"), path)
    return State(step, tensors, numbers), posterior
