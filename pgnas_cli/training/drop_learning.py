"""Learn the drop probabilities beside the weights.

The gradient of the loss with respect to a drop logit is of the order of 1 / N, so the optimizer of
the weights would hardly move it; the drop logits have Adam, whose steps do not depend on the
gradient's scale.
"""

from contextlib import AbstractContextManager
from typing import cast

import torch
from torch import Tensor, nn

from ..gates import Prior, drop_probabilities, gates, hard_keep, masked, opened, per_gate, relaxed
from ..registry import Recipe
from ..seeds import generator
from ..sizes import ExpectedSize, Target
from .checkpoint import State, restore_optimizer, save_optimizer
from .schedule import schedule_of
from .size_control import SizeControl, phases


class DropLearning:
    """p over a fit: its optimizer, the gates of each step, the size that is aimed at."""

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        prior: Prior,
        *,
        steps: int,
        per_epoch: int,  # steps
        seed: int,
        fixed_drop: float | None = None,  # one p for all gates, reached over the delay
        target: Target | None = None,
    ) -> None:
        self.network, self.recipe, self.prior, self.seed = network, recipe, prior, seed
        self.fixed_drop = fixed_drop
        self.phases = phases(recipe, steps, per_epoch, target)
        self.drop_logit = gates(network).drop_logit
        self.drop_logit.requires_grad_(fixed_drop is None)
        self.optimizer = torch.optim.Adam([self.drop_logit], lr=recipe.drop_lr, betas=(0.9, 0.99))
        self.schedule = schedule_of(self.optimizer, recipe, per_epoch=per_epoch, least=0.0)
        self.size = ExpectedSize(network)
        self.control: SizeControl | None = None
        if target is not None:
            self.control = SizeControl(self.size, target, self.phases, recipe)
        self.start_epoch()

    def start_epoch(self) -> None:
        """Begin to measure how far p moves."""
        self.before = drop_probabilities(self.network)
        self.full_rate_steps = 0.0

    @property
    def price(self) -> float:
        """Nats per image that the target makes the whole network's size worth, or 0."""
        return self.control.price if self.control else 0.0

    def gates_of(self, step: int, batch: int) -> AbstractContextManager[None]:
        """Context: how the gates act in a training step."""
        if self.fixed_drop == 0:
            return opened(self.network)
        draws = generator(self.seed, "gates", step, 0)
        if step >= self.phases.freeze:
            return masked(self.network, self.hard_keep(draws, batch))
        return relaxed(
            self.network, batch=batch, generator=draws, temperature=self.recipe.temperature
        )

    def hard_keep(self, draws: torch.Generator, batch: int) -> Tensor:
        """Hard gates for each of `batch` images, bool (batch, gates)."""
        drop = per_gate(self.network, drop_probabilities(self.network)).cpu()
        return hard_keep(drop, generator=draws, rows=(batch,))

    def divergence(self) -> Tensor:
        """The prior's part of the loss, (), nats per image."""
        return self.prior.divergence(self.network)

    def update(self, step: int) -> None:
        """Move p by one step; gradients are in place."""
        if self.fixed_drop is not None or step >= self.phases.freeze:
            return
        learning = step >= self.phases.delay
        if not learning:
            self.optimizer.param_groups[0]["lr"] = 0.0  # the moments are gathered
        self.optimizer.step()
        if learning and self.control is not None:
            self.drop_logit.data.copy_(
                self.control.corrected(self.drop_logit, self.optimizer, step)
            )
            self.full_rate_steps += 1.0  # a step to the size does not depend on the rate
        elif learning:
            rate = cast(float, self.optimizer.param_groups[0]["lr"])
            self.full_rate_steps += rate / (self.recipe.drop_lr or 1.0)

    def set_rate(self, step: int) -> None:
        """The rate of the step to come, or the fixed p."""
        if self.schedule is not None:
            self.schedule.step_update(step)
        if self.fixed_drop is not None:
            share = min(1.0, (step + 1) / max(1, self.phases.delay))
            # Below the grid of the draws: a fixed rate of 0 keeps every channel.
            level = torch.tensor(max(self.fixed_drop * share, 1e-12), dtype=torch.float64).logit()
            self.drop_logit.data.fill_(float(level))

    # --- saving and restoring ------------------------------------------------------------------

    def save(self, tensors: dict[str, Tensor], numbers: dict[str, float]) -> None:
        """Add all that the next step depends on."""
        save_optimizer(self.optimizer, "drops", tensors, numbers)
        tensors["epoch.before"] = self.before
        numbers |= {"full_rate_steps": self.full_rate_steps, "price": self.price}

    def restore(self, state: State) -> None:
        """The inverse of `save`."""
        restore_optimizer(self.optimizer, "drops", state)
        self.before = state.tensors["epoch.before"].to(self.drop_logit.device)
        self.full_rate_steps = state.numbers["full_rate_steps"]
        if self.control is not None:
            self.control.price = state.numbers["price"]
