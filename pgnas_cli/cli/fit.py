"""`pgnas fit`: learn weights and drop probabilities at once."""

import dataclasses
import math
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

from ..distributed import largest, launched, rank, together
from ..errors import command
from ..registry import Recipe
from ..run import FitSettings, Run, check_named, newest_run, remember, run_to_fit, settings_of
from ..units import clock, large, percent
from . import options
from .options import loading, takes, terminal_of, typed_line

if TYPE_CHECKING:
    from ..sizes import Target
    from ..training import EpochRecord, FitEvents, FitPlan, FitSummary
    from .terminal import Terminal

WAITING = 0.1  # share of an epoch that goes by without an image, from which it is said
LITTLE_DROPPED = 0.95  # share of the size from which a fit hardly drops anything


@takes(FitSettings, Recipe)
def fit(
    given: dict[str, Any],
    run: options.NewRun = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    save_minutes: options.SaveMinutes = None,
    tensorboard: options.TensorBoard = None,
    resume: options.Resume = False,
    force: options.Force = False,
    verbose: options.Verbose = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Learn weights and drop probabilities at once."""
    terminal = terminal_of(quiet)
    settings_of({**given, "fixed_drop": _rate(given.get("fixed_drop"))})
    if resume and run is None:
        newest_run()
    with loading(terminal):
        from ..machine import find_machine
        from ..training import fit_events, with_fixed_rate
    from .tensorboard import with_tensorboard

    machine = find_machine(device, workers)
    check_named(run)
    with together(machine.device):
        if run is not None and largest(launched().restarts):  # by torchrun, with the same line
            resume, force = resume or Run(run).settings.exists(), False
        where, settings = run_to_fit(run, with_fixed_rate(given), resume=resume)
        terminal.note(f"run: {where.folder}")
        events = fit_events(
            where, settings, resume=resume, force=force, save_minutes=save_minutes, machine=machine
        )
        first = rank() == 0
        events = with_tensorboard(tensorboard if first else None, where, events)
        line = typed_line() if first else ""
        plain = not {"groups", "preset"} & set(given)
        summary = show_fit(terminal, where, events, line=line, verbose=verbose, plain=plain)
    if as_json:
        terminal.json({**dataclasses.asdict(summary), "run": str(summary.run)})
    else:
        for line in fit_summary_lines(summary):
            terminal.result(line)
    terminal.note(f"next: {command('sample', '--run', where.folder)}")


def _rate(text: str | None) -> float | None:
    """`--fixed-drop` as a number; None for a run, which is read later."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def show_fit(
    terminal: "Terminal",
    run: Run,
    events: "FitEvents",
    *,
    line: str = "",  # the command line, kept in the run once the fit has begun
    verbose: bool = False,
    plain: bool = False,  # the groups are those of the recipe
    after: float = 0.0,  # what follows, in the time of the fit
) -> "FitSummary":
    """Show what the fit yields, and return its summary."""
    from ..training import FitPlan, FitSummary

    plan: FitPlan | None = None
    first: EpochRecord | None = None
    last: EpochRecord | None = None
    waited = False
    began = time.monotonic()
    with closing(events):
        for event in events:
            if isinstance(event, FitPlan):
                plan, began = event, time.monotonic()
                if line:
                    remember(run, line)
                for text in plan_lines(plan):
                    terminal.note(text)
                if plain and plan.target is not None and plan.recipe.groups == "layer":
                    terminal.note(
                        "note: one p for each layer; with a target size --groups channel erred far"
                        " less"
                    )
                for name in plan.not_prunable if verbose else ():
                    terminal.note(f"not prunable: {name}")
            elif isinstance(event, FitSummary):
                for text in [] if plan is None else closing_notes(last, plan):
                    terminal.note(text)
                return event
            else:
                assert plan is not None
                first, last = first or event, event
                each = (time.monotonic() - began) / (event.epoch - first.epoch + 1)
                left = each * ((1 + after) * event.epochs - event.epoch)
                terminal.note(epoch_line(event, left, plan.target, plan.without_gates))
                if event.waited_share > WAITING and not waited:
                    waited = True
                    terminal.note(waiting_line(event))
                if first.epoch < event.epoch == max(2, -(-event.epochs // 10)) < event.epochs:
                    for text in early_notes(first, event, plan):
                        terminal.note(text)
    raise AssertionError("a fit ends with its summary")


def plan_lines(plan: "FitPlan") -> list[str]:
    """What is about to be fitted, and whether the prior is within reason."""
    lines = [f"note: {remark}" for remark in plan.remarks]
    images = f"images: {plan.fit_images} for training, {plan.held_out_images} held out for ranking"
    steps = f"fit: {plan.recipe.epochs} epochs, {plan.steps} steps"
    if plan.without_gates:
        return [
            *lines,
            f"network: {large(plan.params)} parameters, trained without gates",
            images,
            steps,
            *memory_lines(plan),
            f"recipe: {plan.recipe_of}",
            *recipe_lines(plan.recipe, None),
        ]
    chance, prior = math.log(plan.classes), plan.prior
    decay = prior.weight_decay(plan.recipe.initial_drop)
    lines += [
        f"network: {large(plan.params)} parameters; {plan.gates} gates in {plan.groups} groups on"
        f" {plan.gated_layers} layers",
        images,
        f"prior: l2 {prior.l2:.4g} at N {prior.images:.4g}, at first a weight decay of {decay:.2g}",
        f"loss: the prior's part is {plan.divergence:.3g} nats per image at the start, chance level"
        f" {chance:.2f}",
        steps,
        *memory_lines(plan),
        f"recipe: {plan.recipe_of}",
        *recipe_lines(plan.recipe, plan.drop_lr),
    ]
    if plan.target is not None:
        lines.append(f"target size: {plan.target}")
    if plan.recipe.l2 is None and not 1e-5 <= decay <= 1e-3:
        lines.append(
            "warning: that is an unusual weight decay (usual: 1e-5 to 1e-3); change --l2 or"
            " --kl-images"
        )
    if plan.divergence > chance:
        half = prior.l2 * chance / (2 * plan.divergence)
        lines.append(
            f"warning: the prior outweighs the data, gates may close before the weights learn; try"
            f" --l2 {half:.2g}, or name a size with --target-params"
        )
    elif plan.divergence < -chance:
        lines.append("warning: the entropy of p outweighs the data; raise --kl-images")
    return lines


def memory_lines(plan: "FitPlan") -> list[str]:
    """What the images of a step take, where it is known."""
    if not plan.activation_bytes:
        return []
    each, images = plan.activation_bytes, plan.step_images
    return [
        f"memory: about {large(each)}B of activations per image, {large(each * images)}B for"
        f" {images}",
        "  in float32; --accumulate 2 halves it, and so on",
    ]


def recipe_lines(recipe: Recipe, drop_lr: float | None) -> list[str]:
    """The recipe that is followed; `drop_lr`: rate of p, None without gates."""
    rate = f"{recipe.sched} from {recipe.lr:g}"
    if recipe.cycle_epochs:
        rate += f" in cycles from {recipe.cycle_epochs:.3g} epochs"
    if recipe.min_lr:
        rate += f" to {recipe.min_lr:g}"
    if recipe.decay_milestones:
        rate += f", a tenth at {', '.join(map(str, recipe.decay_milestones))}"
    if recipe.warmup_epochs:
        rate += f", {recipe.warmup_epochs:g} epochs of warm-up"
    if recipe.layer_decay is not None:
        rate += f", times {recipe.layer_decay:g} a layer from the end"
    learner = "Adam" if recipe.drop_opt == "adam" else recipe.opt
    lines = [f"  {recipe.opt}, {rate}; batch {recipe.batch_size}", *regularisation_lines(recipe)]
    if drop_lr is not None:
        lines.append(
            f"  p from {recipe.initial_drop:g}, {learner} at {drop_lr:.2g}, temperature"
            f" {recipe.temperature:g}; gates {recipe.gates}, groups {recipe.groups}"
        )
    return lines


def regularisation_lines(recipe: Recipe) -> list[str]:
    """What of timm's recipes is on, in its options."""
    shown = {
        "label smoothing": recipe.label_smoothing, "AutoAugment": recipe.aa,
        "mixup": recipe.mixup, "cutmix": recipe.cutmix, "erasing": recipe.reprob,
        "cutout": recipe.cutout, "EMA": recipe.model_ema and recipe.model_ema_decay,
    }  # fmt: skip
    found = [f"{name} {value}" for name, value in shown.items() if value]
    if recipe.class_weights != "none":
        found.append(f"class weights {recipe.class_weights}")
    return [f"  {', '.join(found)}"] if found else []


def expected_share(record: "EpochRecord", target: "Target | None") -> float:
    """Of the whole network's size, in the target's unit; without one, of the parameters."""
    shares = {"macs": record.expected_macs_share, "time": record.expected_time_share}
    share = None if target is None else shares.get(target.kind)
    return record.expected_share if share is None else share


def epoch_line(
    record: "EpochRecord", seconds_left: float, target: "Target | None", without_gates: bool = False
) -> str:
    """One line per epoch, within 80 columns; the size is in the target's unit."""
    if without_gates:
        return (
            f"{record.epoch:>4}/{record.epochs} loss {record.loss:.3f} held-out"
            f" {100 * record.hard_error:.1f} % left {clock(seconds_left)}"
        )
    moves = "p settled" if record.settled else f"p moves {record.drift:.3f}"
    if record.trained_share < 1:
        cut = f"cut to {100 * record.trained_share:.0f} %"
        moves = f"{moves} {cut}" if target is None else cut  # with a target p is frozen by then
    return (
        f"{record.epoch:>4}/{record.epochs} loss {record.loss:.3f} held-out"
        f" {100 * record.hard_error:.1f} % (soft {100 * record.soft_error:.1f}) size"
        f" {100 * expected_share(record, target):.0f} % {moves} left {clock(seconds_left)}"
    )


def waiting_line(record: "EpochRecord") -> str:
    """What to do where images come too slowly."""
    return (
        f"note: {percent(record.waited_share)} of epoch {record.epoch} was spent waiting for images"
        " to be decoded; raise --workers up to the cores of this machine, or store smaller images"
    )


def early_notes(first: "EpochRecord", now: "EpochRecord", plan: "FitPlan") -> list[str]:
    """What a tenth of the fit tells of its end, in time to start again."""
    chance = math.log(plan.classes)
    if now.loss >= chance:
        return [
            f"warning: a bad start: after {now.epoch} epochs the loss is {now.loss:.2f}, chance"
            f" level {chance:.2f}; try another --lr, or start from --weights"
        ]
    resumed = now.epoch == first.epoch  # no pace is known yet
    if resumed or plan.target is not None or now.mean_drop < 1e-6:
        return []
    # The rate of p falls: about half of the way is still to come at each epoch's pace.
    pace = (now.expected_share - first.expected_share) / (now.epoch - first.epoch)
    expected = now.expected_share + 0.5 * pace * (now.epochs - now.epoch)
    if expected <= LITTLE_DROPPED:
        return []
    return [
        f"note: {percent(min(1.0, expected))} of the size may stay at the end; name a size to have"
        " more dropped: --target-params 50%"
    ]


def closing_notes(last: "EpochRecord | None", plan: "FitPlan") -> list[str]:
    """What the last epoch should make the user think about, if anything."""
    if last is None:
        return []
    found = []
    if last.hard_error > 0.9 * (1 - 1 / plan.classes):
        found.append(
            f"warning: the mean candidate has {percent(last.hard_error)} held-out error, near"
            f" chance level for {plan.classes} classes; more --epochs, a larger size, or larger"
            " images (--img-size) may help"
        )
    if last.mean_drop < 1e-6:
        return found
    if plan.target is not None:
        share = expected_share(last, plan.target)
        if abs(share - plan.target.share) > 0.02 * plan.target.share:
            found.append(
                f"warning: the mean candidate has {percent(share)} of the size, not"
                f" {percent(plan.target.share)}; lengthen the fit with --epochs, or name a larger"
                " size"
            )
    elif last.expected_share > LITTLE_DROPPED:
        found.append(
            "note: hardly anything is dropped; name a size with --target-params, or raise --l2"
        )
    return found


def fit_summary_lines(summary: "FitSummary") -> list[str]:
    """What a finished fit says of itself."""
    error = "held-out error" if summary.without_gates else "mean held-out error of a candidate"
    return [
        f"trained for {summary.epochs} epochs in {clock(summary.seconds)}; {error}"
        f" {percent(summary.held_out_error)}",
        f"posterior: {summary.run / 'posterior.safetensors'}",
    ]
