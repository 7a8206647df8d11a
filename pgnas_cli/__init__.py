"""Posterior-guided neural architecture search: from a folder of images to a smaller network.

The rooms, in the order in which data flows. Each imports only from those above it, and takes their
names from their face (`__init__.py`):

    errors          the exception whose text is meant for the user
    fields          options as fields of records: default, help, range
    units           numbers as people read and write them
    naming          names of data sets, devices and files that mean something
    seeds           every draw as a function of seed and purpose
    progress        progress of long work, silent unless somebody listens
    signals         signals as requests to stop, none of them lost
    distributed     several processes that work as one, under torchrun
    machine         device and worker processes
    storage         files that a crash cannot halve, records as JSON
    tensors         safetensors with a schema
    graph           what a network computes, as channel-wise facts
    data            image data sets: found, split, read in batches
    gates           gates on input channels, their posterior and prior
    slimming        cut a candidate out of a super-network, exactly
    timing          what candidates cost in time: a table of measured steps
    sizes           parameters, MACs and time: exact, expected, targets
    registry        super-networks by name; starting weights, inflation
    run             a run directory: options, posterior, history
    formats         exported networks on disk: safetensors, ONNX
    profiling       measure the steps of a network on this device
    sampling        draw candidates from the posterior or a baseline
    training        fit a super-network, fine-tune an exported one
    ranking         the exact race on held-out images, and its statistics
    latency         how long exported networks take
    interpretation  confusion, calibration, mistakes of a classifier
    evaluation      test error and latency of exported networks
    prediction      classes of image files by an exported network
    backbone_check  what a backbone must do, checked
    exporting       choose a candidate, cut it out, verify it, write it
    report          a run as one HTML page
    cli             the command line

Importing the package imports none of them: the names below load theirs when first used. Functions
taken from here check the types of their arguments (`fields.checked_call`).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data import load_data as load_data
    from .errors import PgnasError as PgnasError
    from .evaluation import evaluate as evaluate
    from .exporting import export as export
    from .formats import load as load
    from .gates import Prior as Prior
    from .gates import draw as draw
    from .gates import drop_probabilities as drop_probabilities
    from .gates import kl as kl
    from .gates import masked as masked
    from .gates import relaxed as relaxed
    from .graph import OperationGate as OperationGate
    from .machine import find_machine as find_machine
    from .prediction import Prediction as Prediction
    from .prediction import Unreadable as Unreadable
    from .prediction import predict as predict
    from .progress import listening as listening
    from .ranking import rank as rank
    from .registry import Inflation as Inflation
    from .registry import Recipe as Recipe
    from .registry import Start as Start
    from .registry import admit as admit
    from .registry.build import create_supernet as create_supernet
    from .registry.build import inflate as inflate
    from .sampling import sample as sample
    from .sizes import Target as Target
    from .sizes import count as count
    from .slimming import slim as slim
    from .training import finetune as finetune
    from .training import fit as fit
    from .training import fit_network as fit_network

__version__ = "0.1.0"

_HOMES = {
    "Inflation": "registry",
    "OperationGate": "graph",
    "PgnasError": "errors",
    "Prediction": "prediction",
    "Prior": "gates",
    "Recipe": "registry",
    "Start": "registry",
    "Target": "sizes",
    "Unreadable": "prediction",
    "admit": "registry",
    "count": "sizes",
    "create_supernet": "registry.build",
    "draw": "gates",
    "drop_probabilities": "gates",
    "evaluate": "evaluation",
    "export": "exporting",
    "find_machine": "machine",
    "finetune": "training",
    "fit": "training",
    "fit_network": "training",
    "inflate": "registry.build",
    "kl": "gates",
    "listening": "progress",
    "load": "formats",
    "load_data": "data",
    "masked": "gates",
    "predict": "prediction",
    "rank": "ranking",
    "relaxed": "gates",
    "sample": "sampling",
    "slim": "slimming",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from importlib import import_module
    from inspect import isfunction

    from .fields import checked_call

    found = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = checked_call(found) if isfunction(found) else found
    return globals()[name]


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
