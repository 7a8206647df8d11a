"""Rank candidates on held-out images."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from ..units import clock, percent
from . import options
from .options import run_of, terminal_of, typed_line

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.table import Table

    from ..ranking import Board, Ranked
    from ..ranking import Progress as RankingProgress
    from .terminal import Terminal


def rank(
    top: Annotated[int, typer.Option(help="How many of the best to find and show.")] = 10,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Evaluate every candidate on every image.")
    ] = False,
    time_limit: Annotated[
        float | None, typer.Option(help="Minutes; then show the best so far.")
    ] = None,
    recalibrate: Annotated[
        int,
        typer.Option(help="Images for each candidate's own batch-norm statistics; 0: the fit's."),
    ] = 0,
    run: options.RunFolder = None,
    backbone: options.Function = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the best of them on held-out images.

    The first --top are exact, as if every pair had been evaluated. Interrupted, it goes on where it
    was when called again.
    """
    terminal = terminal_of(quiet)
    where = run_of(run, terminal, backbone)
    from ..ranking import rank_again, rank_stage, ranked_lines, ranking_json
    from ..run import remember
    from .machine import device_of, worker_count

    with watching(terminal) as watch:
        found = rank_stage(
            where, top=top, exhaustive=exhaustive, recalibrate=recalibrate,
            time_limit=None if time_limit is None else 60 * time_limit,
            device=device_of(device), workers=worker_count(workers), track=terminal.track,
            watch=watch, notice=terminal.notice,
        )  # fmt: skip
    remember(where, typed_line())
    if as_json:
        terminal.json(ranking_json(found, top))
        for line in ranked_lines(found):
            terminal.notice(line)
    else:
        show_ranking(terminal, found, top, result=True)
    if found.waiting or any(len(board.ranking.running) for board in found.boards):
        again = rank_again(where, top, recalibrate, exhaustive)
        terminal.notice(f"next: {again}   goes on")
    elif found.boards[0].budget is not None:
        budget = found.boards[0].budget
        terminal.notice(
            f"next: pgnas export best.safetensors --max-{budget.kind} {100 * budget.share:.4g}%"
            f" --run {where.folder}"
        )
    else:
        terminal.notice(f"next: pgnas export best.safetensors --run {where.folder}")


@contextmanager
def watching(terminal: "Terminal") -> Iterator[Callable[["RankingProgress"], None]]:
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


def ranking_table(board: "Board", top: int) -> "Table":
    """The first `top` candidates; p against the first for those whose order was tested."""
    from rich.table import Table

    from ..ranking import RANKING_HEADINGS, ranking_rows

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


def show_ranking(terminal: "Terminal", ranked: "Ranked", top: int, *, result: bool) -> None:
    """Every board and what it rests on; the tables are the result, or part of the conversation."""
    from ..ranking import board_lines, ranked_lines

    for board in ranked.boards:
        if result:
            terminal.out.print(ranking_table(board, top))
        elif not terminal.quiet:
            terminal.err.print(ranking_table(board, top))
        for line in board_lines(board):
            terminal.notice(line)
    for line in ranked_lines(ranked):
        terminal.notice(line)
