"""The options that commands share, and what they need to know of the line that was typed."""

import shlex
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..run import Run
    from .terminal import Terminal

RunFolder = Annotated[
    Path | None, typer.Option("--run", help="Run directory; default: the newest in runs/.")
]

Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")]

Function = Annotated[
    str | None,
    typer.Option("--backbone", help="module:function, where the fit was given one."),
]

Workers = Annotated[
    int | None, typer.Option("--workers", "-j", help="Processes that decode photos.")
]

Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]

Skip = Annotated[bool, typer.Option("--skip-corrupt", help="Leave out files that do not decode.")]

Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Name what the analysis keeps whole.")
]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only results and errors.")]

Backbone = Annotated[
    str | None,
    typer.Option(
        "--backbone", "--model", help="Super-network: see backbones; or FILE, module:function."
    ),
]

Pretrained = Annotated[
    bool, typer.Option("--pretrained", help="Start from timm's weights, downloaded by timm.")
]

Weights = Annotated[
    Path | None, typer.Option(help="Start from a plain state dict, FILE.safetensors.")
]

Data = Annotated[
    str | None,
    typer.Option(help="digits, a folder with train/ and val/, or a timm name (torch/cifar10)."),
]

NewRun = Annotated[
    Path | None, typer.Option(help="Run directory; default: runs/<backbone>-<date>-<time>.")
]

Preset = Annotated[
    str | None,
    typer.Option(help="published: the backbone's recipe in the paper; paper: its gates alone."),
]

Epochs = Annotated[int | None, typer.Option(help="Passes over the images.")]

BatchSize = Annotated[int | None, typer.Option("--batch-size", "-b")]

ImgSize = Annotated[int | None, typer.Option(help="Pixels; default: as is, photos 224.")]

LearningRate = Annotated[float | None, typer.Option(help="Learning rate of the weights.")]

Optimizer = Annotated[str | None, typer.Option(help="Optimizer of the weights, a timm name.")]

Schedule = Annotated[str | None, typer.Option(help="Schedule, a timm name.")]

MinLr = Annotated[float | None, typer.Option(help="Learning rate at the end of the schedule.")]

CycleEpochs = Annotated[
    int | None, typer.Option(help="First cycle of a cosine with warm restarts; later ones grow.")
]

CycleFactor = Annotated[
    float | None, typer.Option(help="Length of each later cycle, in lengths of the one before.")
]

Momentum = Annotated[float | None, typer.Option(help="Of the optimizer of the weights.")]

AuxiliaryWeight = Annotated[
    float | None, typer.Option(help="Of the loss of an auxiliary head, where there is one.")
]

OperationCost = Annotated[
    float | None, typer.Option(help="Prior cost of a gated pool or skip, in squared weights.")
]

Milestones = Annotated[
    str | None, typer.Option(help="Epochs at which --sched multistep divides the rate by ten.")
]

Cutout = Annotated[int | None, typer.Option(help="Pixels of the square blanked out; small images.")]

WeightDecay = Annotated[float | None, typer.Option(help="What --l2 auto amounts to at the start.")]

L2 = Annotated[str | None, typer.Option(help="Prior strength (Table 4), or auto.")]

TargetParams = Annotated[
    str | None, typer.Option(help="Mean size of the candidates: 60%, or 10M parameters.")
]

TargetMacs = Annotated[str | None, typer.Option(help="The same in multiply-adds: 60%, or 2G.")]

KlImages = Annotated[
    float | None, typer.Option(help="N of Eq. 15; default: 10 x images, at least 500000.")
]

InitialDrop = Annotated[float | None, typer.Option(help="Drop probability at the start.")]

DropLr = Annotated[float | None, typer.Option(help="Adam's rate on the drop logits.")]

WarmupEpochs = Annotated[float | None, typer.Option(help="Epochs in which only the weights learn.")]

Temperature = Annotated[float | None, typer.Option(help="Of the relaxed gates.")]

SizeRamp = Annotated[
    float | None, typer.Option(help="Share of the fit that shrinks to the target.")
]

Freeze = Annotated[
    float | None, typer.Option(help="With a target: share of the fit in which p learns.")
]

Sharpen = Annotated[
    float | None, typer.Option(help="With a target: factor that drives p to 0 and 1.")
]

Gates = Annotated[
    str | None,
    typer.Option(
        help="all, or hidden: only channels that die with their one reader; +operations: pools too."
    ),
]

Groups = Annotated[
    str | None, typer.Option(help="Gates with a common p: layer, channel, or a number of channels.")
]

Probe = Annotated[
    bool | None,
    typer.Option(help="Whether a new head on trained weights starts as a linear probe of them."),
]

FixedDrop = Annotated[
    str | None,
    typer.Option(help="One drop probability for all; or a run, for candidates as large."),
]

ConstantL2 = Annotated[
    bool, typer.Option("--constant-l2", help="l2 without its factor 1-p (Table 2).")
]

HeldOut = Annotated[
    float | None, typer.Option(help="Share of the training images kept for ranking.")
]

DataRoot = Annotated[str | None, typer.Option(help="Where timm's data sets live.")]

Seed = Annotated[int | None, typer.Option(help="Of every draw.")]

Precision = Annotated[str | None, typer.Option(help="float32 or bfloat16.")]

SaveMinutes = Annotated[float, typer.Option(help="Between two checkpoints.")]

TensorBoard = Annotated[
    Path | None, typer.Option("--tensorboard", help="Folder; writes every epoch for TensorBoard.")
]

Resume = Annotated[bool, typer.Option("--resume", help="Go on with an unfinished fit.")]

typed: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())  # after the word pgnas


def typed_line() -> str:
    """The command line as it can be typed again."""
    return shlex.join(["pgnas", *typed.get()])


def run_of(folder: Path | None, terminal: "Terminal", backbone: str | None = None) -> "Run":
    """The named run or the newest; `backbone` is a function that its files may name."""
    from ..registry import admit
    from ..run import Run, newest_run

    admit(backbone or "")
    if folder is not None:
        return Run(folder)
    run = newest_run(fitted=True)
    terminal.notice(f"run: {run.folder} (the newest; --run names another)")
    return run


def terminal_of(quiet: bool) -> "Terminal":
    from .terminal import Terminal

    return Terminal(quiet=quiet)
