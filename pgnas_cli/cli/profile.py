"""`pgnas profile`: measure what candidates cost in time on this device."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import command
from ..registry import admit
from ..storage import new_file
from ..units import percent
from . import options
from .options import terminal_of


def profile(
    backbone: Annotated[str, typer.Argument(help="A registered name, or timm/NAME.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="TIMES.json.")],
    img_size: Annotated[
        int | None, typer.Option(help="Image size in pixels; default: its own.")
    ] = None,
    classes: Annotated[int, typer.Option(help="Classes of the head.")] = 1000,
    time_batch: Annotated[int, typer.Option(help="Images of a forward.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the networks that are timed.")] = 0,
    device: options.Device = "auto",
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure what candidates cost in time on this device.

    For fit --target-time on another machine, with --time-table.
    """
    terminal = terminal_of(quiet)
    admit(backbone)
    new_file(output, force)
    from ..machine import find_machine
    from ..profiling import profiled_backbone, write_table

    machine = find_machine(device, 0)
    table = profiled_backbone(
        backbone, classes=classes, img_size=img_size, batch=time_batch, seed=seed, machine=machine
    )
    write_table(output, table)
    found = {
        "file": str(output), "device": table.device, "threads": table.threads,
        "batch": table.batch, "whole_ms": table.whole, "error": table.error, "worst": table.worst,
    }  # fmt: skip
    if as_json:
        terminal.json(found)
    else:
        terminal.result(
            f"a forward of the whole network takes {table.whole:.3g} ms ({table.batch} images,"
            f" {table.threads} threads, {table.device})"
        )
        terminal.result(
            f"networks that the table was not made from: off by {percent(table.error)} (median),"
            f" {percent(table.worst)} (worst)"
        )
        terminal.result(f"wrote {output}")
    fit = command("fit", "--backbone", backbone, "--time-table", output, "--target-time", "60%")
    terminal.note(f"next: {fit}")
