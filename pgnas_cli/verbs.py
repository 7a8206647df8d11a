"""The commands as functions, with the records that the commands show.

A run is named by its folder; None means the newest in runs/. Progress is silent unless somebody
listens (`progress.listening`).
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from . import evaluation as evaluating
from . import exporting, ranking, sampling
from .errors import PgnasError
from .evaluation import Evaluation
from .formats import NetworkInfo
from .machine import Machine
from .ranking import Leaderboard
from .run import Run, newest_run, run_to_fit
from .sampling import Candidates
from .training import EPOCHS, SAVE_MINUTES, FitSummary, finetune_events, fit_events

CPU = Machine()


def fit(
    run: str | Path | None = None,  # None: runs/<backbone>-<date>-<time>
    *,
    resume: bool = False,
    force: bool = False,
    save_minutes: float = SAVE_MINUTES,
    machine: Machine = CPU,
    **options: Any,  # of `pgnas fit`, with underscores: backbone, data, epochs, target_params, ...
) -> FitSummary:
    """Learn weights and drop probabilities at once; the posterior lies in the run.

    Raises PgnasError for options that do not fit, and for a fit that collapses.
    """
    folder = None if run is None else Path(run)
    where, settings = run_to_fit(folder, options, resume=resume)
    events = fit_events(
        where, settings, resume=resume, force=force, save_minutes=save_minutes, machine=machine
    )
    with closing(events):
        for event in events:
            if isinstance(event, FitSummary):
                return event
    raise AssertionError("a fit ends with its summary")


def sample(run: str | Path | None = None, n: int = 1500, **options: Any) -> list[Candidates]:
    """Draw candidates from the posterior of a run: one record per budget, or one in all.

    `options` are those of `pgnas sample`: max_params, max_macs, baseline, seed.
    """
    return sampling.sample(_run(run), n, **options)


def rank(
    run: str | Path | None = None, *, machine: Machine = CPU, **options: Any
) -> list[Leaderboard]:
    """Find the best candidates of a run on its held-out images: one leaderboard per budget.

    `options` are those of `pgnas rank`: top, exhaustive, time_limit.
    """
    return ranking.rank(_run(run), machine=machine, **options)


def export(
    path: str | Path,
    run: str | Path | None = None,
    *,
    machine: Machine = CPU,
    **options: Any,
) -> NetworkInfo:
    """Write one candidate of a run as a slim network, FILE.safetensors or FILE.onnx.

    `options` are those of `pgnas export`: candidate, max_params, max_macs, round_to, opset, force.
    """
    return exporting.export(_run(run), Path(path), machine=machine, **options)


def evaluate(
    files: str | Path | Sequence[str | Path],
    data: str | None = None,  # None: the data set that the file names
    *,
    machine: Machine = CPU,
    **options: Any,
) -> list[Evaluation]:
    """Test error, size and latency of exported networks.

    `options` are those of `pgnas evaluate`: batch_size, data_root, skip_corrupt.
    """
    listed = [files] if isinstance(files, str | Path) else files
    return evaluating.evaluate([Path(f) for f in listed], data, machine=machine, **options)


def finetune(
    file: str | Path,
    output: str | Path,
    run: str | Path | None = None,  # that it came from; None: found
    *,
    epochs: int = EPOCHS,
    lr: float | None = None,  # None: a tenth of the fit's
    force: bool = False,
    machine: Machine = CPU,
) -> NetworkInfo:
    """Train an exported network further, on the training images of its fit."""
    named = None if run is None else Run(Path(run))
    events = finetune_events(
        Path(file), Path(output), named, epochs=epochs, lr=lr, force=force, machine=machine
    )
    with closing(events):
        while True:
            try:
                next(events)
            except StopIteration as end:
                found: NetworkInfo = end.value
                return found


def _run(run: str | Path | None) -> Run:
    if run is None:
        return newest_run(fitted=True)
    found = Run(Path(run))
    if not found.folder.is_dir():
        raise PgnasError(f"no run in '{run}'; start one with fit")
    return found
