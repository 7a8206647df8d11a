"""Train an exported network further, on the images that its fit had: the paper's "w/ FT" (Table 3).

The held-out images of the run stay held out. An unfinished fine-tuning lies beside its output, and
the same call goes on with it.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from ..data import ImageData, placed, steps_per_epoch, training_batches
from ..errors import Interrupted, PgnasError
from ..formats import Slim, origin, read_network, write_network
from ..progress import Track
from ..registry import Recipe
from ..run import read_settings
from ..run.posterior import held_out_of, posterior_of
from ..seeds import derived_seed, seeded_globals
from ..storage import checked, file_digest, read_tensors, to_json, typed, write_tensors
from .checkpoint import State, StopRequest, restore_optimizer, save_optimizer
from .schedule import schedule_of
from .scoring import score

UNFINISHED = "pgnas.finetuning/1"

RATE = 0.1  # of the fit's learning rate, by default

TEMPERATURE = 2.0  # at which the teacher's logits are matched


@dataclass(frozen=True)
class Plan:
    """What a fine-tuning is of; one that goes on must have the same."""

    source: str  # sha256 of the network's file
    teacher: str  # sha256 of the teacher's, or ""
    teacher_weight: float  # its share of the loss
    epochs: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class FinetunedEpoch:
    """What one epoch did."""

    epoch: int  # counted from 1
    epochs: int
    loss: float  # nats per image; with a teacher, of both parts
    train_error: float
    held_out_error: float
    seconds: float


def finetune_stage(
    source: Path,
    output: Path,
    named: Path | None,  # its run; None: found
    *,
    epochs: int,
    learning_rate: float | None,  # None: a tenth of the fit's
    teacher: Path | None,  # an exported network whose logits are matched too
    teacher_weight: float,
    force: bool,
    device: torch.device,
    workers: int,
    save_seconds: float,
    track: Track,
    step: Callable[[int, int], None] = lambda *_: None,
) -> Generator[FinetunedEpoch, None, Slim]:
    """Train the network in `source` on the fit's images and write it to `output`.

    Yields a record per epoch, the first one before any training (epoch 0); returns what the file
    says. Raises Interrupted, with everything saved, on SIGINT and SIGTERM.
    """
    _check(source, output, teacher, epochs, learning_rate, teacher_weight, force)
    network, about = read_network(source)
    run = origin([(source, about)], named)
    if run is None:
        raise PgnasError(f"'{source}' came from none of the runs here; name its run with --run")
    if output.resolve() in {path.resolve() for path in run.files()}:
        raise PgnasError(f"'{output}' is a file of the run itself; choose another name")
    master = None if teacher is None else _teacher(teacher, about)
    _, posterior = posterior_of(run)
    data = held_out_of(run, posterior, read_settings(run), workers, track, fitting=True)
    recipe, objective = posterior.recipe, posterior.objective
    rate = RATE * recipe.learning_rate if learning_rate is None else learning_rate
    plan = Plan(
        file_digest(source), "" if teacher is None else file_digest(teacher),
        teacher_weight if teacher is not None else 0.0, epochs, rate,
        posterior.seed,
    )  # fmt: skip
    unfinished = unfinished_path(output)
    state = _unfinished(unfinished, plan, network, force)
    recipe = dataclasses.replace(
        recipe, epochs=epochs, learning_rate=rate, schedule="cosine", milestones=(),
        cycle_epochs=0, min_learning_rate=0.0, warmup_epochs=0.0,
    )  # fmt: skip
    decay = 2 * objective.l2 / objective.kl_images  # the prior's, on a gate that is open
    tuning = _Tuning(network, master, data, recipe, plan, decay, device)
    if state is None:
        yield tuning.record(0, 0.0)
    else:
        tuning.restore(state)
    last = time.monotonic()
    with StopRequest() as request, closing(tuning.batches(workers)) as batches:
        began = time.perf_counter()
        for images, labels in batches:
            tuning.advance(images, labels)
            step(tuning.step, tuning.steps)
            stopping = request.asked and tuning.step < tuning.steps
            if tuning.step % tuning.per_epoch == 0:
                yield tuning.record(tuning.step // tuning.per_epoch, time.perf_counter() - began)
                began = time.perf_counter()
            if stopping or time.monotonic() - last > save_seconds:
                _save(unfinished, tuning.state(), plan)
                last = time.monotonic()
            if stopping:
                raise Interrupted(
                    f"interrupted; saved after step {tuning.step} of {tuning.steps}, the same"
                    " command goes on"
                )
    held_out = score(
        network, data.held_out, data.preprocessing, device=device, workers=workers, track=track
    )
    about = dataclasses.replace(
        about, held_out_errors=held_out.errors, held_out_images=held_out.images,
        finetuned_epochs=about.finetuned_epochs + epochs,
    )  # fmt: skip
    write_network(output, network.eval(), about)
    unfinished.unlink(missing_ok=True)
    return about


def unfinished_path(output: Path) -> Path:
    """Where a fine-tuning towards `output` is kept until it is done."""
    return output.with_name(f"{output.stem}.unfinished.safetensors")


def _check(
    source: Path,
    output: Path,
    teacher: Path | None,
    epochs: int,
    rate: float | None,
    weight: float,
    force: bool,
) -> None:
    for path in (source, output):
        if path.suffix != ".safetensors":
            raise PgnasError(f"'{path}' cannot be fine-tuned; possible: FILE.safetensors")
    if output.resolve() == source.resolve():
        raise PgnasError(f"'{output}' is the network itself; choose another name with --output")
    if teacher is not None and output.resolve() == teacher.resolve():
        raise PgnasError(f"'{output}' is the teacher; choose another name with --output")
    if output.exists() and not force:
        raise PgnasError(f"'{output}' exists; choose another name, or add --force")
    for name, value, low, high in (
        ("--epochs", epochs, 1, 10**6), ("--lr", rate, 0, 1e3), ("--teacher-weight", weight, 0, 1),
    ):  # fmt: skip
        if value is not None and not low <= value <= high:
            raise PgnasError(f"{name} {value:g} is out of range; possible: {low:g} to {high:g}")


def _teacher(path: Path, about: Slim) -> nn.Module:
    network, of = read_network(path)
    if of.subject.classes != about.subject.classes:
        raise PgnasError(f"'{path}' has other classes than the network; a teacher needs the same")
    if not of.held_out_digest or of.held_out_digest != about.held_out_digest:
        raise PgnasError(
            f"'{path}' was fitted on images that are held out here; a teacher needs a fit of the"
            " same data and --seed"
        )
    if of.subject.preprocessing != about.subject.preprocessing:
        raise PgnasError(f"'{path}' wants images of another size or scale than the network")
    return network


class _Tuning:
    """The moving parts of a fine-tuning, kept together so that they can be saved together."""

    def __init__(
        self,
        network: nn.Module,
        teacher: nn.Module | None,
        data: ImageData,
        recipe: Recipe,
        plan: Plan,
        decay: float,
        device: torch.device,
    ) -> None:
        self.network, self.data, self.recipe, self.plan = network, data, recipe, plan
        self.device = device
        placed(network, device)
        self.teacher = None if teacher is None else placed(teacher, device).eval()
        self.batch = min(recipe.batch_size, len(data.fit))
        self.per_epoch = steps_per_epoch(len(data.fit), self.batch)
        self.steps, self.step = recipe.epochs * self.per_epoch, 0
        matrices = [p for p in network.parameters() if p.dim() > 1]
        vectors = [p for p in network.parameters() if p.dim() <= 1]
        self.weights = create_optimizer_v2(
            [{"params": p, "weight_decay": d} for p, d in ((matrices, decay), (vectors, 0.0)) if p],
            opt=recipe.optimizer, lr=recipe.learning_rate, momentum=recipe.momentum,
        )  # fmt: skip
        self.schedule = schedule_of(self.weights, recipe, per_epoch=self.per_epoch, least=0.0)
        self.schedule.step_update(0)
        self.loss = torch.zeros((), device=device)
        self.wrong = torch.zeros((), device=device)
        self.seen = 0

    def batches(self, workers: int) -> Generator[tuple[Tensor, Tensor], None, None]:
        """What is left of the augmented images."""
        return training_batches(
            self.data, batch=self.batch, seed=derived_seed(self.plan.seed, "finetuning"),
            first_step=self.step, steps=self.steps, workers=workers, cutout=self.recipe.cutout,
        )  # fmt: skip

    def advance(self, images: Tensor, labels: Tensor) -> None:
        """One step."""
        self.network.train()
        labels = labels.to(self.device)
        inputs = self.data.preprocessing.normalised(images.to(self.device))
        if hasattr(self.network, "at_progress"):
            self.network.at_progress((self.step + 1) / self.steps)  # type: ignore[operator]
        with seeded_globals(derived_seed(self.plan.seed, "finetuning forward", self.step)):
            logits = self.network(inputs)
        loss = F.cross_entropy(logits, labels)
        if self.teacher is not None:
            with torch.no_grad():
                wanted = self.teacher(inputs)
            share = self.plan.teacher_weight
            loss = (1 - share) * loss + share * soft_loss(logits, wanted)
        loss.backward()
        self.weights.step()
        self.weights.zero_grad()
        self.loss += loss.detach() * len(inputs)
        self.wrong += (logits.detach().argmax(1) != labels).sum()
        self.seen += len(inputs)
        self.step += 1
        self.schedule.step_update(self.step)

    def record(self, epoch: int, seconds: float) -> FinetunedEpoch:
        """Judge the epoch that ends, and begin the next."""
        held_out = score(
            self.network, self.data.held_out, self.data.preprocessing, device=self.device, workers=0
        )
        seen = max(1, self.seen)
        if not math.isfinite(float(self.loss)):
            raise PgnasError(
                f"the loss is {float(self.loss)} in epoch {epoch}; lower --lr (now"
                f" {self.plan.learning_rate:g}); nothing was written"
            )
        found = FinetunedEpoch(
            epoch, self.recipe.epochs, float(self.loss) / seen, float(self.wrong) / seen,
            held_out.error, seconds,
        )  # fmt: skip
        self.loss.zero_()
        self.wrong.zero_()
        self.seen = 0
        return found

    def state(self) -> State:
        """A copy of everything that the next step depends on."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        numbers: dict[str, float] = {"seen": self.seen}
        save_optimizer(self.weights, "weights", tensors, numbers)
        tensors |= {"epoch.loss": self.loss, "epoch.wrong": self.wrong}
        return State(self.step, {k: v.detach().clone() for k, v in tensors.items()}, numbers)

    def restore(self, state: State) -> None:
        """Go on from `state`."""
        self.network.load_state_dict(_network_of(state))
        restore_optimizer(self.weights, "weights", state)
        self.step = state.step
        self.loss = state.tensors["epoch.loss"].to(self.device)
        self.wrong = state.tensors["epoch.wrong"].to(self.device)
        self.seen = int(state.numbers["seen"])
        self.schedule.step_update(self.step)


def soft_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Divergence from the teacher's softened classes, nats per image (Hinton et al., 2015).

    logits, wanted: (images, classes). The square of the temperature keeps the gradient's scale.
    """
    soft = F.log_softmax(logits / TEMPERATURE, 1)
    target = F.log_softmax(wanted / TEMPERATURE, 1)
    return TEMPERATURE**2 * F.kl_div(soft, target, reduction="batchmean", log_target=True)


def _network_of(state: State) -> dict[str, Tensor]:
    prefix = "network."
    return {k.removeprefix(prefix): v for k, v in state.tensors.items() if k.startswith(prefix)}


def _save(path: Path, state: State, plan: Plan) -> None:
    content = {"step": state.step, "numbers": state.numbers, "plan": to_json(plan)}
    write_tensors(path, UNFINISHED, state.tensors, content)


def _unfinished(path: Path, plan: Plan, network: nn.Module, force: bool) -> State | None:
    """What an interrupted call of the same plan left; `force` forgets one of another plan."""
    if not path.exists():
        return None
    tensors, content = read_tensors(path, UNFINISHED)
    started: dict[str, Any] = typed(dict[str, Any], content.get("plan"), "plan", path)
    now = to_json(plan)
    if started != now and force:
        return None
    if started != now:
        changed = [k for k in now if started.get(k) != now[k]]
        raise PgnasError(
            f"'{path}' was begun with other options ({', '.join(changed)}:"
            f" {json.dumps({k: started.get(k) for k in changed})}); give those to go on, or --force"
        )
    state = State(
        typed(int, content.get("step"), "step", path),
        tensors,
        typed(dict[str, float], content.get("numbers"), "numbers", path),
    )
    checked(_network_of(state), network.state_dict(), path)
    if not {"epoch.loss", "epoch.wrong"} <= set(tensors) or "seen" not in state.numbers:
        raise PgnasError(f"'{path}' is damaged; start again with --force")
    return state
