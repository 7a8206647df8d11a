"""`pgnas finetune`: train an exported network further."""

from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import command
from ..run import Run, remember
from ..storage import safetensors_header
from ..units import clock, percent
from . import options
from .export import export_lines
from .options import loading, terminal_of, typed_line

if TYPE_CHECKING:
    from ..formats import NetworkInfo
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
    epochs: Annotated[int, typer.Option(help="Passes over the training images of the fit.")] = 5,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate; default: a tenth of the fit's.")
    ] = None,
    data: options.Moved = None,
    backbone: options.Function = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    save_minutes: options.SaveMinutes = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train an exported network further.

    On the training images of its fit. An interrupted fine-tuning is resumed by the same command.
    """
    terminal = terminal_of(quiet)
    safetensors_header(file)
    with loading(terminal):
        from ..formats import origin
        from ..machine import find_machine
        from ..training import finetune_events, finetuned_path

    path = output or finetuned_path(file)
    named = None if run is None else Run(run)
    about = show_finetuning(
        terminal,
        finetune_events(
            file, path, named, epochs=epochs, lr=lr, data=data, force=force,
            save_minutes=save_minutes, machine=find_machine(device, workers),
        ),
    )  # fmt: skip
    home = origin([path, file], {about.made_from}, named)
    assert home is not None, "the fine-tuning had one"
    remember(home, typed_line())
    if as_json:
        terminal.json({"file": str(path), "held_out_errors": about.held_out_errors,
                       "held_out_images": about.held_out_images, "params": about.params,
                       "finetuned_epochs": about.finetuned_epochs})  # fmt: skip
    else:
        for line in export_lines(path, about):
            terminal.result(line)
    terminal.note(f"next: {command('evaluate', path)}")


def show_finetuning(
    terminal: "Terminal", events: "Generator[FinetunedEpoch, None, NetworkInfo]"
) -> "NetworkInfo":
    """Show what the fine-tuning yields, and return what its file says."""
    with closing(events):
        while True:
            try:
                record = next(events)
            except StopIteration as end:
                found: NetworkInfo = end.value
                return found
            terminal.note(finetuned_line(record))


def finetuned_line(record: "FinetunedEpoch") -> str:
    """One line per epoch, within 80 columns."""
    held_out = f"held-out {percent(record.held_out_error)}"
    if record.epoch == 0:
        return f"   0/{record.epochs} as it was: {held_out}"
    return (
        f"{record.epoch:>4}/{record.epochs} loss {record.loss:.3f} {held_out} left"
        f" {clock(record.seconds * (record.epochs - record.epoch))}"
    )
