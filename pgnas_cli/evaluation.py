"""Error on the test split and time per image: what exported networks are worth, measured.

The only reader of the test split.
"""

import copy
import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .data import FOLDER, Part, Source, find_data, placed
from .errors import PgnasError
from .formats import OnnxNetwork, Slim, in_onnx, read_network, read_onnx
from .progress import Track
from .run import Run, now
from .slimming import arranged, ungated_copy
from .storage import from_json, to_json, write_text
from .training import Score, score


@torch.inference_mode()
def latencies(
    networks: Sequence[nn.Module],
    input_shapes: Sequence[tuple[int, int, int]],  # of each network's images
    *,
    batch: int,
    device: torch.device,
    seconds: float = 1.0,  # roughly, for each network
) -> list[float]:
    """Median milliseconds of one forward of `batch` images, runs alternating among `networks`.

    Denormal numbers are flushed to zero: they would make a small network look slow.
    """
    torch.set_flush_denormal(True)
    made = {
        shape: torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))
        .to(device)
        .contiguous(memory_format=torch.channels_last)
        for shape in set(input_shapes)
    }
    inputs = [made[shape] for shape in input_shapes]
    for network, given in zip(networks, inputs, strict=True):
        placed(network, device).eval()
        for _ in range(3):
            _timed(network, given)
    times: list[list[float]] = [[] for _ in networks]
    deadline = time.perf_counter() + seconds * len(networks)
    while len(times[0]) < 5 or (time.perf_counter() < deadline and len(times[0]) < 500):
        for network, given, found in zip(networks, inputs, times, strict=True):
            found.append(_timed(network, given))
    return [1000 * statistics.median(found) for found in times]


def _timed(network: nn.Module, inputs: Tensor) -> float:
    start = time.perf_counter()
    network(inputs)
    if inputs.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Latency:
    """Median milliseconds of one forward, of a network and of the whole it was cut from."""

    batch: int  # images in the forward
    slim: float
    whole: float
    layout: str  # of the slim network: the faster one here, or that of the ONNX file

    @property
    def ratio(self) -> float:
        """Below 1 the slim network is faster."""
        return self.slim / self.whole


@dataclass(frozen=True)
class Evaluation:
    """What an exported network is worth on the test split and on this machine."""

    path: Path
    about: Slim
    data: str  # name of the data set
    score: Score
    one: Latency  # a single image
    many: Latency  # a large batch


def evaluate_stage(
    paths: Sequence[Path],
    data_name: str | None,
    *,
    data_root: Path,
    skip_corrupt: bool,
    batch: int,
    device: torch.device,
    workers: int,
    track: Track,
) -> list[Evaluation]:
    """Test error and latency of exported networks, each beside the whole network it comes from."""
    found = [read_onnx(p) if p.suffix == ".onnx" else read_network(p) for p in paths]
    names = [
        _data_of(about, path, data_name) for path, (_, about) in zip(paths, found, strict=True)
    ]
    scores = []
    for (network, about), path, name in zip(found, paths, names, strict=True):
        source = find_data(name, root=data_root, skip_corrupt=skip_corrupt, track=track)
        test = _test_images(source, name, about, path)
        scores.append(
            score(
                network, test, about.subject.preprocessing, device=device, workers=workers,
                track=track,
            )
        )  # fmt: skip
    timed = {size: _timings(found, size, device) for size in (1, batch)}
    return [
        Evaluation(path, about, name, score, timed[1][at], timed[batch][at])
        for at, (path, (_, about), name, score) in enumerate(
            zip(paths, found, names, scores, strict=True)
        )
    ]


def _data_of(about: Slim, path: Path, named: str | None) -> str:
    name = named or about.subject.data
    if named is None and name.startswith(FOLDER):
        folder = name.removeprefix(FOLDER)
        raise PgnasError(
            f"'{path}' was fitted on a folder called '{folder}'; say where it lies with --data"
        )
    return name


def _test_images(data: Source, name: str, about: Slim, path: Path) -> Part:
    if data.classes != about.subject.classes:
        raise PgnasError(
            f"'{name}' has the classes {', '.join(data.classes[:5])}..., '{path}' was fitted on"
            f" {', '.join(about.subject.classes[:5])}..."
        )
    if data.test is None:
        raise PgnasError(f"'{name}' has no test images; expected {name}/test/ or {name}/val/")
    return data.test


def _timings(
    found: Sequence[tuple[nn.Module, Slim]], batch: int, device: torch.device
) -> list[Latency]:
    """Each network in both layouts and its whole network, all taking turns."""
    networks: list[nn.Module] = []
    places: list[dict[str, int]] = []
    wholes: dict[str, int] = {}
    shapes: list[tuple[int, int, int]] = []
    for network, about in found:
        shape = about.subject.preprocessing.input_shape
        onnx = isinstance(network, OnnxNetwork)
        of = about.subject
        key = repr((of.backbone, of.options, len(of.classes), shape, onnx))
        if key not in wholes:
            dense: nn.Module = ungated_copy(about.subject.network()).eval()
            if onnx:  # runtime against the same runtime
                dense = OnnxNetwork(in_onnx(dense, torch.randn(2, *shape)))
            wholes[key] = len(networks)
            networks.append(dense)
            shapes.append(shape)
        place = {"whole": wholes[key]}
        if onnx:
            layouts: list[tuple[str, nn.Module]] = [(f"{about.layout}, onnx", network)]
        else:
            layouts = [("small", network), ("fast", arranged(copy.deepcopy(network), "fast"))]
        for name, arrangement in layouts:
            place[name] = len(networks)
            networks.append(arrangement)
            shapes.append(shape)
        places.append(place)
    times = latencies(networks, shapes, batch=batch, device=device)
    rows = []
    for place in places:
        whole = times[place.pop("whole")]
        layout = min(place, key=lambda name: times[place[name]])
        rows.append(Latency(batch, times[place[layout]], whole, layout))
    return rows


EVALUATION = "pgnas.evaluation/1"


@dataclass(frozen=True)
class Evaluated:
    """An exported network as `evaluate` found it, on the machine and day of then."""

    name: str
    at: str  # UTC
    data: str  # name of the data set whose test split it was, of a folder the last part
    candidate: str  # id, "whole" or "twin"
    chosen: str  # as what it was exported: "best", "smallest", "twin", "whole", "id"
    fixed_drop: float | None  # the rate that its fit held all gates at
    made_from: str  # digest of its posterior
    errors: int  # on the test split
    images: int
    wrong: tuple[int, ...]  # which images of the test split, by position
    held_out_errors: int
    held_out_images: int
    params: int
    macs: int
    whole_params: int
    whole_macs: int
    batch: int  # of the second pair of times
    one_ms: float  # median milliseconds, one image
    one_whole_ms: float  # of the whole network, at the same time
    many_ms: float
    many_whole_ms: float
    device: str
    finetuned_epochs: int = 0


def evaluated(evaluation: Evaluation, name: str, device: torch.device) -> Evaluated:
    """What is kept of an evaluation."""
    about, score, one, many = (
        evaluation.about, evaluation.score, evaluation.one, evaluation.many,
    )  # fmt: skip
    kept = {
        f.name: getattr(about, f.name)
        for f in dataclasses.fields(Evaluated)
        if hasattr(about, f.name)
    }
    data = Path(evaluation.data).name if Path(evaluation.data).is_dir() else evaluation.data
    return Evaluated(
        name=name, at=now(), data=data, errors=score.errors, images=score.images,
        wrong=score.wrong, batch=many.batch,
        one_ms=one.slim, one_whole_ms=one.whole, many_ms=many.slim, many_whole_ms=many.whole,
        device=str(device), **kept,
    )  # fmt: skip


def write_evaluations(run: Run, rows: Sequence[Evaluated]) -> None:
    """Add rows to the evaluations of a run; a row replaces an earlier one of its name."""
    merged = {row.name: row for row in [*evaluations_of(run), *rows]}
    content = {"schema": EVALUATION, "networks": [to_json(row) for row in merged.values()]}
    write_text(run.evaluation, json.dumps(content, indent=1) + "\n")


def evaluations_of(run: Run) -> list[Evaluated]:
    """The evaluations of a run.

    Raises PgnasError where the file is damaged.
    """
    if not run.evaluation.exists():
        return []
    damaged = PgnasError(
        f"'{run.evaluation}' is damaged; remove it, and evaluate again with pgnas evaluate"
    )
    try:
        content = json.loads(run.evaluation.read_text(encoding="utf-8"))
        if content["schema"] != EVALUATION:
            raise damaged
        rows = [from_json(Evaluated, row, run.evaluation) for row in content["networks"]]
        for row in rows:
            row.name.encode()
            if not _sane(row):
                raise damaged
    except (ValueError, KeyError, TypeError, OSError, RecursionError, PgnasError):
        raise damaged from None
    return rows


def _sane(row: Evaluated) -> bool:
    """Whether a row holds counts and times that can be."""
    counts = (row.images, row.held_out_images, row.params, row.macs, row.batch)
    times = (row.one_ms, row.one_whole_ms, row.many_ms, row.many_whole_ms)
    return (
        all(0 < count < 2**53 for count in counts)
        and row.params <= row.whole_params < 2**53
        and 0 < row.whole_macs < 2**53
        and 0 <= row.errors <= row.images
        and 0 <= row.held_out_errors <= row.held_out_images
        and len(set(row.wrong)) == len(row.wrong) == row.errors
        and all(0 <= image < row.images for image in row.wrong)
        and all(1e-9 < time < 1e9 for time in times)
    )


def network_names(paths: Sequence[Path]) -> list[str]:
    """What to call each file: its name, or its path where two have one name."""
    names = [path.name.removesuffix(".safetensors") for path in paths]
    if len(set(names)) == len(names):
        return names
    return [str(path) for path in paths]
