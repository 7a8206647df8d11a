"""List super-networks, or the layers of one."""

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import PgnasError
from . import options
from .options import terminal_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from ..gates import LayerGates


def backbones(
    name: Annotated[str | None, typer.Argument(help="Show every layer of this one.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check that it does what a backbone must.")
    ] = False,
    img_size: Annotated[int | None, typer.Option(help="Pixels; default: its own.")] = None,
    gates: Annotated[str, typer.Option(help="all or hidden, as in fit.")] = "all",
    verbose: options.Verbose = False,
    as_json: options.Json = False,
) -> None:
    """List super-networks, or the layers of one.

    Of a layer: its gates, or why it has none.
    """
    if name is None:
        from ..registry import backbone_names

        names = backbone_names()
        if as_json:
            sys.stdout.write(json.dumps({"backbones": names}) + "\n")
            return
        for found, package in names.items():
            shown = "timm/NAME" if found == "timm" else found
            sys.stdout.write(f"{shown}  (from {package})\n")
        return
    from ..registry import admit

    admit(name)
    if check:
        _check(name, img_size, as_json)
        return
    from ..gates import gates as gates_of
    from ..gates import layer_gates
    from ..registry.build import create_supernet
    from ..sizes import parameter_count, whole_macs

    network = create_supernet(
        name, 1000, layers=gates, input_shape=None if img_size is None else (3, img_size, img_size)
    )
    rows, bank = layer_gates(network), gates_of(network)
    sizes = {"params": parameter_count(network), "macs": whole_macs(network),
             "gates": bank.count, "groups": len(bank.groups)}  # fmt: skip
    if as_json:
        layers = [dataclasses.asdict(row) for row in rows]
        sys.stdout.write(
            json.dumps({**sizes, "layers": layers, "whole": bank.graph.opaque()}) + "\n"
        )
        return
    terminal = terminal_of(False)
    terminal.out.print(layer_table(rows))
    terminal.result(", ".join(f"{number} {what}" for what, number in sizes.items()))
    if verbose:
        for step in bank.graph.opaque():
            terminal.notice(f"kept whole: {step}")


def _check(name: str, img_size: int | None, as_json: bool) -> None:
    """Print what a backbone must do, and whether it does."""
    from ..backbone_check import checks

    found = []
    for row in checks(name, size=img_size):
        found.append(row)
        if not as_json:
            sys.stdout.write(f"{'ok    ' if row.passed else 'FAILED'} {row.what}: {row.found}\n")
            sys.stdout.flush()
    if as_json:
        sys.stdout.write(json.dumps({"checks": [dataclasses.asdict(r) for r in found]}) + "\n")
    if not found[-1].passed:
        raise PgnasError(
            f"backbone '{name}' does not pass; see docs/backbones.md for what is asked"
        )


def layer_table(layers: "Sequence[LayerGates]") -> "Table":
    """Every convolution and linear layer: its gates, or why it has none."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="layers in order of execution", title_justify="left")
    table.add_column("layer", overflow="fold")
    for heading in ("inputs", "gates", "groups"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("remark", overflow="fold")
    for row in layers:
        counts = [str(row.gates), str(row.groups)] if row.gates else ["", ""]
        table.add_row(Text(row.layer), str(row.inputs), *counts, Text(row.remark))
    return table
