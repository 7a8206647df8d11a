"""The epochs of a fit for TensorBoard, which is an optional package."""

from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from ..errors import PgnasError
from ..run import Run
from ..training import EpochRecord

SCALARS = {
    "loss/cross-entropy": "loss",
    "loss/divergence": "kl",
    "error/train": "train_error",
    "error/held-out, relaxed gates": "soft_error",
    "error/held-out, hard gates": "hard_error",
    "size/parameters": "expected_params",
    "size/MACs": "expected_macs",
    "size/share of the parameters": "expected_share",
    "size/share of the MACs": "expected_macs_share",
    "p/mean": "mean_drop",
    "p/decided": "decided",
    "p/moves in a tenth of the fit": "drift",
    "rate/learning rate": "learning_rate",
    "rate/images per second": "images_per_second",
}

Event = TypeVar("Event")


def with_tensorboard(
    folder: Path | None, run: Run, events: Generator[Event, None, None]
) -> Generator[Event, None, None]:
    """The same events; if `folder` is named, every epoch is also written there, by run.

    Raises PgnasError where the package is not installed, before anything is trained.
    """
    if folder is None:
        return events
    return _written(_writer(folder / run.folder.name), events)


def _writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise PgnasError(
            "--tensorboard needs a package of its own: pip install 'pgnas[tensorboard]'"
        ) from None
    try:
        return SummaryWriter(str(folder))
    except OSError as error:
        raise PgnasError(f"cannot write to '{folder}': {error.strerror or error}") from None


def _written(writer: Any, events: Generator[Event, None, None]) -> Generator[Event, None, None]:
    with closing(writer), closing(events):
        for event in events:
            if isinstance(event, EpochRecord):
                _add(writer, event)
            yield event


def _add(writer: Any, record: EpochRecord) -> None:
    for name, field in SCALARS.items():
        writer.add_scalar(name, getattr(record, field), record.epoch)
    counts = record.drop_histogram
    middles = [(index + 0.5) / len(counts) for index in range(len(counts))]
    writer.add_histogram_raw(
        "p", min=0.0, max=1.0, num=sum(counts),
        sum=sum(n * p for n, p in zip(counts, middles, strict=True)),
        sum_squares=sum(n * p * p for n, p in zip(counts, middles, strict=True)),
        bucket_limits=[(index + 1) / len(counts) for index in range(len(counts))],
        bucket_counts=list(counts), global_step=record.epoch,
    )  # fmt: skip
    writer.flush()
