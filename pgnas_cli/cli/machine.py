"""Where the work is done: device and worker processes by what the user named."""

import ctypes
import os
import sys

import torch

from ..errors import PgnasError


def device_of(name: str) -> torch.device:
    """The device called `name`, "auto" for a GPU where there is one; PgnasError if not here.

    A process that is to work on its CPU is set up for it (`tune_for_cpu`).
    """
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        device = torch.device(chosen)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise PgnasError(f"no device '{name}' here; possible: cpu, or auto") from None
    if device.type == "cpu":
        tune_for_cpu()
    return device


def tune_for_cpu() -> None:
    """Set this process up for networks on the CPU; it changes no result beyond denormal numbers.

    Denormal numbers, which a closed gate's momentum decays to, are flushed to zero: arithmetic with
    them is many times slower. glibc hands each block above 32 MB back to the kernel when it is
    freed, and every page of the next one faults anew: it is told to keep them.
    """
    torch.set_flush_denormal(True)
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return
    # Older versions take no more than 32 MB. Either setting ends glibc's own adjustment of both.
    if mallopt(_MMAP_THRESHOLD, 2**30) or mallopt(_MMAP_THRESHOLD, 2**25):
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_... of malloc.h


def worker_count(count: int | None) -> int:
    """Processes that decode photos: `count`, or one for each core up to eight."""
    if count is not None and count < 0:
        raise PgnasError(f"--workers {count} is out of range; possible: 0 or more")
    return min(8, os.cpu_count() or 1) if count is None else count
