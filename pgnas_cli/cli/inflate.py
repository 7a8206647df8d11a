"""Put parallel convolutions into a network."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .options import terminal_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from ..registry.inflate import Inflated


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
    pretrained: options.Pretrained = False,
    weights: options.Weights = None,
    classes: Annotated[int, typer.Option(help="Of the head; a fit replaces it.")] = 1000,
    img_size: Annotated[int | None, typer.Option(help="Pixels; default: its own.")] = None,
    seed: Annotated[int, typer.Option(help="Of the branches' random weights.")] = 0,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Put parallel convolutions into a network.

    What comes out is a super-network for fit.
    """
    from ..registry import Inflation
    from ..registry.build import inflate_stage
    from ..registry.inflate import kernels_of

    terminal = terminal_of(quiet)
    rows, params, remarks = inflate_stage(
        backbone, output, Inflation(kernels_of(kernels), width, keep_original),
        classes=classes, size=img_size, pretrained=pretrained, weights=weights, seed=seed,
        force=force,
    )  # fmt: skip
    for remark in remarks:
        terminal.notice(f"note: {remark}")
    if as_json:
        layers = [dataclasses.asdict(row) for row in rows]
        terminal.json({"file": str(output), "params": params, "layers": layers})
    else:
        terminal.out.print(inflated_table(rows))
        terminal.result(f"wrote {output} ({params} parameters)")
    terminal.notice(f"next: pgnas fit --backbone {output} --data DIR")


def inflated_table(rows: "Sequence[Inflated]") -> "Table":
    """Every convolution of 3x3 or more: its branches, or why it has none."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="convolutions in order of execution", title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("kernel", justify="right", no_wrap=True)
    table.add_column("becomes", overflow="fold")
    for row in rows:
        becomes = "\n".join(row.branches) or f"as it is: {row.reason}"
        table.add_row(Text(row.layer), f"{row.kernel}x{row.kernel}", Text(becomes))
    return table
