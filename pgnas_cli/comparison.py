"""Several runs side by side: the options in which they differ, and what each came to."""

from collections.abc import Sequence
from typing import Any

from . import figures
from .console import clock, percent
from .data import FOLDER
from .findings import Findings
from .markup import figure, table
from .storage import to_json


def comparison(runs: Sequence[Findings]) -> list[str]:
    """The table and the pictures of several runs."""
    columns = [_summary(run) for run in runs]
    names = ["name", "data", *_differing(runs), *list(columns[0])[2:]]
    options = [_options(run) for run in runs]
    rows = [
        [name, *(c.get(name, str(o.get(name))) for c, o in zip(columns, options, strict=True))]
        for name in names
    ]
    found = table(
        "Each run, the options in which they differ, and the winner",
        ("", *(f"run {index + 1}" for index in range(len(runs)))), rows,
    )  # fmt: skip
    shown = []
    if any(run.boards for run in runs):
        shown.append(figure(figures.runs_compared(runs, "all-runs")))
    if any(run.epochs for run in runs):
        shown.append(figure(figures.fits_compared(runs, "all-fits")))
    return [found, '<div class="two">', *shown, "</div>"]


def _summary(run: Findings) -> dict[str, str]:
    """One run's column of the comparison."""
    found = dict.fromkeys(
        ("name", "data", "mean candidate, held-out", "winner, held-out", "winner, to expect",
         "winner, test", "parameters", "multiply-adds", "time of the fit"), "",
    )  # fmt: skip
    found["name"] = run.folder.name
    found["data"] = run.posterior.subject.data.removeprefix(FOLDER)
    if run.epochs:
        found["mean candidate, held-out"] = percent(run.epochs[-1].hard_error)
        found["time of the fit"] = clock(sum(epoch.seconds for epoch in run.epochs))
    if run.boards:
        board = run.boards[0]
        sizes = board.ranking.sizes
        found["winner, held-out"] = percent(board.best_error)
        found["winner, to expect"] = percent(board.expected_error)
        found["parameters"] = percent(int(sizes.params[board.best]) / run.params)
        found["multiply-adds"] = percent(int(sizes.macs[board.best]) / run.macs)
    best = run.evaluated_as("best")
    if best is not None:
        found["winner, test"] = percent(best.errors / best.images)
    return found


def _options(run: Findings) -> dict[str, Any]:
    settings = to_json(run.settings)
    return {**{k: v for k, v in settings.items() if k != "recipe"}, **settings["recipe"]}


def _differing(runs: Sequence[Findings]) -> list[str]:
    """The options in which some run differs from another."""
    given = [_options(run) for run in runs]
    keys = dict.fromkeys(key for one in given for key in one)
    return [key for key in keys if key != "data" and len({repr(one.get(key)) for one in given}) > 1]
