"""The pictures of a report: what the candidates, the gates, the fit and the race look like.

Each function returns a picture whose ids begin with `name`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from ..ranking import Board, Ranking
from ..training import EpochRecord
from ..units import large
from .content import Findings, GatedLayer, front
from .svg import INK, MARKERS, MUTED, SERIES, Picture, figure_of, legend_below, picture_of, styled

REFERENCES = ("fixed", "twin", "whole")  # evaluated beside the candidates
MOST_COLUMNS = 60  # epochs or layers; more are put together
MOST_POINTS = 3000  # of one picture; more are thinned out


@styled
def size_error(findings: Findings, name: str) -> Picture:
    """Held-out error against parameters, of every candidate of every board."""
    figure, axes = figure_of(3.0)
    for index, board in enumerate(findings.boards):
        _points(axes, board, SERIES[index % len(SERIES)], index == 0, len(findings.boards) > 1)
    top = _room(axes, findings)
    for role in REFERENCES:
        row = findings.evaluated_as(role)
        if row is not None:
            error = 100 * row.held_out_errors / row.held_out_images
            label = role if error <= top else f"{role}: {error:.1f} %"
            axes.plot([row.params], [min(error, 0.96 * top)], linestyle="none", color=INK,
                      marker="X" if error <= top else "^", markersize=6)  # fmt: skip
            axes.annotate(
                label, (row.params, min(error, 0.96 * top)), xytext=(6, -3),
                textcoords="offset points", fontsize=8,
            )  # fmt: skip
    axes.set_xlabel("parameters")
    axes.set_ylabel("held-out error, %")
    axes.xaxis.set_major_formatter(lambda value, _: large(value) if value > 0 else "0")
    axes.locator_params(axis="x", nbins=5)
    axes.margins(x=0.12)
    axes.set_ylim(-0.04 * top, top)
    legend_below(axes, figure)
    return picture_of(figure, name, "Size against held-out error", _size_error_text(findings))


def _room(axes: Any, findings: Findings) -> float:
    """Where the axis of errors ends, %: above all candidates and the whole network.

    A twin is often ten times worse; with it, nothing could be seen of the rest.
    """
    found = findings.evaluated_as("whole")
    whole = [] if found is None else [100 * found.held_out_errors / found.held_out_images]
    return float(1.15 * max(axes.get_ylim()[1], *whole, 0.5))


def _size_error_text(findings: Findings) -> str:
    parts = []
    for board in findings.boards:
        ranking = board.ranking
        done = int(ranking.race.finished.sum())
        within = "" if board.budget is None else f" within {board.budget}"
        parts.append(
            f"{len(ranking.errors)} candidates{within} of {large(int(ranking.sizes.params.min()))}"
            f" to {large(int(ranking.sizes.params.max()))} parameters, {done} of them evaluated on"
            f" every image; the best errs on {100 * board.best_error:.1f} % with"
            f" {large(int(ranking.sizes.params[board.best]))} parameters."
        )
        if len(ranking.running):
            parts.append(f"{len(ranking.running)} are not decided, and not shown.")
        if int((~ranking.race.finished).sum()) - len(ranking.running) > MOST_POINTS:
            parts.append(f"Of those that left early about {MOST_POINTS} are shown.")
    parts.append("Estimates of those that left early are rather too low.")
    return " ".join(parts)


def _points(axes: Any, board: Board, colour: str, first: bool, several: bool) -> None:
    """Exact errors as filled points, expected ones of those that left early as faint ones."""
    ranking = board.ranking
    errors, params = 100 * expected_errors(ranking), ranking.sizes.params
    done, undecided = ranking.race.finished, torch.zeros(len(params), dtype=torch.bool)
    undecided[ranking.running] = True
    for part, alpha, size, label in (
        (~done & ~undecided, 0.22, 7, "left the race early, estimated"),
        (done, 0.9, 12, "evaluated on every image"),
    ):
        ids = _some(part.nonzero().flatten())
        if len(ids):
            axes.scatter(
                params[ids], errors[ids], s=size, color=colour, alpha=alpha, linewidths=0,
                label=label if first else None,
            )  # fmt: skip
    if several:
        axes.scatter([], [], s=12, color=colour, label=f"within {board.budget}")
    ids = done.nonzero().flatten()
    best = ids[front(ranking.errors[ids], params[ids])]
    axes.step(params[best], errors[best], where="post", color=colour, linewidth=1, alpha=0.8,
              label="front" if first else None)  # fmt: skip
    axes.scatter(
        [int(params[board.best])], [float(errors[board.best])], s=70, marker="*", color=INK,
        zorder=5, label="winner" if first else None,
    )  # fmt: skip


def _some(ids: Tensor) -> Tensor:
    """At most `MOST_POINTS` of them, evenly spread."""
    return ids[:: max(1, math.ceil(len(ids) / MOST_POINTS))]


def expected_errors(ranking: Ranking) -> Tensor:
    """Share of the images that each candidate errs on; an estimate for those that left early.

    Who left early erred on the hardest images first; for the rest it is given the pilots' mean,
    which flatters it. float64 (candidates,).
    """
    race = ranking.race
    rest = 1 - race.hardness[race.seen]
    pilots = float(race.errors[: len(race.margins)].double().mean())
    return (race.errors.double() + rest * pilots) / ranking.images


@styled
def drop_by_layer(findings: Findings, name: str) -> Picture:
    """Where along the network gates are closed, open, or undecided."""
    groups = _together(findings.layers)
    figure, axes = figure_of(2.6)
    places = list(range(1, len(groups) + 1))
    levels = (0.05, 0.35, 0.65, 0.95, 1.01)
    bottom = [0.0] * len(groups)
    words = ("kept: p below 0.05", "0.05 to 0.35", "0.35 to 0.65", "0.65 to 0.95",
             "dropped: p above 0.95")  # fmt: skip
    shades = ((SERIES[0], 0.95), (SERIES[0], 0.55), (MUTED, 0.45), (SERIES[1], 0.55),
              (SERIES[1], 0.95))  # fmt: skip
    low = -1.0
    for level, word, (colour, alpha) in zip(levels, words, shades, strict=True):
        shares = [100 * sum(low < p <= level for p in drop) / len(drop) for drop, _ in groups]
        if any(shares):
            axes.bar(
                places, shares, bottom=bottom, width=0.86, color=colour, alpha=alpha, label=word,
                linewidth=0,
            )  # fmt: skip
        bottom = [b + s for b, s in zip(bottom, shares, strict=True)]
        low = level
    if all(kept is not None for _, kept in groups):
        shares = [100 * (kept or 0) / len(drop) for drop, kept in groups]
        axes.plot(places, shares, marker="_", linestyle="none", color=INK, markersize=5,
                  markeredgewidth=1.4, label="kept by the winner")  # fmt: skip
    axes.set_xlabel("layers with gates, in order of execution")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("gates, %")
    axes.set_ylim(0, 100)
    axes.set_xlim(0.4, len(groups) + 0.6)
    legend_below(axes, figure)
    return picture_of(figure, name, "Drop probabilities along the network", _drop_text(findings))


def _drop_text(findings: Findings) -> str:
    drop = torch.tensor([p for layer in findings.layers for p in layer.drop])
    most = max(findings.layers, key=lambda layer: sum(layer.drop) / len(layer.drop))
    return (
        f"Of {len(drop)} gates on {len(findings.layers)} layers, {_share(drop < 0.05)} have a drop"
        f" probability below 0.05 and {_share(drop > 0.95)} one above 0.95; {most.name} drops most,"
        f" {100 * sum(most.drop) / len(most.drop):.0f} % on average."
    )


@styled
def loss_curve(findings: Findings, name: str) -> Picture:
    """Loss of the fit under relaxed gates, epoch by epoch."""
    epochs = findings.epochs
    figure, axes = figure_of(2.0)
    _line(axes, epochs, [e.loss for e in epochs], 0, None)
    axes.set_ylabel("loss, nats per image")
    axes.set_ylim(bottom=0)
    text = f"From {epochs[0].loss:.2f} to {epochs[-1].loss:.2f} nats in {len(epochs)} epochs."
    return _curve(figure, axes, name, "Loss of the fit", text)


@styled
def error_curve(findings: Findings, name: str) -> Picture:
    """Held-out error with relaxed gates and of the mean candidate, epoch by epoch."""
    epochs = findings.epochs
    figure, axes = figure_of(2.0)
    _line(axes, epochs, [100 * e.hard_error for e in epochs], 0, "hard gates: the mean candidate")
    _line(axes, epochs, [100 * e.soft_error for e in epochs], 1, "relaxed gates", "--")
    axes.set_ylabel("held-out error, %")
    axes.set_ylim(bottom=0)
    text = (
        f"The mean candidate ends at {100 * epochs[-1].hard_error:.1f} %, with relaxed gates it is"
        f" {100 * epochs[-1].soft_error:.1f} %."
    )
    return _curve(figure, axes, name, "Held-out error during the fit", text)


@styled
def size_curve(findings: Findings, name: str) -> Picture:
    """Expected size of a candidate, epoch by epoch."""
    epochs = findings.epochs
    figure, axes = figure_of(2.0)
    _line(axes, epochs, [100 * e.expected_share for e in epochs], 0, "parameters")
    _line(axes, epochs, [100 * e.expected_macs_share for e in epochs], 1, "multiply-adds", "--")
    axes.set_ylabel("% of the whole")
    axes.set_ylim(0, 105)
    last = epochs[-1]
    text = (
        f"A candidate ends with {100 * last.expected_share:.0f} % of the parameters and"
        f" {100 * last.expected_macs_share:.0f} % of the multiply-adds on average."
    )
    return _curve(figure, axes, name, "Expected size during the fit", text)


@styled
def drop_over_time(findings: Findings, name: str) -> Picture:
    """Where the drop probabilities of all gates are, epoch by epoch."""
    columns = _thinned(findings.epochs)
    figure, axes = figure_of(2.2)
    width = columns[1].epoch - columns[0].epoch if len(columns) > 1 else 1
    for level in range(10):
        shares = [c.drop_histogram[level] / max(1, sum(c.drop_histogram)) for c in columns]
        colours = [(*to_rgb(SERIES[0]), math.sqrt(share)) for share in shares]
        axes.bar([c.epoch for c in columns], [0.1] * len(columns), bottom=level / 10, width=width,
                 color=colours, linewidth=0)  # fmt: skip
    axes.set_ylabel("drop probability p")
    axes.set_ylim(0, 1)
    last = findings.epochs[-1].drop_histogram
    text = (
        f"At the end {100 * last[0] / sum(last):.0f} % of the gates have p below 0.1 and"
        f" {100 * last[-1] / sum(last):.0f} % one above 0.9."
    )
    return _curve(figure, axes, name, "Drop probabilities during the fit", text)


@styled
def race_curve(board: Board, name: str) -> Picture:
    """How many candidates were still in, against images seen."""
    race = board.ranking.race
    images = len(race.order)
    figure, axes = figure_of(2.0)
    seen = race.seen.sort().values
    steps = torch.arange(images + 1)
    still = len(seen) - torch.searchsorted(seen, steps)
    axes.step(steps, still, where="post", color=SERIES[0])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: large(value))
    axes.yaxis.set_minor_formatter(lambda *_: "")
    axes.set_xlabel("held-out images seen, hardest first")
    axes.set_ylabel("candidates in")
    pairs = board.ranking.pairs / (len(race.seen) * images)
    text = (
        f"{len(race.seen)} candidates began, {int(still[-1])} saw all {images} images;"
        f" {100 * pairs:.1f} % of all pairs of candidate and image were evaluated."
    )
    within = "" if board.budget is None else f" within {board.budget}"
    return picture_of(figure, name, f"How the race{within} went", text)


@styled
def runs_compared(runs: Sequence[Findings], name: str) -> Picture:
    """The ranked candidates of several runs in one picture."""
    figure, axes = figure_of(3.0)
    for index, findings in enumerate(runs):
        colour, marker = _look(index)
        for place, board in enumerate(findings.boards):
            ranking = board.ranking
            shown = ranking.order[: MOST_POINTS // len(runs)]
            errors = 100 * ranking.errors[shown].double() / ranking.images
            axes.scatter(
                100 * ranking.sizes.params[shown].double() / findings.params, errors, s=14,
                color=colour, marker=marker, alpha=0.8, linewidths=0,
                label=f"run {index + 1}" if place == 0 else None,
            )  # fmt: skip
    axes.set_xlabel("parameters, % of the whole network")
    axes.set_ylabel("held-out error of the best, %")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    legend_below(axes, figure)
    text = "; ".join(
        f"run {index + 1}: the winner errs on {100 * board.best_error:.1f} %"
        for index, findings in enumerate(runs)
        for board in findings.boards[:1]
    )
    return picture_of(figure, name, "The runs side by side", text)


@styled
def fits_compared(runs: Sequence[Findings], name: str) -> Picture:
    """Held-out error of the mean candidate of several runs, epoch by epoch."""
    figure, axes = figure_of(2.4)
    for index, findings in enumerate(runs):
        colour, marker = _look(index)
        if findings.epochs:
            epochs = _thinned(findings.epochs)
            axes.plot(
                [e.epoch for e in epochs], [100 * e.hard_error for e in epochs],
                color=colour, marker=marker, markersize=3, label=f"run {index + 1}",
            )  # fmt: skip
    axes.set_ylabel("mean candidate, %")
    axes.set_ylim(bottom=0)
    text = "; ".join(
        f"run {index + 1} ends at {100 * findings.epochs[-1].hard_error:.1f} %"
        for index, findings in enumerate(runs)
        if findings.epochs
    )
    return _curve(figure, axes, name, "Held-out errors side by side", text)


def _share(which: Tensor) -> str:
    return f"{100 * float(which.double().mean()):.0f} %"


def _look(index: int) -> tuple[str, str]:
    """Colour and marker of a run; 36 of them differ."""
    turn, place = divmod(index, len(SERIES))
    return SERIES[place], MARKERS[(place + turn) % len(MARKERS)]


def _thinned(epochs: Sequence[EpochRecord]) -> list[EpochRecord]:
    """At most `MOST_COLUMNS` epochs, the last one among them."""
    step = max(1, math.ceil(len(epochs) / MOST_COLUMNS))
    return list(epochs[::-1][::step][::-1])


def _together(layers: Sequence[GatedLayer]) -> list[tuple[list[float], int | None]]:
    """Drop probabilities and kept gates of neighbouring layers, as many bars as can be seen."""
    step = max(1, math.ceil(len(layers) / MOST_COLUMNS))
    found = []
    for start in range(0, len(layers), step):
        part = layers[start : start + step]
        kept = [layer.kept for layer in part]
        drop = [p for layer in part for p in layer.drop]
        found.append((drop, None if None in kept else sum(k or 0 for k in kept)))
    return found


def _line(
    axes: Any, epochs: Sequence[EpochRecord], values: Sequence[float], index: int,
    label: str | None, style: str = "-",
) -> None:  # fmt: skip
    marker = "os"[index] if len(epochs) == 1 else None
    axes.plot([e.epoch for e in epochs], values, style, color=SERIES[index], label=label,
              marker=marker)  # fmt: skip


def _curve(figure: Figure, axes: Any, name: str, title: str, text: str) -> Picture:
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    legend_below(axes, figure)
    return picture_of(figure, name, title, text)
