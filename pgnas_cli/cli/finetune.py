"""Train an exported network further."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..units import clock, percent
from . import options
from .options import terminal_of, typed_line

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from ..formats import Slim
    from ..training import FinetunedEpoch
    from .terminal import Terminal


def finetune(
    file: Annotated[Path, typer.Argument(help="An exported network, FILE.safetensors.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: FILE-finetuned.safetensors.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="The run it came from; default: found.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the images of the fit.")] = 5,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate; default: a tenth of the fit's.")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="An exported network to imitate, say the whole one.")
    ] = None,
    teacher_weight: Annotated[float, typer.Option(help="Its share of the loss, 0 to 1.")] = 0.5,
    backbone: options.Function = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    save_minutes: options.SaveMinutes = 5.0,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train an exported network further.

    On the images of its fit; interrupted, the same line goes on.
    """
    terminal = terminal_of(quiet)
    from ..formats import origin
    from ..registry import admit
    from ..run import remember
    from ..training import finetune_stage
    from .export import export_lines
    from .machine import device_of, worker_count

    admit(backbone or "")
    path = output or file.with_name(f"{file.stem}-finetuned.safetensors")
    about = show_finetuning(
        terminal,
        lambda step: finetune_stage(
            file, path, run, epochs=epochs, learning_rate=lr, teacher=teacher,
            teacher_weight=teacher_weight, force=force, device=device_of(device),
            workers=worker_count(workers), save_seconds=60 * save_minutes, track=terminal.track,
            step=step,
        ),
    )  # fmt: skip
    where = origin([(path, about), (file, about)], run)
    assert where is not None, "the fine-tuning had one"
    remember(where, typed_line())
    if as_json:
        terminal.json({"file": str(path), "held_out_errors": about.held_out_errors,
                       "held_out_images": about.held_out_images, "params": about.params,
                       "finetuned_epochs": about.finetuned_epochs})  # fmt: skip
    else:
        for line in export_lines(path, about):
            terminal.result(line)
    terminal.notice(f"next: pgnas evaluate {path}")


def show_finetuning(
    terminal: "Terminal",
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
