"""`pgnas export`: write one candidate as a slim network."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import command
from ..run import remember
from ..units import large, named_sizes, percent
from . import options
from .options import loading, run_of, terminal_of, typed_line

if TYPE_CHECKING:
    from ..formats import NetworkInfo


def export(
    path: Annotated[Path, typer.Argument(help="FILE.safetensors, or FILE.onnx.")],
    candidate: Annotated[
        str, typer.Option(help="best, an id, whole, or twin (random, as large).")
    ] = "best",
    max_params: Annotated[
        str | None, typer.Option(help="Of several budgets, the one that is meant.")
    ] = None,
    max_macs: Annotated[str | None, typer.Option(help="The same in MACs.")] = None,
    max_time: Annotated[str | None, typer.Option(help="The same in time.")] = None,
    round_to: Annotated[
        int | None,
        typer.Option(help="Make channel counts multiples; default: 8 for ONNX, else 1."),
    ] = None,
    opset: Annotated[int, typer.Option(help="Operator set of an ONNX file.")] = 18,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="ONNX file for images of any height and width.")
    ] = False,
    data: options.Moved = None,
    run: options.RunFolder = None,
    backbone: options.Function = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write one candidate as a slim network.

    Its logits are checked against those of the masked super-network.
    """
    terminal = terminal_of(quiet)
    named_sizes(params=max_params, macs=max_macs, time=max_time)
    where = run_of(
        run, terminal, lambda named: named.check_export(
            path, round_to=round_to, opset=opset, dynamic_size=dynamic_size, force=force
        ),
    )  # fmt: skip
    with loading(terminal):
        from ..exporting import export as exported
        from ..machine import find_machine

    about = exported(
        path, where, candidate=candidate, max_params=max_params, max_macs=max_macs,
        max_time=max_time, round_to=round_to, opset=opset, dynamic_size=dynamic_size, data=data,
        force=force, machine=find_machine(device, workers),
    )  # fmt: skip
    remember(where, typed_line())
    if as_json:
        fields = dataclasses.asdict(about)
        kept = {k: v for k, v in fields.items() if k not in ("supernet", "cuts")}
        terminal.json({"file": str(path), **kept})
    else:
        for line in export_lines(path, about):
            terminal.result(line)
    terminal.note(f"next: {command('evaluate', path)}")


def export_lines(path: Path, about: "NetworkInfo") -> list[str]:
    """What was written, beside the whole network."""
    share, macs = about.params / about.whole_params, about.macs / about.whole_macs
    return [
        f"parameters  {large(about.whole_params)} -> {large(about.params)} ({percent(share)})",
        f"MACs  {large(about.whole_macs)} -> {large(about.macs)} ({percent(macs)})",
        *time_lines(about),
        f"held-out error  {percent(about.held_out_errors / about.held_out_images)}"
        f" ({about.held_out_errors} of {about.held_out_images})",
        f"wrote {path} ({path.stat().st_size / 1024:.0f} KiB)",
    ]


def time_lines(about: "NetworkInfo") -> list[str]:
    """What the time table of the run predicts, where it has one."""
    time = about.predicted
    if time is None:
        return []
    return [
        f"time, predicted  {time.whole_ms:.3g} -> {time.ms:.3g} ms ({percent(time.share)};"
        f" {time.runtime}, batch {time.batch})"
    ]
