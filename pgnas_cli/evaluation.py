"""Error on the test split and time per image: what exported networks are worth, measured.

The only reader of the test split.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .data import Part, Source, find_data
from .errors import PgnasError
from .fields import check_choice, check_range
from .formats import (
    READERS,
    NetworkInfo,
    PredictedTime,
    origin,
    read_network,
)
from .interpretation import Answers, answers_of, matrix_of, sane
from .latency import Latency, onnx_timings, timings
from .machine import PRECISIONS, Machine, processor_name
from .naming import MOST_TIMED, check_precision
from .progress import note, task
from .ranking import like_guessing, paired_p
from .run import Run, now, read_settings
from .storage import csv_text, from_json, read_json, to_json, write_text
from .training import score


@dataclass(frozen=True)
class Evaluation:
    """An exported network on the test split and on this machine; no path enters the record."""

    name: str
    at: str  # UTC
    data: str  # name of the data set whose test split it was; of a folder the last part
    candidate: str  # id, "whole" or "twin"
    chosen: str  # as what it was exported: "best", "id", "twin" or "whole"
    fixed_drop: float | None  # the rate that its fit held all gates at
    finetuned_epochs: int
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
    one: Latency  # a single image
    many: Latency  # a large batch
    device: str
    top5_errors: int | None = None  # label not among the five likeliest; None: ten classes or fewer
    by_class: tuple[tuple[str, int, int], ...] = ()  # class, errors, images; older files: empty
    precision: str = "float32"  # that the errors were counted in
    onnx_one: Latency | None = None  # the same network in ONNX Runtime, on a CPU
    onnx_many: Latency | None = None
    predicted: PredictedTime | None = None
    processor: str = ""  # what the times are of; older files: empty
    answers: Answers | None = None  # classes by their positions in `by_class`; older files: None
    images_digest: str = ""  # of the test images, in order, and their labels; older files: empty
    folder_digest: str = ""  # of the place of the data folder; empty where there is none

    @property
    def error(self) -> float:
        """Share of the test images that are wrong."""
        return self.errors / self.images


def paired_test(first: Evaluation, second: Evaluation) -> float:
    """p of McNemar's exact test that two networks err equally often on the same test images."""
    masks = [torch.zeros(first.images, dtype=torch.bool) for _ in range(2)]
    for mask, row in zip(masks, (first, second), strict=True):
        mask[list(row.wrong)] = True
    return paired_p(*masks)


_FROM_FILE = (
    "candidate", "chosen", "fixed_drop", "finetuned_epochs", "made_from", "held_out_errors",
    "held_out_images", "params", "macs", "whole_params", "whole_macs", "predicted",
)  # fmt: skip


def evaluate(
    files: str | Path | Sequence[str | Path],
    data: str | None = None,  # None: the data set that a file names; a folder is that of its fit
    *,
    run: Run | None = None,  # that the files came from; None: found
    data_root: Path = Path("data"),  # where timm's named data sets live
    skip_corrupt: bool = False,
    batch_size: int = 64,  # of the second latency
    precision: str = "float32",  # or bfloat16: of the errors; times are in float32
    machine: Machine = Machine(),  # noqa: B008 - frozen
    names: Sequence[str] | None = None,  # None: those of the files
) -> list[Evaluation]:
    """Test error and latency of exported networks, each beside the whole network it comes from.

    `data` needs labelled images only: a folder with val/<class>/ or just <class>/, of all classes
    of the network or some of them.
    """
    check_range("batch_size", batch_size, 1, MOST_TIMED)
    check_choice("precision", precision, PRECISIONS)
    paths = [Path(f) for f in ([files] if isinstance(files, str | Path) else files)]
    found = [READERS.get(p.suffix.lower(), read_network)(p) for p in paths]
    scores, tested, by_class, answers = [], [], [], []
    remarks: list[str] = []
    guessing: list[str] = []
    beside = {path: about for path, (_, about) in zip(paths, found, strict=True)}
    for path, (network, about) in zip(paths, found, strict=True):
        name = data or _data_of(about, path, run, beside)
        source = find_data(name, root=data_root, skip_corrupt=skip_corrupt, reads=("test",))
        test = _test_images(source, name, about, path)
        check_precision(precision, path)
        how = about.supernet.preprocessing
        scores.append(score(network, test, how, precision=precision, machine=machine))
        guessing.append(like_guessing(scores[-1].errors, test.labels))
        place = Path(name)
        tested.append(
            {
                "data": source.name.name,
                "images_digest": digest_of(test, about.supernet.classes),
                "folder_digest": folder_digest(place) if source.name.folder else "",
            }
        )
        remarks += source.remarks
        by_class.append(_by_class(about.supernet.classes, test.labels, scores[-1].wrong))
        answers.append(
            answers_of(
                test.labels, scores[-1].said, scores[-1].confidence, len(by_class[-1]),
                partial(_file_name, test, place),
            )
        )  # fmt: skip
    for remark in dict.fromkeys(remarks if names is None else ()):  # a search has said them
        note(f"note: {remark}")
    called = names or network_names(paths)
    for name, warning in zip(called, guessing, strict=True):
        if warning:
            note(f"warning: {name}: {warning}")
    measured: list[Any] = []
    with task("measuring times", 4) as shown:
        for measure in (timings, onnx_timings):
            for size in (1, batch_size):
                measured.append(measure(found, size, machine.device))
                shown.update(len(measured))
    return [
        Evaluation(
            name=name, at=now(), errors=score.errors, images=score.images,
            wrong=score.wrong, top5_errors=score.top5_errors, by_class=rows, one=one, many=many,
            device=str(machine.device), processor=processor_name(machine.device),
            precision=precision, onnx_one=onnx_one, onnx_many=onnx_many, answers=told,
            **images, **{field: getattr(about, field) for field in _FROM_FILE},
        )
        for name, images, (_, about), score, rows, told, one, many, onnx_one, onnx_many in zip(
            called, tested, found, scores, by_class, answers, *measured, strict=True
        )
    ]  # fmt: skip


def digest_of(test: Part, classes: Sequence[str]) -> str:
    """Changes with the test images, their order and their classes; a file by its name and size."""
    digest = hashlib.blake2b(digest_size=16)
    if test.pixels is not None:
        digest.update(test.pixels.numpy().tobytes())
    for at, (key, label) in enumerate(zip(test.keys, test.labels.tolist(), strict=True)):
        size = 0 if test.file is None else test.file(at).stat().st_size
        digest.update(json.dumps([key, classes[label], size]).encode())
    return digest.hexdigest()


def folder_digest(folder: Path) -> str:
    """Of the place of a folder on this machine, which a record does not tell."""
    return hashlib.blake2b(os.fsencode(folder.resolve()), digest_size=16).hexdigest()


def _by_class(
    classes: Sequence[str], labels: Tensor, wrong: Sequence[int]
) -> tuple[tuple[str, int, int], ...]:
    images = torch.bincount(labels, minlength=len(classes)).tolist()
    errors = torch.bincount(labels[list(wrong)], minlength=len(classes)).tolist()
    return tuple(zip(classes, errors, images, strict=True))


def _file_name(test: Part, folder: Path, image: int) -> str:
    """The path of a test image below the data folder; where images are no files, its name."""
    if test.file is None or not folder.is_dir():
        return test.keys[image]
    name = test.file(image).relative_to(folder).as_posix()
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _data_of(
    about: NetworkInfo, path: Path, run: Run | None, beside: dict[Path, NetworkInfo]
) -> str:
    """The data set that a file names; where a folder lies is known to the run that it came from.

    Else to that of another of the files: the original network has a fit of its own.
    """
    known = about.supernet.data
    if not known.folder:
        return known.name
    home = None
    with contextlib.suppress(PgnasError):  # not of the run that is named
        home = origin([path], {about.made_from}, run)
    if home is None:
        home = origin([*beside], {one.made_from for one in beside.values()}, run)
    folder = None if home is None else read_settings(home).data
    if folder is None or not Path(folder).is_dir():
        raise PgnasError(
            f"'{path}' was trained on a folder called '{known}'; say where it lies with `data`"
        )
    note(f"data: {folder} (that of the fit; `data` names another)")
    return folder


def _test_images(data: Source, name: str, about: NetworkInfo, path: Path) -> Part:
    """The test images, labelled by the classes of the network; some of these may have none."""
    known = {label: number for number, label in enumerate(about.supernet.classes)}
    if not set(data.classes) <= set(known):
        raise PgnasError(
            f"'{name}' has the classes {', '.join(data.classes[:5])}..., '{path}' was trained on"
            f" {', '.join(about.supernet.classes[:5])}..."
        )
    if data.test is None:
        raise PgnasError(f"'{name}' has no test images; expected {name}/test/ or {name}/val/")
    labels = torch.tensor([known[label] for label in data.classes])
    return dataclasses.replace(data.test, labels=labels[data.test.labels])


EVALUATION = "pgnas.evaluation/1"


def write_evaluations(run: Run, rows: Sequence[Evaluation]) -> None:
    """Add rows to the evaluations of a run; a row replaces an earlier one of its name."""
    merged = {row.name: row for row in [*evaluations_of(run), *rows]}
    content = {"schema": EVALUATION, "networks": [to_json(row) for row in merged.values()]}
    write_text(run.evaluation, json.dumps(content, indent=1) + "\n")
    write_tables(run.folder, list(merged.values()))


def write_tables(folder: Path, rows: Sequence[Evaluation]) -> None:
    """Write confusion.csv, with a row per cell of each network's matrix that is not 0, and
    mistakes.csv, with a row per image, into a folder.
    """
    told = [(row, row.answers, [name for name, *_ in row.by_class]) for row in rows]
    cells: list[Sequence[object]] = [("network", "true", "said", "images", "share")]
    images: list[Sequence[object]] = [("network", "file", "true", "said", "confidence")]
    for row, answers, names in told:
        if answers is None:
            continue
        right = [(i, i, n - errors) for i, (_, errors, n) in enumerate(row.by_class) if n > errors]
        for true, said, count in sorted([*right, *answers.confused]):
            share = f"{count / row.by_class[true][2]:.6f}"
            cells.append((row.name, names[true], names[said], count, share))
        images += [
            (row.name, one.file, names[one.true], names[one.said], f"{one.confidence:.6f}")
            for one in answers.mistakes
        ]
    for path, table in ((Run(folder).confusion, cells), (Run(folder).mistakes, images)):
        write_text(path, csv_text(table))


def confusion_of(row: Evaluation) -> Tensor:
    """Test images by true and predicted class, int64 (classes, classes), as in `by_class`."""
    assert row.answers is not None
    return matrix_of(row.answers, [images - errors for _, errors, images in row.by_class])


def evaluations_of(run: Run) -> list[Evaluation]:
    """The evaluations of a run.

    Raises PgnasError where the file is damaged.
    """
    if not run.evaluation.exists():
        return []
    damaged = PgnasError(
        f"'{run.evaluation}' is damaged; remove it, and evaluate again with pgnas evaluate"
    )
    try:
        content = read_json(run.evaluation)
        if content["schema"] != EVALUATION:
            raise damaged
        rows = [from_json(Evaluation, row, run.evaluation) for row in content["networks"]]
        for row in rows:
            row.name.encode()
            if not _sane(row):
                raise damaged
    except (ValueError, KeyError, TypeError, OSError, PgnasError):
        raise damaged from None
    return rows


def _sane(row: Evaluation) -> bool:
    """Whether a row holds counts and times that can be."""
    counts = (row.images, row.held_out_images, row.many.batch)
    timed = [one for one in (row.one, row.many, row.onnx_one, row.onnx_many) if one]
    times = [
        time
        for one in timed
        for time in (one.slim, one.whole, one.low or 1.0, one.high or 1.0, one.middle or 1.0)
    ]
    return (
        all(0 < count < 2**53 for count in counts)
        and 0 <= row.params <= row.whole_params < 2**53
        and 0 <= row.macs < 2**53  # none where all that is left is a constant
        and 0 < row.whole_macs < 2**53
        and 0 <= (row.top5_errors or 0) <= row.errors <= row.images
        and 0 <= row.held_out_errors <= row.held_out_images
        and len(set(row.wrong)) == len(row.wrong) == row.errors
        and all(0 <= image < row.images for image in row.wrong)
        and all(0 <= errors <= images for _, errors, images in row.by_class)
        and all(1e-9 < time < 1e9 for time in times)
        and (row.predicted is None or row.predicted.sane)
        and (
            row.answers is None or sane(row.answers, [e for _, e, _ in row.by_class], _tested(row))
        )
    )


def _tested(row: Evaluation) -> int:
    return sum(images for *_, images in row.by_class)


def network_names(paths: Sequence[Path]) -> list[str]:
    """What to call each file: its name, or its path where two have one name."""
    names = [path.name.removesuffix(".safetensors") for path in paths]
    if len(set(names)) == len(names):
        return names
    return [str(path) for path in paths]
