"""`pgnas evaluate`: test error, size and time of exported networks."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import PgnasError, command
from ..fields import check_range
from ..naming import MOST_TIMED, check_data_name
from ..run import Run, remember
from ..storage import check_network_file
from ..units import large, pace
from . import options
from .options import loading, terminal_of, typed_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..evaluation import Evaluation
    from ..latency import Latency
    from .terminal import Terminal


def evaluate(
    files: Annotated[list[Path], typer.Argument(help="Exported networks.")],
    data: Annotated[str | None, typer.Option(help="Default: that of the fit.")] = None,
    backbone: options.Function = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", "-b", help="Batch size of the second latency.")
    ] = 64,
    data_root: options.DataRoot = Path("data"),
    run: Annotated[
        Path | None, typer.Option(help="The run to keep the figures in; default: found.")
    ] = None,
    tables: Annotated[
        Path | None,
        typer.Option(
            "--csv", metavar="DIR", help="Write confusion.csv and mistakes.csv there as well."
        ),
    ] = None,
    skip_corrupt: options.Skip = False,
    precision: options.Precision = "float32",
    device: options.Device = "auto",
    workers: options.Workers = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure test error, size and time.

    Of exported networks, each beside the original network. The confusion matrix and the mistakes
    are kept in the run, as JSON and as CSV.
    """
    terminal = terminal_of(quiet)
    check_range("batch_size", batch_size, 1, MOST_TIMED)
    for file in files:
        check_network_file(file)
    if data is not None:
        check_data_name(data)
    if tables is not None and tables.exists() and not tables.is_dir():
        raise PgnasError(f"'{tables}' is no folder; `csv` takes one, for two files")
    with loading(terminal):
        from ..evaluation import evaluate as evaluated
        from ..evaluation import write_evaluations, write_tables
        from ..formats import origin
        from ..machine import find_machine

    named = None if run is None else Run(run)
    found = evaluated(
        files, data, run=named, data_root=data_root, skip_corrupt=skip_corrupt,
        batch_size=batch_size, precision=precision, machine=find_machine(device, workers),
    )  # fmt: skip
    home = None
    try:  # what is read from stdout may end it, and what cannot be written does not take the result
        home = origin(files, {row.made_from for row in found}, named)
        if home is not None:
            write_evaluations(home, found)
            remember(home, typed_line())
        if tables is not None:
            write_tables(tables, found)
    finally:
        if as_json:
            terminal.json(evaluation_json(files, found))
        else:
            show_evaluations(terminal, found)
            show_latencies(terminal, found)
    if tables is not None:
        terminal.note(f"wrote confusion.csv and mistakes.csv into {tables}")
    if home is not None:
        terminal.note(f"next: {command('report', '--run', home.folder)}")
    elif data is not None and Path(data).is_dir():
        terminal.note(f"next: {command('predict', files[0], data)}")


def evaluation_json(files: "Sequence[Path]", found: "Sequence[Evaluation]") -> dict[str, Any]:
    """One network's figures, or those of several under "networks"."""
    from ..ranking import interval

    rows = [
        {
            "file": str(path), "errors": row.errors, "images": row.images, "error": row.error,
            "interval": interval(row.errors, row.images), **_top5_json(row),
            "params": row.params, "macs": row.macs, "latency_ms": row.one.slim,
            **{name: _latency_json(time) for name, time in timed(row) if time},
            **({"calibration_error": row.answers.calibration_error} if row.answers else {}),
            **({"predicted": dataclasses.asdict(row.predicted)} if row.predicted else {}),
        }
        for path, row in zip(files, found, strict=True)
    ]  # fmt: skip
    return rows[0] if len(rows) == 1 else {"networks": rows}


def timed(row: "Evaluation") -> "list[tuple[str, Latency | None]]":
    """The times of a network, by their names in JSON."""
    return [
        ("latency_one", row.one), ("latency_many", row.many),
        ("latency_onnx_one", row.onnx_one), ("latency_onnx_many", row.onnx_many),
    ]  # fmt: skip


def _latency_json(time: "Latency") -> dict[str, Any]:
    return {
        "batch": time.batch, "ms": time.slim, "whole_ms": time.whole, "layout": time.layout,
        "ratio": time.ratio, "low": time.low, "high": time.high,
        "images_per_second": time.throughput,
    }  # fmt: skip


def _top5_json(row: "Evaluation") -> dict[str, Any]:
    """The top-5 error, where there are more than ten classes."""
    from ..ranking import interval

    if row.top5_errors is None:
        return {}
    return {
        "top5_errors": row.top5_errors, "top5_error": row.top5_errors / row.images,
        "top5_interval": interval(row.top5_errors, row.images),
    }  # fmt: skip


def show_evaluations(terminal: "Terminal", found: "Sequence[Evaluation]") -> None:
    """A row per exported network, and one of its top-5 error where it has one."""
    from ..ranking import error_cells

    many = f"ms at {found[0].many.batch}"
    rows = []
    for row in found:
        rows.append([
            row.name, *error_cells(row.errors, row.images), large(row.params), large(row.macs),
            f"{row.one.slim:.2f}", f"{row.many.slim:.1f}",
        ])  # fmt: skip
        if row.top5_errors is not None:
            rows.append(["  top-5", *error_cells(row.top5_errors, row.images), *4 * [""]])
    headings = ("<network", "error", "95 %", "params", "MACs", "ms at 1", many)
    terminal.table("test split", headings, rows)


def show_latencies(terminal: "Terminal", found: "Sequence[Evaluation]") -> None:
    """A row for each network, runtime and batch, beside the whole network."""
    rows = []
    for row in found:
        for name, time in timed(row):
            if time:
                spread = "" if time.low is None else f"{time.low:.2f} to {time.high:.2f}"
                rows.append([
                    row.name,
                    f"{'ONNX' if 'onnx' in f'{name} {time.layout}' else 'torch'}, {time.batch}",
                    f"{time.slim:.3g}", pace(time.throughput),
                    f"{time.ratio:.2f}", spread, "" if time.faster else "not faster",
                ])  # fmt: skip
    headings = ("<network", "<in, batch", "ms", "images/s", "ratio", "middle half", "<")
    terminal.table("time, beside the whole network", headings, rows)
    for row in found:
        if row.predicted is not None:
            of = row.predicted
            terminal.result(
                f"{row.name}: predicted were {of.ms:.3g} ms, {of.share:.2f} of the whole's"
                f" ({of.runtime}, batch {of.batch})"
            )
