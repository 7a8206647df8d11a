"""Predict the classes of image files: read, resized, cropped and computed as `evaluate` does."""

import contextlib
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .data import picture_batches, pictures_below, placed
from .fields import check_range
from .formats import TOP, Classifier, NetworkInfo, likeliest, likelihoods, load
from .machine import Machine
from .naming import check_precision
from .progress import task
from .training import BATCH, predictions


@dataclass(frozen=True)
class Prediction:
    """What a network says of an image."""

    image: str  # its path, as it was given or found
    classes: tuple[str, ...]  # the likeliest first
    probabilities: tuple[float, ...]  # of these classes, in [0, 1]


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be read."""

    image: str  # its path
    reason: str


def predict(
    file: str | Path,
    images: str | Path | Sequence[str | Path],  # files, and folders with images at any depth
    *,
    top: int = TOP,  # classes of each image
    precision: str = "float32",  # or bfloat16
    machine: Machine = Machine(),  # noqa: B008 - frozen
) -> Generator[Prediction | Unreadable, None, None]:
    """Classes of images by the exported network in `file`, in order, as they are computed.

    Raises PgnasError for a folder without images.
    """
    check_range("top", top, 1)
    check_precision(precision, Path(file))
    named = [images] if isinstance(images, str | Path) else images
    paths = image_files([str(one) for one in named])
    network = load(file)
    return _predicted(network, paths, top, precision, machine)


def image_files(places: Sequence[str]) -> list[str]:
    """The paths of images: files as they are named, folders walked in the order of their names."""
    found: list[str] = []
    for place in places:
        is_folder = False
        with contextlib.suppress(OSError, ValueError):  # a name that cannot be: told when read
            is_folder = Path(place).is_dir()
        found += map(str, pictures_below(Path(place))) if is_folder else [place]
    return found


def class_probabilities(
    network: nn.Module,
    about: NetworkInfo,
    files: Sequence[str],
    machine: Machine = Machine(),  # noqa: B008 - frozen
    *,
    precision: str = "float32",  # or bfloat16
) -> Generator[tuple[Tensor, list[str | None]], None, None]:
    """Probabilities of all classes, a batch of `files` at a time, in order.

    Each batch is float64 (images that can be read, classes), and for each of its files why it
    cannot be read, or None.
    """
    how, classes = about.supernet.preprocessing, len(about.supernet.classes)
    placed(network, machine.device).eval()
    workers = machine.workers if len(files) > BATCH else 0  # a worker decodes whole batches
    batches = picture_batches(files, how, batch=BATCH, workers=workers)
    with closing(batches), task("predicting", len(files)) as shown:
        done = 0
        for pixels, reasons in batches:
            logits = torch.empty(0, classes)
            if len(pixels):
                images = how.normalised(pixels.to(machine.device))
                logits = predictions(network, [images], len(pixels), precision)
            done += len(reasons)
            shown.update(done)
            yield likelihoods(logits), reasons


def _predicted(
    network: Classifier, paths: Sequence[str], top: int, precision: str, machine: Machine
) -> Generator[Prediction | Unreadable, None, None]:
    about, done = network.info, 0
    answers = class_probabilities(network, about, paths, machine, precision=precision)
    with closing(answers) as batches:
        for probabilities, reasons in batches:
            found = iter(likeliest(probabilities, about.supernet.classes, top))
            batch = paths[done : done + len(reasons)]
            for path, reason in zip(batch, reasons, strict=True):
                yield Prediction(path, *next(found)) if reason is None else Unreadable(path, reason)
            done += len(reasons)
