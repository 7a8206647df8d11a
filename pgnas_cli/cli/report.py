"""`pgnas report`: a run as a page, or several side by side."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import PgnasError
from ..run import Run, read_settings
from . import options
from .options import loading, newest, terminal_of


def report(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Runs side by side; default: the newest.")
    ] = None,
    run: options.RunFolder = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: report.html in the run.")
    ] = None,
    photos: options.Photos = True,
    backbone: options.Function = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show a run as a page.

    Or several side by side. Made from the files of the runs alone, and thumbnails of test images
    from the data folder where it is still there.
    """
    terminal = terminal_of(quiet)
    if runs and run is not None:
        raise PgnasError("name the runs with `run` or without, not both")
    named = runs or ([] if run is None else [run])
    where = [Run(folder) for folder in named] or [newest(terminal)]
    for one in where:
        one.check_there()
        read_settings(one)
    with loading(terminal):
        from ..report import write_report

    path = output or (where[0].report if len(where) == 1 else Path("report.html"))
    terminal.note(f"reading {', '.join(str(one.folder) for one in where)}")
    write_report(where, path, photos=photos)
    if as_json:
        terminal.json({"file": str(path), "runs": [str(one.folder) for one in where]})
    else:
        size = path.stat().st_size / 1024
        terminal.result(f"wrote {path} ({size:.0f} KiB)")
