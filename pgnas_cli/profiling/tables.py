"""Time tables: measured on this device or elsewhere, remembered, in files.

Slim networks of random candidates and the whole network are timed as a whole and step by step.
"""

import contextlib
import copy
import dataclasses
import hashlib
import json
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data import placed
from ..errors import PgnasError
from ..fields import check_range
from ..gates import gates, make_concrete_, masked
from ..machine import Machine, cores, device_name
from ..naming import no_table
from ..progress import note
from ..registry.build import build_backbone
from ..run import FitSettings
from ..seeds import generator
from ..slimming import Layout, arranged, slim, ungated_copy, wire
from ..storage import (
    MOST_BYTES,
    cache_folder,
    from_json,
    parse_json,
    read_bytes,
    to_json,
    write_text,
)
from ..timing import Forward, Sample, TimeTable, check_table, fingerprint, fitted, milliseconds
from ..units import percent
from . import onnx_runs
from .onnx_times import onnx_samples, packed, runs_in, samples_elsewhere
from .torch_times import torch_samples

SCHEMA = "pgnas.times/1"
NETWORKS = 32  # that are timed
TOGETHER = 8  # of them at a time
APART = 4  # every so many of them is not fitted to, but predicted
WORST_RATE = 0.9  # of a layer's gates that are closed, at most
BELIEVED = 0.5  # median error, from which a table is not remembered: the machine was disturbed
UNSURE = 0.1  # median error, from which a table is no guide
SAME = 1e-6  # of the largest logit
UNEVEN = 0.3  # spread of the layers' rates around that of their network
RUNTIME_NAMES = {"torch": "torch", "onnxruntime": "ONNX Runtime"}
LAYOUTS: dict[str, Layout] = {"torch": "fast", "onnxruntime": "onnx"}  # of networks that are timed


def random_candidates(network: nn.Module, number: int, seed: int) -> Tensor:
    """Candidates of all sizes, whose layers are cut unevenly, bool (candidates, gates).

    None whose logits are the same for every image: it would take no time.
    """
    bank, draw = gates(network), generator(seed, "profile")
    device = next(network.parameters()).device
    images = torch.randn(2, *bank.graph.input_shape, generator=generator(seed, "two")).to(device)
    rows: list[Tensor] = []
    while len(rows) < number:
        keep = torch.ones(bank.count, dtype=torch.bool)
        rate = WORST_RATE * torch.rand((), generator=draw)
        for first, last in bank.spans.values():
            own = rate + UNEVEN * (2 * torch.rand((), generator=draw) - 1)
            noise = torch.rand(last - first, generator=draw)
            keep[first:last] = noise >= own.clamp(0, WORST_RATE)
        with torch.inference_mode(), masked(network, keep):
            first_image, second = network(images)
        if (first_image - second).abs().max() > SAME * first_image.abs().max():
            rows.append(keep)
    return torch.stack(rows)


def samples(network: nn.Module, keep: Tensor, forward: Forward) -> tuple[list[Sample], Sample]:
    """The candidates `keep`, bool (candidates, gates), timed, and the whole network.

    Some at a time, each time with the whole network in turns, by whose time they are compared: a
    process that holds many networks is slower, and so is a machine at times.
    """
    device, graph = next(network.parameters()).device, gates(network).graph
    parts: list[list[Sample]] = []
    with _threads(forward) as told:
        for rows in keep.split(TOGETHER):
            networks = _networks(network, rows, forward)
            seconds = onnx_runs.SECONDS * len(rows) / len(keep)
            done = sum(len(part) - 1 for part in parts)
            what = f"timing networks {done + 1} to {done + len(rows)} of {len(keep)}"
            if forward.runtime == "torch":
                parts.append(torch_samples(networks, graph, told, device, seconds, what))
            else:
                parts.append(onnx_samples(networks, graph, told, seconds, what))
    whole = sorted((part[-1] for part in parts), key=lambda one: one.whole)[len(parts) // 2]
    found = [_scaled(one, whole.whole / part[-1].whole) for part in parts for one in part[:-1]]
    return found, whole


def _scaled(sample: Sample, factor: float) -> Sample:
    steps = tuple(None if step is None else factor * step for step in sample.steps)
    return Sample(sample.work, steps, factor * sample.whole, factor * sample.rest)


def _networks(network: nn.Module, keep: Tensor, forward: Forward) -> list[nn.Module]:
    """Candidates and the whole network, arranged for a runtime."""
    layout = LAYOUTS[forward.runtime]
    whole = arranged(ungated_copy(network).eval(), layout, gates(network).graph)
    found = [*(slim(network, row, layout).eval() for row in keep), whole]
    return found if forward.runtime == "torch" else [one.cpu() for one in found]


@contextmanager
def _threads(forward: Forward) -> Iterator[Forward]:
    """The forward with its number of threads, which this process has in the meantime."""
    before = torch.get_num_threads()
    torch.set_num_threads(forward.threads or before)
    try:
        yield dataclasses.replace(forward, threads=torch.get_num_threads())
    finally:
        torch.set_num_threads(before)


def profiled(network: nn.Module, forward: Forward = Forward(), *, seed: int = 0) -> TimeTable:  # noqa: B008 - frozen
    """The time table of a super-network on the device that it is on."""
    keep = random_candidates(network, NETWORKS, seed)
    timed, whole = samples(network, keep, forward)
    own = next(network.parameters()).device
    device = own if forward.runtime == "torch" else torch.device("cpu")
    with _threads(forward) as told:
        return _table(network, keep, timed, whole, told, device_name(device))


def _table(
    network: nn.Module, keep: Tensor, timed: Sequence[Sample], whole: Sample, forward: Forward,
    device: str,
) -> TimeTable:  # fmt: skip
    graph = gates(network).graph

    def of(chosen: Sequence[Sample]) -> TimeTable:
        steps, scale, constant = fitted(network, graph, [*chosen, whole])
        return TimeTable(
            runtime=forward.runtime, device=device, threads=forward.threads, batch=forward.batch,
            precision=forward.precision, input_shape=graph.input_shape, steps=steps, scale=scale,
            constant=constant, whole=whole.whole, network=fingerprint(network),
            classes=graph.nodes[-1].channels,
        )  # fmt: skip

    unseen = list(range(0, len(timed), APART))
    found = milliseconds(
        of([sample for at, sample in enumerate(timed) if at % APART]), wire(network, keep[unseen])
    )
    errors = [abs(float(t) / timed[at].whole - 1) for t, at in zip(found, unseen, strict=True)]
    return dataclasses.replace(of(timed), error=statistics.median(errors), worst=max(errors))


def table_of(network: nn.Module, forward: Forward, machine: Machine) -> TimeTable:
    """The time table of a super-network on this machine: remembered, or measured now."""
    path = _remembered(network, forward, machine.device)
    with contextlib.suppress(PgnasError):  # none there
        table = read_table(path)
        tell(table, "measured before")
        return table
    twin = placed(copy.deepcopy(network), machine.device)
    note(f"timing networks of random sizes on this device ({described(forward)})")
    table = profiled(twin, forward)
    if table.error < BELIEVED:
        with contextlib.suppress(PgnasError):  # a cache that cannot be written
            write_table(path, table)
    tell(table, "measured now")
    return table


def tell(table: TimeTable, how: str) -> None:
    """Say what a time table is of, and how far its predictions can be trusted."""
    note(
        f"time of a forward ({described(table)}, {table.device}), {how}: {table.whole:.3g} ms of"
        f" the whole network; predictions of other sizes are off by {percent(table.error)} (median;"
        f" worst {percent(table.worst)})"
    )
    if table.error > UNSURE:
        note(
            "warning: time hardly follows from what a network of this kind keeps on this device;"
            " measure what comes out with pgnas evaluate, or name a size with `target_macs`"
        )


def forward_of(settings: FitSettings) -> Forward:
    """The forward that the options of a fit name, timed on this device."""
    check_range("time_threads", settings.time_threads, 0, cores())
    return Forward(
        settings.time_runtime, settings.time_batch, settings.time_threads, settings.time_precision
    )


def described(forward: Forward | TimeTable) -> str:
    """The forward that is timed, in words."""
    threads = forward.threads or torch.get_num_threads()
    precision = "" if forward.precision == "float32" else f", {forward.precision}"
    return (
        f"{RUNTIME_NAMES[forward.runtime]}, {forward.batch} image{'s' * (forward.batch > 1)}"
        f" a forward, {threads} thread{'s' * (threads > 1)}{precision}"
    )


def gated_backbone(
    backbone: str, *, classes: int, channels: int, img_size: int | None
) -> nn.Module:
    """A backbone with its gates; raises PgnasError where there is none of its name."""
    built = build_backbone(backbone, classes=classes, channels=channels, size=img_size)
    return make_concrete_(built.network, built.input_shape, ungated=built.ungated)


def write_pack(path: Path, network: nn.Module, forward: Forward, *, seed: int) -> None:
    """Write the networks that a device times which has onnxruntime alone."""
    keep = random_candidates(network, NETWORKS, seed)
    about = {"network": fingerprint(network), "seed": seed}
    packed(path, _networks(network, keep, forward), gates(network).graph, forward, about)


def table_of_runs(path: Path, network: nn.Module, *, seed: int) -> TimeTable:
    """The time table of what a device has timed that has onnxruntime alone."""
    runs = runs_in(path)
    keep = random_candidates(network, NETWORKS, seed)
    if runs["network"] != fingerprint(network) or len(runs["networks"]) != NETWORKS + 1:
        raise PgnasError(
            f"'{path}' is of another network; name the backbone, the image size and the seed of its"
            " pack"
        )
    forward = Forward("onnxruntime", runs["batch"], runs["threads"])
    networks = _networks(network, keep, forward)
    found = samples_elsewhere(networks, gates(network).graph, forward, runs["networks"])
    table = _table(network, keep, found[:-1], found[-1], forward, runs["device"])
    check_table(table, path)
    return table


def _remembered(network: nn.Module, forward: Forward, device: torch.device) -> Path:
    """Where the table of a network on a device is kept."""
    graph = gates(network).graph
    versions: tuple[str, ...] = (torch.__version__,)
    if forward.runtime == "onnxruntime":
        with contextlib.suppress(ImportError):
            import onnxruntime

            versions, device = (onnxruntime.__version__,), torch.device("cpu")
    threads = forward.threads or torch.get_num_threads()
    facts = (SCHEMA, versions, device_name(device), dataclasses.replace(forward, threads=threads),
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
        raise no_table(path) from None
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
