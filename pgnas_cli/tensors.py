"""Tensors in safetensors files, with a schema.

One metadata key `pgnas` holds JSON (one key, sorted, so that equal content gives equal bytes).
Nothing in a file is imported or evaluated. No time, path or host enters a tensor file.

A file may come from a stranger. `read_header` gives its tensors as they are described, on the meta
device, and the metadata: names, types and shapes are compared with what is wanted before
`read_values` sets memory aside. The header's sizes must be those of the file, byte for byte.
"""

import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load, save, save_file
from torch import Tensor, nn

from . import __version__
from .errors import PgnasError
from .storage import not_whole, parse_json, safetensors_header, write_with


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
    header, content = read_header(path, schema)
    return read_values(path, header), content


def read_header(path: Path, schema: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The same, no tensor read: those described, on the meta device."""
    header, metadata = read_plain_header(path)
    return header, parsed(path, metadata.get("pgnas"), schema)


def read_values(path: Path, header: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file whose header was read before."""
    try:
        if "\\udc" in ascii(str(path)):  # bytes that are no UTF-8: safe_open takes no such path
            found = load(path.read_bytes())
        else:
            with safetensors.safe_open(path, framework="pt") as handle:
                found = {name: handle.get_tensor(name) for name in header}
    except (safetensors.SafetensorError, OSError) as error:
        raise not_whole(path, error) from None
    shapes = {name: tensor.shape for name, tensor in header.items()}
    if {name: tensor.shape for name, tensor in found.items()} != shapes:
        raise PgnasError(f"'{path}' was replaced while it was read; try again")
    return found


MOST_AXES = 16  # of a tensor
LONGEST_NAME = 512  # bytes, of a tensor
_DTYPES = {  # by their names in a header
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16,
    "I32": torch.int32, "I64": torch.int64, "U16": torch.uint16, "U32": torch.uint32,
    "U64": torch.uint64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32,
    "F64": torch.float64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def read_plain_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors that any safetensors file describes, on the meta device, and its metadata.

    Raises PgnasError for a file that is missing, or whose sizes contradict each other or its own.
    """
    header, metadata, size = safetensors_header(path)
    try:
        return _described(header, size), metadata
    except ValueError as error:
        raise not_whole(path, error) from None


def _described(header: dict[str, Any], size: int) -> dict[str, Tensor]:
    """Tensors on the meta device; ValueError unless they fill `size` bytes, one after the other."""
    found, spans = {}, []
    for name, about in header.items():
        if len(name.encode()) > LONGEST_NAME:
            raise ValueError("a tensor's name is too long")
        if not isinstance(about, dict) or set(about) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"tensor {name} is not described by type, shape and offsets")
        dtype, shape = _DTYPES.get(str(about["dtype"])), about["shape"]
        if dtype is None or not _counts(shape) or len(shape) > MOST_AXES:
            raise ValueError(f"tensor {name} has an impossible type or shape")
        if not _counts(about["data_offsets"]) or len(about["data_offsets"]) != 2:
            raise ValueError(f"tensor {name} has impossible offsets")
        begin, end = about["data_offsets"]
        if end - begin != math.prod(shape) * dtype.itemsize or max(shape, default=0) > size:
            raise ValueError(f"tensor {name} has a shape that is not of its {end - begin} bytes")
        spans.append((begin, end))
        found[name] = torch.empty(shape, dtype=dtype, device="meta")
    place = 0
    for begin, end in sorted(spans):
        if begin != place:
            raise ValueError("its tensors overlap, or leave holes")
        place = end
    if place != size:
        raise ValueError(f"its tensors take {place} bytes, the file has {size}")
    return found


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def parsed(path: Path, text: str | None, schema: str) -> dict[str, Any]:
    """The metadata of a file that must be of `schema` or an older version of it."""
    kind, newest = schema.split("/")
    version = int(newest)
    try:
        content = parse_json(text or "")
        found_kind, found_version = content["schema"].split("/")
        number = int(found_version)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise PgnasError(
            f"'{path}' was not written by pgnas: it has no readable metadata"
        ) from None
    if found_kind != kind:
        of_run = found_kind in ("pgnas.posterior", "pgnas.candidates", "pgnas.ranking")
        export = "; export a network first: pgnas export" if of_run else ""
        raise PgnasError(f"'{path}' holds {found_kind}, wanted is {kind}{export}")
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


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """The shape of each tensor, by its name."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def restore_(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load a state dict whose tensors fit `network` as it is built now.

    Versions that a state dict carries beside its tensors are lost in a file; without them a module
    may refuse it, or take it for an old one (torchvision's MNASNet). They are those of now.
    """
    state = OrderedDict(tensors)
    state._metadata = getattr(network.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
    network.load_state_dict(state)
