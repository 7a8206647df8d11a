"""What people see: progress and notes on stderr, results on stdout, the error line.

The only user of rich. Text of ours is never parsed as markup: names and paths may hold brackets.
What leaves here is `visible`: names and files may hold what would act on a terminal.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ..errors import brief, visible
from ..progress import Task
from ..storage import csv_text
from ..units import clock
from .words import flagged

AT_ONCE = 1.0  # seconds after which a task says that it will take longer than SILENCE
SILENCE = 10.0  # seconds without a line, where there is no bar
PATIENCE = 60.0  # the same, once a task has taken as long
CELL = 200  # characters of a cell of a table


class Terminal:
    """Where the conversation goes; `quiet` leaves only results and errors."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.out = Console(soft_wrap=True, highlight=False)
        self.err = Console(stderr=True, soft_wrap=True, highlight=False)
        self.bar: Progress | None = None
        self.told = time.monotonic()  # when something was last said

    def note(self, text: str) -> None:
        """A remark on stderr."""
        self.told = time.monotonic()
        if not self.quiet:
            (self.bar.console if self.bar else self.err).print(Text(brief(flagged(text))))

    def complaint(self, text: str) -> None:
        """A line on stderr on what failed while the rest goes on, quiet or not."""
        (self.bar.console if self.bar else self.err).print(Text(brief(flagged(text))))

    def result(self, text: str) -> None:
        """A line on stdout."""
        # Where both are on a terminal, a bar at its foot has to make room.
        beside = self.bar is not None and self.out.is_terminal
        (self.bar.console if self.bar and beside else self.out).print(Text(visible(text)))

    def row(self, values: Sequence[object]) -> None:
        """A row of CSV on stdout."""
        text = csv_text([values])
        if self.out.is_terminal:
            self.result(text.removesuffix("\n"))
            return
        try:
            self.out.file.write(text)
            self.out.file.flush()
        except BrokenPipeError:
            self.out.on_broken_pipe()

    def json(self, value: dict[str, Any]) -> None:
        """The one JSON object of a `--json` command."""
        sys.stdout.write(json.dumps(value) + "\n")

    def table(
        self,
        title: str,
        headings: Sequence[str],  # "<name": a column of text, left-aligned; others are numbers
        rows: Sequence[Sequence[str | tuple[str, ...]]],  # a tuple: lines of one cell
        *,
        result: bool = True,  # on stdout; else part of the conversation
    ) -> None:
        """A table."""
        if self.quiet and not result:
            return
        table = Table(title=Text(brief(title)), title_justify="left")
        for heading in headings:
            if heading.startswith("<"):
                table.add_column(heading[1:], overflow="fold")
            else:
                table.add_column(heading, justify="right", no_wrap=True)
        for row in rows:
            lines = [(cell,) if isinstance(cell, str) else cell for cell in row]
            cells = ("\n".join(brief(line, CELL) for line in cell) for cell in lines)
            table.add_row(*map(Text, cells))
        (self.out if result else self.err).print(table)

    @contextmanager
    def task(self, what: str, total: int | None) -> Iterator[Task]:
        """Progress of one task: a bar at the foot of a terminal, else a line now and then."""
        if self.quiet or not self.err.is_terminal:
            yield _Line(self, what, total)
        elif self.bar is not None:  # a task within a task
            yield from self._added(self.bar, what, total)
        else:
            self.bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self.err,
                transient=True,
            )
            try:
                with self.bar:
                    yield from self._added(self.bar, what, total)
            finally:
                self.bar = None

    def _added(self, bar: Progress, what: str, total: int | None) -> Iterator[Task]:
        task = bar.add_task(brief(what, CELL), total=total)
        try:
            yield _Bar(bar, task)
        finally:
            bar.remove_task(task)


class _Bar:
    """A task on a bar."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self.bar, self.task = bar, task

    def update(self, done: int, *, total: int | None = None, what: str | None = None) -> None:
        shown = None if what is None else brief(what, CELL)
        self.bar.update(self.task, completed=done, total=total, description=shown)


class _Line:
    """A task where there is no bar: lines with the time left, at first and after a silence."""

    def __init__(self, terminal: Terminal, what: str, total: int | None) -> None:
        self.terminal, self.what, self.total = terminal, what, total
        self.began, self.said = time.monotonic(), False
        self.first: int | None = None  # units that were done when it began

    def update(self, done: int, *, total: int | None = None, what: str | None = None) -> None:
        now = time.monotonic()
        self.what, self.total = what or self.what, total or self.total
        if self.first is None:
            self.first = done - 1
        if self.total is None:
            return
        spent = now - self.began
        left = spent / max(1, done - self.first) * (self.total - done)
        patience = SILENCE if spent < PATIENCE else PATIENCE
        early = not self.said and spent >= AT_ONCE and left >= SILENCE
        if not early and now - max(self.terminal.told, self.began) < patience:
            return
        self.said = True
        self.terminal.note(f"{self.what}: {done} of {self.total}, about {clock(left)} left")


def failure(text: str) -> None:
    """The error line."""
    Console(stderr=True).print(
        f"error: {brief(text)}", style="red", markup=False, highlight=False, soft_wrap=True
    )
