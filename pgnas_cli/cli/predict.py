"""`pgnas predict`: classes of photos by an exported network."""

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import PgnasError
from ..fields import check_range
from ..naming import check_precision
from ..storage import check_network_file
from ..units import percent
from . import options
from .options import loading, terminal_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..prediction import Prediction, Unreadable
    from .terminal import Terminal


def predict(
    file: Annotated[Path, typer.Argument(help="Exported network, .safetensors or .onnx.")],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE|DIR|-",
            help="Images, folders of images at any depth, or - for paths on stdin, one a line.",
        ),
    ],
    top: Annotated[int, typer.Option("--top", "-k", help="Classes of each image.")] = 5,
    precision: options.Precision = "float32",
    backbone: options.Function = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="CSV on stdout: a header and a row per image.")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Classify photos.

    Prints the likeliest classes of each image with their probabilities. Images are read as
    `evaluate` reads them. An image that cannot be read is named on stderr; the others go on, and
    the exit status is 1.
    """
    terminal = terminal_of(quiet)
    if as_csv and as_json:
        raise PgnasError("`csv` and `json` are mutually exclusive; give one")
    check_range("top", top, 1)
    if images.count("-") > 1:
        raise PgnasError("'-' is there more than once, and stdin can be read once; leave one out")
    check_precision(precision, file)
    check_network_file(file)
    places = [path for one in images for path in (_listed(terminal) if one == "-" else [one])]
    with loading(terminal):
        from ..machine import find_machine
        from ..prediction import Unreadable
        from ..prediction import predict as predicted

    found, lost = [], []
    machine = find_machine(device, workers)
    results = predicted(file, places, top=top, precision=precision, machine=machine)
    with closing(results):
        for number, one in enumerate(results, 1):
            if isinstance(one, Unreadable):
                terminal.complaint(f"unreadable: '{one.image}' ({one.reason})")
                lost.append(one)
            elif as_json:
                found.append(one)
            elif as_csv:
                if number == 1 + len(lost):
                    terminal.row(_headings(len(one.classes)))
                terminal.row([one.image, *_cells(one)])
            else:
                terminal.result(prediction_line(one))
    if as_json:
        terminal.json(predictions_json(file, found, lost))
    if lost:
        raise PgnasError(f"{len(lost)} of {number} images cannot be read")


def prediction_line(one: "Prediction") -> str:
    """An image, and its classes with their probabilities."""
    pairs = zip(one.classes, one.probabilities, strict=True)
    return f"{one.image}  " + ", ".join(f"{name} {percent(share)}" for name, share in pairs)


def predictions_json(
    file: Path, found: "Sequence[Prediction]", lost: "Sequence[Unreadable]"
) -> dict[str, Any]:
    """The classes of each image, and the images that cannot be read."""
    images = [
        {"image": one.image,
         "predictions": [{"class": name, "probability": share}
                         for name, share in zip(one.classes, one.probabilities, strict=True)]}
        for one in found
    ]  # fmt: skip
    unreadable = [{"image": one.image, "reason": one.reason} for one in lost]
    return {"file": str(file), "images": images, "unreadable": unreadable}


def _headings(classes: int) -> list[str]:
    numbers = range(1, classes + 1)
    return ["image", *(f"{what}_{n}" for n in numbers for what in ("class", "probability"))]


def _cells(one: "Prediction") -> list[str]:
    pairs = zip(one.classes, one.probabilities, strict=True)
    return [cell for name, share in pairs for cell in (name, f"{share:.6f}")]


def _listed(terminal: "Terminal") -> list[str]:
    """The paths on stdin, bytes that are no UTF-8 included."""
    if sys.stdin is None or sys.stdin.closed:
        raise PgnasError("'-' reads paths from stdin, and stdin is closed; name images or a folder")
    if sys.stdin.isatty():
        terminal.note("paths of images, one a line; Ctrl-D ends")
    lines = sys.stdin.buffer.read().split(b"\n")
    paths = [os.fsdecode(line.removesuffix(b"\r")) for line in lines if line.strip()]
    if not paths:
        raise PgnasError("stdin has no paths; expected one image or folder a line")
    return paths
