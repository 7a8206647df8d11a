"""`pgnas profile`: measure what candidates cost in time on this device."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import PgnasError, command
from ..naming import no_runs
from ..registry import admit, full_name
from ..run import FitSettings, settings_of
from ..storage import new_file
from ..units import percent
from . import options
from .options import loading, takes, terminal_of

if TYPE_CHECKING:
    from ..timing import TimeTable


@takes(
    FitSettings,
    only=("img_size", "time_runtime", "time_batch", "time_threads", "time_precision", "seed"),
)
def profile(
    given: dict[str, Any],
    backbone: Annotated[str, typer.Argument(help="A registered name, or timm/NAME.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write, TIMES.json.")
    ] = None,
    pack: Annotated[
        Path | None,
        typer.Option(help="Write PACK.zip for a device that has onnxruntime alone, measure there."),
    ] = None,
    runs: Annotated[
        Path | None, typer.Option(help="What the script in the pack measured, RUNS.json.")
    ] = None,
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
    written = pack if output is None else output
    if written is None or (pack and (output or runs)):
        raise PgnasError("name one file to write: `output` TIMES.json, or `pack` PACK.zip")
    _check_pack(given if pack else {})
    backbone = full_name(backbone)
    new_file(written, force)
    if runs is not None and not runs.exists():
        raise no_runs(runs)
    with loading(terminal):
        from ..data import placed
        from ..machine import find_machine
        from ..profiling import (
            forward_of,
            gated_backbone,
            profiled,
            table_of_runs,
            write_pack,
            write_table,
        )

    machine, seed = find_machine(device, 0), settings.seed
    network = gated_backbone(
        backbone, classes=classes, channels=channels, img_size=settings.img_size
    )
    size = () if settings.img_size is None else ("--img-size", settings.img_size)
    if pack is not None:
        in_onnx = dataclasses.replace(forward_of(settings), runtime="onnxruntime")
        write_pack(pack, network, in_onnx, seed=seed)
        terminal.result(f"wrote {pack}")
        terminal.note("next, on the device, where onnxruntime and numpy are installed:")
        terminal.note(
            f"  unzip {pack.name} onnx_runs.py && python onnx_runs.py {pack.name} -o RUNS.json"
        )
        named = [word for flag, value, usual in (("--channels", channels, 3), ("--seed", seed, 0))
                 if value != usual for word in (flag, value)]  # fmt: skip
        made = command(
            "profile", backbone, *size, *named, "--runs", "RUNS.json", "-o", "TIMES.json"
        )
        terminal.note(f"then here: {made}")
        return
    if runs is not None:
        table = table_of_runs(runs, network, seed=seed)
    else:
        network = placed(network, machine.device)
        table = profiled(network, forward_of(settings), seed=seed)
    write_table(written, table)
    if as_json:
        terminal.json(table_json(written, table))
    else:
        for line in table_lines(written, table):
            terminal.result(line)
    fit = command("fit", "--backbone", backbone, *size, "--data", "DIR", "--time-table", written,
                  "--target-time", "60%")  # fmt: skip
    terminal.note(f"next: {fit}")


def _check_pack(given: dict[str, Any]) -> None:
    """Raise PgnasError for options of a forward that a pack does not have."""
    if given.get("time_runtime", "onnxruntime") != "onnxruntime":
        raise PgnasError("`pack` is for ONNX Runtime; leave out `time_runtime`")
    if given.get("time_precision", "float32") != "float32":
        raise PgnasError("`pack` computes in float32; leave out `time_precision`")
    if "time_threads" in given:
        raise PgnasError(
            "`time_threads` of a pack are named on the device: python onnx_runs.py --threads N"
        )


def table_json(file: Path, table: "TimeTable") -> dict[str, Any]:
    """What a time table says of itself."""
    names = ("runtime", "device", "threads", "batch", "precision", "error", "worst")
    found = {name: getattr(table, name) for name in names}
    return {"file": str(file), **found, "whole_ms": table.whole}


def table_lines(file: Path, table: "TimeTable") -> list[str]:
    """The same, in sentences."""
    from ..profiling import described

    return [
        f"a forward of the whole network takes {table.whole:.3g} ms ({described(table)},"
        f" {table.device})",
        f"networks that the table was not made from: off by {percent(table.error)} (median),"
        f" {percent(table.worst)} (worst)",
        f"wrote {file}",
    ]
