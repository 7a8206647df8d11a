"""The commands that choose from it: sample, rank, export, evaluate, report.

Nothing here imports torch before a command runs, so that `--help` is quick.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .errors import PgnasError
from .invocation import run_of, terminal_of, typed_line

if TYPE_CHECKING:
    import torch

    from .evaluation import Evaluation
    from .files import Run


def sample(
    n: Annotated[
        int, typer.Option("--n", "-n", help="Number of candidates, for each budget.")
    ] = 1500,
    max_params: Annotated[
        str | None,
        typer.Option(help="Parameters at most: 60%, 10M, or several budgets: 80%,60%,40%."),
    ] = None,
    max_macs: Annotated[str | None, typer.Option(help="The same in multiply-adds.")] = None,
    baseline: Annotated[
        str, typer.Option(help="permuted: learned probabilities dealt out by chance; or fixed.")
    ] = "",
    run: options.Run = None,
    backbone: options.Function = None,
    seed: Annotated[int | None, typer.Option(help="Default: the seed of the fit.")] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw candidates from the posterior."""
    terminal = terminal_of(quiet)
    where = run_of(run, terminal, backbone)
    from .candidates import parameter_count, whole_macs
    from .drawing import posterior_of, sample_stage
    from .records import remember
    from .views import drawn_json, reach_lines, size_table

    network, _ = posterior_of(where)
    whole = parameter_count(network), whole_macs(network)
    if max_params or max_macs:
        for line in reach_lines(network):
            terminal.notice(line)
    drawn = sample_stage(
        where, n, baseline=baseline, seed=seed, max_params=max_params, max_macs=max_macs,
        track=terminal.track,
    )  # fmt: skip
    remember(where, typed_line())
    if as_json:
        terminal.json({"run": str(where.folder), "candidates": n, **drawn_json(drawn, *whole)})
    else:
        for budget, rows in drawn.boards():
            terminal.out.print(size_table(drawn.sizes.part(rows), *whole, budget))
    terminal.notice(f"next: pgnas rank --run {where.folder}")


def rank(
    top: Annotated[int, typer.Option(help="How many of the best to find and show.")] = 10,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Evaluate every candidate on every image.")
    ] = False,
    time_limit: Annotated[
        float | None, typer.Option(help="Minutes; then show the best so far.")
    ] = None,
    recalibrate: Annotated[
        int,
        typer.Option(help="Images for each candidate's own batch-norm statistics; 0: the fit's."),
    ] = 0,
    run: options.Run = None,
    backbone: options.Function = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the best of them on held-out images.

    The first --top are exact, as if every pair had been evaluated. Interrupted, it goes on where it
    was when called again.
    """
    terminal = terminal_of(quiet)
    where = run_of(run, terminal, backbone)
    from .boards import ranked_lines, ranking_json, show_ranking, watching
    from .leaderboard import rank_again, rank_stage
    from .machine import device_of, worker_count
    from .records import remember

    with watching(terminal) as watch:
        found = rank_stage(
            where, top=top, exhaustive=exhaustive, recalibrate=recalibrate,
            time_limit=None if time_limit is None else 60 * time_limit,
            device=device_of(device), workers=worker_count(workers), track=terminal.track,
            watch=watch, notice=terminal.notice,
        )  # fmt: skip
    remember(where, typed_line())
    if as_json:
        terminal.json(ranking_json(found, top))
        for line in ranked_lines(found):
            terminal.notice(line)
    else:
        show_ranking(terminal, found, top, result=True)
    if found.waiting or any(len(board.ranking.running) for board in found.boards):
        again = rank_again(where, top, recalibrate, exhaustive)
        terminal.notice(f"next: {again}   goes on")
    elif found.boards[0].budget is not None:
        budget = found.boards[0].budget
        terminal.notice(
            f"next: pgnas export best.safetensors --max-{budget.kind} {100 * budget.share:.4g}%"
            f" --run {where.folder}"
        )
    else:
        terminal.notice(f"next: pgnas export best.safetensors --run {where.folder}")


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
    run: options.Run = None,
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
    from .boards import export_lines, watching
    from .machine import device_of, worker_count
    from .records import remember
    from .selection import export_stage

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
    from .boards import evaluation_json, evaluation_table, latency_lines
    from .evaluation import evaluate_stage
    from .machine import device_of, worker_count
    from .registry import admit

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
    from .boards import network_names
    from .records import evaluated, origin, remember, write_evaluations

    run = origin([(row.path, row.about) for row in found], named)
    if run is not None:
        names = network_names([row.path for row in found])
        rows = [evaluated(row, name, device) for row, name in zip(found, names, strict=True)]
        write_evaluations(run, rows)
        remember(run, typed_line())
    return run


def report(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Runs side by side; default: the newest.")
    ] = None,
    run: options.Run = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: report.html in the run.")
    ] = None,
    backbone: options.Function = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show a run as a page, or several in a row.

    Made from the files of the runs alone.
    """
    terminal = terminal_of(quiet)
    from .files import Run
    from .page import report_stage
    from .registry import admit

    if runs and run is not None:
        raise PgnasError("name the runs with --run or without, not both")
    admit(backbone or "")
    where = [Run(folder) for folder in runs] if runs else [run_of(run, terminal)]
    path = output or (where[0].report if len(where) == 1 else Path("report.html"))
    terminal.notice(f"reading {', '.join(str(one.folder) for one in where)}")
    report_stage(where, path)
    if as_json:
        terminal.json({"file": str(path), "runs": [str(one.folder) for one in where]})
    else:
        terminal.result(
            f"wrote {path} ({path.stat().st_size / 1024:.0f} KiB); open it in a browser"
        )
