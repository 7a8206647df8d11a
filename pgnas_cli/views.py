"""What fit, sample, inflate and backbones say: lines, tables, and the objects of `--json`."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from .console import Terminal, clock, large, percent

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import nn

    from .budget import Target
    from .candidates import Sizes
    from .drawing import Drawn
    from .export import Slim
    from .finetuning import FinetunedEpoch
    from .fitting import FitSummary, Started
    from .inflation import Inflated
    from .registry import Recipe
    from .supernet import LayerGates
    from .training import EpochRecord

    FitEvents = Generator[Started | EpochRecord | FitSummary, None, None]


SILENCE = 60.0  # seconds without a line, where there is no bar


def show_fit(
    terminal: Terminal,
    stage: "Callable[[Callable[[int, int], None]], FitEvents]",
    *,
    verbose: bool = False,
) -> "FitSummary":
    """Draw what the fit stage yields, and return its summary."""
    from .fitting import FitSummary, Started

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


def show_finetuning(
    terminal: Terminal,
    stage: "Callable[[Callable[[int, int], None]], Generator[FinetunedEpoch, None, Slim]]",
) -> "Slim":
    """Draw what the fine-tuning yields, and return what its file says."""
    with terminal.progress() as bar:
        task = bar.add_task("fine-tuning", total=None)
        events = stage(lambda done, steps: bar.update(task, completed=done, total=steps))
        with closing(events):
            while True:
                try:
                    record = next(events)
                except StopIteration as end:
                    found: Slim = end.value
                    return found
                terminal.notice(finetuned_line(record))


def finetuned_line(record: "FinetunedEpoch") -> str:
    """One line per epoch, within 80 columns."""
    held_out = f"held-out {percent(record.held_out_error)}"
    if record.epoch == 0:
        return f"   0/{record.epochs} as it was: {held_out}"
    return (
        f"{record.epoch:>4}/{record.epochs} loss {record.loss:.3f} {held_out} left"
        f" {clock(record.seconds * (record.epochs - record.epoch))}"
    )


def layer_table(layers: "Sequence[LayerGates]") -> Table:
    """Every convolution and linear layer: its gates, or why it has none."""
    table = Table(title="layers in order of execution", title_justify="left")
    table.add_column("layer", overflow="fold")
    for heading in ("inputs", "gates", "groups"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("remark", overflow="fold")
    for row in layers:
        counts = [str(row.gates), str(row.groups)] if row.gates else ["", ""]
        table.add_row(Text(row.layer), str(row.inputs), *counts, Text(row.remark))
    return table


def inflated_table(rows: "Sequence[Inflated]") -> Table:
    """Every convolution of 3x3 or more: its branches, or why it has none."""
    table = Table(title="convolutions in order of execution", title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("kernel", justify="right", no_wrap=True)
    table.add_column("becomes", overflow="fold")
    for row in rows:
        becomes = "\n".join(row.branches) or f"as it is: {row.reason}"
        table.add_row(Text(row.layer), f"{row.kernel}x{row.kernel}", Text(becomes))
    return table


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


def reach_lines(network: "nn.Module") -> list[str]:
    """What sizes the gates can reach, and what the posterior's own candidates have."""
    from .supernet import drop_probabilities
    from .tilting import Tilt

    learned = drop_probabilities(network)
    tilts = {kind: Tilt(network, learned, kind, 0) for kind in ("params", "macs")}
    return [
        f"{what}: the posterior's own mean is {percent(tilts[kind].expected(0.0))}, draws go"
        f" down to about {percent(tilts[kind].reach())}"
        for kind, what in (("params", "parameters"), ("macs", "multiply-adds"))
    ]


def drawn_json(drawn: "Drawn", whole_params: int, whole_macs: int) -> dict[str, Any]:
    """Mean sizes of the drawn candidates, for each budget where there are any."""
    rows = []
    for budget, part in drawn.boards():
        means = {k: float(v.double().mean()) for k, v in vars(drawn.sizes.part(part)).items()}
        rows.append({"budget": None if budget is None else vars(budget), "mean": means})
    found = {"baseline": drawn.baseline, "whole": {"params": whole_params, "macs": whole_macs}}
    return {**found, "mean": rows[0]["mean"]} if not drawn.budgets else {**found, "budgets": rows}


def size_table(
    sizes: "Sizes", whole_params: int, whole_macs: int, budget: "Target | None" = None
) -> Table:
    """Smallest, mean and largest of the drawn candidates."""
    title = "candidates" if budget is None else f"candidates within {budget}"
    table = Table(title=title, title_justify="left")
    for heading in ("", "smallest", "mean", "largest", "whole"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, values, whole in (
        ("parameters, file", sizes.params, whole_params),
        ("parameters, paper's count", sizes.paper_params, whole_params),
        ("multiply-adds", sizes.macs, whole_macs),
    ):
        found = values.double()
        row = [float(found.min()), float(found.mean()), float(found.max()), whole]
        table.add_row(name, *map(large, row))
    return table
