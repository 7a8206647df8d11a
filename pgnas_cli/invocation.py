"""What the commands share: the terminal, the run that is meant, and the line that was typed."""

import shlex
from contextlib import closing
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .console import Terminal
    from .files import Run
    from .views import FitEvents

typed: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())  # after the word pgnas


def typed_line() -> str:
    """The command line as it can be typed again."""
    return shlex.join(["pgnas", *typed.get()])


def remembering(run: "Run", events: "FitEvents") -> "FitEvents":
    """The events of a fit; its command line is kept in the run once the fit has begun."""
    from .fitting import Started
    from .records import remember

    with closing(events):
        for event in events:
            if isinstance(event, Started):
                remember(run, typed_line())
            yield event


def run_of(folder: Path | None, terminal: "Terminal", backbone: str | None = None) -> "Run":
    """The named run or the newest; `backbone` is a function that its files may name."""
    from .files import Run, newest_run
    from .registry import admit

    admit(backbone or "")
    if folder is not None:
        return Run(folder)
    run = newest_run(fitted=True)
    terminal.notice(f"run: {run.folder} (the newest; --run names another)")
    return run


def terminal_of(quiet: bool) -> "Terminal":
    from .console import Terminal

    return Terminal(quiet=quiet)
