"""Tensors in safetensors files, with a schema.

One metadata key `pgnas` holds JSON (one key, sorted, so that equal content gives equal bytes).
Readers check schema, types and shapes before anything is built; nothing in a file is imported or
evaluated. No time, path or host enters a tensor file.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from . import __version__
from .errors import PgnasError
from .storage import write_with


def versioned(schema: str) -> dict[str, str]:
    """What every file says of itself."""
    return {"schema": schema, "pgnas": __version__, "torch": torch.__version__}


def write_tensors(
    path: Path, schema: str, tensors: Mapping[str, Tensor], content: Mapping[str, Any]
) -> None:
    """Write a tensor file atomically; `content` becomes the metadata beside schema and versions."""
    whole, metadata = _plain(schema, tensors, content)
    write_with(path, lambda part: save_file(whole, part, metadata=metadata))


def tensor_bytes(schema: str, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> bytes:
    """What `write_tensors` writes."""
    whole, metadata = _plain(schema, tensors, content)
    return save(whole, metadata=metadata)


def _plain(
    schema: str, tensors: Mapping[str, Tensor], content: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    text = json.dumps({**versioned(schema), **content}, sort_keys=True, allow_nan=False)
    whole = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    return whole, {"pgnas": text}


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


def restore_(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load a state dict whose tensors fit `network` as it is built now.

    Versions that a state dict carries beside its tensors are lost in a file; without them a module
    may refuse it, or take it for an old one (torchvision's MNASNet). They are those of now.
    """
    state = OrderedDict(tensors)
    state._metadata = getattr(network.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
    network.load_state_dict(state)
