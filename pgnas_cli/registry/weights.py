"""Load starting weights from a plain state dict in a safetensors file."""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import PgnasError
from ..tensors import restore_

LISTED = 20  # names in a message


def load_weights_(network: nn.Module, path: Path, heads: Iterable[str]) -> dict[str, str]:
    """Load `path` into `network`; returns the heads that were replaced, with a remark on each.

    Tensors of the layers named in `heads` may have another number of classes: those keep their
    fresh weights. Anything else that is missing, surplus or of another shape is a PgnasError.
    """
    return fit_weights_(network, _plain_weights(path), path, heads)


def _plain_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a plain state dict."""
    if path.is_dir():
        raise PgnasError(f"'{path}' is a folder; `weights` is a safetensors file")
    try:
        found = load_file(path)
    except FileNotFoundError:
        raise PgnasError(f"no file '{path}' with weights") from None
    except (SafetensorError, OSError) as error:
        raise PgnasError(f"'{path}' is not a whole safetensors file ({error})") from None
    if any(key.startswith("network.") for key in found) and "fingerprint" in found:
        raise PgnasError(
            f"'{path}' is an exported network, not a plain state dict; open it with pgnas evaluate"
            " or pgnas_cli.load"
        )
    return found


def fit_weights_(
    network: nn.Module, found: dict[str, Tensor], path: Path, heads: Iterable[str]
) -> dict[str, str]:
    """The same for the tensors `found` in `path`."""
    own = network.state_dict()
    replaced = {}
    for head in heads:
        keys = [key for key in own if key.startswith(f"{head}.")]
        if any(key in found and found[key].shape != own[key].shape for key in keys):
            theirs = max((len(found[k]) for k in keys if k in found and found[k].dim()), default=0)
            ours = max(len(own[key]) for key in keys if own[key].dim())
            replaced[head] = f"the head '{head}' has {theirs} outputs, here are {ours}: replaced"
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


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:LISTED]) or "none"
    return shown if len(keys) <= LISTED else f"{shown} and {len(keys) - LISTED} more"
