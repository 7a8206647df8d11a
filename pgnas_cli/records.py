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
    at: str  # UTC
    data: str  # name of the data set whose test split it was, of a folder the last part
    candidate: str  # id, "whole" or "twin"
    chosen: str  # as what it was exported: "best", "smallest", "twin", "whole", "id"
    fixed_drop: float | None  # the rate that its fit held all gates at
    made_from: str  # digest of its posterior
    errors: int  # on the test split
    images: int
    wrong: tuple[int, ...]  # which images of the test split, by position
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
    entry = Command(
        line=line, at=now(), pgnas=__version__, python=platform.python_version(), **versions
    )
    there = _text_of(run.commands)
    write_text(run.commands, f"{there}{json.dumps(to_json(entry))}\n")


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _text_of(path: Path) -> str:
    """What a text file of ours holds, each line ended; nothing where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text if not text or text.endswith("\n") else f"{text}\n"


def commands_of(run: Run) -> list[Command]:
    """The command lines of a run, oldest first; lines that are not ours are left out."""
    found = []
    for text in _text_of(run.commands).splitlines():
        with contextlib.suppress(ValueError, RecursionError, PgnasError):
            found.append(from_json(Command, json.loads(text), run.commands))
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
    data = Path(evaluation.data).name if Path(evaluation.data).is_dir() else evaluation.data
    return Evaluated(
        name=name, at=now(), data=data, errors=score.errors, images=score.images,
        wrong=score.wrong, batch=many.batch,
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
        if content["schema"] != EVALUATION:
            raise damaged
        rows = [from_json(Evaluated, row, run.evaluation) for row in content["networks"]]
        for row in rows:
            row.name.encode()
            if not _sane(row):
                raise damaged
    except (ValueError, KeyError, TypeError, OSError, RecursionError, PgnasError):
        raise damaged from None
    return rows


def _sane(row: Evaluated) -> bool:
    """Whether a row holds counts and times that can be."""
    counts = (row.images, row.held_out_images, row.params, row.macs, row.batch)
    times = (row.one_ms, row.one_whole_ms, row.many_ms, row.many_whole_ms)
    return (
        all(0 < count < 2**53 for count in counts)
        and row.params <= row.whole_params < 2**53
        and 0 < row.whole_macs < 2**53
        and 0 <= row.errors <= row.images
        and 0 <= row.held_out_errors <= row.held_out_images
        and len(set(row.wrong)) == len(row.wrong) == row.errors
        and all(0 <= image < row.images for image in row.wrong)
        and all(1e-9 < time < 1e9 for time in times)
    )
