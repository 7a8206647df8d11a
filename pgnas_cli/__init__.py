"""Posterior-guided neural architecture search, from a folder of images to a smaller network.

The modules, in the order in which data flows; each imports only from those above it:

    errors        the one exception whose text is meant for the user
    randomness    generators as functions of seed and purpose
    storage       files that a crash cannot halve and a reader can trust
    weights       starting weights from a file
    registry      super-networks by name, through entry points
    objective     the constants of the objective
    convolution   convolutions with a forward of their own
    operation     a place for a gate behind an operation without weights
    graph         what a network computes, as channel-wise facts
    vocabulary    what each step of a traced program does to channels
    tracing       read a network's forward into such a graph
    placement     where gates can sit in it
    inflation     convolutions of several sizes in the place of one
    concrete      the gate: its draw, its prior, the layers that carry it
    supernet      a network with gates in place
    wiring        which channels a candidate still needs
    candidates    sub-networks as rows of bits, and what they cost
    budget        the expected size of a candidate, and steps to a wanted one
    tilting       candidates within a size named after the fit
    reshaping     modules in the shapes of a candidate
    slimming      cut a network down to a candidate
    data          image data sets, cut into fit, held-out and test
    sources       where data sets come from
    loading       batches of images, for fitting and for judging
    probing       a new classifier as a linear probe of the starting network
    recalibration  batch-norm statistics of candidates, estimated anew
    states        what a fit needs to go on
    schedules     the learning rate over a fit
    steering      when p learns, and how it gets to a target size
    training      fit weights and drop probabilities together
    race          which pairs decide who the best candidates are
    confidence    what an order of candidates is worth
    ranking       errors of candidates on the held-out images
    files         the files of a run
    metrics       the epochs of a fit for TensorBoard
    settings      the options of a fit
    stopping      signals as requests to stop between two steps
    fitting       the fit as a stage: options to posterior
    export        a slim network on disk, verified
    deployment    ONNX files, checked by running them
    drawing       draw candidates: posterior to candidates
    leaderboard   rank them: candidates to ranking
    selection     export one: ranking to slim network
    contract      what every backbone must do, checked
    evaluation    error on the test split, time per image
    records       command lines and evaluations, kept in the run
    finetuning    train an exported network further
    machine       devices and worker processes
    console       the terminal: progress, messages, the error line
    views         what fit, sample, inflate and backbones say
    boards        what rank, export and evaluate say
    findings      what the files of a run say
    canvas        how pictures of it are drawn
    figures       pictures of it
    markup        pieces of a page
    comparison    several runs side by side
    answer        the top of a report
    page          the report: all of it as one page
    options       the options of the commands
    invocation    what the commands share
    making        the commands that make a posterior
    choosing      the commands that choose from it
    searching     the one command that calls them all
    cli           the command line

Importing the package imports none of them: the functions below load theirs when first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .export import load as load
    from .operation import OperationGate as OperationGate
    from .slimming import slim as slim
    from .supernet import create_supernet as create_supernet
    from .supernet import draw as draw
    from .supernet import drop_probabilities as drop_probabilities
    from .supernet import kl as kl
    from .supernet import masked as masked

__version__ = "0.1.0"

_HOMES = {
    "OperationGate": "operation",
    "create_supernet": "supernet",
    "draw": "supernet",
    "drop_probabilities": "supernet",
    "kl": "supernet",
    "masked": "supernet",
    "slim": "slimming",
    "load": "export",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
