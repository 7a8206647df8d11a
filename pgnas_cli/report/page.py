"""The report: what the files of one or more runs say, as one page that needs nothing else.

No script, no request, no font of its own; light and dark by the reader's system.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..errors import PgnasError, visible
from ..run import Run
from ..storage import write_text
from . import mistakes, plots, text
from .summary import RunSummary, run_summary


def write_report(runs: Sequence[Run], path: Path, *, photos: bool = True) -> list[RunSummary]:
    """Write the page of a run, or of several side by side; returns what it shows.

    `photos` places thumbnails of test images into it, where the data folder is still there.
    """
    if path.suffix not in (".html", ".htm"):
        raise PgnasError(f"'{path}' has no known ending; possible: .html")
    if path.exists() and not _ours(path):
        raise PgnasError(f"'{path}' exists and is not a report; choose another name")
    for run in runs:
        run.check_there()
    found = [run_summary(run) for run in runs]
    write_text(path, page_of(found, photos=photos))
    return found


def _ours(path: Path) -> bool:
    """Return whether a file is an earlier report."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return "<title>pgnas: " in file.read(1000)
    except OSError:
        return False


def page_of(runs: Sequence[RunSummary], *, photos: bool = True) -> str:
    """Return the page as HTML."""
    environment = Environment(
        loader=PackageLoader(__package__, ""), autoescape=True, undefined=StrictUndefined,
        finalize=_shown, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["breakable"] = _breakable
    environment.filters["path"] = _path
    environment.filters["unbroken"] = lambda words: words.replace(" %", "\u00a0%")
    several, most = len(runs) > 1, mistakes.PHOTO_BYTES // len(runs) if photos else 0
    return environment.get_template("page.html").render(
        runs=[_contents(run, most) for run in runs],
        comparison=text.comparison(runs) if several else None,
        candidates=plots.runs_compared(runs) if several and any(r.boards for r in runs) else None,
        fits=plots.fits_compared(runs) if several and any(r.epochs for r in runs) else None,
    )


def _breakable(name: str) -> Markup:
    """A name that may break after the marks that divide names."""
    return Markup("<wbr>").join(re.split(r"(?<=[_/.-])", visible(name)))


def _path(name: str) -> Markup:
    """A path that reads from left to right, whatever the direction of its names."""
    return Markup("/<wbr>").join(Markup(f"<bdi>{_breakable(n)}</bdi>") for n in name.split("/"))


def _shown(value: Any) -> Any:
    """What an expression of the page gives: names and files may hold what would act on a reader."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _contents(run: RunSummary, most: int) -> dict[str, Any]:
    """Return all that the page says of one run, with at most `most` bytes of photos."""
    ranked = bool(run.boards)
    return {
        "name": run.folder.name,
        "headline": text.headline(run),
        "subject": text.subject(run),
        "evaluated": text.evaluated(run),
        "times": text.times(run),
        "by_class": text.by_class(run),
        "untested": text.untested(run),
        "next": None if ranked else "rank" if run.drawn else "sample",
        "notes": text.notes(run),
        "size_error": plots.size_error(run) if ranked else None,
        "front": text.front_table(run) if ranked else None,
        "confidence": [text.confidence(board) for board in run.boards],
        "drop_by_layer": plots.drop_by_layer(run),
        "pruned": text.pruned_table(run),
        "blocks": run.blocks,
        "widest": max((o.channels for b in run.blocks for o in b.operations), default=1),
        "layers": text.layer_table(run),
        "curves": plots.fit_curves(run) if run.epochs else [],
        "races": [plots.race_curve(board) for board in run.boards],
        "finished": run.finished,
        "commands": [command.line for command in run.commands],
        "versions": text.versions(run),
        "facts": text.facts(run),
        "recipe": text.recipe(run),
        **_errors(run, mistakes.album_of(run, most)),
    }


def _errors(run: RunSummary, album: mistakes.Album) -> dict[str, Any]:
    """Return what the page says of the errors of the best and the original network."""
    rows = mistakes.interpreted(run)
    order = mistakes.order_of(rows)
    matrices = [mistakes.matrix(*row, order) for row in rows]
    many = bool(rows) and None in matrices
    drawn = rows if many and order else []
    worst = [mistakes.worst(*row, album) for row in rows]
    return {
        "matrices": [] if many else matrices,
        "confusions": [plots.confusion(*row, order) for row in drawn],
        "pairs": mistakes.pairs(rows) if many else None,
        "reliability": plots.reliability(rows) if rows else None,
        "worst": [gallery for gallery in worst if gallery],
        "changed": mistakes.changed(rows, album),
        "answers": bool(rows),
        "why_no_photos": album.why_not,
    }
