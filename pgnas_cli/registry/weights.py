"""Load starting weights from a plain state dict in a safetensors file."""

import json
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import PgnasError
from ..storage import check_regular
from ..tensors import read_plain_header, read_values, restore_

_COUNTER = "n_averaged"  # beside the weights in AveragedModel
LISTED = 5  # names in a message
_WRAPPERS = {"_orig_mod", "module"}  # parts of names, of torch.compile and DataParallel


def load_weights_(network: nn.Module, path: Path, heads: Iterable[str]) -> dict[str, str]:
    """Load `path` into `network`; returns the heads that were replaced, with a remark on each.

    The layers named in `heads` may have another number of classes or be missing, one with another
    name in their place: they keep their fresh weights. A prefix of all its names is taken off.
    Anything else that is missing, surplus or of another shape is a PgnasError.
    """
    return fit_weights_(network, _plain_weights(path), path, heads)


def _plain_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a plain state dict."""
    if path.is_dir():
        raise PgnasError(f"'{path}' is a folder; `weights` is a safetensors file")
    if not path.exists():
        raise PgnasError(f"no file '{path}' with weights")
    if _can_run_code(path):
        raise PgnasError(
            f"'{path}' is a .pth file of PyTorch's, which can run code and is not opened; convert"
            f" it to a safetensors file: {_conversion(path)}"
        )
    found, _ = read_plain_header(path)
    if any(key.startswith("network.") for key in found) and "fingerprint" in found:
        raise PgnasError(
            f"'{path}' is an exported network, not a plain state dict; open it with pgnas evaluate"
            " or pgnas_cli.load"
        )
    return read_values(path, found)


def _can_run_code(path: Path) -> bool:
    """Whether it is PyTorch's own kind of file: a zip archive, or that of former versions."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            return file.read(4).startswith((b"PK\x03\x04", b"\x80\x02"))
    except OSError:
        return False


def _conversion(path: Path) -> str:
    """The command that makes a safetensors file of one of PyTorch's; it reads tensors alone."""
    there, made = (json.dumps(str(p)) for p in (path, path.with_suffix(".safetensors")))
    lines = (
        "from torch import load; from safetensors.torch import save_file",
        f's = load({there}, "cpu", weights_only=True)',
        's = next((s[k] for k in ("state_dict", "model_state_dict", "model") if k in s), s)',
        f"save_file({{k: v.clone() for k, v in s.items()}}, {made})",
    )
    return f"python -c {shlex.quote('; '.join(lines))}"


def fit_weights_(
    network: nn.Module, found: dict[str, Tensor], path: Path, heads: Iterable[str]
) -> dict[str, str]:
    """The same for the tensors `found` in `path`."""
    own = network.state_dict()
    found = _unwrapped(found, own)
    replaced = {}
    for head in heads:
        keys = {key for key in own if key.startswith(f"{head}.")}
        there = keys & set(found)
        if keys and not there:
            other = _other_head(set(found) - set(own))
            replaced[head] = (
                f"no weights for the head '{head}'{other and f', but for {other!r}'}: new"
            )
            found = {key: found[key] for key in found if key in own or not other}
        elif any(found[key].shape != own[key].shape for key in there):
            theirs = max((len(found[key]) for key in there if found[key].dim()), default=0)
            ours = max(len(own[key]) for key in keys if own[key].dim())
            replaced[head] = f"the head '{head}' has {theirs} outputs, here are {ours}: replaced"
        else:
            continue
        found.update({key: own[key] for key in keys})
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    found.update({key: own[key] for key in counters - set(found)})
    missing, surplus = sorted(set(own) - set(found)), sorted(set(found) - set(own))
    reshaped = [k for k in sorted(set(own) & set(found)) if own[k].shape != found[k].shape]
    numbers = [k for k in set(own) & set(found) if own[k].is_floating_point()]
    odd = sorted(k for k in numbers if not found[k].is_floating_point())
    if odd:
        raise PgnasError(f"'{path}' holds whole numbers where weights are wanted: {_some(odd)}")
    infinite = sorted(k for k in numbers if not bool(torch.isfinite(found[k].float()).all()))
    if infinite:
        raise PgnasError(f"'{path}' holds numbers that are not finite: {_some(infinite)}")
    if missing or surplus or reshaped:
        raise PgnasError(
            f"'{path}' does not fit {type(network).__name__}: missing {_some(missing)}; surplus"
            f" {_some(surplus)}; of another shape {_some(reshaped)}"
        )
    restore_(network, {k: v.to(own[k].dtype) for k, v in found.items()})
    return replaced


def _unwrapped(found: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """`found` by the names that the network has: without wrappers, and without the prefix under
    which most of these names are."""
    parts = {part for key in own for part in key.split(".")}
    foreign = _WRAPPERS - parts
    shorter = {key: ".".join(p for p in key.split(".") if p not in foreign) for key in found}
    found = {name: found[key] for key, name in shorter.items() if name and name != _COUNTER}
    splits = [(key, end) for key in found for end in (0, *_ends(key)) if key[end:] in own]
    fitting = Counter(key[:end] for key, end in splits)
    (prefix, most), (_, second) = [*fitting.most_common(2), ("", 0), ("", 0)][:2]
    names = {key: key.removeprefix(prefix) for key in found}
    if most == second or len(set(names.values())) < len(names):
        return found  # nothing fits, or two networks do
    return {names[key]: tensor for key, tensor in found.items()}


def _ends(key: str) -> list[int]:
    """Where its prefixes end."""
    return [dot.end() for dot in re.finditer(r"\.", key)]


def _other_head(surplus: Collection[str]) -> str:
    """The one layer or block that all of the names `surplus` are in, or ""."""
    firsts = {key.partition(".")[0] for key in surplus}
    return firsts.pop() if len(firsts) == 1 else ""


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:LISTED]) or "none"
    return shown if len(keys) <= LISTED else f"{shown} and {len(keys) - LISTED} more"
