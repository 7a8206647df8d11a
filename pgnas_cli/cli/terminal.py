"""What people see: progress and messages on stderr, results on stdout, the error line.

Text of ours is never parsed as markup: names and paths may hold brackets.
"""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..units import clock


class Terminal:
    """Where the conversation goes; `quiet` leaves only results and errors."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.out = Console(soft_wrap=True, highlight=False)
        self.err = Console(stderr=True, soft_wrap=True, highlight=False)
        self.bar: Progress | None = None
        self.started = time.monotonic()

    def notice(self, text: str) -> None:
        """A remark on stderr."""
        if not self.quiet:
            (self.bar.console if self.bar else self.err).print(Text(text))

    def result(self, text: str) -> None:
        """A line on stdout."""
        self.out.print(Text(text))

    def json(self, value: dict[str, Any]) -> None:
        """The one JSON object of a `--json` command."""
        sys.stdout.write(json.dumps(value) + "\n")

    def track(self, items: Sequence[int], what: str) -> Iterable[int]:
        """Pass `items` on, showing how many are done and the time left once it takes a second."""
        if self.quiet:
            return items
        return self._tracked(items, what)

    def _tracked(self, items: Sequence[int], what: str) -> Iterator[int]:
        start = last = time.monotonic()
        if self.err.is_terminal:
            with self.progress() as bar:
                task = bar.add_task(what, total=len(items))
                for item in items:
                    yield item
                    bar.advance(task)
            return
        for done, item in enumerate(items):
            now = time.monotonic()
            if now - last > 10:
                last = now
                left = (now - start) / done * (len(items) - done) if done else 0
                self.notice(f"{what}: {done} of {len(items)}, {clock(left)} left")
            yield item

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A bar at the foot of the terminal."""
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.err,
            transient=True,
            disable=self.quiet or not self.err.is_terminal,
        )
        with bar:
            self.bar = bar
            try:
                yield bar
            finally:
                self.bar = None


def failure(text: str) -> None:
    """The error line."""
    Console(stderr=True).print(
        f"error: {text}", style="red", markup=False, highlight=False, soft_wrap=True
    )
