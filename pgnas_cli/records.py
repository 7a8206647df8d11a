"""What was done with a run, beside its tensors: command lines, and what evaluations found."""

import contextlib
import dataclasses
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import timm
import torch

from . import __version__
from .errors import PgnasError
from .evaluation import Evaluation
from .export import Slim
from .files import Run, newest_run
from .storage import file_digest, from_json, to_json, write_text

EVALUATION = "pgnas.evaluation/1"


@dataclass(frozen=True)
class Command:
    """One command that wrote into a run, and what it ran on."""

    line: str
    at: str  # UTC
    pgnas: str
    torch: str
    timm: str
    python: str


@dataclass(frozen=True)
class Evaluated:
    """An exported network as `evaluate` found it, on the machine and day of then."""

    name: str
    candidate: str  # id, "whole" or "twin"
    made_from: str  # digest of its posterior
    errors: int  # on the test split
    images: int
    held_out_errors: int
    held_out_images: int
    params: int
    macs: int
    whole_params: int
    whole_macs: int
    batch: int  # of the second pair of times
    one_ms: float  # median milliseconds, one image
    one_whole_ms: float  # of the whole network, at the same time
    many_ms: float
    many_whole_ms: float
    device: str
    finetuned_epochs: int = 0


def remember(run: Run, line: str) -> None:
    """Add a command line to what was done with a run; one that goes on is not added twice."""
    earlier = commands_of(run)
    if earlier and earlier[-1].line == line:
        return
    versions = {"torch": torch.__version__, "timm": timm.__version__}
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    entry = Command(
        line=line, at=now, pgnas=__version__, python=platform.python_version(), **versions
    )
    lines = [*earlier, entry]
    write_text(run.commands, "".join(json.dumps(to_json(one)) + "\n" for one in lines))


def commands_of(run: Run) -> list[Command]:
    """The command lines of a run, oldest first; lines that are not ours are left out."""
    if not run.commands.exists():
        return []
    found = []
    for text in run.commands.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found.append(from_json(Command, json.loads(text), run.commands))
        except (ValueError, PgnasError):
            continue
    return found


def evaluated(evaluation: Evaluation, name: str, device: torch.device) -> Evaluated:
    """What is kept of an evaluation."""
    about, score, one, many = (
        evaluation.about, evaluation.score, evaluation.one, evaluation.many,
    )  # fmt: skip
    kept = {
        f.name: getattr(about, f.name)
        for f in dataclasses.fields(Evaluated)
        if hasattr(about, f.name)
    }
    return Evaluated(
        name=name, errors=score.errors, images=score.images, batch=many.batch,
        one_ms=one.slim, one_whole_ms=one.whole, many_ms=many.slim, many_whole_ms=many.whole,
        device=str(device), **kept,
    )  # fmt: skip


def origin(networks: Sequence[tuple[Path, Slim]], named: Path | None) -> Run | None:
    """The run that one of these files came from: the named one, one beside them, or the newest.

    Raises PgnasError where a run is named and is not it.
    """
    sources = {about.made_from for _, about in networks}
    folders = [named] if named else [path.parent for path, _ in networks]
    if named is None:
        with contextlib.suppress(PgnasError):
            folders.append(newest_run(fitted=True).folder)
    for folder in dict.fromkeys(folders):
        run = Run(folder)
        if run.posterior.exists() and file_digest(run.posterior) in sources:
            return run
    if named is not None:
        raise PgnasError(
            f"'{named}' is not the run that these networks came from; leave --run out, or name it"
        )
    return None


def write_evaluations(run: Run, rows: Sequence[Evaluated]) -> None:
    """Add rows to the evaluations of a run; a row replaces an earlier one of its name."""
    merged = {row.name: row for row in [*evaluations_of(run), *rows]}
    content = {"schema": EVALUATION, "networks": [to_json(row) for row in merged.values()]}
    write_text(run.evaluation, json.dumps(content, indent=1) + "\n")


def evaluations_of(run: Run) -> list[Evaluated]:
    """The evaluations of a run.

    Raises PgnasError where the file is damaged.
    """
    if not run.evaluation.exists():
        return []
    damaged = PgnasError(
        f"'{run.evaluation}' is damaged; remove it, and evaluate again with pgnas evaluate"
    )
    try:
        content = json.loads(run.evaluation.read_text(encoding="utf-8"))
        stored = content["networks"] if content["schema"] == EVALUATION else []
        rows = [from_json(Evaluated, row, run.evaluation) for row in stored]
    except (ValueError, KeyError, TypeError, PgnasError):
        raise damaged from None
    for row in rows:
        counts = (row.images, row.held_out_images, row.whole_params, row.whole_macs, row.params)
        if min(counts) < 1 or min(row.one_whole_ms, row.many_whole_ms) <= 0:
            raise damaged
    return rows
