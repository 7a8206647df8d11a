"""Load starting weights from a plain state dict in a safetensors file."""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from .errors import PgnasError


def load_weights_(network: nn.Module, path: Path, heads: Iterable[str]) -> list[str]:
    """Load `path` into `network`; returns remarks on what was replaced.

    Tensors of the layers named in `heads` may have another number of classes: those keep their
    fresh weights. Anything else that is missing, surplus or of another shape is a PgnasError.
    """
    try:
        found = load_file(path)
    except FileNotFoundError:
        raise PgnasError(f"no file '{path}' with weights") from None
    except (SafetensorError, OSError) as error:
        raise PgnasError(f"'{path}' is not a whole safetensors file ({error})") from None
    own = network.state_dict()
    remarks = []
    for head in heads:
        keys = [key for key in own if key.startswith(f"{head}.")]
        if any(key in found and found[key].shape != own[key].shape for key in keys):
            theirs = max(len(found[key]) for key in keys if key in found and found[key].dim())
            ours = max(len(own[key]) for key in keys if own[key].dim())
            remarks.append(f"the head '{head}' has {theirs} outputs, here are {ours}: replaced")
            found.update({key: own[key] for key in keys})
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    found.update({key: own[key] for key in counters - set(found)})
    missing, surplus = sorted(set(own) - set(found)), sorted(set(found) - set(own))
    reshaped = [k for k in sorted(set(own) & set(found)) if own[k].shape != found[k].shape]
    if missing or surplus or reshaped:
        raise PgnasError(
            f"'{path}' does not fit {type(network).__name__}: missing {_some(missing)}; surplus"
            f" {_some(surplus)}; of another shape {_some(reshaped)}"
        )
    network.load_state_dict({k: v.to(own[k].dtype) for k, v in found.items()})
    if not all(bool(torch.isfinite(v).all()) for v in network.parameters()):
        raise PgnasError(f"'{path}' holds numbers that are not finite")
    return remarks


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:4]) or "none"
    return shown if len(keys) <= 4 else f"{shown} and {len(keys) - 4} more"
