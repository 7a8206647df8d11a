"""Files that a crash cannot halve and a reader can trust.

Tensors are in safetensors, with one metadata key `pgnas` that holds JSON (one key, sorted, so that
equal content gives equal bytes). Readers check schema, types and shapes before anything is built;
nothing in a file is imported or evaluated. No time, path or host name enters a tensor file.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from . import __version__
from .errors import PgnasError


def versioned(schema: str) -> dict[str, str]:
    """What every file says of itself."""
    return {"schema": schema, "pgnas": __version__, "torch": torch.__version__}


def write_tensors(
    path: Path, schema: str, tensors: Mapping[str, Tensor], content: Mapping[str, Any]
) -> None:
    """Write a tensor file atomically; `content` becomes the metadata beside schema and versions."""
    text = json.dumps({**versioned(schema), **content}, sort_keys=True, allow_nan=False)
    whole = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    write_with(path, lambda part: save_file(whole, part, metadata={"pgnas": text}))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_with(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_with(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside the target, flush to disk, rename: a crash leaves the old file or the new."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
        with contextlib.suppress(OSError):
            part.unlink()


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def read_tensors(path: Path, schema: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file that must be of `schema`, "pgnas.<kind>/<version>".

    Raises PgnasError for a file that is missing, damaged, of another kind, or newer than this
    version of pgnas.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as handle:
            text = (handle.metadata() or {}).get("pgnas")
            content = parsed(path, text, schema)
            return {name: handle.get_tensor(name) for name in handle.keys()}, content  # noqa: SIM118
    except FileNotFoundError:
        raise PgnasError(f"no file '{path}'") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise PgnasError(f"'{path}' is not a whole safetensors file ({error})") from None


def parsed(path: Path, text: str | None, schema: str) -> dict[str, Any]:
    """The metadata of a file that must be of `schema` or an older version of it."""
    kind, newest = schema.split("/")
    version = int(newest)
    try:
        content = json.loads(text or "")
        found_kind, found_version = content["schema"].split("/")
        number = int(found_version)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise PgnasError(
            f"'{path}' was not written by pgnas: it has no readable metadata"
        ) from None
    if found_kind != kind:
        raise PgnasError(f"'{path}' holds {found_kind}, wanted is {kind}")
    if number > version:
        raise PgnasError(
            f"'{path}' has format {number} of {kind}, this pgnas ({__version__}) reads up to"
            f" {version}; install a newer pgnas"
        )
    assert isinstance(content, dict)
    return content


Record = TypeVar("Record")


def to_json(record: Any) -> dict[str, Any]:
    """A frozen record as plain JSON values."""
    return dataclasses.asdict(record)


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
        if arguments[-1] is ...:
            return tuple(typed(arguments[0], v, name, path) for v in value)
    elif get_origin(kind) is dict and isinstance(value, dict):
        return {k: typed(arguments[1], v, f"{name}.{k}", path) for k, v in value.items()}
    elif type(None) in arguments:
        if value is None:
            return None
        return typed(arguments[0], value, name, path)
    elif arguments and value in arguments:  # Literal
        return value
    elif kind is float and (type(value) is float or (type(value) is int and abs(value) < 2**53)):
        return float(value)
    elif kind in (int, str, bool) and type(value) is kind:
        return value
    raise PgnasError(f"'{path}' is damaged: its field {name} is not what this pgnas writes")


def checked(tensors: Mapping[str, Tensor], shapes: Mapping[str, Any], path: Path) -> None:
    """Compare names, shapes and types with what they must be: {name: tensor or (shape, dtype)}."""
    missing, extra = sorted(set(shapes) - set(tensors)), sorted(set(tensors) - set(shapes))
    if missing or extra:
        raise PgnasError(
            f"'{path}' does not fit: missing {', '.join(missing[:3]) or 'none'}; unexpected"
            f" {', '.join(extra[:3]) or 'none'}; it was written by another version of the backbone"
        )
    for name, like in shapes.items():
        shape, dtype = (like.shape, like.dtype) if isinstance(like, Tensor) else like
        found = tensors[name]
        if tuple(found.shape) != tuple(shape) or found.dtype != dtype:
            raise PgnasError(
                f"'{path}' does not fit: {name} is {found.dtype} {tuple(found.shape)}, wanted"
                f" {dtype} {tuple(shape)}"
            )


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
