"""Learn the drop probabilities beside the weights.

The gradient of the loss with respect to a drop logit is of the order of 1 / N: the optimizer of the
weights moves it over the hundreds of thousands of steps of the paper, and hardly at all in a short
fit. There the drop logits have Adam, whose steps do not depend on the gradient's scale.
"""

import dataclasses
from contextlib import AbstractContextManager
from typing import cast

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from ..distributed import Rows
from ..gates import (
    Prior,
    decided,
    drop_probabilities,
    gates,
    hard_keep,
    masked,
    opened,
    per_gate,
    relaxed,
    undecided,
)
from ..registry import Recipe
from ..seeds import generator
from ..sizes import ExpectedSize, Target
from .checkpoint import State, restore_optimizer, save_optimizer
from .cutting import ELEMENTWISE
from .schedule import schedule_of
from .size_control import DECIDED, Phases, SizeControl, phases

RATE_OF_ONE_STEP = 0.6  # logits in the only step of a fit of one
FASTEST = 0.15  # logits in a step, towards a target


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
        self.phases = phases(recipe, steps, per_epoch, target, learned=fixed_drop is None)
        self.drop_logit = gates(network).drop_logit
        self.drop_logit.requires_grad_(fixed_drop is None)
        self.rate = drop_rate(recipe, self.phases, target)
        self.optimizer = optimizer_of(self.drop_logit, recipe, self.rate)
        # The warm-up is of the weights' rate: p has phases of its own.
        at_once = dataclasses.replace(recipe, warmup_epochs=0.0)
        self.schedule = schedule_of(self.optimizer, at_once, per_epoch=per_epoch, least=0.0)
        self.size = ExpectedSize(network)
        self.control: SizeControl | None = None
        if target is not None:
            self.control = SizeControl(
                self.size, target, self.phases, sharpen=recipe.sharpen, rate=self.rate
            )
        self.window = max(1, recipe.epochs // 10)  # epochs
        self.tenth = steps / 10
        # p a window or two ago and at the end of the last window, and the steps since then, each
        # counted by its share of the full rate.
        self.before = drop_probabilities(self.network).expand(2, -1).clone()
        self.rate_steps = [0.0, 0.0]
        # Once p is frozen: the gates in which draws differ, and the layers in which none do.
        self.open_gates: Tensor | None = None
        self.alike: dict[str, Tensor | None] = {}

    def start_epoch(self, epoch: int) -> bool:
        """Begin to measure how far p moves, where a window ends with `epoch` epochs done.

        Without a target, p that was within `certain` of 0 or 1 through two windows, and is no
        further from it at their end, becomes exactly that. Returns whether gates closed for good.
        """
        if epoch % self.window:
            return False
        closed = 0
        alone = self.recipe.drop_opt == "adam" or self.recipe.opt in ELEMENTWISE
        if self.control is None and self.fixed_drop is None and alone and self.rate_steps[0]:
            now, bound = drop_probabilities(self.network), self.recipe.certain
            seen = torch.cat([self.before, now[None]])
            dropped = (seen > 1 - bound).all(0) & (now >= seen[0]) & (now < 1)
            kept = (seen < bound).all(0) & (now <= seen[0])
            closed = int(dropped.sum())
            self.drop_logit.data.masked_fill_(dropped, torch.inf).masked_fill_(kept, -torch.inf)
        self.before = torch.stack([self.before[1], drop_probabilities(self.network)])
        self.rate_steps = [self.rate_steps[1], 0.0]
        return closed > 0

    def drift(self) -> float:
        """Mean change of a gate's p in a tenth of the fit at the full rate; at most 1.

        Taken over at least a tenth of the fit, where that is behind: over a few steps p moves to
        and fro with the noise of the gradient.
        """
        moved = (drop_probabilities(self.network) - self.before[0]).abs()
        mean = float(per_gate(self.network, moved).mean())
        return min(1.0, self.tenth * mean / self.rate_steps[0]) if self.rate_steps[0] else 0.0

    def is_frozen(self, step: int) -> bool:
        """Whether p stays as it is from `step` on."""
        return self.control is not None and step >= self.phases.freeze

    def froze(self, step: int) -> bool:
        """Whether p was frozen by the last of `step` steps."""
        return self.control is not None and step == self.phases.freeze

    @property
    def price(self) -> float:
        """Nats per image that the target makes the whole network's size worth, or 0."""
        return float(self.control.price) if self.control else 0.0

    def gates_of(self, step: int, rows: Rows) -> AbstractContextManager[None]:
        """Context: how the gates act in a training step, on the rows of this process."""
        if self.fixed_drop == 0:
            return opened(self.network)
        draws = generator(self.seed, "gates", step, 0, device=self.drop_logit.device)
        if self.is_frozen(step):
            return masked(self.network, self.hard_keep(draws, rows.of)[rows.part], self.alike)
        return relaxed(
            self.network, batch=rows.of, generator=draws, temperature=self.recipe.temperature,
            part=rows.part,
        )  # fmt: skip

    def hard_keep(self, draws: torch.Generator, batch: int) -> Tensor:
        """Hard gates for each of `batch` images, bool (batch, gates)."""
        drop = per_gate(self.network, drop_probabilities(self.network))
        return hard_keep(drop, generator=draws, rows=(batch,), open_gates=self.open_gates)

    def divergence(self) -> Tensor:
        """The prior's part of the loss, (), nats per image."""
        return self.prior.divergence(self.network)

    def add_divergence(self) -> Tensor:
        """The same; its gradients are added to those of the step."""
        return self.prior.backward(self.network)

    def update(self, step: int) -> None:
        """Move p by one step; gradients are in place."""
        if self.fixed_drop is not None or self.is_frozen(step):
            return
        learning = step >= self.phases.delay
        if not learning:
            self.optimizer.param_groups[0]["lr"] = 0.0  # the moments are gathered
        before = self.drop_logit.detach().clone()
        self.optimizer.step()
        self.drop_logit.data.copy_(torch.where(before.isinf(), before, self.drop_logit))
        if learning and self.control is not None:
            logits = self.control.corrected(self.drop_logit, self.optimizer, step)
            if step + 1 == self.phases.freeze:
                logits = certain(logits, self.recipe.certain)
            self.drop_logit.data.copy_(logits)
            self._note_open(step + 1)
            self._count(1.0)  # a step to the size does not depend on the rate
        elif learning:
            rate = cast(float, self.optimizer.param_groups[0]["lr"])
            self._count(rate / (self.rate or 1.0))

    def trains(self, network: nn.Module) -> None:
        """From here on the gates act in `network`, what is left of the whole one."""
        self.network = network
        if self.open_gates is not None:
            self.alike = decided(network)

    def _note_open(self, step: int) -> None:
        if self.is_frozen(step):
            self.open_gates = undecided(per_gate(self.network, drop_probabilities(self.network)))
            self.alike = decided(self.network)

    def _count(self, share: float) -> None:
        self.rate_steps = [steps + share for steps in self.rate_steps]

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
        older, newer = self.rate_steps
        numbers |= {"rate_steps": older, "newer_rate_steps": newer, "price": self.price}

    def restore(self, state: State) -> None:
        """The inverse of `save`."""
        restore_optimizer(self.optimizer, "drops", state)
        self.before = state.tensors["epoch.before"].to(self.drop_logit.device)
        self.rate_steps = [state.numbers["rate_steps"], state.numbers["newer_rate_steps"]]
        self._note_open(state.step)
        if self.control is not None:
            self.control.price = torch.tensor(state.numbers["price"], dtype=torch.float64)


def certain(drop_logit: Tensor, bound: float) -> Tensor:
    """The logits (groups,), infinite where p is within `bound` of 0 or 1."""
    p = torch.sigmoid(drop_logit)
    return drop_logit.masked_fill(p < bound, -torch.inf).masked_fill(p > 1 - bound, torch.inf)


def drop_rate(recipe: Recipe, phases: Phases, target: Target | None) -> float:
    """The learning rate of the drop logits: the recipe's, or by the rule.

    The paper's optimizer has the rate of the weights. Adam moves a logit by its rate in a step. The
    rate falls nearly as the steps grow in number, so that p never races ahead of weights that have
    not learned yet, and fits of 40 to 160 epochs end at about the same posterior (docs/method.md).
    A target has p decided when it is frozen.
    """
    if recipe.drop_lr is not None:
        return recipe.drop_lr
    if recipe.drop_opt == "weights":
        return recipe.lr
    steps = max(1, phases.freeze - phases.delay)
    return RATE_OF_ONE_STEP / steps**0.75 if target is None else min(FASTEST, DECIDED / steps)


def optimizer_of(drop_logit: nn.Parameter, recipe: Recipe, rate: float) -> torch.optim.Optimizer:
    """The optimizer of the drop logits that the recipe names."""
    if recipe.drop_opt == "adam":
        return torch.optim.Adam([drop_logit], lr=rate, betas=(0.9, 0.99))
    return create_optimizer_v2(
        [drop_logit], opt=recipe.opt, lr=rate, weight_decay=0.0, momentum=recipe.momentum
    )
