"""Test error, size and time of exported networks."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import PgnasError
from ..units import large, percent
from . import options
from .options import terminal_of, typed_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from rich.table import Table

    from ..evaluation import Evaluation
    from ..run import Run


def evaluate(
    files: Annotated[list[Path], typer.Argument(help="Exported networks.")],
    data: Annotated[
        str | None, typer.Option(help="Default: the data set named in the file.")
    ] = None,
    backbone: options.Function = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", help="Of the latency.")] = 64,
    data_root: Annotated[Path, typer.Option(help="Where timm's data sets live.")] = Path("data"),
    run: Annotated[
        Path | None, typer.Option(help="The run to keep the figures in; default: found.")
    ] = None,
    skip_corrupt: options.Skip = False,
    device: options.Device = "auto",
    workers: options.Workers = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Test error, size and time of such networks."""
    terminal = terminal_of(quiet)
    if not 1 <= batch_size <= 4096:
        raise PgnasError(f"--batch-size {batch_size} is out of range; possible: 1 to 4096")
    from ..evaluation import evaluate_stage
    from ..registry import admit
    from .machine import device_of, worker_count

    admit(backbone or "")
    where = device_of(device)
    found = evaluate_stage(
        files, data, data_root=data_root, skip_corrupt=skip_corrupt, batch=batch_size,
        device=where, workers=worker_count(workers), track=terminal.track,
    )  # fmt: skip
    if as_json:
        terminal.json(evaluation_json(found))
    else:
        terminal.out.print(evaluation_table(found))
        for line in latency_lines(found):
            terminal.result(line)
    kept_in = _keep_evaluations(found, run, where)  # whatever comes of that, it has been said
    if kept_in is not None:
        terminal.notice(f"next: pgnas report --run {kept_in.folder}")


def _keep_evaluations(
    found: "list[Evaluation]", named: Path | None, device: "torch.device"
) -> "Run | None":
    """Write what was found into the run that the networks came from, if it is near."""
    from ..evaluation import evaluated, network_names, write_evaluations
    from ..formats import origin
    from ..run import remember

    run = origin([(row.path, row.about) for row in found], named)
    if run is not None:
        names = network_names([row.path for row in found])
        rows = [evaluated(row, name, device) for row, name in zip(found, names, strict=True)]
        write_evaluations(run, rows)
        remember(run, typed_line())
    return run


def evaluation_json(evaluations: "Sequence[Evaluation]") -> dict[str, Any]:
    """One network's figures, or those of several under "networks"."""
    from ..ranking import interval

    rows = [
        {
            "file": str(row.path), "errors": row.score.errors, "images": row.score.images,
            "error": row.score.error, "interval": interval(row.score.errors, row.score.images),
            "params": row.about.params, "macs": row.about.macs, "latency_ms": row.one.slim,
            **{
                name: {"batch": t.batch, "ms": t.slim, "whole_ms": t.whole, "layout": t.layout}
                for name, t in (("latency_one", row.one), ("latency_many", row.many))
            },
        }
        for row in evaluations
    ]  # fmt: skip
    return rows[0] if len(rows) == 1 else {"networks": rows}


def evaluation_table(evaluations: "Sequence[Evaluation]") -> "Table":
    """A row per exported network."""
    from rich.table import Table
    from rich.text import Text

    from ..evaluation import network_names
    from ..ranking import interval

    table = Table(title="test split", title_justify="left")
    table.add_column("network", overflow="fold")
    for heading in (
        "error",
        "95 %",
        "params",
        "MACs",
        "ms at 1",
        f"ms at {evaluations[0].many.batch}",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in zip(
        network_names([row.path for row in evaluations]), evaluations, strict=True
    ):
        low, high = interval(row.score.errors, row.score.images)
        table.add_row(
            Text(name), percent(row.score.error),
            f"{100 * low:.1f}-{100 * high:.1f}", large(row.about.params), large(row.about.macs),
            f"{row.one.slim:.2f}", f"{row.many.slim:.1f}",
        )  # fmt: skip
    return table


def latency_lines(evaluations: "Sequence[Evaluation]") -> list[str]:
    """How each network's time compares with that of the whole network, plainly."""
    from ..evaluation import network_names

    lines = []
    for name, row in zip(
        network_names([row.path for row in evaluations]), evaluations, strict=True
    ):
        for found in (row.one, row.many):
            verdict = "" if found.ratio < 0.95 else ", not faster"
            lines.append(
                f"{name} at batch {found.batch}: {found.ratio:.2f} of the whole's time"
                f" (layout {found.layout}){verdict}"
            )
    return lines
