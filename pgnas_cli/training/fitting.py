"""Fit a super-network: from options to a posterior file, saved on the way and resumable.

A fitted posterior is never overwritten unless `force` says so; what was derived from it goes with
it.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data import ImageData
from ..distributed import (
    check_alike,
    rank,
    together,
    wait,
    world_size,
)
from ..errors import PgnasError, command
from ..fields import parsed
from ..gates import Prior, gates
from ..machine import Machine, computes_bfloat16
from ..progress import note
from ..registry import Recipe
from ..run import FitSettings, Run, check_recipe, keep_skipping, run_to_fit, write_settings, writing
from ..run.posterior import (
    Posterior,
    posterior_of,
    write_posterior,
)
from ..sampling import fixed_rate
from ..signals import StopRequest
from ..sizes import Target, parameter_count
from ..storage import as_read, differences, remove
from .checkpoint import State, fits, read_checkpoint, write_checkpoint
from .drop_learning import DropLearning
from .epoch import EpochRecord, EpochWatch, held_out_errors
from .history import History, Row, epochs_of, rows_of
from .loop import Loop, train
from .plan import FitPlan, on_options, plan_of
from .preparing import Prepared, prepared, prior_of
from .probe import probe_
from .saving import seconds_of

# What a fit keeps beside tensors, all of which resuming reads.
NUMBERS = {
    "seen", "steps", "rate_steps", "newer_rate_steps", "price", "best_loss", "lost_epochs",
}  # fmt: skip


@dataclass(frozen=True)
class FitSummary:
    """Summary of a finished fit."""

    run: Path
    epochs: int
    seconds: float
    held_out_error: float
    params: int
    groups: int
    gates: int
    without_gates: bool = False  # none of them ever dropped: the original network


FitEvents = Generator[FitPlan | EpochRecord | FitSummary, None, None]


def fit_events(
    run: Run,
    settings: FitSettings,
    *,
    resume: bool = False,
    force: bool = False,
    save_minutes: float | None = None,  # between two; None: as often as they are cheap
    machine: Machine = Machine(),  # noqa: B008 - frozen
    resume_with: str = "",  # the command that resumes it; "": pgnas fit --resume
) -> FitEvents:
    """Fit a super-network; yields what was set up, a record per epoch, and a summary.

    An unfinished fit is saved on the way, and on SIGINT or SIGTERM at the next step, which ends it
    with `Interrupted`. One that is finished and resumed yields its summary. The processes that
    torchrun started all yield the same; the first one alone writes.
    """
    with together(machine.device), writing(run, new=True):
        finished = resume and not force and run.posterior.exists()
        unfinished = None if finished else _claim(run, resume, force)
        check_alike(
            f"{finished} {unfinished and unfinished[0].step}",
            f"'{run.folder}' must lie on a file system that all machines share",
        )
        if finished:
            network, posterior = posterior_of(run)
            _refuse_other_options(run, posterior, settings)
            if rank() == 0:
                keep_skipping(run, settings)
            yield _finished(run, network, posterior)
        else:
            yield from _fitted(run, settings, unfinished, save_minutes, machine, resume_with)


def _fitted(
    run: Run,
    settings: FitSettings,
    unfinished: tuple[State, Posterior] | None,
    save_minutes: float | None,
    machine: Machine,
    resume_with: str,
) -> FitEvents:
    began = time.perf_counter()
    setup = prepared(settings, None if unfinished is None else unfinished[1], machine)
    network, posterior, data = setup.network, setup.posterior, setup.data
    first = rank() == 0  # of several processes the one that writes
    loop = supernet_loop(
        network, data, posterior.recipe, posterior.objective.prior, seed=settings.seed,
        device=machine.device, fixed_drop=settings.fixed_drop, target=posterior.objective.target,
        bfloat16=settings.precision == "bfloat16"
        or (settings.precision == "auto" and computes_bfloat16(machine.device)),
        compiled=settings.compile,
    )  # fmt: skip
    watch = EpochWatch(loop)
    remarks = [*setup.remarks, *on_options(loop, settings)]
    if unfinished is None:
        if first:  # training begins with its weights
            remarks += _probed(setup, settings.seed, machine)
            _begin(run, settings)
        history = History(run)
    else:
        state = _same_fit(run, loop, posterior, *unfinished)
        if first:
            keep_skipping(run, settings)
        loop.restore(state)
        watch.restore(state)
        history = History(run, _saved_epochs(run)[: loop.step // loop.per_epoch])
    yield plan_of(loop, posterior, setup.recipe_of, remarks)

    def save(state: State) -> None:
        if not first:
            return
        history.write()  # a checkpoint is never ahead of it
        whole = dataclasses.replace(state, numbers={**state.numbers, **watch.numbers()})
        write_checkpoint(run.checkpoint, whole, posterior)

    with StopRequest():
        passes = train(
            loop, workers=machine.workers, save=save, save_seconds=seconds_of(save_minutes),
            what="fitting",
            resume_with=resume_with or _resume_with(run),
        )  # fmt: skip
        with closing(passes):
            for done in passes:
                record = watch.record(done)
                history.add(record, write=first)
                yield record
        loop.refuse_what_is_not_finite()
        if first:
            history.write()
            write_posterior(run.posterior, loop.network, posterior)
            with contextlib.suppress(OSError):  # else the next command does
                run.checkpoint.unlink(missing_ok=True)
        wait()
    bank = gates(network)
    yield FitSummary(
        run.folder, loop.steps // loop.per_epoch, time.perf_counter() - began,
        _hard_error(loop, history), parameter_count(network), len(bank.groups), bank.count,
        settings.fixed_drop == 0,
    )  # fmt: skip


def _resume_with(run: Run) -> str:
    line = command("fit", "--resume", "--run", run.folder)
    if world_size() == 1:
        return line
    return f"torchrun ... -m pgnas_cli -- {line.removeprefix('pgnas ')}"


def _refuse_other_options(run: Run, posterior: Posterior, settings: FitSettings) -> None:
    """Raise PgnasError where a finished fit followed another recipe than the fields that are named.

    `probe` is left out where there is nothing to probe.
    """
    for key, value in settings.recipe.items():
        before = getattr(posterior.recipe, key)
        if key != "probe" and as_read(before) != as_read(parsed(Recipe, key, value)):
            raise PgnasError(
                f"'{run.folder}' was fitted with `{key}` {before}, not {value}; leave the option"
                " out, or choose another `run`"
            )


def _finished(run: Run, network: nn.Module, posterior: Posterior) -> FitSummary:
    """What a fit that is finished says again."""
    try:
        records = epochs_of(run)
        last = records[-1]
    except (IndexError, PgnasError):
        raise PgnasError(
            f"'{run.folder}' holds a fitted posterior, and no readable '{run.metrics.name}' of its"
            " fit; go on with pgnas sample, or add `force` to fit again"
        ) from None
    note(f"fitted already: {run.posterior}")
    seconds = sum(record.seconds for record in records)
    return FitSummary(
        run.folder, last.epoch, seconds, last.hard_error, parameter_count(network),
        len(gates(network).groups), gates(network).count, posterior.objective.fixed_drop == 0,
    )  # fmt: skip


def fit(
    run: str | Path | None = None,  # None: runs/<backbone>-<date>-<time>
    *,
    resume: bool = False,
    force: bool = False,
    save_minutes: float | None = None,  # between two; None: as often as they are cheap
    machine: Machine = Machine(),  # noqa: B008 - frozen
    **options: Any,  # fields of FitSettings and Recipe
) -> FitSummary:
    """Learn weights and drop probabilities at once; the posterior lies in the run."""
    folder = None if run is None else Path(run)
    where, settings = run_to_fit(folder, with_fixed_rate(options), resume=resume)
    events = fit_events(
        where, settings, resume=resume, force=force, save_minutes=save_minutes, machine=machine
    )
    *_, summary = events
    assert isinstance(summary, FitSummary)
    return summary


def with_fixed_rate(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a fit; a run as `fixed_drop` becomes the rate that gives candidates as large."""
    value = options.get("fixed_drop")
    if not isinstance(value, str | Path):
        return options
    try:
        return {**options, "fixed_drop": float(str(value))}
    except ValueError:
        run = Run(Path(value))
    if not run.posterior.exists():
        raise PgnasError(f"`fixed_drop` '{value}' is neither a number nor a fitted run")
    return {**options, "fixed_drop": fixed_rate(run)}


def fit_network(
    network: nn.Module,
    data: ImageData,
    recipe: Recipe,
    prior: Prior | None = None,  # None: as the recipe has it
    *,
    seed: int = 0,
    machine: Machine = Machine(),  # noqa: B008 - frozen
    fixed_drop: float | None = None,
    target: Target | None = None,
    bfloat16: bool = False,
) -> Generator[EpochRecord, None, None]:
    """Train a gated network in place, without a run directory; yields a record per epoch.

    Raises PgnasError when the fit collapses, with what to change.
    """
    check_recipe(recipe, FitSettings(fixed_drop=fixed_drop))
    loop = supernet_loop(
        network, data, recipe, prior or prior_of(recipe, len(data.fit)), seed=seed,
        device=machine.device, fixed_drop=fixed_drop, target=target, bfloat16=bfloat16,
    )  # fmt: skip
    watch = EpochWatch(loop)
    passes = train(
        loop, workers=machine.workers, save=lambda _: None, save_seconds=math.inf, what="fitting",
    )  # fmt: skip
    with closing(passes):
        for done in passes:
            yield watch.record(done)


def supernet_loop(  # noqa: PLR0913 - what a fit consists of
    network: nn.Module,
    data: ImageData,
    recipe: Recipe,
    prior: Prior,
    *,
    seed: int,
    device: torch.device,
    fixed_drop: float | None = None,
    target: Target | None = None,
    bfloat16: bool = False,
    compiled: bool = False,
) -> Loop:
    """The training loop of a gated network."""
    if target is not None and fixed_drop is not None:
        raise PgnasError(f"`fixed_drop` sets the size; leave `target_{target.kind}` out")

    def drops(loop: Loop) -> DropLearning:
        return DropLearning(
            network, recipe, prior, steps=loop.steps, per_epoch=loop.per_epoch, seed=seed,
            fixed_drop=fixed_drop, target=target,
        )  # fmt: skip

    return Loop(
        network, data, recipe, seed=seed, device=device, weight_decay=prior.weight_decay(),
        drops=drops, bfloat16=bfloat16, compiled=compiled,
    )  # fmt: skip


# --- before the first step -------------------------------------------------------------------


def _probed(setup: Prepared, seed: int, machine: Machine) -> Iterator[str]:
    """Start new heads as linear probes; a remark on each."""
    if not setup.posterior.recipe.probe:
        return
    for head in setup.new_heads:
        yield probe_(setup.network, head, setup.data, seed=seed, machine=machine)


def _hard_error(loop: Loop, history: History) -> float:
    """Held-out error of the mean candidate; measured where the last epoch's line is lost."""
    if history.rows:
        return history.rows[-1][1].hard_error
    return held_out_errors(loop, loop.steps // loop.per_epoch)[1]


def _saved_epochs(run: Run) -> list[Row]:
    try:
        return rows_of(run)
    except PgnasError:
        raise PgnasError(f"'{run.metrics}' is damaged; move it away to resume without") from None


# --- the run directory -----------------------------------------------------------------------


def _claim(run: Run, resume: bool, force: bool) -> tuple[State, Posterior] | None:
    """The unfinished fit to resume, if any; raises PgnasError where the run is not free."""
    if run.posterior.exists() and not force:
        raise PgnasError(
            f"'{run.folder}' holds a fitted posterior; choose another `run`, or add `force` to fit"
            " again"
        )
    if run.checkpoint.exists() and not force:
        if not resume:
            raise PgnasError(
                f"'{run.folder}' holds an unfinished fit; add `resume` to resume it, or `force` to"
                " start again"
            )
        return read_checkpoint(run.checkpoint, Posterior)
    return None


def _same_fit(
    run: Run, loop: Loop, posterior: Posterior, state: State, started: Posterior
) -> State:
    """The state to resume, if it is one of this very fit."""
    changed = options_changed(started, posterior)
    same_images = started.split == posterior.split
    if not changed and not (same_images and started.supernet == posterior.supernet):
        raise PgnasError(
            f"the images or classes are not those that '{run.folder}' was started with; bring them"
            " back, or choose another `run`"
        )
    changed = changed or differences(started, posterior)
    if changed:
        raise PgnasError(
            f"'{run.folder}' was started with {'; '.join(changed)}; leave the option out to resume,"
            " or choose another `run`"
        )
    if not fits(state, loop.network_of(state), NUMBERS, run.checkpoint):
        raise PgnasError(f"'{run.checkpoint}' is damaged; remove it and fit again")
    return state


def options_changed(started: Posterior, now: Posterior) -> list[str]:
    """The options in which two fits differ, of recipe or network; classes are not looked at."""
    supernet = dataclasses.replace(now.supernet, classes=started.supernet.classes)
    return differences(started.recipe, now.recipe) or [
        # What a record calls the size of its images is an option of another name.
        text.replace("`size`", "`img_size`")
        for text in differences(started.supernet, supernet)
    ]


def _begin(run: Run, settings: FitSettings) -> None:
    """Clear what an earlier fit left, now that nothing stands in the way of this one."""
    for path in (run.posterior, run.checkpoint, run.metrics, *run.drawn_files(),
                 *run.evaluation_files(), run.report, run.commands):  # fmt: skip
        remove(path)
    write_settings(run, settings)
