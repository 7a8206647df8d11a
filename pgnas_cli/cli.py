"""The commands: parse, call a stage, print. The only user of typer.

Nothing here imports torch before a command runs, so that `--help` is quick.
"""

import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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

RunOption = Annotated[
    Path | None, typer.Option("--run", help="Run directory; default: the newest in runs/.")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", "-j", help="Processes that decode photos.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
SkipOption = Annotated[
    bool, typer.Option("--skip-corrupt", help="Leave out files that do not decode.")
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Name what the analysis keeps whole.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only results and errors.")]


@app.command()
def fit(
    backbone: Annotated[
        str | None, typer.Option("--backbone", "--model", help="Super-network; see backbones.")
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Start from timm's weights, downloaded by timm.")
    ] = False,
    weights: Annotated[
        Path | None, typer.Option(help="Start from a plain state dict, FILE.safetensors.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="digits, a folder with train/ and val/, or a timm name (torch/cifar10)."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run directory; default: runs/<backbone>-<date>-<time>.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="paper: its gates and objective alone.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", "-b")] = None,
    img_size: Annotated[
        int | None, typer.Option(help="Pixels; default: as is, photos 224.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the weights.")] = None,
    opt: Annotated[str | None, typer.Option(help="Optimizer of the weights, a timm name.")] = None,
    sched: Annotated[str | None, typer.Option(help="Schedule, a timm name.")] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="What --l2 auto amounts to at the start.")
    ] = None,
    l2: Annotated[str | None, typer.Option(help="Prior strength (Table 4), or auto.")] = None,
    target_params: Annotated[
        str | None, typer.Option(help="Mean size of the candidates: 60%, or 10M parameters.")
    ] = None,
    target_macs: Annotated[
        str | None, typer.Option(help="The same in multiply-adds: 60%, or 2G.")
    ] = None,
    kl_images: Annotated[
        float | None, typer.Option(help="N of Eq. 15; default: 10 x images, at least 500000.")
    ] = None,
    initial_drop: Annotated[
        float | None, typer.Option(help="Drop probability at the start.")
    ] = None,
    drop_lr: Annotated[float | None, typer.Option(help="Adam's rate on the drop logits.")] = None,
    warmup_epochs: Annotated[
        float | None, typer.Option(help="Epochs in which only the weights learn.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the relaxed gates.")] = None,
    size_ramp: Annotated[
        float | None, typer.Option(help="Share of the fit that shrinks to the target.")
    ] = None,
    freeze: Annotated[
        float | None, typer.Option(help="With a target: share of the fit in which p learns.")
    ] = None,
    sharpen: Annotated[
        float | None, typer.Option(help="With a target: factor that drives p to 0 and 1.")
    ] = None,
    gates: Annotated[
        str | None,
        typer.Option(help="all, or hidden: only channels that die with their one reader."),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(help="Gates with a common p: layer, channel, or a number of channels."),
    ] = None,
    fixed_drop: Annotated[
        str | None,
        typer.Option(help="One drop probability for all; or a run, for candidates as large."),
    ] = None,
    constant_l2: Annotated[
        bool, typer.Option("--constant-l2", help="l2 without its factor 1-p (Table 2).")
    ] = False,
    held_out: Annotated[
        float | None, typer.Option(help="Share of the training images kept for ranking.")
    ] = None,
    skip_corrupt: SkipOption = False,
    data_root: Annotated[str | None, typer.Option(help="Where timm's data sets live.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of every draw.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16.")] = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    save_minutes: Annotated[float, typer.Option(help="Between two checkpoints.")] = 5.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished fit.")] = False,
    force: ForceOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fit a super-network: weights and drop probabilities in one training run."""
    from .console import fit_summary_lines, show_fit
    from .fitting import fit_stage
    from .machine import device_of, worker_count
    from .settings import fixed_rate, l2_of, run_to_fit

    terminal = _terminal(quiet)
    recipe = {
        "epochs": epochs, "batch_size": batch_size, "learning_rate": lr, "optimizer": opt,
        "schedule": sched, "weight_decay": weight_decay, "l2": l2_of(l2), "kl_images": kl_images,
        "initial_drop": initial_drop, "drop_learning_rate": drop_lr,
        "warmup_epochs": warmup_epochs, "temperature": temperature, "gates": gates,
        "groups": groups, "size_ramp": size_ramp, "freeze": freeze, "sharpen": sharpen,
    }  # fmt: skip
    given: dict[str, Any] = {
        "backbone": backbone, "pretrained": pretrained or None,
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
    n: Annotated[int, typer.Option("--n", "-n", help="Number of candidates.")] = 1500,
    baseline: Annotated[
        str, typer.Option(help="permuted: learned probabilities dealt out by chance; or fixed.")
    ] = "",
    run: RunOption = None,
    seed: Annotated[int | None, typer.Option(help="Default: the seed of the fit.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Draw candidates from the posterior."""
    terminal = _terminal(quiet)
    where = _run(run, terminal)
    from .candidates import parameter_count, whole_macs
    from .console import size_table
    from .selection import posterior_of, sample_stage

    drawn = sample_stage(where, n, baseline, seed)
    network, _ = posterior_of(where)
    whole = parameter_count(network), whole_macs(network)
    if as_json:
        means = {k: float(v.double().mean()) for k, v in vars(drawn.sizes).items()}
        terminal.json(
            {"run": str(where.folder), "candidates": n, "baseline": baseline, "mean": means,
             "whole": {"params": whole[0], "macs": whole[1]}}
        )  # fmt: skip
    else:
        terminal.out.print(size_table(drawn.sizes, *whole))
    terminal.notice(f"next: pgnas rank --run {where.folder}")


@app.command()
def rank(
    top: Annotated[int, typer.Option(help="Candidates to show.")] = 10,
    run: RunOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Rank the candidates by their errors on the held-out images."""
    terminal = _terminal(quiet)
    where = _run(run, terminal)
    from .console import ranking_json, ranking_table
    from .machine import device_of, worker_count
    from .selection import rank_stage

    ranking, seconds = rank_stage(
        where, device=device_of(device), workers=worker_count(workers), track=terminal.track
    )
    if as_json:
        terminal.json(ranking_json(ranking, max(0, top), seconds))
    else:
        terminal.out.print(ranking_table(ranking, max(0, top)))
    terminal.notice(f"next: pgnas export best.safetensors --run {where.folder}")


@app.command()
def export(
    path: Annotated[Path, typer.Argument(help="FILE.safetensors, or FILE.onnx.")],
    candidate: Annotated[
        str, typer.Option(help="An id, whole, or twin (random, as large); default: the winner.")
    ] = "",
    round_to: Annotated[
        int | None,
        typer.Option(help="Make numbers of channels multiples; default: 8 for ONNX, else 1."),
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="Of an ONNX file: small or fast; default: small.")
    ] = None,
    opset: Annotated[int, typer.Option(help="Of an ONNX file.")] = 18,
    run: RunOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write one candidate as a slim network, checked against the masked one."""
    terminal = _terminal(quiet)
    where = _run(run, terminal)
    from .console import export_lines
    from .machine import device_of, worker_count
    from .selection import export_stage

    about = export_stage(
        where, path, candidate=candidate, layout=layout, round_to=round_to, opset=opset,
        force=force, device=device_of(device), workers=worker_count(workers),
        track=terminal.track, notice=terminal.notice,
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
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", help="Of the latency.")] = 64,
    data_root: Annotated[Path, typer.Option(help="Where timm's data sets live.")] = Path("data"),
    skip_corrupt: SkipOption = False,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Test error, parameters, multiply-adds and latency of exported networks."""
    terminal = _terminal(quiet)
    if not 1 <= batch_size <= 4096:
        raise PgnasError(f"--batch-size {batch_size} is out of range; possible: 1 to 4096")
    from .console import evaluation_json, evaluation_table, latency_lines
    from .evaluation import evaluate_stage
    from .machine import device_of, worker_count

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
def backbones(
    name: Annotated[str | None, typer.Argument(help="Show every layer of this one.")] = None,
    img_size: Annotated[int | None, typer.Option(help="Pixels; default: its own.")] = None,
    gates: Annotated[str, typer.Option(help="all or hidden, as in fit.")] = "all",
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
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
    from .candidates import parameter_count, whole_macs
    from .console import layer_table
    from .supernet import create_supernet, layer_gates
    from .supernet import gates as gates_of

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


def _run(folder: Path | None, terminal: "Terminal") -> "Run":
    from .files import Run, newest_run

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
