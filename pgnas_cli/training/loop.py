"""The training loop, of a super-network with its drop probabilities and of an exported network.

Per step (Eq. 14-15): mean cross-entropy, under one relaxed draw per image and gate where there are
gates, plus the divergence from the prior. Randomness is a function of seed and step. Several
processes share the images of a batch: their steps are those of one process with the whole batch.
"""

import math
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ..data import ImageData, placed, steps_per_epoch, training_batches, training_rows
from ..distributed import (
    Rows,
    broadcast_,
    largest,
    rank,
    summed,
    summed_gradients,
    wait,
    world_size,
)
from ..errors import Interrupted, PgnasError
from ..gates import gates, of_rows
from ..machine import computing
from ..progress import note, task
from ..registry import Recipe
from ..seeds import derived_seed, seeded_globals
from ..signals import StopRequest
from ..slimming import Remainder, everything, remainder, stored
from ..tensors import restore_, shapes
from .averaging import Average
from .checkpoint import NETWORK, State, restore_optimizer, save_optimizer
from .cutting import ELEMENTWISE, TOLERANCE, carry_over_, differs_in_training
from .drop_learning import DropLearning
from .regularising import class_weights, layer_scales, perturbed
from .saving import Saving
from .schedule import schedule_of
from .waiting import Waiting

WATCHED = 20  # steps between two looks at a GPU's numbers
LARGEST = 1e4  # a normalised image of sense is far below


class Loop:
    """The moving parts of training, kept together so that they can be saved together."""

    def __init__(
        self,
        network: nn.Module,
        data: ImageData,
        recipe: Recipe,
        *,
        seed: int,
        device: torch.device,
        weight_decay: float,  # of matrices that no prior pulls
        drops: Callable[["Loop"], DropLearning] | None = None,  # None: no gates
        bfloat16: bool = False,
        compiled: bool = False,
    ) -> None:
        self.whole, self.device = placed(network, device), device
        self.compiled = compiled
        self.data, self.recipe, self.seed = data, recipe, seed
        self._train_on(everything(self.whole))
        self.weight_decay = weight_decay
        self.autocast = computing(device, "bfloat16" if bfloat16 else "float32")
        self.batch = min(recipe.batch_size, len(data.fit))
        self.per_epoch = steps_per_epoch(len(data.fit), self.batch)
        self.round = recipe.epochs * self.per_epoch  # steps of the schedule
        self.steps, self.step = self.round, 0
        most = (recipe.max_epochs or 4 * recipe.epochs) if recipe.until_settled else recipe.epochs
        self.most_steps = most * self.per_epoch
        self.drops = None if drops is None else drops(self)
        self.of_classes: Tensor | None = None  # weights in the loss
        if recipe.class_weights == "balanced":
            labels = data.fit.readable().labels
            self.of_classes = class_weights(labels, len(data.classes)).to(device)
        self.scales = None if recipe.layer_decay is None else layer_scales(
            self.whole, recipe.layer_decay
        )  # fmt: skip
        self._start_optimizer()
        self.average = Average(self.whole, recipe.model_ema_decay) if recipe.model_ema else None
        self.averaged = False  # whether the network holds it just now
        self.watched = torch.zeros(4, device=self.device)  # of the first step that is not finite
        self.watch_every = 1 if self.device.type == "cpu" else WATCHED  # steps
        self.inputs = torch.empty(0)  # of the last step, to look at when it failed
        self.start_epoch()
        self._set_rates()

    @property
    def network(self) -> nn.Module:
        """The network that is trained: the whole one, or what is left of it."""
        return self.left.network

    def _train_on(self, left: Remainder) -> None:
        self.left = left
        self.forward = left.network
        if self.compiled:  # which looks at the gradient of gates, and is warned that it has none
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
            if self.recipe.accumulate > 1:  # parts of a batch share the graph of one draw
                torch._functorch.config.donated_buffer = False
            self.forward = torch.compile(left.network)  # type: ignore[assignment]

    def _start_optimizer(self) -> None:
        recipe = self.recipe
        self.weights = create_optimizer_v2(
            self._parameter_groups(), opt=recipe.opt, lr=recipe.lr, momentum=recipe.momentum
        )
        self.schedule = schedule_of(
            self.weights, recipe, per_epoch=self.per_epoch, least=recipe.min_lr
        )

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Weights behind gates pay the divergence, others decay alike, vectors do neither."""
        gated = set() if self.drops is None else set(gates(self.network).spans)
        plain: list[nn.Parameter] = []
        decayed: list[nn.Parameter] = []
        for name, parameter in self.network.named_parameters():
            if not parameter.requires_grad or name == "gates.drop_logit":
                continue
            layer, _, leaf = name.rpartition(".")
            ungated_weight = parameter.dim() > 1 and not (layer in gated and leaf == "weight")
            (decayed if ungated_weight else plain).append(parameter)
        groups = [(plain, 0.0), (decayed, self.weight_decay)]
        if self.scales is None:
            return [{"params": p, "weight_decay": d} for p, d in groups if p]
        names = {id(p): self.left.places[n].name for n, p in self.network.named_parameters()
                 if n in self.left.places}  # fmt: skip
        found: dict[tuple[float, float], list[nn.Parameter]] = {}
        for parameters, decay in groups:
            for parameter in parameters:
                scale = self.scales[names[id(parameter)]]
                found.setdefault((decay, scale), []).append(parameter)
        if self.recipe.sched == "none":
            rate = self.recipe.lr
            return [{"params": p, "weight_decay": d, "lr": rate * s} for (d, s), p in found.items()]
        # timm's schedules multiply by lr_scale themselves.
        return [{"params": p, "weight_decay": d, "lr_scale": s} for (d, s), p in found.items()]

    def _set_rates(self) -> None:
        place = self.round if self.step >= self.steps else self.step % self.round
        if self.schedule is not None:
            self.schedule.step_update(place)
        if self.drops is not None:
            self.drops.set_rate(place)

    def extend(self) -> None:
        """Go on for another round of the schedule, or what the recipe's most epochs leave of it."""
        self.steps = min(self.steps + self.round, self.most_steps)
        self._set_rates()

    def start_epoch(self) -> None:
        """Begin new sums; after the last step the average of the weights stays."""
        if self.average is not None and self.averaged and self.step < self.steps:
            self.average.swap_(self.network)
            self.averaged = False
        self.loss_sum = torch.zeros((), device=self.device)
        self.wrong = torch.zeros((), device=self.device)
        self.seen = 0
        if self.drops is not None and self.drops.start_epoch(self.step // self.per_epoch):
            self.cut()

    def cut(self) -> None:
        """Go on with what candidates can keep of the network; gates have closed for good."""
        if self.recipe.opt not in ELEMENTWISE:
            return
        broadcast_(self.network)  # all processes cut the same
        self.write_back()
        left = remainder(self.whole)
        if left is None:
            return
        placed(left.network, self.device)
        if largest(differs_in_training(self.whole, left.network)) > TOLERANCE:
            note("nothing is cut while training: this network does something else in training")
            return
        self._follow(left)

    def _follow(self, left: Remainder) -> None:
        """Train `left` from here on."""
        before, source = self.weights, self.left
        placed(left.network, self.device).train(self.network.training)
        self._train_on(left)
        self._start_optimizer()
        carry_over_(before, source, self.weights, left, self.whole)
        if self.average is not None:
            self.average.follow(source, left, self.whole)
        if self.drops is not None:
            self.drops.trains(left.network)
        self._set_rates()

    def end_epoch(self) -> None:
        """Put the average of the weights, where there is one, into the network, and save it."""
        broadcast_(self.network)  # batch-norm statistics differ
        if self.average is not None:
            self.average.swap_(self.network)
            self.averaged = True
            broadcast_(self.network)
        self.write_back()

    def write_back(self) -> None:
        """Give the whole network what was learned."""
        self.left.write_back(self.whole)

    def network_of(self, state: State) -> nn.Module:
        """The network that is trained where `state` was saved: the whole one, or what was left."""
        if self.drops is not None and shapes(state.network) != shapes(self.network.state_dict()):
            self._follow(stored(self.whole, state.network))
        return self.network

    @property
    def loss(self) -> float:
        """Mean cross-entropy of the epoch so far, nats per image."""
        return float(self.loss_sum) / max(1, self.seen)

    @property
    def train_error(self) -> float:
        """Share of the images seen in the epoch that were wrong."""
        return float(self.wrong) / max(1, self.seen)

    def advance(self, images: Tensor, labels: Tensor, rows: Rows | None = None) -> None:
        """One step of all optimizers; the images are `rows` of the batch, or all of it."""
        rows = rows or Rows(0, len(images), len(images))
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        inputs, aims = perturbed(
            self.data.preprocessing.normalised(images), labels, self.recipe,
            classes=len(self.data.classes), seed=self.seed, step=self.step,
        )  # fmt: skip
        if hasattr(self.network, "at_progress"):  # noise of its own that grows with time
            self.network.at_progress(min(1.0, (self.step + 1) / self.round))  # type: ignore[operator]
        # A network's own dropout draws from the global generators: a function of the step too.
        own_draws = seeded_globals(derived_seed(self.seed, "forward", self.step, rank()))
        acting = nullcontext() if self.drops is None else self.drops.gates_of(self.step, rows)
        with self.autocast, acting, own_draws:
            parts = min(self.recipe.accumulate, len(inputs))
            ends = [len(inputs) * part // parts for part in range(parts + 1)]
            found = [
                self._passes(inputs, aims, slice(start, end), rows, last=end == len(inputs))
                for start, end in pairwise(ends)
            ]
        shown, losses, extras = zip(*found, strict=True)
        logits = torch.cat(shown)
        loss, extra = (torch.stack(values).sum(0) for values in (losses, extras))
        divergence = self.drops.add_divergence() if self.drops else torch.zeros_like(loss)
        self.inputs = inputs
        self._watch(loss + extra, divergence)
        self.weights.step()
        self.weights.zero_grad()
        if self.average is not None:
            self.average.update(self.network)
        if self.drops is not None:
            self.drops.update(self.step)
            self.drops.optimizer.zero_grad()
        wrong = (logits.argmax(1) != labels)[: rows.count].sum()
        sums = summed(torch.stack([loss * rows.count, wrong]))
        self.loss_sum += sums[0]
        self.wrong += sums[1]
        self.seen += rows.of
        self.step += 1
        if self.drops is not None and self.drops.froze(self.step):
            self.cut()
        self._set_rates()

    def _passes(
        self, inputs: Tensor, labels: Tensor, part: slice, rows: Rows, last: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Forward and backward of a part of `rows`: logits, and its share of their losses."""
        whole = self.drops is None or part == slice(0, len(inputs))
        share = (part.stop - part.start) / len(inputs)
        extra = torch.zeros((), device=self.device)
        # The backward pass as well: a network may compute parts of its forward again.
        with nullcontext() if whole else of_rows(self.network, part):
            logits = self.forward(inputs[part])
            if isinstance(logits, tuple):  # in training only, beside the logits
                logits, other = logits
                extra = self.recipe.auxiliary_weight * self._cross_entropy(other, labels[part])
            loss = self._cross_entropy(logits, labels[part])
            total = share * (loss + extra)
            if world_size() > 1:
                total = total * (rows.count / rows.of)
            with summed_gradients(self.network) if last else nullcontext():
                # The gates of all images come from one draw, whose graph the next part needs too.
                total.backward(retain_graph=not last)
        return logits.detach(), share * loss.detach(), share * extra.detach()

    def _watch(self, loss: Tensor, divergence: Tensor) -> None:
        """Keep the numbers of the first step whose loss or gradient is not finite.

        Reading them waits for a GPU's queue: there it is done now and then, and before each save.
        """
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = get_total_norm(gradients)
        step = torch.full_like(norm, self.step)
        now = torch.stack([loss.detach(), divergence.detach(), norm, step])
        self.watched = torch.where(self.watched.isfinite().all(), now, self.watched)
        look = self.step % self.watch_every == 0
        if look and not bool(self.watched.isfinite().all()):
            self.refuse_what_is_not_finite()

    def refuse_what_is_not_finite(self) -> None:
        """Raise PgnasError that names the likely cause: what was not finite first."""
        loss, divergence, norm, step = self.watched.tolist()
        numbers = {"loss": loss, "divergence": divergence, "gradient": norm}
        found = [f"the {name} is {x}" for name, x in numbers.items() if not math.isfinite(x)]
        state = self.network.state_dict()
        logits = state.pop("gates.drop_logit", torch.zeros(1))  # infinite where p is 0 or 1
        weights = [v for v in state.values() if v.is_floating_point()]
        sound = math.isfinite(float(get_total_norm(weights))) and not bool(logits.isnan().any())
        if not found and sound:
            return
        at = f"in epoch {int(step) // self.per_epoch + 1}, step {int(step) + 1}"
        largest = float(self.inputs.abs().max())
        if not largest < LARGEST:
            cause = f"normalised images reach {largest:.2g}: look at the data"
        elif not math.isfinite(divergence):
            cause = f"lower `l2` (now {self.recipe.l2}), or leave it out"
        elif self.step == 0 and not math.isfinite(float(get_total_norm(self.network.parameters()))):
            cause = "the starting weights are not finite; name others with `weights`"
        else:
            cause = f"lower `lr` (now {self.recipe.lr:g})"
        raise PgnasError(
            f"{found[0] if found else 'a weight is not finite'} {at}; {cause}; what was saved"
            " before is kept"
        )

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        smoothing, weights = self.recipe.label_smoothing, self.of_classes
        if weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        # Not divided by the weights of the batch: their mean over all images is 1.
        total = F.cross_entropy(logits, labels, weights, label_smoothing=smoothing, reduction="sum")
        return total / len(logits)

    def state(self) -> State:
        """A copy of everything that the next step depends on; raises PgnasError for NaN."""
        self.refuse_what_is_not_finite()
        tensors = {f"{NETWORK}{key}": value for key, value in self.network.state_dict().items()}
        numbers: dict[str, float] = {"seen": self.seen, "steps": self.steps}
        save_optimizer(self.weights, "weights", tensors, numbers)
        tensors |= {"epoch.loss_sum": self.loss_sum, "epoch.wrong": self.wrong}
        if self.drops is not None:
            self.drops.save(tensors, numbers)
        if self.average is not None:
            self.average.save(tensors, numbers)
        return State(self.step, {k: v.detach().clone() for k, v in tensors.items()}, numbers)

    def restore(self, state: State) -> None:
        """Continue from `state`; the recipe and the data must be the same."""
        restore_(self.network_of(state), state.network)
        restore_optimizer(self.weights, "weights", state)
        self.step = state.step
        self.loss_sum = state.tensors["epoch.loss_sum"].to(self.device)
        self.wrong = state.tensors["epoch.wrong"].to(self.device)
        self.seen = int(state.numbers["seen"])
        self.steps = min(int(state.numbers["steps"]), self.most_steps)
        if self.drops is not None:
            self.drops.restore(state)
        if self.average is not None:
            self.average.restore(state)
        self._set_rates()


@dataclass(frozen=True)
class Pass:
    """One epoch of training, or the rest of one that was resumed."""

    epoch: int  # counted from 1
    seconds: float
    images: int
    waited: float = 0.0  # seconds of them, for images


def train(
    loop: Loop,
    *,
    workers: int,
    save: Callable[[State], None],
    save_seconds: float | None = None,  # between two saves; None: as often as they are cheap
    resume_with: str = "",  # what resumes it, where `save` keeps the state
    what: str = "training",
) -> Generator[Pass, None, None]:
    """Train to the end; yields after each epoch, whose sums `loop` still holds.

    On SIGINT or SIGTERM saves after the step and raises Interrupted. Of several processes each
    calls this, and the first one saves; all stop after the same step.
    """
    batches = training_batches(
        loop.data, batch=loop.batch, seed=loop.seed, first_step=loop.step, steps=loop.most_steps,
        workers=workers, cutout=loop.recipe.cutout, scale=loop.recipe.scale,
        policy=loop.recipe.aa, device=loop.device,
    )  # fmt: skip
    parts = training_rows(
        loop.data.fit, batch=loop.batch, seed=loop.seed, first_step=loop.step,
        steps=loop.most_steps,
    )  # fmt: skip

    waiting = Waiting()

    def readable() -> Iterator[tuple[Tensor, Tensor]]:
        try:
            yield from waiting.over(batches)
        except PgnasError:  # a file went bad since it was checked
            save(loop.state())
            raise

    broadcast_(loop.network)
    loop.network.train()
    with StopRequest() as request, closing(batches), task(what, loop.steps) as shown:
        saving = Saving(save_seconds)
        began, seen = time.perf_counter(), 0
        for (images, labels), rows in zip(readable(), parts, strict=False):
            loop.advance(images, labels, rows)
            seen += rows.of
            shown.update(loop.step)
            if loop.step % loop.per_epoch == 0:
                seconds = time.perf_counter() - began
                loop.end_epoch()
                yield Pass(loop.step // loop.per_epoch, seconds, seen, waiting.taken())
                loop.start_epoch()
                if loop.step >= loop.steps:
                    break
                loop.network.train()
                began, seen = time.perf_counter(), 0
            asked = int(largest(request.asked))
            stopping = asked and loop.step < loop.steps
            if rank() == 0 and (stopping or saving.due()):
                write = partial(save, loop.state())
                write() if stopping else saving(write)
            if stopping:
                wait()  # whoever ends first has torchrun end the others
                at = f"after step {loop.step} of {loop.steps}"
                if not resume_with:
                    raise Interrupted(f"interrupted {at}", asked)
                raise Interrupted(f"interrupted; saved {at}, resume with {resume_with}", asked)
