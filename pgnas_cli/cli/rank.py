"""`pgnas rank`: find the best candidates on held-out images."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from ..distributed import launched
from ..errors import command
from ..fields import check_range
from ..run import remember
from ..units import clock
from . import options
from .options import loading, run_of, terminal_of, typed_line

if TYPE_CHECKING:
    from ..ranking import Leaderboard
    from .terminal import Terminal


def rank(
    top: Annotated[int, typer.Option(help="How many of the best to find and show.")] = 10,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Evaluate every candidate on every image.")
    ] = False,
    time_limit: Annotated[
        float | None, typer.Option(help="Minutes; then show the best so far.")
    ] = None,
    data: options.Moved = None,
    run: options.RunFolder = None,
    backbone: options.Function = None,
    precision: options.Precision = "float32",
    device: options.Device = "auto",
    workers: options.Workers = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the best candidates on held-out images.

    The first --top are exact, as if every pair had been evaluated. An interrupted ranking is
    resumed by the same command.
    """
    terminal = terminal_of(quiet)
    check_range("top", top, 1)
    where = run_of(run, terminal)
    with loading(terminal):
        from ..machine import find_machine
        from ..ranking import rank as ranked
        from ..ranking import rank_again, ranking_json

    began = time.perf_counter()
    boards = ranked(
        where, top=top, exhaustive=exhaustive, time_limit=time_limit, data=data,
        precision=precision, machine=find_machine(device, workers),
    )  # fmt: skip
    seconds = time.perf_counter() - began
    waiting = len(where.budgets()) - len(boards)
    if launched().rank == 0:
        remember(where, typed_line())
    if as_json:
        terminal.json(ranking_json(boards, top, waiting=waiting, seconds=seconds))
    show_ranking(terminal, boards, top, waiting, seconds, result=not as_json, tables=not as_json)
    if waiting or any(board.undecided for board in boards):
        terminal.note(f"next: {rank_again(where, top, exhaustive, data, precision)}   to resume")
        return
    budget = boards[0].candidates.budget
    more = [] if budget is None or len(boards) == 1 else budget.option.split()
    line = command("export", "best.safetensors", *more, "--run", where.folder)
    terminal.note(f"next: {line}")


def show_ranking(
    terminal: "Terminal",
    boards: "list[Leaderboard]",
    top: int,
    waiting: int,
    seconds: float,
    *,
    result: bool,
    tables: bool = True,
) -> None:
    """Every leaderboard and what it rests on; tables are the result, or part of the talk."""
    from ..ranking import (
        certainty_lines,
        coverage_line,
        ranking_headings,
        ranking_rows,
        ranking_title,
    )

    for board in boards if tables else []:
        rows = ranking_rows(board, top)
        terminal.table(ranking_title(board), ranking_headings(board), rows, result=result)
        for line in certainty_lines(board):
            terminal.note(line)
    terminal.note(coverage_line(boards, waiting, clock(seconds)))
