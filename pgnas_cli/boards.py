"""What rank, export and evaluate say: lines, tables, and the objects of `--json`."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress, TaskID
from rich.table import Table
from rich.text import Text

from .confidence import interval
from .console import Terminal, clock, large, percent

if TYPE_CHECKING:
    from .evaluation import Evaluation
    from .export import Slim
    from .leaderboard import Board, Ranked
    from .ranking import Progress as RankingProgress


@contextmanager
def watching(terminal: Terminal) -> Iterator[Callable[["RankingProgress"], None]]:
    """Show how a ranking goes: pairs done, candidates still in, the error to beat, time left."""
    started = shown = time.monotonic()
    first: list[int] = []  # pairs that were there before
    last = 0
    bar: Progress | None = None
    task: TaskID | None = None

    def watch(now: "RankingProgress") -> None:
        nonlocal started, shown, bar, task, last
        if not first or now.pairs < last:  # another board
            first[:], started = [now.pairs], time.monotonic()
        last = now.pairs
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


RANKING_HEADINGS = ("rank", "id", "error", "95 %", "p", "parameters", "multiply-adds")


def ranking_table(board: "Board", top: int) -> Table:
    """The first `top` candidates; p against the first for those whose order was tested."""
    ranking = board.ranking
    within = "" if board.budget is None else f" within {board.budget}"
    table = Table(
        title=f"best of {len(ranking.errors)} candidates{within} on {ranking.images} held-out"
        " images",
        title_justify="left",
    )
    for heading in RANKING_HEADINGS:
        table.add_column(heading, justify="right")
    for row in ranking_rows(board, top):
        table.add_row(*row)
    return table


def ranking_rows(board: "Board", top: int) -> list[list[str]]:
    """The cells of the first `top` candidates under `RANKING_HEADINGS`."""
    ranking, sure = board.ranking, board.confidence
    rows = []
    for place, index in enumerate(ranking.order[:top].tolist()):
        errors = int(ranking.errors[index])
        low, high = interval(errors, ranking.images)
        tested = 0 < place < len(sure.p_values)
        rows.append([
            str(place + 1), str(board.first + index), percent(errors / ranking.images),
            f"{100 * low:.1f}-{100 * high:.1f}",
            f"{sure.p_values[place]:.3f}" if tested else "",
            large(int(ranking.sizes.params[index])), large(int(ranking.sizes.macs[index])),
        ])  # fmt: skip
    return rows


def board_lines(board: "Board") -> list[str]:
    """How sure the order is."""
    ranking, sure = board.ranking, board.confidence
    lines = [
        f"the first has {percent(board.best_error)}, chosen for it among {len(ranking.errors)}:"
        f" expect {percent(board.expected_error)} on other images",
        "95 %: for a candidate picked before the ranking; these were picked by it",
    ]
    if len(sure.p_values) < 2:
        return lines
    return [
        *lines,
        "p: exact McNemar test against the first, on the same images",
        f"among these {len(sure.p_values)}, on as many other images, the first stays first with"
        f" {percent(sure.first_again)}",
        f"  at most, and all keep their order with {percent(sure.order_again)}",
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


def show_ranking(terminal: Terminal, ranked: "Ranked", top: int, *, result: bool) -> None:
    """Every board and what it rests on; the tables are the result, or part of the conversation."""
    for board in ranked.boards:
        if result:
            terminal.out.print(ranking_table(board, top))
        elif not terminal.quiet:
            terminal.err.print(ranking_table(board, top))
        for line in board_lines(board):
            terminal.notice(line)
    for line in ranked_lines(ranked):
        terminal.notice(line)


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
            "error": row.score.error, "interval": interval(row.score.errors, row.score.images), "params": row.about.params,
            "macs": row.about.macs, "latency_ms": row.one.slim,
            **{
                name: {"batch": t.batch, "ms": t.slim, "whole_ms": t.whole, "layout": t.layout}
                for name, t in (("latency_one", row.one), ("latency_many", row.many))
            },
        }
        for row in evaluations
    ]  # fmt: skip
    return rows[0] if len(rows) == 1 else {"networks": rows}


def network_names(paths: Sequence[Path]) -> list[str]:
    """What to call each file: its name, or its path where two have one name."""
    names = [path.name.removesuffix(".safetensors") for path in paths]
    if len(set(names)) == len(names):
        return names
    return [str(path) for path in paths]


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
    for name, row in zip(
        network_names([row.path for row in evaluations]), evaluations, strict=True
    ):
        low, high = interval(row.score.errors, row.score.images)
        table.add_row(
            Text(name), percent(row.score.error),
            f"{100 * low:.1f}-{100 * high:.1f}", large(row.about.params), large(row.about.macs),
            f"{row.one.slim:.2f}", f"{row.many.slim:.1f}",
        )  # fmt: skip
    return table


def latency_lines(evaluations: "Sequence[Evaluation]") -> list[str]:
    """How each network's time compares with that of the whole network, plainly."""
    lines = []
    for name, row in zip(
        network_names([row.path for row in evaluations]), evaluations, strict=True
    ):
        for found in (row.one, row.many):
            verdict = "" if found.ratio < 0.95 else ", not faster"
            lines.append(
                f"{name} at batch {found.batch}: {found.ratio:.2f} of the whole's time"
                f" (layout {found.layout}){verdict}"
            )
    return lines
