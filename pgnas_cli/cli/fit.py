"""Learn weights and drop probabilities at once."""

import contextlib
import dataclasses
import math
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PgnasError
from ..units import clock, large, percent
from . import options
from .options import terminal_of, typed_line

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from ..registry import Recipe
    from ..run import Run
    from ..sizes import Target
    from ..training import EpochRecord, FitSummary, Started
    from .terminal import Terminal

    FitEvents = Generator[Started | EpochRecord | FitSummary, None, None]


def remembering(run: "Run", events: "FitEvents") -> "FitEvents":
    """The events of a fit; its command line is kept in the run once the fit has begun."""
    from ..run import remember
    from ..training import Started

    with closing(events):
        for event in events:
            if isinstance(event, Started):
                remember(run, typed_line())
            yield event


def fit(
    backbone: options.Backbone = None,
    pretrained: options.Pretrained = False,
    weights: options.Weights = None,
    data: options.Data = None,
    run: options.NewRun = None,
    preset: options.Preset = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    img_size: options.ImgSize = None,
    lr: options.LearningRate = None,
    opt: options.Optimizer = None,
    sched: options.Schedule = None,
    min_lr: options.MinLr = None,
    cycle_epochs: options.CycleEpochs = None,
    cycle_factor: options.CycleFactor = None,
    milestones: options.Milestones = None,
    momentum: options.Momentum = None,
    auxiliary_weight: options.AuxiliaryWeight = None,
    operation_cost: options.OperationCost = None,
    cutout: options.Cutout = None,
    weight_decay: options.WeightDecay = None,
    l2: options.L2 = None,
    target_params: options.TargetParams = None,
    target_macs: options.TargetMacs = None,
    kl_images: options.KlImages = None,
    initial_drop: options.InitialDrop = None,
    drop_lr: options.DropLr = None,
    warmup_epochs: options.WarmupEpochs = None,
    temperature: options.Temperature = None,
    size_ramp: options.SizeRamp = None,
    freeze: options.Freeze = None,
    sharpen: options.Sharpen = None,
    gates: options.Gates = None,
    groups: options.Groups = None,
    probe: options.Probe = None,
    fixed_drop: options.FixedDrop = None,
    constant_l2: options.ConstantL2 = False,
    held_out: options.HeldOut = None,
    skip_corrupt: options.Skip = False,
    data_root: options.DataRoot = None,
    seed: options.Seed = None,
    precision: options.Precision = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    save_minutes: options.SaveMinutes = 5.0,
    tensorboard: options.TensorBoard = None,
    resume: options.Resume = False,
    force: options.Force = False,
    verbose: options.Verbose = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Learn weights and drop probabilities at once."""
    from ..registry import admit
    from ..run import l2_of, milestones_of, run_to_fit
    from ..training import fit_stage
    from .machine import device_of, worker_count
    from .tensorboard import with_tensorboard

    terminal = terminal_of(quiet)
    where_to_work = device_of(device)
    recipe = {
        "epochs": epochs, "batch_size": batch_size, "learning_rate": lr, "optimizer": opt,
        "schedule": sched, "min_learning_rate": min_lr, "cycle_epochs": cycle_epochs,
        "milestones": milestones_of(milestones), "cutout": cutout, "weight_decay": weight_decay,
        "cycle_factor": cycle_factor, "momentum": momentum, "auxiliary_weight": auxiliary_weight,
        "operation_cost": operation_cost, "l2": l2_of(l2), "kl_images": kl_images,
        "initial_drop": initial_drop, "drop_learning_rate": drop_lr,
        "warmup_epochs": warmup_epochs, "temperature": temperature, "gates": gates,
        "groups": groups, "size_ramp": size_ramp, "freeze": freeze, "sharpen": sharpen,
        "probe": probe,
    }  # fmt: skip
    given: dict[str, Any] = {
        "backbone": admit(backbone) if backbone else None, "pretrained": pretrained or None,
        "weights": None if weights is None else str(weights),
        "data": data, "data_root": data_root, "img_size": img_size,
        "held_out": held_out, "skip_corrupt": skip_corrupt or None,
        "preset": preset, "fixed_drop": fixed_rate(fixed_drop),
        "constant_l2": constant_l2 or None, "target_params": target_params,
        "target_macs": target_macs, "seed": seed,
        "precision": precision,
    }  # fmt: skip
    given = {k: v for k, v in given.items() if v is not None}
    given["recipe"] = {k: v for k, v in recipe.items() if v is not None}
    if l2 == "auto":
        given["recipe"]["l2"] = None  # also where a preset has one
    where, settings = run_to_fit(run, given, resume=resume)
    terminal.notice(f"run: {where.folder}")
    summary = show_fit(
        terminal,
        lambda step: remembering(where, with_tensorboard(tensorboard, where, fit_stage(
            where, settings, device=where_to_work, workers=worker_count(workers),
            resume=resume, force=force, save_seconds=60 * save_minutes, track=terminal.track,
            step=step,
        ))),
        verbose=verbose,
    )  # fmt: skip
    if as_json:
        terminal.json({**dataclasses.asdict(summary), "run": str(summary.run)})
    else:
        for line in fit_summary_lines(summary):
            terminal.result(line)
    terminal.notice(f"next: pgnas sample --run {where.folder}")


def fixed_rate(text: str | None) -> float | None:
    """A fixed drop probability from a number, or that at which candidates are as large as a run's.

    Raises PgnasError for anything else.
    """
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        return float(text)
    from ..gates import drop_probabilities
    from ..run import Run
    from ..run.posterior import read_posterior
    from ..sampling import baseline_probabilities
    from ..seeds import generator

    run = Run(Path(text))
    if not run.posterior.exists():
        raise PgnasError(f"--fixed-drop '{text}' is neither a number nor a fitted run")
    network, posterior = read_posterior(run.posterior)
    rates = baseline_probabilities(
        network, drop_probabilities(network), "fixed",
        generator=generator(posterior.seed, "fixed rate"),
    )  # fmt: skip
    return float(rates[0])


SILENCE = 60.0  # seconds without a line, where there is no bar


def show_fit(
    terminal: "Terminal",
    stage: "Callable[[Callable[[int, int], None]], FitEvents]",
    *,
    verbose: bool = False,
) -> "FitSummary":
    """Draw what the fit stage yields, and return its summary."""
    from ..training import FitSummary, Started

    marks: list[tuple[int, float]] = []  # first step seen, and when
    told = 0.0  # when something was last said
    total = 0
    last: EpochRecord | None = None
    target: Target | None = None
    with terminal.progress() as bar:
        task = bar.add_task("fitting", total=None)

        def step(done: int, steps: int) -> None:
            nonlocal told
            now = time.monotonic()
            if not marks:
                marks.append((done - 1, now))
                told = now
            bar.update(task, completed=done, total=steps)
            if not terminal.err.is_terminal and now - told > SILENCE:  # no bar to look at
                told = now
                left = (now - marks[0][1]) / (done - marks[0][0]) * (steps - done)
                terminal.notice(f"step {done} of {steps}, left {clock(left)}")

        events = stage(step)
        with closing(events):
            for event in events:
                if isinstance(event, Started):
                    total, target, classes = event.steps, event.target, event.classes
                    for line in started_lines(event):
                        terminal.notice(line)
                    for name in event.kept_whole if verbose else ():
                        terminal.notice(f"kept whole: {name}")
                elif isinstance(event, FitSummary):
                    for line in closing_notes(last, target, classes):
                        terminal.notice(line)
                    return event
                else:
                    last = event
                    done = event.epoch * total // event.epochs
                    first, began = marks[0] if marks else (0, time.monotonic())
                    rate = (time.monotonic() - began) / max(1, done - first)
                    terminal.notice(epoch_line(event, rate * (total - done), target))
                    told = time.monotonic()
    raise AssertionError("a fit ends with its summary")


def started_lines(started: "Started") -> list[str]:
    """What is about to be fitted, and whether the prior is within reason."""
    chance = math.log(started.classes)
    lines = [f"note: {remark}" for remark in started.remarks]
    lines += [
        f"network: {large(started.params)} parameters; {started.gates} gates in {started.groups}"
        f" groups on {started.gated_layers} layers",
        f"images: {started.fit_images} to fit on, {started.held_out_images} held out for ranking",
        f"prior: l2 {started.l2:.4g} at N {started.kl_images:.4g}, at first a weight decay of"
        f" {started.weight_decay:.2g}",
        f"loss: the prior's part is {started.divergence:.3g} nats per image at the start,"
        f" guessing costs {chance:.2f}",
        f"fit: {started.epochs} epochs, {started.steps} steps",
        *recipe_lines(started.recipe),
    ]
    if started.target is not None:
        what = "parameters" if started.target.kind == "params" else "multiply-adds"
        lines.append(f"aim: candidates of {percent(started.target.share)} of the {what}")
    if started.recipe.l2 is None and not 1e-5 <= started.weight_decay <= 1e-3:
        lines.append(
            "warning: that is an unusual weight decay (usual: 1e-5 to 1e-3); change --l2 or"
            " --kl-images"
        )
    if abs(started.divergence) > chance:
        lines.append("warning: the prior outweighs the data; raise --kl-images, or lower --l2")
    return lines


def recipe_lines(recipe: "Recipe") -> list[str]:
    """The recipe that is followed."""
    rate = f"{recipe.schedule} from {recipe.learning_rate:g}"
    if recipe.cycle_epochs:
        rate += f" in cycles from {recipe.cycle_epochs} epochs"
    if recipe.min_learning_rate:
        rate += f" to {recipe.min_learning_rate:g}"
    if recipe.milestones:
        rate += f", a tenth at {', '.join(map(str, recipe.milestones))}"
    more = f", cutout {recipe.cutout}" if recipe.cutout else ""
    return [
        f"recipe: {recipe.optimizer}, {rate}; batch {recipe.batch_size}{more}",
        f"  p from {recipe.initial_drop:g} at {recipe.drop_learning_rate:g}, temperature"
        f" {recipe.temperature:g}; gates {recipe.gates}, groups {recipe.groups}",
    ]


def expected_share(record: "EpochRecord", target: "Target | None") -> float:
    """Of the whole network's size, in the target's unit; without one, of the parameters."""
    macs = target is not None and target.kind == "macs"
    return record.expected_macs_share if macs else record.expected_share


def epoch_line(record: "EpochRecord", seconds_left: float, target: "Target | None") -> str:
    """One line per epoch, within 80 columns; the size is the one that the fit aims at."""
    return (
        f"{record.epoch:>4}/{record.epochs} loss {record.loss:.3f} held-out"
        f" {100 * record.hard_error:.1f} % (soft {100 * record.soft_error:.1f}) size"
        f" {100 * expected_share(record, target):.0f} % p moves {record.drift:.3f}"
        f" left {clock(seconds_left)}"
    )


def closing_notes(last: "EpochRecord | None", target: "Target | None", classes: int) -> list[str]:
    """What the last epoch should make the user think about, if anything."""
    if last is None:
        return []
    found = []
    if last.hard_error > 0.9 * (1 - 1 / classes):
        found.append(
            f"warning: the mean candidate errs on {percent(last.hard_error)} of the held-out"
            f" images, nearly as guessing does among {classes} classes; more --epochs, a larger"
            " size, or larger images (--img-size) may help"
        )
    if last.mean_drop < 1e-6:
        return found
    if target is not None:
        share = expected_share(last, target)
        if abs(share - target.share) > 0.02 * target.share:
            found.append(
                f"warning: the mean candidate has {percent(share)} of the size, not"
                f" {percent(target.share)}; lengthen the fit with --epochs, or aim at a larger size"
            )
    elif last.expected_share > 0.95:
        found.append(
            "note: hardly anything is dropped; name a size with --target-params, or raise --l2"
        )
    return found


def fit_summary_lines(summary: "FitSummary") -> list[str]:
    return [
        f"fitted {summary.epochs} epochs in {clock(summary.seconds)}; a candidate's mean held-out"
        f" error is {percent(summary.held_out_error)}",
        f"posterior: {summary.run / 'posterior.safetensors'}",
    ]
