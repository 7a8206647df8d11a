"""Measure the epochs of a fit: losses, held-out errors, how p moves; stop a fit that collapses."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..distributed import Rows, rows_of, summed
from ..errors import PgnasError
from ..gates import drop_probabilities, masked, per_gate, relaxed
from ..seeds import generator
from ..sizes import parameter_count
from .checkpoint import State
from .loop import Loop, Pass

SETTLED = 0.01  # drift below which p has converged


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch of a fit did. Errors are shares of images; p stands for drop probabilities."""

    epoch: int  # counted from 1
    epochs: int
    loss: float  # mean cross-entropy under relaxed gates, nats per image
    kl: float  # divergence term of the loss at the epoch's end, nats per image
    train_error: float
    soft_error: float  # held-out, relaxed gates; once p is frozen, as the next
    hard_error: float  # held-out, hard gates drawn anew for every image: the mean candidate
    expected_params: float  # the file's count, mean over the posterior
    expected_macs: float  # mean over the posterior
    expected_share: float  # of the whole network's parameters
    expected_macs_share: float  # of the whole network's MACs
    price: float  # nats per image that the target makes the whole network's size worth, or 0
    mean_drop: float  # mean of p over gates
    decided: float  # share of gates whose p is below 0.05 or above 0.95
    drift: float  # mean change of p in a tenth of the fit at the full rate of its optimizer; <= 1
    drop_histogram: tuple[int, ...]  # gates in ten equal bins of p
    learning_rate: float
    seconds: float
    images_per_second: float
    trained_share: float = 1.0  # of the whole network's parameters, at the end
    waited_share: float = 0.0  # of the epoch's time, for images to be decoded
    expected_time_share: float | None = None  # of the whole network's time, by its time table

    @property
    def settled(self) -> bool:
        """Whether p has converged; one that never moved, or for a moment, has not."""
        return 0 < self.drift <= SETTLED and self.epoch >= 2 * max(1, self.epochs // 10)


class EpochWatch:
    """Measures the epochs of a fit, stops one that collapses, extends one that has not settled."""

    def __init__(self, loop: Loop) -> None:
        assert loop.drops is not None
        self.loop, self.drops = loop, loop.drops
        self.best_loss = math.inf
        self.lost_epochs = 0  # in a row, at chance

    def numbers(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"best_loss": min(self.best_loss, 1e30), "lost_epochs": self.lost_epochs}

    def restore(self, state: State) -> None:
        """The inverse of `numbers`."""
        self.best_loss = state.numbers["best_loss"]
        self.lost_epochs = int(state.numbers["lost_epochs"])

    def record(self, done: Pass) -> EpochRecord:
        """The record of the epoch that ends."""
        loop, drops = self.loop, self.drops
        probability = drop_probabilities(loop.network)
        drop = per_gate(loop.network, probability).cpu()
        self._refuse_collapse(loop.loss, float(1 - drop.mean()), done.epoch)
        self.best_loss = min(self.best_loss, loop.loss)
        drift = drops.drift()
        with torch.no_grad():
            divergence = drops.divergence()
            sizes = {k: float(v) for k, v in drops.size(probability.cpu()).items()}
            shares = {k: v / max(1, drops.size.whole[k]) for k, v in sizes.items()}
        if loop.step == loop.steps and loop.recipe.until_settled and drift > SETTLED:
            loop.extend()
        soft, hard = held_out_errors(loop, done.epoch)
        return EpochRecord(
            epoch=done.epoch,
            epochs=loop.steps // loop.per_epoch,
            loss=loop.loss,
            kl=float(divergence),
            train_error=loop.train_error,
            soft_error=soft,
            hard_error=hard,
            expected_params=sizes["params"],
            expected_macs=sizes["macs"],
            expected_share=shares["params"],
            expected_macs_share=shares["macs"],
            expected_time_share=shares.get("time"),
            price=drops.price,
            mean_drop=float(drop.mean()),
            decided=float(((drop < 0.05) | (drop > 0.95)).float().mean()),
            drift=drift,
            drop_histogram=tuple(int(n) for n in torch.histc(drop, 10, 0, 1)),
            learning_rate=max(float(group["lr"]) for group in loop.weights.param_groups),
            seconds=done.seconds,
            images_per_second=done.images / done.seconds,
            trained_share=parameter_count(loop.network) / drops.size.whole["params"],
            waited_share=min(1.0, done.waited / done.seconds),
        )

    def _refuse_collapse(self, loss: float, kept: float, epoch: int) -> None:
        chance = math.log(len(self.loop.data.classes))
        advice = "lower `l2` or `initial_drop`, or lengthen `drop_delay_epochs`"
        if self.drops.control is not None:
            advice = "choose a larger target size, or lengthen the fit with `epochs`"
        back = self.best_loss < 0.7 * chance and loss > 0.98 * chance
        self.lost_epochs = self.lost_epochs + 1 if back else 0
        if self.lost_epochs == 2:  # one alone may be noise where epochs are short
            raise PgnasError(
                f"the fit collapsed in epoch {epoch}: the loss is back at chance ({loss:.2f} of"
                f" {chance:.2f} nats, {100 * kept:.0f} % of the channels kept); {advice}"
            )
        if kept < 0.02 and self.drops.fixed_drop is None:
            raise PgnasError(
                f"the fit collapsed in epoch {epoch}: every gate is closing"
                f" ({100 * kept:.1f} % of the channels kept); {advice}"
            )


@torch.no_grad()
def held_out_errors(loop: Loop, epoch: int) -> tuple[float, float]:
    """Held-out errors under relaxed gates, and under hard gates drawn anew for each image.

    Weights that are trained on hard gates are judged on them alone.
    """
    assert loop.drops is not None
    network = loop.network.eval()
    frozen, wrong = loop.drops.is_frozen(loop.step), torch.zeros(2, dtype=torch.int64)
    for place, (images, labels, rows) in enumerate(_held_out_batches(loop)):
        if not rows.count:
            continue
        keep = loop.drops.hard_keep(generator(loop.seed, "hard", epoch, place), rows.of)
        with masked(network, keep[rows.part]):
            wrong[1] += int((network(images).argmax(1) != labels).sum())
        if frozen:
            continue
        draws = generator(loop.seed, "soft", epoch, place)
        temperature = loop.recipe.temperature
        with relaxed(
            network, batch=rows.of, generator=draws, temperature=temperature, part=rows.part
        ):
            wrong[0] += int((network(images).argmax(1) != labels).sum())
    soft, hard = (number / len(loop.data.held_out) for number in summed(wrong).tolist())
    return (hard if frozen else soft), hard


def _held_out_batches(loop: Loop) -> Iterator[tuple[Tensor, Tensor, Rows]]:
    """Images and labels of this process, and which rows of each batch they are."""
    part = loop.data.held_out
    assert part.pixels is not None, "the caller decodes the held-out images once"
    for images, labels in zip(
        part.pixels.split(loop.batch), part.labels.split(loop.batch), strict=True
    ):
        rows = rows_of(len(images))
        own = images[rows.part].to(loop.device)
        yield loop.data.preprocessing.normalised(own), labels[rows.part].to(loop.device), rows
