"""Exponential moving average of a network's weights (EMA), as timm's `--model-ema`.

Evaluation and the posterior use the average; training continues with the weights themselves.
"""

import torch
from torch import Tensor, nn

from ..errors import PgnasError
from ..slimming import Remainder
from .checkpoint import State
from .cutting import carried

AVERAGE = "average."  # before the names of its tensors in a checkpoint


class Average:
    """Moving average of weights and batch-norm statistics; p has none.

    In its first steps it forgets faster, by (1 + t) / (10 + t), so that the start weighs little.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.values = {name: value.clone() for name, value in _averaged(network).items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights after a step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        now = list(_averaged(network).values())
        torch._foreach_lerp_(list(self.values.values()), now, 1 - decay)
        self.steps += 1

    @torch.no_grad()
    def swap_(self, network: nn.Module) -> None:
        """Exchange the average and the weights of the network."""
        for name, value in _averaged(network).items():
            own = self.values[name]
            kept = value.clone()
            value.copy_(own)
            own.copy_(kept)

    def follow(self, source: Remainder, goal: Remainder, whole: nn.Module) -> None:
        """Go on with what is left of the network: `goal`, after `source`."""
        shapes = {name: value.shape for name, value in whole.state_dict().items()}
        names = {place.name: name for name, place in source.places.items()}
        found = {}
        for name, now in _averaged(goal.network).items():
            part = goal.places[name]
            old = names[part.name]
            value = carried(self.values[old], source.places[old], part, shapes[part.name])
            found[name] = torch.empty_like(now).copy_(value)
        self.values = found

    def save(self, tensors: dict[str, Tensor], numbers: dict[str, float]) -> None:
        """Add the average to what a checkpoint keeps."""
        tensors |= {AVERAGE + name: value for name, value in self.values.items()}
        numbers["averaged"] = self.steps

    def restore(self, state: State) -> None:
        """The inverse of `save`; raises PgnasError for the average of another network."""
        found = {
            name.removeprefix(AVERAGE): value
            for name, value in state.tensors.items()
            if name.startswith(AVERAGE)
        }
        kinds = [
            {name: (v.shape, v.dtype) for name, v in of.items()} for of in (found, self.values)
        ]
        if kinds[0] != kinds[1] or not 0 <= state.numbers.get("averaged", -1) < 2**53:
            raise PgnasError(
                "the checkpoint is damaged: its average of the weights is that of another network;"
                " start again with `force`"
            )
        for name, value in found.items():
            self.values[name].copy_(value)
        self.steps = int(state.numbers["averaged"])


def _averaged(network: nn.Module) -> dict[str, Tensor]:
    """Weights and statistics, without what belongs to the gates and without counters."""
    return {
        name: value
        for name, value in network.state_dict().items()
        if value.is_floating_point() and not name.startswith("gates.")
    }
