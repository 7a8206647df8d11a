"""Show runs as a page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import PgnasError
from . import options
from .options import run_of, terminal_of

if TYPE_CHECKING:
    pass


def report(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Runs side by side; default: the newest.")
    ] = None,
    run: options.RunFolder = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: report.html in the run.")
    ] = None,
    backbone: options.Function = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show a run as a page, or several in a row.

    Made from the files of the runs alone.
    """
    terminal = terminal_of(quiet)
    from ..registry import admit
    from ..report import report_stage
    from ..run import Run

    if runs and run is not None:
        raise PgnasError("name the runs with --run or without, not both")
    admit(backbone or "")
    where = [Run(folder) for folder in runs] if runs else [run_of(run, terminal)]
    path = output or (where[0].report if len(where) == 1 else Path("report.html"))
    terminal.notice(f"reading {', '.join(str(one.folder) for one in where)}")
    report_stage(where, path)
    if as_json:
        terminal.json({"file": str(path), "runs": [str(one.folder) for one in where]})
    else:
        terminal.result(
            f"wrote {path} ({path.stat().st_size / 1024:.0f} KiB); open it in a browser"
        )
