"""`pgnas profile`: measure what candidates cost in time on this device."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import command
from ..registry import admit, full_name
from ..run import FitSettings, settings_of
from ..storage import new_file
from ..units import percent
from . import options
from .options import loading, takes, terminal_of


@takes(FitSettings, only=("img_size", "time_batch", "seed"))
def profile(
    given: dict[str, Any],
    backbone: Annotated[str, typer.Argument(help="A registered name, or timm/NAME.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write, TIMES.json.")],
    channels: Annotated[int, typer.Option(help="Channels of an image: 1 for shades of grey.")] = 3,
    classes: Annotated[int, typer.Option(help="Classes of the head; others may follow.")] = 1000,
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
    settings = settings_of(given)
    backbone = full_name(backbone)
    new_file(output, force)
    with loading(terminal):
        from ..machine import find_machine
        from ..profiling import profiled_backbone, write_table

    machine = find_machine(device, 0)
    table = profiled_backbone(
        backbone, classes=classes, channels=channels, img_size=settings.img_size,
        batch=settings.time_batch, seed=settings.seed, machine=machine,
    )  # fmt: skip
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
    size = () if settings.img_size is None else ("--img-size", settings.img_size)
    fit = command("fit", "--backbone", backbone, *size, "--data", "DIR", "--time-table", output,
                  "--target-time", "60%")  # fmt: skip
    terminal.note(f"next: {fit}")
