"""The commands: parse, call a stage, print.

Nothing here imports torch before a command runs, so that `--help` is quick.
"""

import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .errors import Interrupted, PgnasError

if TYPE_CHECKING:
    from .console import Terminal
    from .files import Run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Smaller, better image networks: fit a gated super-network, draw candidates from its"
    " posterior, rank them on held-out images, export the best as it is.",
)


@app.command()
def fit(
    backbone: options.Backbone = None,
    pretrained: options.Pretrained = False,
    weights: options.Weights = None,
    data: options.Data = None,
    run: options.NewRun = None,
    preset: options.Preset = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    img_size: options.ImgSize = None,
    lr: options.LearningRate = None,
    opt: options.Optimizer = None,
    sched: options.Schedule = None,
    min_lr: options.MinLr = None,
    cycle_epochs: options.CycleEpochs = None,
    milestones: options.Milestones = None,
    cutout: options.Cutout = None,
    weight_decay: options.WeightDecay = None,
    l2: options.L2 = None,
    target_params: options.TargetParams = None,
    target_macs: options.TargetMacs = None,
    kl_images: options.KlImages = None,
    initial_drop: options.InitialDrop = None,
    drop_lr: options.DropLr = None,
    warmup_epochs: options.WarmupEpochs = None,
    temperature: options.Temperature = None,
    size_ramp: options.SizeRamp = None,
    freeze: options.Freeze = None,
    sharpen: options.Sharpen = None,
    gates: options.Gates = None,
    groups: options.Groups = None,
    fixed_drop: options.FixedDrop = None,
    constant_l2: options.ConstantL2 = False,
    held_out: options.HeldOut = None,
    skip_corrupt: options.Skip = False,
    data_root: options.DataRoot = None,
    seed: options.Seed = None,
    precision: options.Precision = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    save_minutes: options.SaveMinutes = 5.0,
    resume: options.Resume = False,
    force: options.Force = False,
    verbose: options.Verbose = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fit a super-network: weights and drop probabilities in one training run."""
    from .fitting import fit_stage
    from .machine import device_of, worker_count
    from .registry import admit
    from .settings import fixed_rate, l2_of, milestones_of, run_to_fit
    from .views import fit_summary_lines, show_fit

    terminal = _terminal(quiet)
    recipe = {
        "epochs": epochs, "batch_size": batch_size, "learning_rate": lr, "optimizer": opt,
        "schedule": sched, "min_learning_rate": min_lr, "cycle_epochs": cycle_epochs,
        "milestones": milestones_of(milestones), "cutout": cutout, "weight_decay": weight_decay,
        "l2": l2_of(l2), "kl_images": kl_images,
        "initial_drop": initial_drop, "drop_learning_rate": drop_lr,
        "warmup_epochs": warmup_epochs, "temperature": temperature, "gates": gates,
        "groups": groups, "size_ramp": size_ramp, "freeze": freeze, "sharpen": sharpen,
    }  # fmt: skip
    given: dict[str, Any] = {
        "backbone": admit(backbone) if backbone else None, "pretrained": pretrained or None,
        "weights": None if weights is None else str(weights),
        "data": data, "data_root": data_root, "img_size": img_size,
        "held_out": held_out, "skip_corrupt": skip_corrupt or None,
        "preset": preset, "fixed_drop": fixed_rate(fixed_drop),
        "constant_l2": constant_l2 or None, "target_params": target_params,
        "target_macs": target_macs, "seed": seed,
        "precision": precision,
    }  # fmt: skip
    given = {k: v for k, v in given.items() if v is not None}
    given["recipe"] = {k: v for k, v in recipe.items() if v is not None}
    where, settings = run_to_fit(run, given, resume=resume)
    terminal.notice(f"run: {where.folder}")
    summary = show_fit(
        terminal,
        lambda step: fit_stage(
            where, settings, device=device_of(device), workers=worker_count(workers),
            resume=resume, force=force, save_seconds=60 * save_minutes, track=terminal.track,
            step=step,
        ),
        verbose=verbose,
    )  # fmt: skip
    if as_json:
        terminal.json({**dataclasses.asdict(summary), "run": str(summary.run)})
    else:
        for line in fit_summary_lines(summary):
            terminal.result(line)
    terminal.notice(f"next: pgnas sample --run {where.folder}")


@app.command()
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
    terminal = _terminal(quiet)
    where = _run(run, terminal, backbone)
    from .candidates import parameter_count, whole_macs
    from .drawing import posterior_of, sample_stage
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
    if as_json:
        terminal.json({"run": str(where.folder), "candidates": n, **drawn_json(drawn, *whole)})
    else:
        for budget, rows in drawn.boards():
            terminal.out.print(size_table(drawn.sizes.part(rows), *whole, budget))
    terminal.notice(f"next: pgnas rank --run {where.folder}")


@app.command()
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
    """Find the candidates with the fewest errors on the held-out images.

    The first --top are exact, as if every pair had been evaluated. Interrupted, it goes on where it
    was when called again.
    """
    terminal = _terminal(quiet)
    where = _run(run, terminal, backbone)
    from .leaderboard import rank_stage
    from .machine import device_of, worker_count
    from .views import board_lines, ranked_lines, ranking_json, ranking_table, watching

    with watching(terminal) as watch:
        found = rank_stage(
            where, top=top, exhaustive=exhaustive, recalibrate=recalibrate,
            time_limit=None if time_limit is None else 60 * time_limit,
            device=device_of(device), workers=worker_count(workers), track=terminal.track,
            watch=watch,
        )  # fmt: skip
    if as_json:
        terminal.json(ranking_json(found, top))
    else:
        for board in found.boards:
            terminal.out.print(ranking_table(board, top))
            for line in board_lines(board):
                terminal.notice(line)
    for line in ranked_lines(found):
        terminal.notice(line)
    if found.waiting or len(found.boards[-1].ranking.running):
        terminal.notice(f"next: pgnas rank --run {where.folder}   goes on")
    elif found.boards[0].budget is not None:
        budget = found.boards[0].budget
        terminal.notice(
            f"next: pgnas export best.safetensors --max-{budget.kind} {100 * budget.share:.3g}%"
            f" --run {where.folder}"
        )
    else:
        terminal.notice(f"next: pgnas export best.safetensors --run {where.folder}")


@app.command()
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
    """Write one candidate as a slim network, checked against the masked one."""
    if smallest and candidate:
        raise PgnasError("--smallest-within-noise chooses the candidate; leave --candidate out")
    candidate = "smallest" if smallest else candidate
    terminal = _terminal(quiet)
    where = _run(run, terminal, backbone)
    from .machine import device_of, worker_count
    from .selection import export_stage
    from .views import export_lines, watching

    with watching(terminal) as watch:
        about = export_stage(
            where, path, candidate=candidate, max_params=max_params, max_macs=max_macs,
            layout=layout, round_to=round_to, opset=opset,
            force=force, device=device_of(device), workers=worker_count(workers),
            track=terminal.track, notice=terminal.notice, watch=watch,
        )  # fmt: skip
    if as_json:
        fields = dataclasses.asdict(about)
        terminal.json({"file": str(path), **{k: fields[k] for k in fields if k not in
                       ("subject", "cuts")}})  # fmt: skip
    else:
        for line in export_lines(path, about):
            terminal.result(line)
    terminal.notice(f"next: pgnas evaluate {path}")


@app.command()
def evaluate(
    files: Annotated[list[Path], typer.Argument(help="Exported networks.")],
    data: Annotated[
        str | None, typer.Option(help="Default: the data set named in the file.")
    ] = None,
    backbone: options.Function = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", help="Of the latency.")] = 64,
    data_root: Annotated[Path, typer.Option(help="Where timm's data sets live.")] = Path("data"),
    skip_corrupt: options.Skip = False,
    device: options.Device = "auto",
    workers: options.Workers = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Test error, parameters, multiply-adds and latency of exported networks."""
    terminal = _terminal(quiet)
    if not 1 <= batch_size <= 4096:
        raise PgnasError(f"--batch-size {batch_size} is out of range; possible: 1 to 4096")
    from .evaluation import evaluate_stage
    from .machine import device_of, worker_count
    from .registry import admit
    from .views import evaluation_json, evaluation_table, latency_lines

    admit(backbone or "")
    found = evaluate_stage(
        files, data, data_root=data_root, skip_corrupt=skip_corrupt, batch=batch_size,
        device=device_of(device), workers=worker_count(workers), track=terminal.track,
    )  # fmt: skip
    if as_json:
        terminal.json(evaluation_json(found))
    else:
        terminal.out.print(evaluation_table(found))
        for line in latency_lines(found):
            terminal.result(line)


@app.command()
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
    """Turn convolutions into parallel ones of several sizes: a super-network to fit."""
    from .inflation import Inflation, inflate_stage, kernels_of
    from .registry import admit
    from .views import inflated_table

    terminal = _terminal(quiet)
    rows, params = inflate_stage(
        admit(backbone), output, Inflation(kernels_of(kernels), width, keep_original),
        classes=classes, size=img_size, pretrained=pretrained, weights=weights, seed=seed,
        force=force,
    )  # fmt: skip
    if as_json:
        layers = [dataclasses.asdict(row) for row in rows]
        terminal.json({"file": str(output), "params": params, "layers": layers})
    else:
        terminal.out.print(inflated_table(rows))
        terminal.result(f"wrote {output} ({params} parameters)")
    terminal.notice(f"next: pgnas fit --backbone {output} --data DIR")


@app.command()
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
    """List the registered super-networks, or the layers of one: their gates, or why none."""
    if name is None:
        from .registry import backbone_names

        names = backbone_names()
        if as_json:
            sys.stdout.write(json.dumps({"backbones": names}) + "\n")
            return
        for found, package in names.items():
            shown = "timm/NAME" if found == "timm" else found
            sys.stdout.write(f"{shown}  (from {package})\n")
        return
    from .registry import admit

    admit(name)
    if check:
        _check(name, img_size, as_json)
        return
    from .candidates import parameter_count, whole_macs
    from .supernet import create_supernet, layer_gates
    from .supernet import gates as gates_of
    from .views import layer_table

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
    terminal = _terminal(False)
    terminal.out.print(layer_table(rows))
    terminal.result(", ".join(f"{number} {what}" for what, number in sizes.items()))
    if verbose:
        for step in bank.graph.opaque():
            terminal.notice(f"kept whole: {step}")


def _check(name: str, img_size: int | None, as_json: bool) -> None:
    """Print what a backbone must do, and whether it does."""
    from .contract import checks

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


def _run(folder: Path | None, terminal: "Terminal", backbone: str | None = None) -> "Run":
    from .files import Run, newest_run
    from .registry import admit

    admit(backbone or "")
    if folder is not None:
        return Run(folder)
    run = newest_run(fitted=True)
    terminal.notice(f"run: {run.folder} (the newest; --run names another)")
    return run


def _terminal(quiet: bool) -> "Terminal":
    from .console import Terminal

    return Terminal(quiet=quiet)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a PgnasError becomes one line on stderr and exit status 1."""
    from .console import failure

    for stream in (sys.stdout, sys.stderr):  # names of classes and files may not fit its encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app(arguments)
    except Interrupted as error:
        failure(str(error))
        sys.exit(130)
    except PgnasError as error:
        failure(str(error))
        sys.exit(1)
    except SystemExit as end:
        if end.code == 130:  # typer's own status for an interrupt
            failure("interrupted; nothing was written")
        raise
