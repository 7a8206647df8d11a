"""Where the work is done: the device, and the processes that decode images."""

import contextlib
import ctypes
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .distributed import Process, launched
from .errors import PgnasError
from .fields import check_range
from .naming import PRECISIONS as PRECISIONS
from .naming import check_device_name, no_device


@dataclass(frozen=True)
class Machine:
    """A device and the worker processes beside it."""

    device: torch.device = torch.device("cpu")  # noqa: RUF009 - never changed
    workers: int = 0  # processes that decode photos; 0: this one


def find_machine(device: str | torch.device = "auto", workers: int | None = None) -> Machine:
    """The device called `device` ("auto": a GPU where there is one) and its worker processes.

    `workers` None: one for each core, up to eight, beside a GPU up to sixteen. A process that works
    on its CPU is set up for it (`tune_for_cpu`). Each of several processes that torchrun started
    has a GPU of its own, and its share of the cores. Raises PgnasError for a device that is not
    here.
    """
    check_device_name(str(device))
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    process = launched()
    if process.world_size > 1 and str(chosen).startswith("cuda"):
        chosen = _own_gpu(str(chosen), process)
    try:
        found = torch.device(chosen)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError):
        raise no_device(device) from None
    if found.type == "cuda" and found.index is not None:
        torch.cuda.set_device(found)  # whose generator dropout draws from, and is seeded
    if workers is not None:
        check_range("workers", workers, 0)
    if found.type == "cpu":
        tune_for_cpu()
    elif found.type == "cuda":
        repeatable_on_gpu()
    most = min(8 if found.type == "cpu" else 16, max(1, cores() // process.local_world_size))
    return Machine(found, most if workers is None else workers)


FILLED = 0.5  # of the memory that is free, up to which images are kept there


def computing(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Context: layers compute in `precision`, float32 or bfloat16."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; 2^62 where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError, ValueError, AttributeError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
        return int(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return 2**62


def cores() -> int:
    """Cores that this process may use: on a shared machine not all that are there."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def forward_seconds(network: torch.nn.Module, images: torch.Tensor) -> float:
    """Seconds of one forward, until the device has done it."""
    began = time.perf_counter()
    network(images)
    until_done(images.device)
    return time.perf_counter() - began


def device_name(device: torch.device) -> str:
    """What a device is called by its maker; a CPU by its architecture where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def processor_name(device: torch.device) -> str:
    """The device that times are of: its name, of a CPU also the threads of this process."""
    name = device_name(device)
    if device.type != "cpu":
        return name
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def until_done(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 numbers itself, at more than the speed of float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # no public names yet
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in able)


def _own_gpu(chosen: str, process: Process) -> str:
    """The GPU of one of several processes on a machine; it becomes the current one."""
    there = torch.cuda.device_count()
    if chosen != "cuda":
        raise PgnasError(f"`device` {chosen} is one GPU for several processes; possible: cuda, cpu")
    if process.local_world_size > there:
        raise PgnasError(
            f"{process.local_world_size} processes on a machine with {there} GPU(s); start"
            " torchrun with --nproc-per-node gpu, or choose `device` cpu"
        )
    torch.cuda.set_device(process.local_rank)
    return f"cuda:{process.local_rank}"


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


def repeatable_on_gpu() -> None:
    """Have this process take GPU kernels that give the same bits again, wherever there are any.

    The backward pass of a few layers has none (max pooling, some adaptive pooling and resizing).
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True
    warnings.filterwarnings("ignore", ".*does not have a deterministic implementation")
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False  # every element is written anyway


@contextmanager
def full_float32() -> Iterator[None]:
    """Context: a GPU computes in whole float32, not in TF32 (10 bits), which is PyTorch's default
    for convolutions. For comparisons; the settings are as before after it."""
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    # PyTorch has two kinds of names for this, and refuses to read where they contradict each other.
    places = [(cudnn, cudnn.conv), (cudnn, cudnn.rnn), (matmul, matmul)]
    before = [new.fp32_precision for _, new in places]

    def set_(values: list[str]) -> None:
        for (old, _), value in zip(places, values, strict=True):
            old.allow_tf32 = value == "tf32"
        for (_, new), value in zip(places, values, strict=True):
            new.fp32_precision = value

    try:
        set_(["ieee"] * len(places))
        yield
    finally:
        set_(before)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_... of malloc.h
