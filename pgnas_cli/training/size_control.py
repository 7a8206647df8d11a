"""Constrain the expected size to its target during training; say when p learns and is frozen.

With a target a fit has four phases: the weights learn alone; the aimed size falls from the whole
network to the target; the drop logits are sharpened at that size, until nearly every p is close to
0 or 1; p is frozen, and the weights continue to learn under hard masks drawn from it. Without a
target p learns from the first phase to the end.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..registry import Recipe
from ..sizes import ExpectedSize, Target

DECIDED = 12.0  # drop logit beyond which sharpening makes no difference: p is below 1e-5
TOLERANCE = 0.005  # of the whole network's size, at the freeze


@dataclass(frozen=True)
class Phases:
    """Steps at which the phases end."""

    delay: int
    ramp: int
    freeze: int


def phases(
    recipe: Recipe, steps: int, per_epoch: int, target: Target | None, *, learned: bool = True
) -> Phases:
    """The phases of a fit of `steps` steps.

    Where the recipe names no delay, p learns from the first step on, as in the paper; a size to
    meet, and a p that is not learned, wait for an epoch. With a target the delay leaves at least
    two fifths of the ramp to the drop probabilities, however few epochs there are.
    """
    epochs = recipe.drop_delay_epochs
    if epochs is None:
        epochs = 0.0 if target is None and learned else 1.0
    delay = round(epochs * per_epoch)
    if target is None:
        return Phases(delay, steps, steps)
    delay = min(delay, int(0.6 * recipe.size_ramp * steps))
    ramp = max(delay + 1, round(recipe.size_ramp * steps))
    return Phases(delay, ramp, min(steps, max(ramp + 1, round(recipe.freeze * steps))))


class SizeControl:
    """Corrects the drop logits after each step of their optimizer, between delay and freeze."""

    def __init__(
        self,
        size: ExpectedSize,
        target: Target,
        phases: Phases,
        *,
        sharpen: float,  # factor of the drop logits between ramp and freeze
        rate: float,  # of the optimizer of the drop logits
    ) -> None:
        self.size, self.target, self.phases, self.sharpen = size, target, phases, sharpen
        # However short the fit, a logit can cross the range in which p is undecided.
        travel = 16 / max(1, phases.freeze - phases.delay)
        self.limit = max(4 * rate, travel)
        self.price = torch.zeros((), dtype=torch.float64)
        self.share_and_slope = Replayed(partial(value_and_slope, self.share))

    def corrected(self, drop_logit: Tensor, optimizer: torch.optim.Optimizer, step: int) -> Tensor:
        """The logits, (groups,) float64, after `step` (counted from 0): sharper, at their size.

        Nothing waits for the device, but at the freeze.
        """
        slots, betas = optimizer.state[drop_logit], optimizer.param_groups[0]["betas"]
        progress = (step + 1 - self.phases.delay) / (self.phases.ramp - self.phases.delay)
        aim = 1 - (1 - self.target.share) * min(1.0, progress)
        logits = exactly(drop_logit)
        if self.phases.ramp <= step:
            span = max(1, self.phases.freeze - self.phases.ramp)
            logits = (logits * self.sharpen ** (1 / span)).clamp(-DECIDED, DECIDED)
        # The mean squared gradient is, up to a factor, the Fisher information: the step to the size
        # is the one that changes the predictions least, and spares channels that much hangs on.
        information = exactly(slots["exp_avg_sq"])
        metric = information + 1e-3 * information.mean() + 1e-30
        closer = partial(
            step_to_size, self.share_and_slope, metric=metric, aim=aim, limit=self.limit
        )
        logits, slope = closer(logits)
        if step < self.phases.ramp:  # sharpening is no term of the loss: it has no price
            gradient = exactly(slots["exp_avg"]) / (1 - betas[0] ** slots["step"].double())
            self.price = price_of_size(gradient, slope, metric)
        if step + 1 == self.phases.freeze:
            for _ in range(100):  # what is left of the way, since nothing moves p afterwards
                if abs(float(self.share(torch.sigmoid(logits))) - aim) < TOLERANCE:
                    break
                logits, _ = closer(logits)
        return logits

    def share(self, drop_probability: Tensor) -> Tensor:
        """Expected share of the whole network's size, in the target's unit."""
        return self.size.shares(drop_probability)[self.target.kind]


class Replayed:
    """A function of one tensor, whose hundreds of small kernels a GPU replays as one graph.

    Nothing but that tensor may change between two calls.
    """

    def __init__(self, function: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        self.function = function
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, values: Tensor) -> tuple[Tensor, ...]:
        if values.device.type != "cuda":
            return self.function(values)
        if self.graph is None:
            self.graph = self._captured(values)
        self.values.copy_(values)
        self.graph.replay()
        return tuple(found.clone() for found in self.found)

    def _captured(self, values: Tensor) -> torch.cuda.CUDAGraph:
        self.values = values.clone()
        now, aside = torch.cuda.current_stream(values.device), torch.cuda.Stream(values.device)
        aside.wait_stream(now)
        with torch.cuda.stream(aside):  # kernels are loaded, and libraries set up, before
            for _ in range(3):
                self.function(self.values)
        now.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads go on: those of a loader pin memory.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.found = self.function(self.values)
        return graph


def value_and_slope(
    size: Callable[[Tensor], Tensor], drop_logit: Tensor
) -> tuple[Tensor, Tensor]:  # (), (groups,)
    """The size at drop logits (groups,), and its gradient."""
    logits = drop_logit.detach().requires_grad_()
    now = size(torch.sigmoid(logits))
    (slope,) = torch.autograd.grad(now, logits)
    return now.detach(), slope


def step_to_size(
    sized: Callable[[Tensor], tuple[Tensor, ...]],
    drop_logit: Tensor,  # float64 (groups,)
    metric: Tensor,  # (groups,), positive: what moving each logit costs
    aim: float,
    *,
    limit: float,  # no logit moves further than this
) -> tuple[Tensor, Tensor]:
    """The shortest step of the drop logits that brings the expected size to `aim`, to first order.

    `sized` maps drop logits to the expected size, (), and its gradient, (groups,). Lengths are
    sum(metric x step^2), so the step is slope / metric, times the multiplier of the constraint.
    Taken after each step of a gradient descent that divides by the same `metric`, it ends at the
    constrained optimum.
    Returns the logits after the step, and the slope of the size before it.
    """
    now, slope = sized(drop_logit)
    direction = slope / metric
    steepness = slope @ direction
    step = direction * ((aim - now) / steepness)
    return torch.where(steepness > 0, drop_logit + step.clamp(-limit, limit), drop_logit), slope


def price_of_size(gradient: Tensor, slope: Tensor, metric: Tensor) -> Tensor:  # ()
    """The price at which a prior exp(-price x size) holds the drop logits where they are.

    `gradient` is that of all other terms of the loss, in nats per image; each (groups,). The usual
    estimate of a multiplier: least squares in `metric`. Nats per image for the whole network.
    """
    steepness = slope @ (slope / metric)
    return torch.where(steepness > 0, -(gradient @ (slope / metric)) / steepness, 0.0)


def exactly(values: Tensor) -> Tensor:
    """In float64, where they are; on the CPU where a device has none (mps)."""
    return values.detach().to("cpu" if values.device.type == "mps" else values.device).double()
