"""Measure how long the steps of a network take on this device, at many widths.

Slim networks of random candidates and the whole network are timed as a whole and step by step, in
turns: what slows the machine for a while slows all of them.
"""

import contextlib
import copy
import dataclasses
import hashlib
import json
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from .data import placed
from .errors import PgnasError
from .gates import gates, make_concrete_
from .graph import Graph
from .machine import Machine, forward_seconds, until_done
from .progress import note, task
from .registry.build import build_backbone
from .seeds import generator
from .slimming import arranged, slim, ungated_copy, wire
from .storage import (
    MOST_BYTES,
    cache_folder,
    from_json,
    parse_json,
    read_bytes,
    to_json,
    write_text,
)
from .timing import (
    Sample,
    TimeTable,
    built_work,
    check_table,
    fingerprint,
    fitted,
    milliseconds,
)
from .units import percent

SCHEMA = "pgnas.times/1"
NETWORKS = 32  # that are timed
APART = 4  # every so many of them is not fitted to, but predicted
TURNS = 5  # of all networks, at least; and as many as take less than
SECONDS = 40.0
MOST_TURNS = 40
UNDISTURBED = 0.2  # quantile of repeated times: other work on the machine only adds to them
WORST_RATE = 0.9  # of a layer's gates that are closed, at most
UNEVEN = 0.3  # spread of the layers' rates around that of their network


def random_candidates(network: nn.Module, number: int, seed: int) -> Tensor:
    """Candidates of all sizes, whose layers are cut unevenly, bool (candidates, gates)."""
    bank, draw = gates(network), generator(seed, "profile")
    rows = []
    for _ in range(number):
        keep = torch.ones(bank.count, dtype=torch.bool)
        rate = WORST_RATE * torch.rand((), generator=draw)
        for first, last in bank.spans.values():
            own = rate + UNEVEN * (2 * torch.rand((), generator=draw) - 1)
            noise = torch.rand(last - first, generator=draw)
            keep[first:last] = noise >= own.clamp(0, WORST_RATE)
        rows.append(keep)
    return torch.stack(rows)


class Stopwatch(fx.Interpreter):
    """Runs the steps of a program one by one; notes their seconds and channels."""

    def __init__(self, network: nn.Module, graph: Graph) -> None:
        super().__init__(network, graph=graph.program)
        self.device = next(network.parameters()).device
        self.axes = iter([node.axis for node in graph.nodes])
        self.seconds: list[float] = []
        self.widths: list[int] = []

    def run_node(self, n: fx.Node) -> Any:
        began = time.perf_counter()
        value = super().run_node(n)
        until_done(self.device)
        self.seconds.append(time.perf_counter() - began)
        axis = next(self.axes)
        counted = isinstance(value, Tensor) and value.dim() >= -axis
        self.widths.append(value.shape[axis] if counted else 0)
        return value


@torch.inference_mode()
def samples(network: nn.Module, keep: Tensor, *, batch: int) -> tuple[list[Sample], Sample]:
    """The candidates `keep`, bool (candidates, gates), timed, and the whole network."""
    graph, device = gates(network).graph, next(network.parameters()).device
    cut = [placed(slim(network, row, "fast"), device).eval() for row in keep]
    whole = placed(arranged(ungated_copy(network).eval(), "fast", graph), device)
    images = torch.randn(batch, *graph.input_shape, generator=generator(0, "profile images"))
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    everyone, works = [*cut, whole], []
    for one in everyone:
        forward_seconds(one, images)
        watch = Stopwatch(one, graph)
        watch.run(images)
        works.append(built_work(one, graph, watch.widths))
    alone: list[list[float]] = [[] for _ in everyone]
    parts: list[list[list[float]]] = [[] for _ in everyone]
    began, turn = time.perf_counter(), 0
    with task("timing networks", TURNS * len(everyone)) as shown:
        while turn < TURNS or (turn < MOST_TURNS and time.perf_counter() - began < SECONDS):
            for at, one in enumerate(everyone):
                alone[at].append(forward_seconds(one, images))
                watch = Stopwatch(one, graph)
                watch.run(images)
                parts[at].append(watch.seconds)
                done = turn * len(everyone) + at + 1
                pace = (time.perf_counter() - began) / done
                turns = max(TURNS, min(MOST_TURNS, SECONDS / (pace * len(everyone))))
                shown.update(done, total=max(done, round(turns * len(everyone))))
            turn += 1
    found = [
        Sample(work, tuple(map(undisturbed, zip(*part, strict=True))), undisturbed(own))
        for work, part, own in zip(works, parts, alone, strict=True)
    ]
    return found[:-1], found[-1]


def undisturbed(seconds: Sequence[float]) -> float:
    """Milliseconds of a run that other work on the machine does not slow."""
    return 1000 * float(np.quantile(seconds, UNDISTURBED))


def profiled(network: nn.Module, *, batch: int = 1, seed: int = 0) -> TimeTable:
    """The time table of a super-network on the device that it is on, in torch."""
    keep = random_candidates(network, NETWORKS, seed)
    timed, whole = samples(network, keep, batch=batch)
    graph = gates(network).graph

    def of(chosen: Sequence[Sample]) -> TimeTable:
        steps, scale, constant = fitted(network, graph, [*chosen, whole])
        return TimeTable(
            runtime="torch", device=device_name(next(network.parameters()).device),
            threads=torch.get_num_threads(), batch=batch, precision="float32",
            input_shape=graph.input_shape, steps=steps, scale=scale, constant=constant,
            whole=whole.whole, network=fingerprint(network),
        )  # fmt: skip

    unseen = list(range(0, NETWORKS, APART))
    found = milliseconds(
        of([sample for at, sample in enumerate(timed) if at % APART]), wire(network, keep[unseen])
    )
    errors = [abs(float(t) / timed[at].whole - 1) for t, at in zip(found, unseen, strict=True)]
    return dataclasses.replace(of(timed), error=statistics.median(errors), worst=max(errors))


def table_of(network: nn.Module, *, batch: int, machine: Machine) -> TimeTable:
    """The time table of a super-network on this machine: remembered, or measured now."""
    path = _remembered(network, batch, machine.device)
    with contextlib.suppress(PgnasError):  # none there
        return read_table(path)
    twin = placed(copy.deepcopy(network), machine.device)
    note(f"timing networks of random sizes on this device ({batch} images a forward)")
    table = profiled(twin, batch=batch)
    with contextlib.suppress(PgnasError):  # a cache that cannot be written
        write_table(path, table)
    note(
        f"a forward of the whole network takes {table.whole:.3g} ms; predictions of other sizes"
        f" are off by {percent(table.error)} (median; worst {percent(table.worst)})"
    )
    return table


def profiled_backbone(
    backbone: str,
    *,
    classes: int,
    channels: int,
    img_size: int | None,
    batch: int,
    seed: int,
    machine: Machine,
) -> TimeTable:
    """The time table of a backbone; raises PgnasError where there is none of its name."""
    built = build_backbone(backbone, classes=classes, channels=channels, size=img_size)
    network = make_concrete_(built.network, built.input_shape, ungated=built.ungated)
    return profiled(placed(network, machine.device), batch=batch, seed=seed)


def _remembered(network: nn.Module, batch: int, device: torch.device) -> Path:
    """Where the table of a network on a device is kept."""
    graph = gates(network).graph
    facts = (SCHEMA, torch.__version__, device_name(device), torch.get_num_threads(), batch,
             graph.input_shape, fingerprint(network), graph.nodes[-1].channels)  # fmt: skip
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()
    return cache_folder() / f"times-{digest}.json"


def write_table(path: Path, table: TimeTable) -> None:
    """Keep a time table as JSON."""
    write_text(path, text_of(table))


def text_of(table: TimeTable) -> str:
    return json.dumps({"schema": SCHEMA, **to_json(table)}, indent=1) + "\n"


def read_table(path: Path) -> TimeTable:
    """The time table in a file; raises PgnasError where it holds none."""
    try:
        text = read_bytes(path, MOST_BYTES).decode()
    except FileNotFoundError:
        raise PgnasError(f"no file '{path}'; make one with pgnas profile") from None
    except (OSError, ValueError):
        raise PgnasError(f"'{path}' is no time table; make one with pgnas profile") from None
    return table_in(text, path)


def table_in(text: str, path: Path) -> TimeTable:
    """The time table in the text of a file."""
    try:
        content = parse_json(text)
    except (PgnasError, ValueError):
        content = None
    if not isinstance(content, dict) or content.pop("schema", None) != SCHEMA:
        raise PgnasError(f"'{path}' is no time table; make one with pgnas profile")
    table = from_json(TimeTable, content, path)
    check_table(table, path)
    return table


def device_name(device: torch.device) -> str:
    """What a device is called by its maker; a CPU by its architecture where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
