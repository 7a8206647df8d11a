"""Times of slim networks in ONNX Runtime: here, or on a device that has onnxruntime alone.

ONNX Runtime merges steps and reorders tensors. Of the steps that it times, those that multiply by
the weights of a layer are that layer's; the others together are the rest of a network.
"""

import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import PgnasError
from ..formats import quick_onnx
from ..graph import Graph
from ..naming import MOST_TIMED, no_runs
from ..progress import task, track
from ..storage import MOST_BYTES, parse_json, read_bytes, write_with
from ..timing import LONGEST_STEP, SHORTEST, Forward, Sample, built_work
from . import onnx_runs
from .torch_times import Stopwatch

RUNS = "pgnas.runs/1"
MERGED = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Add", "Mul")
# steps that ONNX Runtime merges into the layer before them


def onnx_samples(
    networks: Sequence[nn.Module], graph: Graph, forward: Forward, seconds: float, what: str
) -> list[Sample]:
    """Slim networks, timed in ONNX Runtime on this machine's CPU, in about so many seconds."""
    layers: list[dict[str, str]] = []

    def contents() -> Iterator[bytes]:
        for content in exported(networks, graph, forward):
            layers.append(layers_of(content, graph))
            yield content

    images = onnx_runs.images_of(forward.batch, graph.input_shape)
    with task(what, None) as shown:
        rows = onnx_runs.timed(
            contents(), images, threads=forward.threads, seconds=seconds,
            tell=lambda done, total: shown.update(done, total=total),
        )  # fmt: skip
    return _samples(networks, graph, layers, rows)


def exported(networks: Sequence[nn.Module], graph: Graph, forward: Forward) -> Iterator[bytes]:
    """Each network as an ONNX file for the images of one forward."""
    images = torch.zeros(forward.batch, *graph.input_shape)
    for network in track(networks, "writing networks in ONNX"):
        yield quick_onnx(network, images)


def _samples(
    networks: Sequence[nn.Module],
    graph: Graph,
    layers: Sequence[dict[str, str]],
    rows: Sequence[dict[str, Any]],
) -> list[Sample]:
    found, places = [], _calls(graph)
    timed = {place for own in places.values() for place in own}
    for network, of, row in zip(networks, layers, rows, strict=True):
        calls = {layer: iter(own) for layer, own in places.items()}
        # Unless a step is there: a layer that is constant takes no time.
        steps = [0.0 if at in timed else None for at in range(len(graph.nodes))]
        rest = 0.0
        for name, milliseconds in row["steps"].items():
            at = next(calls.get(of.get(name, ""), iter(())), None)
            if at is None:
                rest += milliseconds
            else:
                steps[at] = milliseconds
        work = built_work(network, graph, _widths(network, graph))
        found.append(Sample(work, tuple(steps), row["whole"], rest))
    return found


def _calls(graph: Graph) -> dict[str, list[int]]:
    """Where the layers whose weights a runtime multiplies by are called."""
    found: dict[str, list[int]] = {}
    for place, node in enumerate(graph.nodes):
        if node.cuttable and node.kind in ("mix", "grouped", "norm"):
            found.setdefault(node.layer, []).append(place)
    return found


@torch.inference_mode()
def _widths(network: nn.Module, graph: Graph) -> list[int]:
    watch = Stopwatch(network, graph)
    watch.run(torch.zeros(1, *graph.input_shape))
    return watch.widths


def layers_of(content: bytes, graph: Graph) -> dict[str, str]:
    """The layer that a step belongs to, by what ONNX Runtime may call it; those that have one.

    A step has the name of its node in the file; where it was merged with what follows, or its
    tensor is in blocks of channels, that of its output.
    """
    import onnx

    nodes = list(onnx.load_from_string(content).graph.node)
    weights = {f"{layer}.weight": layer for layer in _calls(graph)}
    found: dict[str, str] = {}
    for at, node in enumerate(nodes):
        layer = next((weights[name] for name in node.input if name in weights), None)
        if layer is None:
            continue
        found[node.name] = layer
        for output in _merged(at, nodes):
            for ending in ("", "_nchwc", "_bn_nchwc"):
                found.setdefault(output + ending, layer)
    return found


def _merged(at: int, nodes: Sequence[Any]) -> list[str]:
    """The outputs of a node and of the steps behind it that may be merged into it."""
    found, front = [], list(nodes[at].output)
    while front:
        found += front
        behind = [node for node in nodes if node.op_type in MERGED and set(front) & {*node.input}]
        front = [output for node in behind for output in node.output if output not in found]
        if len(behind) != 1:  # read by several: not merged
            break
    return found


def packed(
    path: Path, networks: Sequence[nn.Module], graph: Graph, forward: Forward, about: dict[str, Any]
) -> None:
    """Write networks to be timed elsewhere, and the script that does it, as one zip file.

    Their weights are zero: they would make it large, and the time does not depend on them.
    """
    own = {
        "schema": RUNS, "batch": forward.batch, "input_shape": graph.input_shape, **about,
    }  # fmt: skip

    def write(place: Path) -> None:
        with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as pack:
            pack.writestr("about.json", json.dumps(own))
            pack.write(onnx_runs.__file__, "onnx_runs.py")
            for number, content in enumerate(exported(networks, graph, forward)):
                pack.writestr(f"{number:02}.onnx", _with_zeros(content))

    write_with(path, write)


def _with_zeros(content: bytes) -> bytes:
    import onnx

    model = onnx.load_from_string(content)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.raw_data:
            tensor.raw_data = bytes(len(tensor.raw_data))
    return bytes(model.SerializeToString())


def runs_in(path: Path) -> dict[str, Any]:
    """What was timed elsewhere; raises PgnasError where the file is nothing of the kind."""
    wrong = PgnasError(f"'{path}' holds no runs of a pack; make one with pgnas profile --pack")
    try:
        found = parse_json(read_bytes(path, MOST_BYTES))
    except FileNotFoundError:
        raise no_runs(path) from None
    except (PgnasError, OSError, ValueError):
        raise wrong from None
    if not isinstance(found, dict) or found.get("schema") != RUNS:
        raise wrong
    try:
        kept: dict[str, Any] = {
            "network": str(found["network"]), "device": str(found["device"])[:200],
            "batch": int(found["batch"]), "threads": int(found["threads"]),
            "networks": [
                {"whole": float(row["whole"]),
                 "steps": {str(k): float(v) for k, v in row["steps"].items()}}
                for row in found["networks"]
            ],
        }  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise wrong from None
    networks: list[Any] = kept["networks"]
    times = [time for row in networks for time in (row["whole"], *row["steps"].values())]
    sane = (
        1 <= kept["batch"] <= MOST_TIMED
        and 1 <= kept["threads"] <= MOST_TIMED
        and isinstance(found["batch"], int)
        and all(row["steps"] for row in networks)
        and all(0 <= time < LONGEST_STEP for time in times)
        and all(row["whole"] > SHORTEST for row in networks)
    )
    if not sane:
        raise PgnasError(f"'{path}' is damaged: its times cannot be")
    return kept


def samples_elsewhere(
    networks: Sequence[nn.Module], graph: Graph, forward: Forward, rows: Sequence[dict[str, Any]]
) -> list[Sample]:
    """Samples of the same networks, timed elsewhere."""
    layers = [layers_of(content, graph) for content in exported(networks, graph, forward)]
    return _samples(networks, graph, layers, rows)
