"""The pictures of a report: the candidates, the gates, the training and the elimination."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor

from ..evaluation import Evaluation, confusion_of
from ..ranking import Leaderboard
from ..training import EpochRecord
from ..units import duration, large, percent
from .summary import GatedLayer, RunSummary, front, winner_of
from .svg import INK, MARKERS, MUTED, SERIES, WIDE, Picture, figure_of, picture_of, styled

REFERENCES = ("fixed", "twin", "whole")  # evaluated beside the candidates
MOST_COLUMNS = 60  # epochs or layers; more are put together
MOST_POINTS = 3000  # of one picture; more are thinned out
MOST_CELLS = 2000  # of a confusion matrix off its diagonal
MOST_NAMED = 150  # classes that a confusion matrix names on a wide page
LONGEST_NAME = 18  # characters of it

SHARES = (  # (p up to, words, colour, opacity)
    (0.05, "kept: p below 0.05", SERIES[0], 0.95),
    (0.35, "0.05 to 0.35", SERIES[0], 0.55),
    (0.65, "0.35 to 0.65", MUTED, 0.45),
    (0.95, "0.65 to 0.95", SERIES[1], 0.55),
    (1.01, "dropped: p above 0.95", SERIES[1], 0.95),
)


@styled
def size_error(run: RunSummary) -> Picture:
    """Held-out error against size, of every candidate of every board: against the time that is
    predicted where a time was aimed at, else against parameters."""
    timed = _timed(run)
    what = "time of a forward, predicted" if timed else "parameters"
    figure, axes = figure_of(3.0, what, "held-out error, %")
    for index, board in enumerate(run.boards):
        _points(axes, board, SERIES[index % len(SERIES)], index == 0, len(run.boards) > 1, timed)
    # The axis ends above all candidates and the original network. A random baseline is often ten
    # times worse; with it, nothing could be seen of the rest.
    whole = run.evaluated_as("whole")
    most = 0.0 if whole is None else 100 * whole.held_out_errors / whole.held_out_images
    top = 1.15 * max(axes.get_ylim()[1], most, 0.5)
    for role in REFERENCES:
        row = run.evaluated_as(role)
        place_of = row and (row.params if not timed else row.predicted and 1e6 * row.predicted.ms)
        if row is not None and place_of:
            error = 100 * row.held_out_errors / row.held_out_images
            inside, place = error <= top, (place_of, min(error, 0.96 * top))
            axes.plot(*place, linestyle="none", color=INK, marker="X" if inside else "^",
                      markersize=6)  # fmt: skip
            axes.annotate(role if inside else f"{role}: {error:.1f} %", place, xytext=(6, -3),
                          textcoords="offset points", fontsize=8)  # fmt: skip
    axes.set_ylim(-0.04 * top, top)
    named = duration if timed else large
    axes.xaxis.set_major_formatter(lambda value, _: named(value) if value > 0 else "0")
    axes.locator_params(axis="x", nbins=5)
    axes.margins(x=0.12)
    return picture_of(figure, "Size against held-out error", _size_error_text(run), wide=True)


def _timed(run: RunSummary) -> bool:
    """Whether the candidates are shown by the time that is predicted for them."""
    targets = [run.posterior.objective.target, *(board.candidates.budget for board in run.boards)]
    aimed = any(target is not None and target.kind == "time" for target in targets)
    return aimed and all("time" in board.candidates.costs for board in run.boards)


def _size_error_text(run: RunSummary) -> str:
    parts = []
    for board in run.boards:
        race, params, first = board.race, board.candidates.sizes.params, winner_of(board)
        undecided = board.undecided
        parts.append(
            f"{len(params)} candidates{board.within}, of {large(int(params.min()))} to"
            f" {large(int(params.max()))} parameters; {int(race.finished.sum())} evaluated on every"
            f" image. The best errs on {percent(first.error)} with {large(first.params)}"
            " parameters."
        )
        if undecided:
            parts.append(f"{undecided} are not decided, and not shown.")
        if int((~race.finished).sum()) - undecided > MOST_POINTS:
            parts.append(f"About {MOST_POINTS} of the eliminated ones are shown.")
    parts.append("Errors of eliminated candidates are estimates, and rather too low.")
    return " ".join(parts)


def _points(
    axes: Any, board: Leaderboard, colour: str, first: bool, several: bool, timed: bool
) -> None:
    """Draw exact errors as solid points, estimates for eliminated candidates as faint ones."""
    winner, sizes = winner_of(board), board.candidates.sizes
    size_of = sizes.time if timed else sizes.params
    errors, done = 100 * expected_errors(board), board.race.finished
    undecided = torch.zeros(len(size_of), dtype=torch.bool)
    undecided[board.race.walking()] = True
    for part, alpha, size, label in (
        (~done & ~undecided, 0.22, 7, "eliminated, estimated"),
        (done, 0.9, 12, "evaluated on every image"),
    ):
        ids = part.nonzero().flatten()
        ids = ids[:: max(1, math.ceil(len(ids) / MOST_POINTS))]
        if len(ids):
            axes.scatter(size_of[ids], errors[ids], s=size, color=colour, alpha=alpha, linewidths=0,
                         label=label if first else None)  # fmt: skip
    if several:
        axes.scatter([], [], s=12, color=colour, label=f"within {board.candidates.budget}")
    ids = done.nonzero().flatten()
    best = ids[front(board.errors[ids], size_of[ids])]
    axes.step(size_of[best], errors[best], where="post", color=colour, linewidth=1, alpha=0.8,
              label="front" if first else None)  # fmt: skip
    place = int(size_of[winner.id]), 100 * winner.error
    axes.scatter(*place, s=70, marker="*", color=INK, zorder=5,
                 label="winner" if first else None)  # fmt: skip


def expected_errors(board: Leaderboard) -> Tensor:
    """Share of the images that each candidate errs on; an estimate for eliminated candidates.

    Those erred on the hardest images first; for the rest they are given the pilots' mean, which
    flatters them. float64 (candidates,).
    """
    race = board.race
    rest = 1 - race.hardness[race.seen]
    pilots = float(race.errors[race.pilots].double().mean())
    return (race.errors.double() + rest * pilots) / board.images


@styled
def drop_by_layer(run: RunSummary) -> Picture:
    """Where along the network gates are closed, open, or undecided."""
    groups = _together(run.layers)
    figure, axes = figure_of(2.6, "layers with gates, in order of execution", "gates, %")
    places = range(1, len(groups) + 1)
    bottom, low = [0.0] * len(groups), -1.0
    for high, words, colour, alpha in SHARES:
        shares = [100 * sum(low < p <= high for p in drop) / len(drop) for drop, _ in groups]
        if any(shares):
            axes.bar(places, shares, bottom=bottom, width=0.86, color=colour, alpha=alpha,
                     label=words, linewidth=0)  # fmt: skip
        bottom, low = [b + s for b, s in zip(bottom, shares, strict=True)], high
    if all(kept is not None for _, kept in groups):
        shares = [100 * (kept or 0) / len(drop) for drop, kept in groups]
        axes.plot(places, shares, marker="_", linestyle="none", color=INK, markersize=5,
                  markeredgewidth=1.4, label="kept by the winner")  # fmt: skip
    axes.set(ylim=(0, 100), xlim=(0.4, len(groups) + 0.6))
    drop = torch.tensor([p for layer in run.layers for p in layer.drop])
    most = max(run.layers, key=lambda layer: sum(layer.drop) / len(layer.drop))
    text = (
        f"Of {len(drop)} gates on {len(run.layers)} layers, {_share(drop < 0.05)} have a drop"
        f" probability below 0.05 and {_share(drop > 0.95)} one above 0.95; {most.name} drops most,"
        f" {100 * sum(most.drop) / len(most.drop):.0f} % on average."
    )
    return picture_of(figure, "Drop probabilities along the network", text, wide=True)


def fit_curves(run: RunSummary) -> list[Picture]:
    """How loss, errors, drop probabilities and size went, epoch by epoch."""
    epochs, last = run.epochs, run.epochs[-1]
    losses = [e.loss for e in epochs]
    errors = {
        "hard gates: the mean candidate": [100 * e.hard_error for e in epochs],
        "relaxed gates": [100 * e.soft_error for e in epochs],
    }
    sizes = {
        "parameters": [100 * e.expected_share for e in epochs],
        "MACs": [100 * e.expected_macs_share for e in epochs],
    }
    return [
        _lines(
            epochs, {"": losses}, "loss, nats per image", None, "Training loss",
            f"From {losses[0]:.2f} to {losses[-1]:.2f} nats in {len(epochs)} epochs.",
        ),
        _lines(
            epochs, errors, "held-out error, %", None, "Held-out error during training",
            f"The mean candidate ends at {percent(last.hard_error)}, with relaxed gates it is"
            f" {percent(last.soft_error)}.",
        ),
        drop_over_time(epochs),
        _lines(
            epochs, sizes, "% of the original", 105, "Expected size during training",
            f"A candidate ends with {100 * last.expected_share:.0f} % of the parameters and"
            f" {100 * last.expected_macs_share:.0f} % of the MACs on average.",
        ),
    ]  # fmt: skip


@styled
def _lines(
    epochs: Sequence[EpochRecord], lines: dict[str, list[float]], label: str, top: float | None,
    title: str, text: str,
) -> Picture:  # fmt: skip
    """Draw named lines over the epochs, the second one dashed."""
    figure, axes = figure_of(2.0, "epoch", label)
    for index, (name, values) in enumerate(lines.items()):
        axes.plot([e.epoch for e in epochs], values, "--" if index else "-", color=SERIES[index],
                  label=name, marker=MARKERS[index] if len(epochs) == 1 else None)  # fmt: skip
    axes.set_ylim(0, top)
    return picture_of(figure, title, text)


@styled
def drop_over_time(epochs: Sequence[EpochRecord]) -> Picture:
    """Where the drop probabilities of all gates are, epoch by epoch."""
    columns = _thinned(epochs)
    figure, axes = figure_of(2.0, "epoch", "drop probability p")
    width = columns[1].epoch - columns[0].epoch if len(columns) > 1 else 1
    for level in range(10):
        shares = [c.drop_histogram[level] / sum(c.drop_histogram) for c in columns]
        colours = [(*to_rgb(SERIES[0]), math.sqrt(share)) for share in shares]
        axes.bar([c.epoch for c in columns], 0.1, bottom=level / 10, width=width,
                 color=colours, linewidth=0)  # fmt: skip
    axes.set_ylim(0, 1)
    end = epochs[-1]
    low, high = (100 * end.drop_histogram[i] / sum(end.drop_histogram) for i in (0, -1))
    moves = "has settled" if end.settled else "still moves" if end.drift else "is frozen"
    text = (
        f"At the end {low:.0f} % of the gates have p below 0.1 and {high:.0f} % one above 0.9. p"
        f" {moves}: {end.drift:.3f} on average in a tenth of the fit."
    )
    return picture_of(figure, "Drop probabilities during training", text)


@styled
def race_curve(board: Leaderboard) -> Picture:
    """How many candidates were not eliminated, against images seen."""
    race = board.race
    candidates, images = len(race.seen), len(race.order)
    seen = race.seen.clone()
    seen[race.walking()] = images  # undecided: not eliminated
    figure, axes = figure_of(2.0, "held-out images seen, hardest first", "candidates left")
    steps = torch.arange(images + 1)
    still = candidates - torch.searchsorted(seen.sort().values, steps)
    axes.step(steps, still, where="post", color=SERIES[0])
    axes.set_yscale("log")
    axes.set_ylim(bottom=1)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.yaxis.set_major_formatter(lambda value, _: large(value))
    axes.yaxis.set_minor_formatter(lambda *_: "")
    text = (
        f"{candidates} candidates began, {int(race.finished.sum())} saw all {images} images;"
        f" {percent(board.pairs / (candidates * images))} of all (candidate, image) pairs"
        " were evaluated."
    )
    return picture_of(figure, f"Elimination of candidates{board.within}", text)


@styled
def reliability(rows: Sequence[tuple[str, Evaluation]]) -> Picture:
    """Accuracy against confidence, of networks by name."""
    figure, axes = figure_of(3.0, "confidence, %", "accuracy, %")
    axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.8, label="confidence = accuracy")
    told = []
    for index, (name, row) in enumerate(rows):
        assert row.answers is not None
        parts = [part for part in row.answers.bins if part.images]
        places = [100 * part.confidence for part in parts]
        accuracies = [100 * part.right / part.images for part in parts]
        axes.plot(places, accuracies, "--" if index else "-", color=SERIES[index], label=name)
        sizes = [10 + 150 * part.images / row.images for part in parts]
        axes.scatter(
            places, accuracies, s=sizes, marker=MARKERS[index], color=SERIES[index], alpha=0.7,
            linewidths=0,
        )  # fmt: skip
        mean = sum(part.images * part.confidence for part in parts) / row.images
        error, accuracy = percent(row.answers.calibration_error), percent(1 - row.error)
        told.append(f"{name}: {error} (mean confidence {percent(mean)}, accuracy {accuracy})")
    axes.set(xlim=(0, 103), ylim=(0, 103))
    bins = len(rows[0][1].answers.bins) if rows[0][1].answers else 0
    text = (
        f"Expected calibration error in {bins} bins: {'; '.join(told)}. Below the diagonal a"
        " network is overconfident. Larger marks stand for more images."
    )
    return picture_of(figure, "Reliability of the confidence", text, wide=True)


@styled
def confusion(name: str, row: Evaluation, used: Sequence[int]) -> Picture:
    """The confusion matrix of many classes, in the order of `used`; named on a wide page."""
    counts = confusion_of(row)[used][:, used]
    right = torch.eye(len(used), dtype=torch.bool)
    cells = int(((counts > 0) & ~right).sum())
    text = (
        f"{len(used)} classes; those that are confused stand together. On the diagonal the right"
        f" answers, beside it {cells} pairs that are confused; stronger colours are larger shares"
        " of the true class."
    )
    if cells > MOST_CELLS:
        text += f" The {MOST_CELLS} largest shares are drawn."
    title, named = f"Confusion matrix of {name}", len(used) <= MOST_NAMED
    narrow = picture_of(_confusion(counts, 4.6), title, text)
    if not named:
        return narrow
    figure = _confusion(counts, 9.0, [row.by_class[i][0] for i in used])
    figure.set_size_inches(WIDE, 9.0)
    return replace(narrow, wider=picture_of(figure, title, text).svg)


def _confusion(counts: Tensor, height: float, names: Sequence[str] = ()) -> Figure:
    """A matrix, its cells as squares, and the names of its rows and columns."""
    figure, axes = figure_of(height, "predicted class", "true class, in the same order")
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    right, inches = torch.eye(len(counts), dtype=torch.bool), 0.85 * height
    size = (0.9 * 72 * inches / len(counts)) ** 2
    for part, colour in ((right, SERIES[0]), (~right, SERIES[1])):
        true, said = (part & (counts > 0)).nonzero(as_tuple=True)
        first = shares[true, said].argsort(descending=True, stable=True)[:MOST_CELLS]
        true, said = true[first], said[first]
        axes.scatter(said, true, s=max(size, 1.5), marker="s", color=colour, linewidths=0,
                     alpha=(0.25 + 0.75 * shares[true, said].sqrt()).numpy())  # fmt: skip
    axes.set(xlim=(-1, len(counts)), ylim=(len(counts), -1), xticks=[], yticks=[])
    if names:
        short = [n if len(n) <= LONGEST_NAME else f"{n[: LONGEST_NAME - 1]}…" for n in names]
        font = min(8.0, 64 * inches / len(names))
        axes.set_yticks(range(len(names)), short, fontsize=font)
        axes.set_xticks(range(len(names)), short, fontsize=font, rotation=90)
        axes.tick_params(length=0, pad=2)
        axes.plot([-1, len(names)], [-1, len(names)], color=MUTED, alpha=0.3, linewidth=0.5)
    return figure


@styled
def runs_compared(runs: Sequence[RunSummary]) -> Picture:
    """The ranked candidates of several runs in one picture."""
    figure, axes = figure_of(3.0, "parameters, % of the original", "held-out error of the best, %")
    for index, run in enumerate(runs):
        colour, marker = _look(index)
        for place, board in enumerate(run.boards):
            shown = board.order[: MOST_POINTS // len(runs)]
            errors = 100 * board.errors[shown].double() / board.images
            sizes = 100 * board.candidates.sizes.params[shown].double() / run.params
            axes.scatter(sizes, errors, s=14, color=colour, marker=marker, alpha=0.8, linewidths=0,
                         label=f"run {index + 1}" if place == 0 else None)  # fmt: skip
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    text = "; ".join(
        f"run {index + 1}: the winner errs on {percent(run.winner.error)}"
        for index, run in enumerate(runs)
        if run.winner is not None
    )
    return picture_of(figure, "The runs side by side", text)


@styled
def fits_compared(runs: Sequence[RunSummary]) -> Picture:
    """Held-out error of the mean candidate of several runs, epoch by epoch."""
    figure, axes = figure_of(3.0, "epoch", "mean held-out error, %")
    ends = []
    for index, run in enumerate(runs):
        if run.epochs:
            (colour, marker), epochs = _look(index), _thinned(run.epochs)
            errors = [100 * e.hard_error for e in epochs]
            axes.plot([e.epoch for e in epochs], errors, color=colour, marker=marker, markersize=3,
                      label=f"run {index + 1}")  # fmt: skip
            ends.append(f"run {index + 1} ends at {percent(epochs[-1].hard_error)}")
    axes.set_ylim(bottom=0)
    return picture_of(figure, "Held-out errors side by side", "; ".join(ends))


def _share(which: Tensor) -> str:
    return f"{100 * float(which.double().mean()):.0f} %"


def _look(index: int) -> tuple[str, str]:
    """Return colour and marker of a run; 36 of them differ."""
    turn, place = divmod(index, len(SERIES))
    return SERIES[place], MARKERS[(place + turn) % len(MARKERS)]


def _thinned(epochs: Sequence[EpochRecord]) -> list[EpochRecord]:
    """Return at most `MOST_COLUMNS` epochs, the last one among them."""
    step = max(1, math.ceil(len(epochs) / MOST_COLUMNS))
    return list(epochs[::-1][::step][::-1])


def _together(layers: Sequence[GatedLayer]) -> list[tuple[list[float], int | None]]:
    """Join neighbouring layers to as many bars as can be seen: drop probabilities, kept gates."""
    step = max(1, math.ceil(len(layers) / MOST_COLUMNS))
    found = []
    for start in range(0, len(layers), step):
        part = layers[start : start + step]
        kept = [layer.kept for layer in part]
        drop = [p for layer in part for p in layer.drop]
        found.append((drop, None if None in kept else sum(k or 0 for k in kept)))
    return found
