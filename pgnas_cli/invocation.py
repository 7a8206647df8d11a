"""What the commands share: the terminal, and the run that is meant."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .console import Terminal
    from .files import Run


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
