"""Fit a super-network: weights and drop probabilities together, in one training run.

Per step (Eq. 14-15): mean cross-entropy under one relaxed draw per image and gate, plus the
divergence from the prior. The gradient of the loss with respect to a drop logit is of the order of
1 / N, so the optimizer of the weights would hardly move it; the drop logits have Adam, whose steps
do not depend on the gradient's scale.

`fit` is a generator with one record per epoch. It writes nothing and prints nothing: between two
steps it calls `between`, which may save the state that it offers, show progress, or raise.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from ..data import ImageData, Preprocessing, placed, steps_per_epoch, training_batches
from ..errors import PgnasError
from ..gates import (
    auto_l2,
    drop_probabilities,
    gates,
    hard_keep,
    kl,
    masked,
    objective_images,
    opened,
    relaxed,
)
from ..registry import Recipe
from ..seeds import derived_seed, generator, seeded_globals
from ..sizes import ExpectedSize, Target
from .checkpoint import State, restore_optimizer, save_optimizer
from .schedule import schedule_of
from .size_control import Steering, phases


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch did. Errors are shares of images; p stands for the drop probabilities."""

    epoch: int  # counted from 1
    epochs: int
    loss: float  # mean cross-entropy under relaxed gates, nats per image
    kl: float  # divergence term of the loss at the epoch's end, nats per image
    train_error: float
    soft_error: float  # held-out, relaxed gates
    hard_error: float  # held-out, hard gates drawn anew for every image: the mean candidate
    expected_params: float  # the file's count, mean over the posterior
    expected_macs: float  # multiply-adds, mean over the posterior
    expected_share: float  # of the whole network's parameters
    expected_macs_share: float  # of the whole network's multiply-adds
    price: float  # nats per image that the target makes the whole network's size worth, or 0
    mean_drop: float  # mean of p over gates
    settled: float  # share of gates whose p is below 0.05 or above 0.95
    drift: float  # how far p moves in 100 steps at the full rate of its optimizer, mean over gates;
    # at most 1
    drop_histogram: tuple[int, ...]  # gates in ten equal bins of p
    learning_rate: float
    seconds: float
    images_per_second: float


def fit(
    network: nn.Module,
    data: ImageData,
    recipe: Recipe,
    *,
    seed: int,
    workers: int = 0,
    device: torch.device | None = None,
    fixed_drop: float | None = None,
    constant_l2: bool = False,
    target: Target | None = None,
    bfloat16: bool = False,
    state: State | None = None,
    between: Callable[[int, int, Callable[[], State]], None] | None = None,
) -> Generator[EpochRecord, None, None]:
    """Train `network` in place; yields a record after each epoch.

    `fixed_drop` holds every drop probability at one value, reached over the warm-up.
    `between(step, steps, state)` is called after each step.
    Raises PgnasError when the fit collapses, with what to change.
    """
    device = device or torch.device("cpu")
    placed(network, device)
    run = _Run(network, data, recipe, seed, fixed_drop, constant_l2, target, device)
    if state is not None:
        run.restore(state)
    network.train()
    batches = training_batches(
        data, batch=run.batch, seed=seed, first_step=run.step, steps=run.steps, workers=workers,
        cutout=recipe.cutout,
    )  # fmt: skip
    autocast = torch.autocast(device.type, torch.bfloat16) if bfloat16 else nullcontext()
    started, images_seen = time.perf_counter(), 0
    with closing(batches):
        for images, labels in batches:
            with autocast:
                run.advance(images, labels)
            images_seen += len(images)
            if run.step % run.per_epoch == 0:
                seconds = time.perf_counter() - started
                yield run.epoch_record(seconds, images_seen / seconds)
                network.train()
                started, images_seen = time.perf_counter(), 0
            if between is not None:
                between(run.step, run.steps, run.state)


class _Run:
    """The moving parts of a fit, kept together so that they can be saved together."""

    def __init__(
        self,
        network: nn.Module,
        data: ImageData,
        recipe: Recipe,
        seed: int,
        fixed_drop: float | None,
        constant_l2: bool,
        target: Target | None,
        device: torch.device,
    ) -> None:
        self.network, self.data, self.recipe, self.seed = network, data, recipe, seed
        self.fixed_drop, self.constant_l2, self.device = fixed_drop, constant_l2, device
        self.batch = min(recipe.batch_size, len(data.fit))
        self.per_epoch = steps_per_epoch(len(data.fit), self.batch)
        self.steps = recipe.epochs * self.per_epoch
        self.phases = phases(recipe, self.steps, self.per_epoch, target)
        self.step = 0
        self.kl_images = objective_images(recipe.kl_images, len(data.fit))
        auto = auto_l2(recipe.weight_decay, recipe.initial_drop, self.kl_images)
        self.l2 = auto if recipe.l2 is None else recipe.l2
        self.drop_logit = gates(network).drop_logit
        self.drop_logit.requires_grad_(fixed_drop is None)
        self.weights = create_optimizer_v2(
            self._parameter_groups(),
            opt=recipe.optimizer,
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
        )
        self.drops = torch.optim.Adam(
            [self.drop_logit], lr=recipe.drop_learning_rate, betas=(0.9, 0.99)
        )
        both = [
            schedule_of(self.weights, recipe, per_epoch=self.per_epoch,
                        least=recipe.min_learning_rate),
            schedule_of(self.drops, recipe, per_epoch=self.per_epoch, least=0.0),
        ]  # fmt: skip
        self.schedules = [schedule for schedule in both if schedule is not None]
        self.size = ExpectedSize(network)
        self.steering: Steering | None = None
        if target is not None:
            self.steering = Steering(self.size, target, self.phases, recipe)
        self._start_epoch()
        self.best_loss = math.inf
        self.lost_epochs = 0  # in a row, at chance
        self._set_rates()

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Weights behind gates pay the divergence, others decay alike, vectors do neither."""
        gated = set(gates(self.network).spans)
        plain: list[nn.Parameter] = []
        decayed: list[nn.Parameter] = []
        for name, parameter in self.network.named_parameters():
            if parameter is self.drop_logit or not parameter.requires_grad:
                continue
            layer, _, leaf = name.rpartition(".")
            ungated_weight = parameter.dim() > 1 and not (layer in gated and leaf == "weight")
            (decayed if ungated_weight else plain).append(parameter)
        decay = 2 * self.l2 / self.kl_images
        groups = [(plain, 0.0), (decayed, decay)]
        return [{"params": p, "weight_decay": d} for p, d in groups if p]

    def _set_rates(self) -> None:
        for schedule in self.schedules:
            schedule.step_update(self.step)
        if self.fixed_drop is not None:
            share = min(1.0, (self.step + 1) / max(1, self.phases.warmup))
            # Below the grid of the draws: a fixed rate of 0 keeps every channel.
            level = torch.tensor(max(self.fixed_drop * share, 1e-12), dtype=torch.float64).logit()
            self.drop_logit.data.fill_(float(level))

    def _start_epoch(self) -> None:
        self.before = drop_probabilities(self.network)
        self.loss_sum = torch.zeros((), device=self.device)
        self.wrong = torch.zeros((), device=self.device)
        self.seen = 0
        self.full_rate_steps = 0.0

    def advance(self, images: Tensor, labels: Tensor) -> None:
        """One step of both optimizers."""
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        inputs = self.data.preprocessing.normalised(images)
        if hasattr(self.network, "at_progress"):  # noise of its own that grows with time
            self.network.at_progress((self.step + 1) / self.steps)  # type: ignore[operator]
        # A network's own dropout draws from the global generators: a function of the step too.
        own_draws = seeded_globals(derived_seed(self.seed, "forward", self.step, 0))
        with self._gates(len(inputs)), own_draws:
            logits = self.network(inputs)
            auxiliary = torch.zeros((), device=self.device)
            if isinstance(logits, tuple):  # in training only, beside the logits
                logits, other = logits
                auxiliary = self.recipe.auxiliary_weight * F.cross_entropy(other, labels)
            loss = F.cross_entropy(logits, labels)
            (loss + auxiliary + self._divergence()).backward()
        before_freeze = self.fixed_drop is None and self.step < self.phases.freeze
        learning_drops = before_freeze and self.step >= self.phases.warmup
        self.weights.step()
        if before_freeze:
            if not learning_drops:
                self.drops.param_groups[0]["lr"] = 0.0  # the moments are gathered
            self.drops.step()
        if learning_drops:
            if self.steering is not None:
                steered = self.steering.corrected(self.drop_logit, self.drops, self.step)
                self.drop_logit.data.copy_(steered)
                self.full_rate_steps += 1.0  # a step to the size does not depend on the rate
            else:
                self.full_rate_steps += self.drops.param_groups[0]["lr"] / (
                    self.recipe.drop_learning_rate or 1.0
                )
        self.weights.zero_grad()
        self.drops.zero_grad()
        self.loss_sum += loss.detach() * len(inputs)
        self.wrong += (logits.detach().argmax(1) != labels).sum()
        self.seen += len(inputs)
        self.step += 1
        self._set_rates()

    def _divergence(self) -> Tensor:
        return kl(self.network, l2=self.l2, images=self.kl_images, constant=self.constant_l2)

    def _gates(self, batch: int) -> Any:
        if self.fixed_drop == 0:
            return opened(self.network)
        if self.step >= self.phases.freeze:
            per_gate = drop_probabilities(self.network)[gates(self.network).group].cpu()
            draws = generator(self.seed, "gates", self.step, 0)
            return masked(self.network, hard_keep(per_gate, generator=draws, rows=(batch,)))
        return relaxed(
            self.network,
            batch=batch,
            generator=generator(self.seed, "gates", self.step, 0),
            temperature=self.recipe.temperature,
        )

    def epoch_record(self, seconds: float, images_per_second: float) -> EpochRecord:
        """Measure, judge and close the epoch."""
        epoch = self.step // self.per_epoch
        loss = float(self.loss_sum) / self.seen
        probability = drop_probabilities(self.network)
        per_gate = probability[gates(self.network).group].cpu()
        self._refuse_collapse(loss, float(1 - per_gate.mean()), epoch)
        self.best_loss = min(self.best_loss, loss)
        moved = (probability - self.before).abs()[gates(self.network).group].mean()
        with torch.no_grad():
            divergence = self._divergence()
            params, macs = map(float, self.size(probability.cpu()))
        soft, hard = self._held_out_errors(epoch)
        record = EpochRecord(
            epoch=epoch,
            epochs=self.recipe.epochs,
            loss=loss,
            kl=float(divergence),
            train_error=float(self.wrong) / self.seen,
            soft_error=soft,
            hard_error=hard,
            expected_params=params,
            expected_macs=macs,
            expected_share=params / self.size.whole[0],
            expected_macs_share=macs / max(1, self.size.whole[1]),
            price=self.steering.price if self.steering else 0.0,
            mean_drop=float(per_gate.mean()),
            settled=float(((per_gate < 0.05) | (per_gate > 0.95)).float().mean()),
            drift=min(1.0, 100 * float(moved) / (self.full_rate_steps or math.inf)),
            drop_histogram=tuple(int(n) for n in torch.histc(per_gate, 10, 0, 1)),
            learning_rate=float(self.weights.param_groups[0]["lr"]),
            seconds=seconds,
            images_per_second=images_per_second,
        )
        self._start_epoch()
        return record

    def _refuse_collapse(self, loss: float, kept: float, epoch: int) -> None:
        chance = math.log(len(self.data.classes))
        advice = "lower --l2 or --initial-drop, or lengthen --warmup-epochs"
        if self.steering is not None:
            advice = "aim at a larger size, or lengthen the fit with --epochs"
        if not math.isfinite(loss):
            raise PgnasError(
                f"the loss is {loss} in epoch {epoch}; lower --lr (now {self.recipe.learning_rate})"
            )
        back = self.best_loss < 0.7 * chance and loss > 0.98 * chance
        self.lost_epochs = self.lost_epochs + 1 if back else 0
        if self.lost_epochs == 2:  # one alone may be noise where epochs are short
            raise PgnasError(
                f"the fit collapsed in epoch {epoch}: the loss is back at chance ({loss:.2f} of"
                f" {chance:.2f} nats, {100 * kept:.0f} % of the channels kept); {advice}"
            )
        if kept < 0.02 and self.fixed_drop is None:
            raise PgnasError(
                f"the fit collapsed in epoch {epoch}: every gate is closing"
                f" ({100 * kept:.1f} % of the channels kept); {advice}"
            )

    @torch.no_grad()
    def _held_out_errors(self, epoch: int) -> tuple[float, float]:
        """Relaxed gates, and hard gates drawn anew for each image."""
        self.network.eval()
        part = self.data.held_out
        per_gate = drop_probabilities(self.network)[gates(self.network).group].cpu()
        wrong = [0, 0]
        for place, (images, labels) in enumerate(self._held_out_batches()):
            soft = relaxed(
                self.network,
                batch=len(images),
                generator=generator(self.seed, "soft", epoch, place),
                temperature=self.recipe.temperature,
            )
            draws = generator(self.seed, "hard", epoch, place)
            keep = hard_keep(per_gate, generator=draws, rows=(len(images),))
            for which, context in enumerate((soft, masked(self.network, keep))):
                with context:
                    wrong[which] += int((self.network(images).argmax(1) != labels).sum())
        return wrong[0] / len(part), wrong[1] / len(part)

    def _held_out_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        pixels = self.data.held_out.pixels
        assert pixels is not None, "the caller decodes the held-out images once"
        preprocessing: Preprocessing = self.data.preprocessing
        for images, labels in zip(
            pixels.split(self.batch), self.data.held_out.labels.split(self.batch), strict=True
        ):
            yield preprocessing.normalised(images.to(self.device)), labels.to(self.device)

    # --- saving and restoring ----------------------------------------------------------------

    def state(self) -> State:
        """A copy of everything that the next step depends on."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        numbers: dict[str, float] = {}
        for name, optimizer in (("weights", self.weights), ("drops", self.drops)):
            save_optimizer(optimizer, name, tensors, numbers)
        tensors |= {
            "epoch.before": self.before,
            "epoch.loss_sum": self.loss_sum,
            "epoch.wrong": self.wrong,
        }
        numbers |= {
            "seen": self.seen,
            "epochs_done": self.step // self.per_epoch,
            "full_rate_steps": self.full_rate_steps,
            "best_loss": min(self.best_loss, 1e30),
            "lost_epochs": self.lost_epochs,
            "price": self.steering.price if self.steering else 0.0,
        }
        return State(self.step, {k: v.detach().clone() for k, v in tensors.items()}, numbers)

    def restore(self, state: State) -> None:
        """Continue from `state`; the recipe and the data must be the same."""
        network = {
            k.removeprefix("network."): v
            for k, v in state.tensors.items()
            if k.startswith("network.")
        }
        self.network.load_state_dict(network)
        for name, optimizer in (("weights", self.weights), ("drops", self.drops)):
            restore_optimizer(optimizer, name, state)
        self.step = state.step
        self.before = state.tensors["epoch.before"].to(self.device)
        self.loss_sum = state.tensors["epoch.loss_sum"].to(self.device)
        self.wrong = state.tensors["epoch.wrong"].to(self.device)
        self.seen = int(state.numbers["seen"])
        self.full_rate_steps = state.numbers["full_rate_steps"]
        self.best_loss = state.numbers["best_loss"]
        self.lost_epochs = int(state.numbers.get("lost_epochs", 0))
        if self.steering is not None:
            self.steering.price = state.numbers["price"]
        self._set_rates()
