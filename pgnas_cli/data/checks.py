"""Check every image file of a folder once: what was found is remembered by size and time.

The memory is a file in the user's cache (`$XDG_CACHE_HOME/pgnas`, by default ~/.cache/pgnas): the
folder of images may be read-only, and a run is one of several on the same images. Files that do not
decode are not remembered.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL

from ..errors import PgnasError
from ..progress import note, task
from ..storage import write_text
from ..units import clock
from .pictures import Facts, endings, facts_of, silenced

_SCHEMA = "pgnas.checked/2"
_AT_ONCE = 256  # files whose check an interrupt has to wait for, at most


def checked(folder: Path, paths: Sequence[Path]) -> list[Facts | str]:
    """Facts of each file below `folder`, or why it does not decode; decoded in parallel threads."""
    memory = _memory_of(folder)
    known = _read(memory)
    names = [path.relative_to(folder).as_posix() for path in paths]
    stamps = [_stamp(path) for path in paths]
    found: dict[int, Facts | str] = {}
    for index, (name, stamp) in enumerate(zip(names, stamps, strict=True)):
        if stamp is None:
            found[index] = "no such file"
        elif name in known and known[name][:2] == stamp:
            found[index] = Facts(*known[name][2:])
    left = [index for index in range(len(paths)) if index not in found]
    if not left:
        return [found[index] for index in range(len(paths))]
    began, new = time.monotonic(), {}
    try:
        decoded = in_threads(lambda index: facts_of(paths[index]), left)
        for index, facts in zip(left, decoded, strict=True):
            found[index] = facts
            stamp = stamps[index]
            if stamp and isinstance(facts, Facts):
                new[names[index]] = [*stamp, *dataclasses.astuple(facts)]
    finally:  # an interrupted check goes on where it stopped
        if new:
            _write(memory, known | new)
    seconds = time.monotonic() - began
    if seconds >= 1:
        note(f"checked {len(left)} images in {clock(seconds)}")
    return [found[index] for index in range(len(paths))]


def in_threads(
    decode: Callable[[int], Facts | str], images: Sequence[int]
) -> Iterator[Facts | str]:
    """`decode` of each; Pillow leaves Python's lock while it decodes, so threads will do."""
    endings()  # registers plug-ins
    workers = min(8, os.cpu_count() or 1)
    with (
        silenced(),
        ThreadPoolExecutor(workers) as pool,
        task("checking images", len(images)) as bar,
    ):
        for first in range(0, len(images), _AT_ONCE):
            some = images[first : first + _AT_ONCE]
            yield from pool.map(decode, some)
            bar.update(first + len(some))


def _stamp(path: Path) -> list[int] | None:
    """Size and time of a file; None where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _memory_of(folder: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111
    digest = hashlib.blake2b(os.fsencode(folder.resolve()), digest_size=16).hexdigest()
    return cache / "pgnas" / f"checked-{digest}.json"


_ROW = [int, int, str, int, bool, float]  # size, time, and `Facts`


def _read(memory: Path) -> dict[str, list]:  # type: ignore[type-arg]
    """What is remembered; nothing of another Pillow, which may read other files."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        content = json.loads(memory.read_text(encoding="utf-8"))
        if (content["schema"], content["pillow"]) == (_SCHEMA, PIL.__version__):
            rows = content["files"].items()
            return {name: row for name, row in rows if [type(value) for value in row] == _ROW}
    return {}


def _write(memory: Path, known: dict[str, list]) -> None:  # type: ignore[type-arg]
    content = {"schema": _SCHEMA, "pillow": PIL.__version__, "files": known}
    try:
        write_text(memory, json.dumps(content))
    except PgnasError as error:
        note(f"note: the check of the images is not remembered: {error}")
