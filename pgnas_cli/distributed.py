"""Several processes that work as one: those that torchrun started.

Outside of `together` each process is alone: `world_size()` is 1, and no function here communicates.
Within it all processes call the same functions in the same order, and only the first one writes
files and talks. A process that is lost ends the others with a PgnasError.

What travels is numbers, no objects of Python.
"""

import atexit
import hashlib
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from .errors import PgnasError, one_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class LostProcess(PgnasError):
    """Another process has ended, or does not answer."""


PATIENCE = timedelta(minutes=30)  # that a process has with another one that lives
BUCKET = 25 * 2**20  # bytes of gradients that travel at once, as in DistributedDataParallel


@dataclass(frozen=True)
class Process:
    """The place of a process among those that were started together."""

    rank: int = 0
    world_size: int = 1  # processes on all machines
    local_rank: int = 0  # on its machine
    local_world_size: int = 1
    restarts: int = 0  # how often torchrun has started the processes again


ALONE = Process()
_now = ALONE  # within `together`: of this process
_lost: LostProcess | None = None  # what the first sign of it was


def launched() -> Process:
    """What the environment says of this process, as torchrun and its like set it."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
        return ALONE
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    found = [os.environ.get(name, "1" if "SIZE" in name else "0") for name in names]
    return Process(*map(int, found)) if all(text.isdecimal() for text in found) else ALONE


def world_size() -> int:
    """Number of processes that work as one."""
    return _now.world_size


def rank() -> int:
    """Number of this process among them, from 0."""
    return _now.rank


def lost_process() -> LostProcess | None:
    """The error of a process that has lost another one, if it has."""
    return _lost


@contextmanager
def together(device: "torch.device") -> Iterator[None]:
    """Context in which the processes that torchrun started work as one, each on its `device`.

    They communicate by gloo on CPUs and by NCCL on GPUs. Does nothing in a process that was started
    alone, nor within another such context.
    """
    global _now
    place = launched()
    if place.world_size == 1 or _now.world_size > 1:
        yield
        return
    if device.type not in ("cpu", "cuda"):
        raise PgnasError(f"several processes share no work on `device` {device.type}; choose cpu")
    _join(place, "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    _now = place
    try:
        yield
    finally:
        _now = ALONE


def _join(place: Process, backend: str) -> None:
    """Make this process one of the group, in which it stays."""
    import torch.distributed as dist

    if dist.is_initialized():
        return
    with _connected():
        store, _, _ = next(dist.rendezvous("env://", timeout=PATIENCE))
        dist.init_process_group(
            backend, store=dist.PrefixStore(_meet(store, place), store), rank=place.rank,
            world_size=place.world_size, timeout=PATIENCE,
        )  # fmt: skip
    atexit.register(_leave)


def _meet(store: Any, place: Process) -> str:
    """A name for the group of the processes that live now, under which they find each other.

    torchrun keeps one store over its restarts, in which dead processes have left where they were
    to be found. Each process makes up a name; the first one answers each name it sees with its own.
    """
    own = uuid.uuid4().hex
    if place.rank:
        store.set(f"pgnas/{place.rank}", own)
        store.wait([own], PATIENCE)
        group: str = store.get(own).decode()
        store.set(f"{group}/{place.rank}", "here")
        return group
    missing, until = set(range(1, place.world_size)), time.monotonic() + PATIENCE.total_seconds()
    while missing:
        for rank in missing:
            if store.check([f"pgnas/{rank}"]):
                store.set(store.get(f"pgnas/{rank}").decode(), own)
        missing = {rank for rank in missing if not store.check([f"{own}/{rank}"])}
        if missing and time.monotonic() > until:
            raise RuntimeError(f"process {min(missing)} did not come")
        time.sleep(0.02)
    return own


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized() and _lost is None:  # else there is nobody to take leave of
        dist.destroy_process_group()


@contextmanager
def _connected() -> Iterator[None]:
    """Context of communication: what it raises becomes one line."""
    global _lost
    try:
        yield
    except RuntimeError as error:
        why = re.sub(r"^.*\[.*?\] ", "", one_line(error))[:80]  # less the place in gloo's source
        _lost = _lost or LostProcess(
            f"another process has ended, or does not answer ({why}); look at what it said; what was"
            " saved is kept"
        )
        raise _lost from None


# --- numbers that all processes have ---------------------------------------------------------


def summed(values: "Tensor") -> "Tensor":
    """`values` added up over all processes, in place."""
    if world_size() > 1:
        import torch.distributed as dist

        with _connected():
            dist.all_reduce(values)
    return values


def largest(value: float) -> float:
    """The largest `value` of any process: whether one of them is asked to stop, for instance."""
    return value if world_size() == 1 else _most([+value])[0]


def _most(values: list[Any]) -> list[Any]:
    import torch
    import torch.distributed as dist

    found = torch.tensor(values)  # whole numbers stay whole
    with _connected():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.tolist()


def wait() -> None:
    """Wait until every process has come here."""
    largest(0)


def check_alike(text: str, otherwise: str) -> None:
    """Raise PgnasError, which says `otherwise`, in all processes unless all have the same text."""
    if world_size() == 1:
        return
    digest = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")
    most, least = _most([digest, -digest])
    if most != -least:
        raise PgnasError(f"the processes differ: {otherwise}")


def of_first(text: str) -> str:
    """The text of the first process, in all of them."""
    if world_size() == 1:
        return text
    import torch
    import torch.distributed as dist

    own = text.encode() if rank() == 0 else b""
    found = torch.zeros(int(largest(len(own))), dtype=torch.uint8)
    if rank() == 0:
        found = torch.frombuffer(bytearray(own), dtype=torch.uint8)
    with _connected():
        dist.broadcast(found, 0)
    return bytes(found.tolist()).decode()


@contextmanager
def first_here() -> Iterator[None]:
    """Context that one process of each machine leaves before the others enter.

    They find in a cache what it found.
    """
    others = world_size() > 1 and _now.local_rank > 0
    if others:
        wait()
    yield
    if not others:
        wait()


def broadcast_(network: "nn.Module") -> None:
    """Give every process the parameters and buffers of the first one, in place."""
    if world_size() == 1:
        return
    import torch
    import torch.distributed as dist

    state = [tensor.detach() for tensor in (*network.parameters(), *network.buffers())]
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in state:
        by_device.setdefault(tensor.device, []).append(tensor)
    for tensors in by_device.values():
        # As bytes: one message for tensors of all types.
        parts = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors]
        flat = torch.cat(parts)
        with _connected():
            dist.broadcast(flat, 0)
        pieces = flat.split([len(part) for part in parts])
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.copy_(piece.clone().view(tensor.dtype).view(tensor.shape))


# --- a batch, shared -------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """The rows [start, stop) of a batch of `of` images; those of one process."""

    start: int
    stop: int
    of: int

    @property
    def count(self) -> int:
        return self.stop - self.start

    @property
    def part(self) -> slice:
        """The rows to read. One that counts for nothing where there are more processes than rows:
        every process runs the network."""
        return slice(self.start, max(self.stop, self.start + 1))


def rows_of(batch: int) -> Rows:
    """The rows of this process in a batch of so many images; all of them where it is alone."""
    first, size = rank(), world_size()
    return Rows(batch * first // size, batch * (first + 1) // size, batch)


@contextmanager
def summed_gradients(network: "nn.Module") -> Iterator[None]:
    """Context of one backward pass: gradients are added up over all processes.

    They travel in buckets, last layers first, while the pass goes on. A parameter that has no
    gradient in any process stays without.
    """
    if world_size() == 1:
        yield
        return
    buckets = _buckets([p for p in network.parameters() if p.requires_grad][::-1])
    left = [len(bucket) for bucket in buckets]
    sent: list[tuple[Any, Tensor]] = []

    def arrived(bucket: int, _: "Tensor") -> None:
        left[bucket] -= 1
        while len(sent) < len(buckets) and not left[len(sent)]:  # all processes in this order
            sent.append(_sent(buckets[len(sent)]))

    hooks = [
        parameter.register_post_accumulate_grad_hook(partial(arrived, index))
        for index, bucket in enumerate(buckets)
        for parameter in bucket
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    sent += [_sent(bucket) for bucket in buckets[len(sent) :]]
    for bucket, (work, flat) in zip(buckets, sent, strict=True):
        with _connected():
            work.wait()
        _received_(bucket, flat)


def _buckets(parameters: "list[nn.Parameter]") -> "list[list[nn.Parameter]]":
    """Parameters in order, cut into parts of one type of about `BUCKET` bytes."""
    found: list[list[nn.Parameter]] = []
    size, kind = 0, None
    for parameter in parameters:
        if size >= BUCKET or kind != (parameter.dtype, parameter.device):
            found.append([])
            size, kind = 0, (parameter.dtype, parameter.device)
        found[-1].append(parameter)
        size += parameter.numel() * parameter.element_size()
    return found


def _sent(bucket: "list[nn.Parameter]") -> "tuple[Any, Tensor]":
    """Begin to add up the gradients of a bucket, and which of them there are."""
    import torch
    import torch.distributed as dist

    there = bucket[0].new_ones(len(bucket))
    missing = [index for index, parameter in enumerate(bucket) if parameter.grad is None]
    if missing:
        there[missing] = 0
    grads = [p.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1) for p in bucket]
    flat = torch.cat([*grads, there])
    with _connected():
        return dist.all_reduce(flat, async_op=True), flat


def _received_(bucket: "list[nn.Parameter]", flat: "Tensor") -> None:
    """Set the gradients of a bucket to their sums."""
    *sums, there = flat.split([*(parameter.numel() for parameter in bucket), len(bucket)])
    for parameter, total, count in zip(bucket, sums, there, strict=True):
        if parameter.grad is not None:
            parameter.grad.copy_(total.view_as(parameter))
        elif float(count):
            parameter.grad = total.view_as(parameter).clone()


def synchronised(network: "nn.Module", device: "torch.device") -> "nn.Module":
    """`network` with batch-norm statistics over the batches of all processes (`sync_bn`)."""
    if world_size() == 1:
        return network
    if device.type != "cuda":
        raise PgnasError("`sync_bn` needs GPUs; leave it out on a CPU")
    from timm.layers import convert_sync_batchnorm

    return convert_sync_batchnorm(network)  # type: ignore[no-any-return]
