"""The command lines that wrote into a run."""

import contextlib
import json
import platform
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from .. import __version__
from ..errors import PgnasError
from ..progress import note
from ..storage import MOST_BYTES, from_json, parse_json, read_bytes, to_json
from .directory import Run


@dataclass(frozen=True)
class Command:
    """One command that wrote into a run, and what it ran on."""

    line: str
    at: str  # UTC
    pgnas: str
    torch: str
    timm: str
    python: str


def remember(run: Run, line: str) -> None:
    """Add a command line to the history of a run; one that is repeated is not added twice.

    Others may do so at the same time: a line is appended as a whole. One that cannot be is a
    remark, for what the command was to do is done.
    """
    earlier = commands_of(run)
    if earlier and earlier[-1].line == line:
        return
    versions = {name: version(name) for name in ("torch", "timm")}
    entry = Command(
        line=line, at=now(), pgnas=__version__, python=platform.python_version(), **versions
    )
    try:
        with run.commands.open("ab+") as file:  # a killed one may have left half a line
            file.seek(max(0, file.tell() - 1))
            start = "" if file.read(1) in (b"", b"\n") else "\n"
            file.write(f"{start}{json.dumps(to_json(entry))}\n".encode())
    except OSError as error:
        note(f"note: the command line was not added to '{run.commands}': {error}")


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _text_of(path: Path) -> str:
    """What a text file of ours holds, each line ended; nothing where it cannot be read."""
    try:
        text = read_bytes(path, MOST_BYTES).decode("utf-8", errors="replace")
    except (OSError, ValueError):
        return ""
    return text if not text or text.endswith("\n") else f"{text}\n"


def commands_of(run: Run) -> list[Command]:
    """The command lines of a run, oldest first; lines that are not ours are left out."""
    found = []
    for text in _text_of(run.commands).splitlines():
        with contextlib.suppress(ValueError, PgnasError):
            found.append(from_json(Command, parse_json(text), run.commands))
    return found
