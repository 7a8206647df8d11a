"""What each command says: lines, tables, and the objects of `--json`."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress, TaskID
from rich.table import Table
from rich.text import Text

from .confidence import interval
from .console import Terminal, clock, large, percent

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import nn

    from .budget import Target
    from .candidates import Sizes
    from .drawing import Drawn
    from .evaluation import Evaluation
    from .export import Slim
    from .fitting import FitSummary, Started
    from .inflation import Inflated
    from .leaderboard import Board, Ranked
    from .ranking import Progress as RankingProgress
    from .supernet import LayerGates
    from .training import EpochRecord

    FitEvents = Generator[Started | EpochRecord | FitSummary, None, None]


def show_fit(
    terminal: Terminal,
    stage: "Callable[[Callable[[int, int], None]], FitEvents]",
    *,
    verbose: bool = False,
) -> "FitSummary":
    """Draw what the fit stage yields, and return its summary."""
    from .fitting import FitSummary, Started

    marks: list[tuple[int, float]] = []  # first step seen, and when
    total = 0
    last: EpochRecord | None = None
    target: Target | None = None
    with terminal.progress() as bar:
        task = bar.add_task("fitting", total=None)

        def step(done: int, steps: int) -> None:
            if not marks:
                marks.append((done - 1, time.monotonic()))
            bar.update(task, completed=done, total=steps)

        events = stage(step)
        with closing(events):
            for event in events:
                if isinstance(event, Started):
                    total, target = event.steps, event.target
                    for line in started_lines(event):
                        terminal.notice(line)
                    for name in event.kept_whole if verbose else ():
                        terminal.notice(f"kept whole: {name}")
                elif isinstance(event, FitSummary):
                    for line in closing_notes(last, target):
                        terminal.notice(line)
                    return event
                else:
                    last = event
                    done = event.epoch * total // event.epochs
                    first, began = marks[0] if marks else (0, time.monotonic())
                    rate = (time.monotonic() - began) / max(1, done - first)
                    terminal.notice(epoch_line(event, rate * (total - done)))
    raise AssertionError("a fit ends with its summary")


def layer_table(layers: "Sequence[LayerGates]") -> Table:
    """Every convolution and linear layer: its gates, or why it has none."""
    table = Table(title="layers in order of execution", title_justify="left")
    table.add_column("layer", overflow="fold")
    for heading in ("inputs", "gates", "groups"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("remark", overflow="fold")
    for row in layers:
        counts = [str(row.gates), str(row.groups)] if row.gates else ["", ""]
        table.add_row(Text(row.layer), str(row.inputs), *counts, Text(row.remark))
    return table


def inflated_table(rows: "Sequence[Inflated]") -> Table:
    """Every convolution of 3x3 or more: its branches, or why it has none."""
    table = Table(title="convolutions in order of execution", title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("kernel", justify="right", no_wrap=True)
    table.add_column("becomes", overflow="fold")
    for row in rows:
        becomes = "\n".join(row.branches) or f"as it is: {row.reason}"
        table.add_row(Text(row.layer), f"{row.kernel}x{row.kernel}", Text(becomes))
    return table


def started_lines(started: "Started") -> list[str]:
    """What is about to be fitted, and whether the prior is within reason."""
    chance = math.log(started.classes)
    lines = [f"note: {remark}" for remark in started.remarks]
    lines += [
        f"network: {large(started.params)} parameters; {started.gates} gates in {started.groups}"
        f" groups on {started.gated_layers} layers",
        f"images: {started.fit_images} to fit on, {started.held_out_images} held out for ranking",
        f"prior: l2 {started.l2:.4g} at N {started.kl_images:.4g}, at first a weight decay of"
        f" {started.weight_decay:.2g}",
        f"loss: the prior's part is {started.divergence:.3g} nats per image at the start,"
        f" guessing costs {chance:.2f}",
        f"fit: {started.epochs} epochs, {started.steps} steps",
    ]
    if started.target is not None:
        what = "parameters" if started.target.kind == "params" else "multiply-adds"
        lines.append(f"aim: candidates of {percent(started.target.share)} of the {what}")
    if not 1e-5 <= started.weight_decay <= 1e-3:
        lines.append(
            "warning: that is an unusual weight decay (usual: 1e-5 to 1e-3); change --l2 or"
            " --kl-images"
        )
    if abs(started.divergence) > chance:
        lines.append("warning: the prior outweighs the data; raise --kl-images, or lower --l2")
    return lines


def epoch_line(record: "EpochRecord", seconds_left: float) -> str:
    """One line per epoch, within 80 columns."""
    return (
        f"{record.epoch:>4}/{record.epochs} loss {record.loss:.3f} held-out"
        f" {100 * record.hard_error:.1f} % (soft {100 * record.soft_error:.1f}) size"
        f" {100 * record.expected_share:.0f} % p moves {record.drift:.3f}"
        f" left {clock(seconds_left)}"
    )


def closing_notes(last: "EpochRecord | None", target: "Target | None") -> list[str]:
    """What the last epoch should make the user think about, if anything."""
    if last is None or last.mean_drop < 1e-6:
        return []
    if target is not None:
        share = last.expected_share if target.kind == "params" else last.expected_macs_share
        if abs(share - target.share) <= 0.02 * target.share:
            return []
        return [
            f"warning: the mean candidate has {percent(share)} of the size, not"
            f" {percent(target.share)}; lengthen the fit with --epochs"
        ]
    if last.expected_share > 0.95:
        return ["note: hardly anything is dropped; name a size with --target-params, or raise --l2"]
    return []


def fit_summary_lines(summary: "FitSummary") -> list[str]:
    return [
        f"fitted {summary.epochs} epochs in {clock(summary.seconds)}; a candidate's mean held-out"
        f" error is {percent(summary.held_out_error)}",
        f"posterior: {summary.run / 'posterior.safetensors'}",
    ]


def reach_lines(network: "nn.Module") -> list[str]:
    """What sizes the gates can reach, and what the posterior's own candidates have."""
    from .budget import ExpectedSize, least_share
    from .supernet import drop_probabilities

    own = ExpectedSize(network).shares(drop_probabilities(network).cpu())
    return [
        f"{what}: the posterior's own mean is {percent(float(own[kind]))}, reachable from"
        f" {percent(least_share(network, kind))}"
        for kind, what in (("params", "parameters"), ("macs", "multiply-adds"))
    ]


def drawn_json(drawn: "Drawn", whole_params: int, whole_macs: int) -> dict[str, Any]:
    """Mean sizes of the drawn candidates, for each budget where there are any."""
    rows = []
    for budget, part in drawn.boards():
        means = {k: float(v.double().mean()) for k, v in vars(drawn.sizes.part(part)).items()}
        rows.append({"budget": None if budget is None else vars(budget), "mean": means})
    found = {"baseline": drawn.baseline, "whole": {"params": whole_params, "macs": whole_macs}}
    return {**found, "mean": rows[0]["mean"]} if not drawn.budgets else {**found, "budgets": rows}


def size_table(
    sizes: "Sizes", whole_params: int, whole_macs: int, budget: "Target | None" = None
) -> Table:
    """Smallest, mean and largest of the drawn candidates."""
    title = "candidates" if budget is None else f"candidates within {budget}"
    table = Table(title=title, title_justify="left")
    for heading in ("", "smallest", "mean", "largest", "whole"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, values, whole in (
        ("parameters, file", sizes.params, whole_params),
        ("parameters, paper's count", sizes.paper_params, whole_params),
        ("multiply-adds", sizes.macs, whole_macs),
    ):
        found = values.double()
        row = [float(found.min()), float(found.mean()), float(found.max()), whole]
        table.add_row(name, *map(large, row))
    return table


@contextmanager
def watching(terminal: Terminal) -> Iterator[Callable[["RankingProgress"], None]]:
    """Show how a ranking goes: pairs done, candidates still in, the error to beat, time left."""
    started = shown = time.monotonic()
    first: list[int] = []  # pairs that were there before
    bar: Progress | None = None
    task: TaskID | None = None

    def watch(now: "RankingProgress") -> None:
        nonlocal shown, bar, task
        if not first:
            first.append(now.pairs)
        level = "" if now.bar is None else f", to beat {percent(now.bar)}"
        text = f"ranking: {now.walking} candidates in{level}"
        if terminal.quiet:
            return
        if terminal.err.is_terminal:
            if bar is None:
                bar = stack.enter_context(terminal.progress())
                task = bar.add_task(text, total=None)
            assert task is not None
            bar.update(
                task, description=text, completed=now.pairs, total=now.pairs + max(0, now.left)
            )
        elif time.monotonic() - shown > 10:
            shown = time.monotonic()
            rate = (shown - started) / max(1, now.pairs - first[0])
            terminal.notice(f"{text}, about {clock(rate * now.left)} left")

    with ExitStack() as stack:
        yield watch


def ranking_table(board: "Board", top: int) -> Table:
    """The first `top` candidates; p against the first for those whose order was tested."""
    ranking, sure = board.ranking, board.confidence
    within = "" if board.budget is None else f" within {board.budget}"
    table = Table(
        title=f"best of {len(ranking.errors)} candidates{within} on {ranking.images} held-out"
        " images",
        title_justify="left",
    )
    for heading in ("rank", "id", "error", "95 %", "p", "parameters", "multiply-adds"):
        table.add_column(heading, justify="right")
    for place, index in enumerate(ranking.order[:top].tolist()):
        errors = int(ranking.errors[index])
        low, high = interval(errors, ranking.images)
        tested = 0 < place < len(sure.p_values)
        table.add_row(
            str(place + 1), str(board.first + index), percent(errors / ranking.images),
            f"{100 * low:.1f}-{100 * high:.1f}",
            f"{sure.p_values[place]:.2f}" if tested else "",
            large(int(ranking.sizes.params[index])), large(int(ranking.sizes.macs[index])),
        )  # fmt: skip
    return table


def board_lines(board: "Board") -> list[str]:
    """How sure the order is."""
    ranking, sure = board.ranking, board.confidence
    if len(sure.p_values) < 2:
        return []
    best = int(ranking.errors[ranking.order[0]]) / ranking.images
    return [
        f"the first has {percent(best)}, chosen for it among {len(ranking.errors)}: expect"
        f" {percent(board.expected_error)} on other images",
        "p: exact McNemar test against the first, on the same images",
        f"on other images, as many, the first stays first with a chance of"
        f" {percent(sure.first_again)},",
        f"  all {len(sure.p_values)} keep their order with {percent(sure.order_again)}",
    ]


def ranked_lines(ranked: "Ranked") -> list[str]:
    """What the order rests on."""
    rankings = [board.ranking for board in ranked.boards]
    undecided = sum(len(ranking.running) for ranking in rankings)
    if undecided or ranked.waiting:
        more = f", {ranked.waiting} budgets have not begun" if ranked.waiting else ""
        return [f"stopped early: {undecided} candidates might still be better{more}"]
    pairs = sum(ranking.pairs for ranking in rankings)
    every = sum(len(ranking.errors) * ranking.images for ranking in rankings)
    return [
        f"exact, from {percent(pairs / every)} of all pairs of candidate and image; took"
        f" {clock(ranked.seconds)}"
    ]


def ranking_json(ranked: "Ranked", top: int) -> dict[str, Any]:
    """The first `top` candidates, how sure their order is, and what the ranking took.

    Where there are several budgets, one such object for each, under "boards".
    """
    boards = [_board_json(board, top) for board in ranked.boards]
    found = {"seconds": ranked.seconds, "waiting": ranked.waiting}
    return (
        {**boards[0], **found} if ranked.boards[0].budget is None else {"boards": boards, **found}
    )


def _board_json(board: "Board", top: int) -> dict[str, Any]:
    ranking, sure = board.ranking, board.confidence
    count, images = len(ranking.errors), ranking.images
    rows = []
    for place, index in enumerate(ranking.order[:top].tolist()):
        errors = int(ranking.errors[index])
        row: dict[str, Any] = {
            "id": board.first + index, "errors": errors, "images": images,
            "error": errors / images, "interval": interval(errors, images),
            "params": int(ranking.sizes.params[index]), "macs": int(ranking.sizes.macs[index]),
        }  # fmt: skip
        if place < len(sure.p_values):
            row["p_against_first"] = sure.p_values[place]
        rows.append(row)
    found: dict[str, Any] = {} if board.budget is None else {"budget": vars(board.budget)}
    found |= {
        "top": rows, "candidates": count,
        "mean_params": float(ranking.sizes.params.double().mean()),
        "pairs_evaluated": ranking.pairs, "pairs_total": count * images,
        "undecided": len(ranking.running), "expected_error": board.expected_error,
        "first_again": sure.first_again, "order_again": sure.order_again,
    }  # fmt: skip
    if ranking.exhaustive:
        found["mean_error"] = float(ranking.errors.double().mean()) / images
    return found


def export_lines(path: Path, about: "Slim") -> list[str]:
    share, macs = about.params / about.whole_params, about.macs / about.whole_macs
    return [
        f"parameters  {large(about.whole_params)} -> {large(about.params)} ({percent(share)})",
        f"multiply-adds  {large(about.whole_macs)} -> {large(about.macs)} ({percent(macs)})",
        f"held-out error  {percent(about.held_out_errors / about.held_out_images)}"
        f" ({about.held_out_errors} of {about.held_out_images})",
        f"wrote {path} ({path.stat().st_size / 1024:.0f} KiB)",
    ]


def evaluation_json(evaluations: "Sequence[Evaluation]") -> dict[str, Any]:
    """One network's figures, or those of several under "networks"."""
    rows = [
        {
            "file": str(row.path), "errors": row.score.errors, "images": row.score.images,
            "error": row.score.error, "interval": row.score.interval, "params": row.about.params,
            "macs": row.about.macs, "latency_ms": row.one.slim,
            **{
                name: {"batch": t.batch, "ms": t.slim, "whole_ms": t.whole, "layout": t.layout}
                for name, t in (("latency_one", row.one), ("latency_many", row.many))
            },
        }
        for row in evaluations
    ]  # fmt: skip
    return rows[0] if len(rows) == 1 else {"networks": rows}


def _names(evaluations: "Sequence[Evaluation]") -> list[str]:
    """What to call each file: its name, or its path where two have one name."""
    names = [row.path.name.removesuffix(".safetensors") for row in evaluations]
    if len(set(names)) == len(names):
        return names
    return [str(row.path) for row in evaluations]


def evaluation_table(evaluations: "Sequence[Evaluation]") -> Table:
    """A row per exported network."""
    table = Table(title="test split", title_justify="left")
    table.add_column("network", overflow="fold")
    for heading in (
        "error",
        "95 %",
        "params",
        "MACs",
        "ms at 1",
        f"ms at {evaluations[0].many.batch}",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in zip(_names(evaluations), evaluations, strict=True):
        low, high = row.score.interval
        table.add_row(
            Text(name), percent(row.score.error),
            f"{100 * low:.1f}-{100 * high:.1f}", large(row.about.params), large(row.about.macs),
            f"{row.one.slim:.2f}", f"{row.many.slim:.1f}",
        )  # fmt: skip
    return table


def latency_lines(evaluations: "Sequence[Evaluation]") -> list[str]:
    """How each network's time compares with that of the whole network, plainly."""
    lines = []
    for name, row in zip(_names(evaluations), evaluations, strict=True):
        for found in (row.one, row.many):
            verdict = "" if found.ratio < 0.95 else ", not faster"
            lines.append(
                f"{name} at batch {found.batch}: {found.ratio:.2f} of the whole's time"
                f" (layout {found.layout}){verdict}"
            )
    return lines
