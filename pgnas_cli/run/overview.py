"""The runs of a folder at a glance, from their small files alone."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import PgnasError
from ..storage import MOST_BYTES, parse_json, read_bytes, safetensors_header
from ..units import UNITS
from .directory import RUNS, Run
from .history import commands_of
from .settings import read_settings


@dataclass(frozen=True)
class RunOverview:
    """What the small files of a run say; None where they do not say it."""

    run: str  # its folder
    backbone: str
    data: str
    asked: str | None  # the size that the fit aims at, as it was typed
    reached: float | None  # of the exported winner, else of the mean candidate: a share
    held_out_error: float | None  # of the same
    state: str
    at: str  # UTC, when a file of it was last written


def overviews(folder: Path = RUNS) -> list[RunOverview]:
    """The runs in `folder`, newest first."""
    found = []
    for path in folder.glob("*/run.json"):
        with contextlib.suppress(OSError):  # it is removed meanwhile
            found += [_overview(Run(path.parent))] if path.is_file() else []
    return sorted(found, key=lambda one: (one.at, one.run), reverse=True)


def _overview(run: Run) -> RunOverview:
    newest = max(path.stat().st_mtime for path in run.folder.iterdir() if path.is_file())
    at = datetime.fromtimestamp(newest, timezone.utc).isoformat(timespec="seconds")
    try:
        settings = read_settings(run)
    except PgnasError:
        return RunOverview(str(run.folder), "", "", None, None, None, "damaged", at)
    kind = next((kind for kind in UNITS if getattr(settings, f"target_{kind}")), None)
    winner = next(_winners(run), None)
    reached, error = _of_last_epoch(run, kind) if winner is None else _of_winner(winner, kind)
    return RunOverview(
        str(run.folder), settings.backbone, settings.data,
        kind and f"{getattr(settings, f'target_{kind}')} {kind}", reached, error,
        "exported" if winner is not None else _state(run), at,
    )  # fmt: skip


def _state(run: Run) -> str:
    """The last stage that left something in the run."""
    if any(one.line.startswith(("pgnas export", "pgnas search")) for one in commands_of(run)):
        return "exported"
    if any(run.ranking(budget).exists() for budget in run.budgets()):
        return "ranked"
    if run.budgets():
        return "sampled"
    if run.posterior.exists():
        return "fitted"
    return "fitting" if run.checkpoint.exists() else "started"


def _winners(run: Run) -> Iterator[dict[str, Any]]:
    """What the exported networks in the folder of a run say that are its winners."""
    for path in sorted(run.folder.glob("*.safetensors")):
        with contextlib.suppress(PgnasError, ValueError, AttributeError):  # of something else
            about = parse_json(safetensors_header(path)[1].get("pgnas", "{}"))
            if about.get("chosen") == "best":
                yield about


def _of_winner(about: dict[str, Any], kind: str | None) -> tuple[float | None, float | None]:
    """Share of the size, and held-out error, of an exported network."""
    with contextlib.suppress(KeyError, TypeError, ZeroDivisionError):
        counted = "macs" if kind == "macs" else "params"
        share = about[counted] / about[f"whole_{counted}"]
        return share, about["held_out_errors"] / about["held_out_images"]
    return None, None


def _of_last_epoch(run: Run, kind: str | None) -> tuple[float | None, float | None]:
    """The same of the mean candidate at the end of the last epoch."""
    share = {"macs": "expected_macs_share", "time": "expected_time_share"}.get(kind or "")
    with contextlib.suppress(OSError, ValueError, IndexError, TypeError, AttributeError):
        last = parse_json(read_bytes(run.metrics, MOST_BYTES).decode().splitlines()[-1])
        return last.get(share or "expected_share"), last.get("hard_error")
    return None, None
