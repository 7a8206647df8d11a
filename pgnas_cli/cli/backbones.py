"""`pgnas backbones`: list super-networks, or the layers of one."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import PgnasError
from ..registry import LIBRARIES, admit, backbone_names, full_name
from . import options
from .options import loading, terminal_of

if TYPE_CHECKING:
    from .terminal import Terminal


def backbones(
    name: Annotated[str | None, typer.Argument(help="Show every layer of this one.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check that it does what a backbone must.")
    ] = False,
    img_size: Annotated[
        int | None, typer.Option(help="Image size in pixels; default: its own.")
    ] = None,
    gates: Annotated[str, typer.Option(help="all or hidden, as in fit.")] = "all",
    verbose: options.Verbose = False,
    as_json: options.Json = False,
) -> None:
    """List super-networks, or the layers of one.

    Of a layer: its gates, or why it has none.
    """
    terminal = terminal_of(False)
    if name is None:
        names = backbone_names()
        if as_json:
            terminal.json({"backbones": names})
            return
        for found, package in names.items():
            shown = f"{found}/NAME" if found in LIBRARIES else found
            terminal.result(f"{shown}  (from {package})")
        return
    name = full_name(admit(name))
    if check:
        _check(terminal, name, img_size, as_json)
    else:
        _layers(terminal, name, img_size, gates, verbose, as_json)


def _layers(
    terminal: "Terminal", name: str, size: int | None, which: str, verbose: bool, as_json: bool
) -> None:
    """Every convolution and linear layer of a backbone."""
    with loading(terminal):
        from ..gates import gates, layer_gates
        from ..registry.build import create_supernet
        from ..sizes import whole_sizes

    shape = None if size is None else (3, size, size)
    network = create_supernet(name, 1000, layers=which, input_shape=shape)
    rows, bank = layer_gates(network), gates(network)
    sizes = {**whole_sizes(network), "gates": bank.count, "groups": len(bank.groups)}
    if as_json:
        layers = [dataclasses.asdict(row) for row in rows]
        terminal.json({**sizes, "layers": layers, "not_prunable": bank.graph.opaque()})
        return
    shown = [
        [row.layer, str(row.inputs), str(row.gates or ""), str(row.groups if row.gates else ""),
         row.remark]
        for row in rows
    ]  # fmt: skip
    headings = ("<layer", "inputs", "gates", "groups", "<remark")
    terminal.table("layers in order of execution", headings, shown)
    terminal.result(", ".join(f"{number} {what}" for what, number in sizes.items()))
    for step in bank.graph.opaque() if verbose else ():
        terminal.note(f"not prunable: {step}")


def _check(terminal: "Terminal", name: str, size: int | None, as_json: bool) -> None:
    """What a backbone must do, and whether it does."""
    with loading(terminal):
        from ..backbone_check import checks

    found = []
    for row in checks(name, size=size):
        found.append(row)
        if not as_json:
            terminal.result(f"{'ok    ' if row.passed else 'FAILED'} {row.what}: {row.found}")
    if as_json:
        terminal.json({"checks": [dataclasses.asdict(row) for row in found]})
    if not found[-1].passed:
        raise PgnasError(f"backbone '{name}' does not pass; docs/backbones.md has the requirements")
