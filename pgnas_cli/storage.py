"""Files that a crash cannot halve, and frozen records as JSON whose types are checked on reading.

What is read may come from a stranger: JSON is bounded in bytes and depth, has each key once and
only finite numbers; texts and whole numbers in records are bounded.

Imports no torch: options and histories of runs are read by commands that answer at once.
"""

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import safetensors

from .errors import PgnasError, one_line, visible
from .naming import is_onnx

Found = TypeVar("Found")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_with(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a binary file atomically."""
    write_with(path, lambda part: part.write_bytes(content))


def write_with(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside the target, flush to disk, rename: a crash leaves the old file or the new.

    It is written in a folder of its own: some writers have temporary files beside theirs.
    """
    folder = path.with_name(f".{path.name}.{os.getpid()}.part")
    part = folder / path.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(part)
        part.chmod(0o666 & ~_umask())  # as any new file; some writers make theirs private
        with part.open("rb+") as handle:
            os.fsync(handle.fileno())
        part.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise PgnasError(
            f"'{path}' cannot be written: {error}; what was there before is untouched"
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_LEFTOVER = re.compile(r"\..+\.(\d+)\.part")


def cache_folder() -> Path:
    """Where what is found once is remembered: $XDG_CACHE_HOME/pgnas, by default ~/.cache/pgnas."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    return Path(cache) / "pgnas"


def remove_leftovers(folder: Path) -> None:
    """Remove what `write_with` left in a folder where its process was killed."""
    for path in folder.glob(".*.part"):
        match = _LEFTOVER.fullmatch(path.name)
        if match and not _lives(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    if os.name == "nt":  # no way to ask
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def remove(path: Path) -> None:
    """Remove a file where there is one."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise PgnasError(f"'{path}' cannot be removed: {error}") from None


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def new_file(path: Path, force: bool) -> None:
    """Raise PgnasError where a file that the user named exists, unless `force` says otherwise."""
    if path.exists() and not force:
        raise PgnasError(f"'{path}' exists; choose another name, or add `force`")


def check_ending(path: Path, endings: Iterable[str]) -> None:
    """Raise PgnasError unless the name of a file ends in one of `endings`, as ".onnx"."""
    if path.suffix not in endings:
        raise PgnasError(f"'{path}' has no known ending; possible: {', '.join(endings)}")


def no_file(path: Path) -> PgnasError:
    return PgnasError(f"no file '{path}'")


def check_regular(path: Path) -> None:
    """OSError for a pipe or a device, which never ends, and for a folder."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is no regular file")


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    return with_digest(path, lambda _: None)[1]


def with_digest(path: Path, read: Callable[[Path], Found]) -> tuple[Found, str]:
    """What `read` finds in a file, and the sha256 of the very bytes that it read.

    Files are replaced as a whole: one that still has its name afterwards was read, and no other.
    """
    try:
        check_regular(path)
        while True:
            digest = hashlib.sha256()
            with path.open("rb") as handle:
                while block := handle.read(1 << 20):
                    digest.update(block)
                found = read(path)
                if os.path.samestat(os.fstat(handle.fileno()), path.stat()):
                    return found, digest.hexdigest()
    except FileNotFoundError:
        raise no_file(path) from None
    except OSError as error:
        raise PgnasError(f"'{path}' cannot be read: {error}") from None


# --- what safetensors files describe ----------------------------------------------------------


def safetensors_header(path: Path) -> tuple[dict[str, Any], dict[str, str], int]:
    """The tensors that a safetensors file describes, its metadata, and the bytes of its tensors.

    Raises PgnasError for a file that is missing, or that does not begin like one.
    """
    try:
        check_regular(path)
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            size = handle.seek(0, 2) - 8
            if not 0 < length <= min(size, MOST_BYTES):
                raise ValueError(f"a header of {length} bytes in a file of {size + 8}")
            handle.seek(8)
            header = parse_json(handle.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or any(type(v) is not str for v in metadata.values()):
            raise ValueError("its metadata are no texts")
    except FileNotFoundError:
        raise no_file(path) from None
    except (ValueError, OSError) as error:
        raise not_whole(path, error) from None
    return header, metadata, size - length


def check_network_file(path: Path) -> None:
    """Raise PgnasError for a file that is missing, or that does not begin like a network's."""
    if not is_onnx(path):
        safetensors_header(path)
    elif not path.exists():
        raise no_file(path)


def not_whole(path: Path, error: Exception) -> PgnasError:
    return PgnasError(f"'{path}' is not a whole safetensors file ({one_line(error)})")


# --- JSON ------------------------------------------------------------------------------------

MOST_BYTES = 2**25  # of a JSON text: gates in groups of one channel take some 2**21
DEEPEST = 32  # lists and objects inside each other
LONGEST = 10_000  # characters of a text in a record, a command line for one
_HOLDERS = (dict, list)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; ValueError for what is none, or is beyond the bounds."""
    if len(text) > MOST_BYTES:
        raise ValueError(f"{len(text)} bytes of JSON are more than {MOST_BYTES}")
    plain = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        value = json.loads(plain, parse_constant=_no_number, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("too many lists and objects inside each other") from None
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        inner = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, _HOLDERS)]
        level = [value for values in inner for value in values]
    if level:
        raise ValueError(f"more than {DEEPEST} lists and objects inside each other")
    return value


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def read_json(path: Path) -> Any:
    """The value in a JSON file; ValueError or OSError where there is none."""
    return parse_json(read_bytes(path, MOST_BYTES))


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a file; ValueError, before it is read, where it has more than `most` bytes."""
    check_regular(path)
    with path.open("rb") as handle:
        content = handle.read(most + 1)
    if len(content) > most:
        raise ValueError(f"more than {most} bytes")
    return content


# --- records ---------------------------------------------------------------------------------

Record = TypeVar("Record")


def to_json(record: Any) -> dict[str, Any]:
    """A frozen record as plain JSON values."""
    return dataclasses.asdict(record)


def as_read(value: Any) -> Any:
    """A plain value as it comes back from a JSON file: a tuple is a list."""
    return json.loads(json.dumps(value))


def from_json(record: type[Record], value: Any, path: Path) -> Record:
    """The record that `to_json` was made from; every field's type is checked.

    Raises PgnasError that names the field.
    """
    return typed(record, value, record.__name__.lower(), path)  # type: ignore[no-any-return]


def typed(kind: Any, value: Any, name: str, path: Path) -> Any:
    """`value` as `kind`, which a type hint names; raises PgnasError that names the field."""
    arguments = get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        optional = {  # an older file lacks the newest fields, which have what was done then
            f.name
            for f in dataclasses.fields(kind)
            if f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        }
        if set(hints) - optional <= set(value) <= set(hints):
            return kind(**{k: typed(hints[k], v, f"{name}.{k}", path) for k, v in value.items()})  # type: ignore[operator]
    elif kind is Any:
        return value
    elif get_origin(kind) is tuple and isinstance(value, list | tuple):
        kinds = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        if len(kinds) == len(value):
            return tuple(typed(k, v, name, path) for k, v in zip(kinds, value, strict=True))
    elif get_origin(kind) is dict and isinstance(value, dict):
        return {k: typed(arguments[1], v, f"{name}.{k}", path) for k, v in value.items()}
    elif type(None) in arguments:
        if value is None:
            return None
        return typed(arguments[0], value, name, path)
    elif value in arguments or (bool in arguments and type(value) is bool):  # Literal, or beside
        return value
    elif kind in (float, int, str, bool) and _within(kind, value):
        return float(value) if kind is float else value
    raise PgnasError(f"'{path}' is damaged: its field {name} is not what this pgnas writes")


def _within(kind: Any, value: Any) -> bool:
    """Whether a plain value is a `kind` within bounds; 1 may stand for 1.0."""
    if kind is float:
        whole = type(value) is int and abs(value) < 2**53
        return whole or (type(value) is float and math.isfinite(value))
    if kind is str:
        return type(value) is str and len(value) <= LONGEST
    return type(value) is kind and abs(value) < 2**63


def differences(then: Any, now: Any) -> list[str]:
    """The fields in which two records differ, as "`epochs` 3, not 5"."""
    before, after = _flat(to_json(then)), _flat(to_json(now))
    return [
        f"`{key.rpartition('.')[2]}` {before.get(key)}, not {after.get(key)}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV; no text is a formula to a spreadsheet, or acts on a terminal."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    return out.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
