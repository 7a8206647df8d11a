"""The top of a report, and several runs side by side."""

from collections.abc import Sequence
from typing import Any

import torch

from ..data import FOLDER
from ..evaluation import Evaluated
from ..ranking import interval, paired_p
from ..storage import to_json
from ..units import clock, large, percent
from . import markup, plots
from .content import Findings
from .markup import figure, table

ROLES = {
    "whole": "the whole network, trained without gates",
    "fixed": "of a network whose gates dropped at one fixed rate",
    "open": "the gated network with all gates open, as no candidate was trained",
    "twin": "random twin: as large as the best, drop probabilities dealt out by chance",
    "best": "best of the candidates",
    "smallest": "the smallest that a test could not tell from the best",
    "former": "best of the candidates when it was exported; the ranking has another by now",
    "tuned": "fine-tuned",
    "other": "of another run",
    "candidate": "",
}

ORDER = ("whole", "open", "fixed", "twin", "best", "smallest")


def headline(run: Findings) -> str:
    """The answer in one line."""
    best = run.evaluated_as("best")
    if best is not None:
        text = (
            f"{percent(best.params / best.whole_params)} of the parameters,"
            f" {percent(best.errors / best.images)} test error"
        )
        whole = _comparable(run, "whole", best)
        if whole is not None:
            text += f" (whole network {percent(whole.errors / whole.images)})"
    elif run.boards:
        board = run.boards[0]
        share = int(board.ranking.sizes.params[board.best]) / run.params
        text = f"{percent(share)} of the parameters, {percent(board.best_error)} held-out error"
    elif run.epochs:
        last = run.epochs[-1]
        text = (
            f"fitted: candidates of {percent(last.expected_share)} of the parameters,"
            f" {percent(last.hard_error)} held-out error on average"
        )
    else:
        text = "a fitted posterior"
    if run.boards and not run.exact:
        text += ", so far"
    return text if not run.baseline else f"{text}; a baseline ({run.baseline}), not the posterior"


def answer(run: Findings) -> str:
    """The networks that were evaluated, or what is known of the winner without that."""
    subject = run.posterior.subject
    images = f"{subject.data.removeprefix(FOLDER)}, {len(subject.classes)} classes"
    shape = "x".join(map(str, subject.preprocessing.input_shape))
    parts = [f"<p>{markup.text(f'{subject.backbone} on {images}, images of {shape}.')}</p>"]
    rows = same_conditions(run)
    if rows:
        parts.append(_evaluated(run, rows))
    if run.evaluated_as("best") is None:
        parts.append(_untested(run))
    notes = [_unfinished(run), _verdict(run), _faster(run)]
    if len(rows) < len(run.evaluated):
        others = ", ".join(row.name for row in run.evaluated if row not in rows)
        notes.append(f"Left out, since evaluated on other images, devices or batches: {others}.")
    return "\n".join([*parts, *(f"<p>{markup.text(note)}</p>" for note in notes if note)])


def same_conditions(run: Findings) -> list[Evaluated]:
    """The networks that were evaluated as the one evaluated last was, the best ones last."""
    if not run.evaluated:
        return []
    latest = max(run.evaluated, key=lambda row: row.at)
    rows = [row for row in run.evaluated if _conditions(row) == _conditions(latest)]
    place = {role: index for index, role in enumerate(ORDER)}
    return sorted(rows, key=lambda row: place.get(run.role(row), len(ORDER)))


def _conditions(row: Evaluated) -> tuple[str, int, str, int]:
    return row.data, row.images, row.device, row.batch


def _comparable(run: Findings, role: str, other: Evaluated) -> Evaluated | None:
    found = run.evaluated_as(role)
    return found if found is not None and _conditions(found) == _conditions(other) else None


def _evaluated(run: Findings, rows: list[Evaluated]) -> str:
    lines: list[list[markup.Cell]] = []
    for row in rows:
        low, high = interval(row.errors, row.images)
        role = run.role(row)
        words = [ROLES[role]]
        if row.candidate.isdecimal():
            words.append(f"candidate {row.candidate}")
        if row.finetuned_epochs:
            words = [*words[role == "tuned" :], f"fine-tuned for {row.finetuned_epochs} epochs"]
        lines.append([
            (row.name, ", ".join(word for word in words if word)),
            (percent(row.errors / row.images), f"{100 * low:.1f}-{100 * high:.1f}"),
            percent(row.held_out_errors / row.held_out_images),
            (large(row.params), percent(row.params / row.whole_params)),
            (large(row.macs), percent(row.macs / row.whole_macs)),
            (f"{row.one_ms:.2f}", f"whole {row.one_whole_ms:.2f}"),
            (f"{row.many_ms:.1f}", f"whole {row.many_whole_ms:.1f}"),
        ])  # fmt: skip
    first = rows[0]
    return markup.table(
        f"On the {first.images} test images of {first.data.removeprefix(FOLDER)}; times on"
        f" {first.device}",
        ("network", "test error, 95 %", "held-out", "parameters", "multiply-adds",
         "ms, 1 image", f"ms, {first.batch} images"),
        lines,
    )  # fmt: skip


def _untested(run: Findings) -> str:
    if not run.boards:
        step = "rank" if run.drawn is not None else "sample"
        return f"<p>Nothing has been ranked yet: <code>pgnas {step}</code> is next.</p>"
    board = run.boards[0]
    ranking, best = board.ranking, board.best
    low, high = interval(int(ranking.errors[best]), ranking.images)
    params, macs = int(ranking.sizes.params[best]), int(ranking.sizes.macs[best])
    row = [
        f"candidate {run.winner}", percent(board.best_error),
        f"{100 * low:.1f}-{100 * high:.1f}", percent(board.expected_error),
        f"{large(params)} ({percent(params / run.params)})",
        f"{large(macs)} ({percent(macs / run.macs)})",
    ]  # fmt: skip
    within = "" if board.budget is None else f" within {board.budget}"
    table = markup.table(
        f"The winner{within}, on {ranking.images} held-out images",
        ("network", "error", "95 %", "to expect", "parameters", "multiply-adds"), [row],
    )  # fmt: skip
    later = "<p>Its test error: <code>pgnas export</code>, then <code>pgnas evaluate</code>.</p>"
    return f"{table}\n{later}"


def _unfinished(run: Findings) -> str:
    """What the ranking has not come to."""
    undecided = sum(len(board.ranking.running) for board in run.boards)
    more = f" {run.waiting} budgets have not begun." if run.waiting else ""
    if not undecided and not more:
        return ""
    return (
        f"The ranking is not finished: {undecided} candidates might still be better.{more} pgnas"
        " rank goes on."
    )


def _verdict(run: Findings) -> str:
    """Whether the test images can tell the best from the whole network."""
    best = run.evaluated_as("best")
    whole = None if best is None else _comparable(run, "whole", best)
    if best is None or whole is None:
        return ""
    wrong = [torch.zeros(best.images, dtype=torch.bool) for _ in range(2)]
    for mask, row in zip(wrong, (best, whole), strict=True):
        mask[list(row.wrong)] = True
    only_best, only_whole = int((wrong[0] & ~wrong[1]).sum()), int((wrong[1] & ~wrong[0]).sum())
    p = paired_p(*wrong)
    told = "these images cannot tell the two apart" if p >= 0.05 else "that is more than chance"
    return (
        f"Of the {best.images} test images the best errs on {only_best} that the whole network gets"
        f" right, and is right on {only_whole} where that errs: {told} (exact McNemar test,"
        f" p = {p:.3f})."
    )


def _faster(run: Findings) -> str:
    best = run.evaluated_as("best")
    if best is None:
        return ""
    one, many = best.one_ms / best.one_whole_ms, best.many_ms / best.many_whole_ms
    verdicts = ["faster" if ratio < 0.95 else "not faster" for ratio in (one, many)]
    return (
        f"Beside the whole network, timed in turns, the best takes {one:.2f} of the time for one"
        f" image ({verdicts[0]}) and {many:.2f} for {best.batch} ({verdicts[1]})."
    )


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
        shown.append(figure(plots.runs_compared(runs, "all-runs")))
    if any(run.epochs for run in runs):
        shown.append(figure(plots.fits_compared(runs, "all-fits")))
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
