"""The commands that train, and those about what is trained: fit, finetune, inflate, backbones.

Nothing here imports torch before a command runs, so that `--help` is quick.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options
from .errors import PgnasError
from .invocation import remembering, terminal_of, typed_line


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
    cycle_factor: options.CycleFactor = None,
    milestones: options.Milestones = None,
    momentum: options.Momentum = None,
    auxiliary_weight: options.AuxiliaryWeight = None,
    operation_cost: options.OperationCost = None,
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
    probe: options.Probe = None,
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
    tensorboard: options.TensorBoard = None,
    resume: options.Resume = False,
    force: options.Force = False,
    verbose: options.Verbose = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Learn weights and drop probabilities at once."""
    from .fitting import fit_stage
    from .machine import device_of, worker_count
    from .metrics import with_tensorboard
    from .registry import admit
    from .settings import fixed_rate, l2_of, milestones_of, run_to_fit
    from .views import fit_summary_lines, show_fit

    terminal = terminal_of(quiet)
    where_to_work = device_of(device)
    recipe = {
        "epochs": epochs, "batch_size": batch_size, "learning_rate": lr, "optimizer": opt,
        "schedule": sched, "min_learning_rate": min_lr, "cycle_epochs": cycle_epochs,
        "milestones": milestones_of(milestones), "cutout": cutout, "weight_decay": weight_decay,
        "cycle_factor": cycle_factor, "momentum": momentum, "auxiliary_weight": auxiliary_weight,
        "operation_cost": operation_cost, "l2": l2_of(l2), "kl_images": kl_images,
        "initial_drop": initial_drop, "drop_learning_rate": drop_lr,
        "warmup_epochs": warmup_epochs, "temperature": temperature, "gates": gates,
        "groups": groups, "size_ramp": size_ramp, "freeze": freeze, "sharpen": sharpen,
        "probe": probe,
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
    if l2 == "auto":
        given["recipe"]["l2"] = None  # also where a preset has one
    where, settings = run_to_fit(run, given, resume=resume)
    terminal.notice(f"run: {where.folder}")
    summary = show_fit(
        terminal,
        lambda step: remembering(where, with_tensorboard(tensorboard, where, fit_stage(
            where, settings, device=where_to_work, workers=worker_count(workers),
            resume=resume, force=force, save_seconds=60 * save_minutes, track=terminal.track,
            step=step,
        ))),
        verbose=verbose,
    )  # fmt: skip
    if as_json:
        terminal.json({**dataclasses.asdict(summary), "run": str(summary.run)})
    else:
        for line in fit_summary_lines(summary):
            terminal.result(line)
    terminal.notice(f"next: pgnas sample --run {where.folder}")


def finetune(
    file: Annotated[Path, typer.Argument(help="An exported network, FILE.safetensors.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: FILE-finetuned.safetensors.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="The run it came from; default: found.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the images of the fit.")] = 5,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate; default: a tenth of the fit's.")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="An exported network to imitate, say the whole one.")
    ] = None,
    teacher_weight: Annotated[float, typer.Option(help="Its share of the loss, 0 to 1.")] = 0.5,
    backbone: options.Function = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    save_minutes: options.SaveMinutes = 5.0,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train an exported network further.

    On the images of its fit; interrupted, the same line goes on.
    """
    terminal = terminal_of(quiet)
    from .boards import export_lines
    from .finetuning import finetune_stage
    from .machine import device_of, worker_count
    from .records import origin, remember
    from .registry import admit
    from .views import show_finetuning

    admit(backbone or "")
    path = output or file.with_name(f"{file.stem}-finetuned.safetensors")
    about = show_finetuning(
        terminal,
        lambda step: finetune_stage(
            file, path, run, epochs=epochs, learning_rate=lr, teacher=teacher,
            teacher_weight=teacher_weight, force=force, device=device_of(device),
            workers=worker_count(workers), save_seconds=60 * save_minutes, track=terminal.track,
            step=step,
        ),
    )  # fmt: skip
    where = origin([(path, about), (file, about)], run)
    assert where is not None, "the fine-tuning had one"
    remember(where, typed_line())
    if as_json:
        terminal.json({"file": str(path), "held_out_errors": about.held_out_errors,
                       "held_out_images": about.held_out_images, "params": about.params,
                       "finetuned_epochs": about.finetuned_epochs})  # fmt: skip
    else:
        for line in export_lines(path, about):
            terminal.result(line)
    terminal.notice(f"next: pgnas evaluate {path}")


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
    from .inflation import Inflation, inflate_stage, kernels_of
    from .views import inflated_table

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
    terminal = terminal_of(False)
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
