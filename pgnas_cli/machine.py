"""Where the work is done: device and worker processes by what the user named."""

import os

import torch

from .errors import PgnasError


def device_of(name: str) -> torch.device:
    """The device called `name`, "auto" for a GPU where there is one; PgnasError if not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise PgnasError(f"no device '{name}' here; possible: cpu, or auto") from None
    return device


def worker_count(count: int | None) -> int:
    """Processes that decode photos: `count`, or one for each core up to eight."""
    if count is not None and count < 0:
        raise PgnasError(f"--workers {count} is out of range; possible: 0 or more")
    return min(8, os.cpu_count() or 1) if count is None else count
