"""`pgnas inflate`: put parallel convolutions into a network."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ..errors import command
from ..registry import Inflation, Start, full_name
from ..storage import check_ending, new_file
from . import options
from .options import loading, terminal_of


def inflate(
    backbone: Annotated[str, typer.Argument(help="A registered name, or timm/NAME.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="SUPERNET.safetensors.")],
    kernels: Annotated[
        str, typer.Option(help="Odd sizes; above 3 with holes: 5 is 3x3 with dilation 2.")
    ] = "1,3,5,9",
    width: Annotated[
        float, typer.Option(help="Outputs of all branches together, in those of the original.")
    ] = 1.0,
    keep_original: Annotated[
        bool,
        typer.Option("--keep-original", help="Keep it beside the branches; the function stays."),
    ] = False,
    pretrained: Annotated[
        bool,
        typer.Option(
            "--pretrained", help="Start from the weights of timm or torchvision, downloaded."
        ),
    ] = False,
    weights: Annotated[
        Path | None, typer.Option(help="Start from a plain state dict, FILE.safetensors.")
    ] = None,
    classes: Annotated[int, typer.Option(help="Classes of the head; a fit replaces it.")] = 1000,
    img_size: Annotated[
        int | None, typer.Option(help="Image size in pixels; default: its own.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the branches' random weights.")] = 0,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Put parallel convolutions into a network.

    The result is a super-network for fit.
    """
    terminal = terminal_of(quiet)
    full_name(backbone)
    check_ending(output, [".safetensors"])
    new_file(output, force)
    with loading(terminal):
        from ..registry.build import inflate as inflated
        from ..registry.inflate import kernels_of

    rows, params = inflated(
        backbone, output, Inflation(kernels_of(kernels), width, keep_original), classes=classes,
        img_size=img_size, start=Start(pretrained, weights, seed), force=force,
    )  # fmt: skip
    if as_json:
        layers = [dataclasses.asdict(row) for row in rows]
        terminal.json({"file": str(output), "params": params, "layers": layers})
    else:
        shown: list[list[str | tuple[str, ...]]] = []
        for row in rows:
            becomes = row.branches or (f"as it is: {row.reason}",)
            shown.append([row.layer, f"{row.kernel}x{row.kernel}", becomes])
        title = "convolutions of 3x3 and more, in order of execution"
        terminal.table(title, ("<layer", "kernel", "<becomes"), shown)
        terminal.result(f"wrote {output} ({params} parameters)")
    terminal.note(f"next: {command('fit', '--backbone', output, '--data', 'DIR')}")
