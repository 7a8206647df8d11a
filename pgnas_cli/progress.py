"""Progress of long work: silent unless somebody listens.

Engine code says what it does with `note`, `track` and `task`. A terminal, a notebook or a test
listens:

    with listening(terminal):
        rank(run)
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar, runtime_checkable

Item = TypeVar("Item")


class Task(Protocol):
    """Work in progress, as a listener shows it."""

    def update(self, done: int, *, total: int | None = None, what: str | None = None) -> None:
        """`done` units of `total` are finished; `what` replaces the description."""


@runtime_checkable
class Listener(Protocol):
    """Shows remarks and the progress of tasks."""

    def note(self, text: str) -> None:
        """One line for the user."""

    def task(self, what: str, total: int | None) -> AbstractContextManager[Task]:
        """Context in which a task runs."""


class _Silence:
    """Listens to nothing."""

    def note(self, text: str) -> None:
        return None

    @contextmanager
    def task(self, what: str, total: int | None) -> Iterator[Task]:
        yield self

    def update(self, done: int, *, total: int | None = None, what: str | None = None) -> None:
        return None


_listener: ContextVar[Listener] = ContextVar("listener", default=_Silence())  # noqa: B039 - has no state


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Context in which `listener` receives notes and progress."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def note(text: str) -> None:
    """Say one line."""
    _listener.get().note(text)


def task(what: str, total: int | None = None) -> AbstractContextManager[Task]:
    """Context of a task of `total` units, reported through `Task.update`."""
    return _listener.get().task(what, total)


def track(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Pass `items` on, reporting how many are done."""
    with task(what, len(items)) as shown:
        for done, item in enumerate(items):
            yield item
            shown.update(done + 1)


def listen(listener: Listener) -> None:
    """Let `listener` receive notes and progress from now on, in this context."""
    _listener.set(listener)
