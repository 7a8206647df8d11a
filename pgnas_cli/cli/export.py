"""Write one candidate as a slim network."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import PgnasError
from ..units import large, percent
from . import options
from .options import run_of, terminal_of, typed_line

if TYPE_CHECKING:
    from ..formats import Slim


def export(
    path: Annotated[Path, typer.Argument(help="FILE.safetensors, or FILE.onnx.")],
    candidate: Annotated[
        str, typer.Option(help="An id, whole, or twin (random, as large); default: the winner.")
    ] = "",
    smallest: Annotated[
        bool,
        typer.Option(
            "--smallest-within-noise", help="The smallest that a test cannot tell from the best."
        ),
    ] = False,
    max_params: Annotated[
        str | None, typer.Option(help="Of several budgets, the one that is meant.")
    ] = None,
    max_macs: Annotated[str | None, typer.Option(help="The same in multiply-adds.")] = None,
    round_to: Annotated[
        int | None,
        typer.Option(help="Make numbers of channels multiples; default: 8 for ONNX, else 1."),
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="Of an ONNX file: small or fast; default: small.")
    ] = None,
    opset: Annotated[int, typer.Option(help="Of an ONNX file.")] = 18,
    run: options.RunFolder = None,
    backbone: options.Function = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write one as a slim network, checked.

    Its logits are compared with those of the masked one.
    """
    if smallest and candidate:
        raise PgnasError("--smallest-within-noise chooses the candidate; leave --candidate out")
    candidate = "smallest" if smallest else candidate
    terminal = terminal_of(quiet)
    where = run_of(run, terminal, backbone)
    from ..exporting import export_stage
    from ..run import remember
    from .machine import device_of, worker_count
    from .rank import watching

    with watching(terminal) as watch:
        about = export_stage(
            where, path, candidate=candidate, max_params=max_params, max_macs=max_macs,
            layout=layout, round_to=round_to, opset=opset,
            force=force, device=device_of(device), workers=worker_count(workers),
            track=terminal.track, notice=terminal.notice, watch=watch,
        )  # fmt: skip
    remember(where, typed_line())
    if as_json:
        fields = dataclasses.asdict(about)
        terminal.json({"file": str(path), **{k: fields[k] for k in fields if k not in
                       ("subject", "cuts")}})  # fmt: skip
    else:
        for line in export_lines(path, about):
            terminal.result(line)
    terminal.notice(f"next: pgnas evaluate {path}")


def export_lines(path: Path, about: "Slim") -> list[str]:
    share, macs = about.params / about.whole_params, about.macs / about.whole_macs
    return [
        f"parameters  {large(about.whole_params)} -> {large(about.params)} ({percent(share)})",
        f"multiply-adds  {large(about.whole_macs)} -> {large(about.macs)} ({percent(macs)})",
        f"held-out error  {percent(about.held_out_errors / about.held_out_images)}"
        f" ({about.held_out_errors} of {about.held_out_images})",
        f"wrote {path} ({path.stat().st_size / 1024:.0f} KiB)",
    ]
