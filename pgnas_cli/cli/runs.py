"""`pgnas runs`: list the runs of this folder."""

import dataclasses
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from ..run import RUNS, overviews
from ..units import percent
from . import options
from .options import terminal_of


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder of runs.")] = RUNS,
    as_json: options.Json = False,
) -> None:
    """List the runs, newest first.

    Size and held-out error are those of the exported winner, before that of the mean candidate.
    """
    terminal = terminal_of(False)
    found = overviews(folder)
    if as_json:
        terminal.json({"runs": [dataclasses.asdict(one) for one in found]})
    elif not found:
        terminal.note(f"no runs in '{folder}'; start one with pgnas search, or pgnas fit")
    else:
        shown: list[list[str | tuple[str, ...]]] = []
        for one in found:
            when = datetime.fromisoformat(one.at).astimezone().strftime("%m-%d %H:%M")
            shares = (one.reached, one.held_out_error)
            shown.append([
                Path(one.run).name, (one.backbone, Path(one.data).name), one.asked or "",
                *("" if share is None else percent(share) for share in shares), one.state, when,
            ])  # fmt: skip
        headings = ("<run", "<backbone, data", "<asked", "size", "error", "<state", "<written")
        terminal.table(f"runs in {folder}", headings, shown)
