"""A listener to progress that remembers what it heard, and can send a signal at a point."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Heard:
    """Keeps notes, tasks and counts; `stop(task, done)` true interrupts this process, once."""

    def __init__(
        self,
        stop: Callable[[str, int], bool] = lambda task, done: False,
        number: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.stop, self.number, self.stopped = stop, number, False
        self.notes: list[str] = []
        self.tasks: list[tuple[str, int | None]] = []
        self.counts: dict[str, list[int]] = {}  # of each task that was counted

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def task(self, what: str, total: int | None) -> Iterator["_Task"]:
        self.tasks.append((what, total))
        yield _Task(self, what)


class _Task:
    def __init__(self, heard: Heard, name: str) -> None:
        self.heard, self.name, self.what = heard, name, name

    def update(self, done: int, *, total: int | None = None, what: str | None = None) -> None:
        heard, self.what = self.heard, what or self.what
        heard.counts.setdefault(self.name, []).append(done)
        if not heard.stopped and heard.stop(self.what, done):
            heard.stopped = True
            os.kill(os.getpid(), heard.number)
