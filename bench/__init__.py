"""Studies, each a script that appends its rows to docs/data; bench/tables.py writes the tables."""

import datetime
import hashlib
import platform
from pathlib import Path

import pgnas_backbones
import timm
import torch
import torchvision
from torch import Tensor, nn

import pgnas_cli
from bench.figures import Row
from pgnas_cli import count, find_machine, slim
from pgnas_cli.data import ImageData
from pgnas_cli.machine import Machine
from pgnas_cli.ranking import Race, finished, held_out_evaluator
from pgnas_cli.training import score
from pgnas_cli.training.scoring import Score

CPU = find_machine("cpu", workers=0)  # and this process is set up for it


def machine_line(machine: Machine = CPU) -> str:
    """What the figures were taken on."""
    if machine.device.type == "cuda":
        return f"torch {torch.__version__}, {torch.cuda.get_device_name(machine.device)}"
    return f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads"


def code() -> str:
    """Digest of the package and its backbones as imported."""
    digest = hashlib.blake2b(digest_size=8)
    for package in (pgnas_cli, pgnas_backbones):
        for file in sorted(Path(package.__path__[0]).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def about(machine: Machine = CPU) -> Row:
    """What a row was taken with."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "on": machine_line(machine), "code": code(), "torch": torch.__version__,
        "timm": timm.__version__, "torchvision": torchvision.__version__,
    }  # fmt: skip


def one_checkout() -> None:
    """Refuse packages of different origin: an installed one beside the one of this checkout."""
    packages = {"bench": __path__, "pgnas_cli": pgnas_cli.__path__,
                "pgnas_backbones": pgnas_backbones.__path__}  # fmt: skip
    found = {name: Path(path[0]).resolve().parent for name, path in packages.items()}
    if len(set(found.values())) > 1:
        told = ", ".join(f"{name} from {place}" for name, place in found.items())
        raise SystemExit(f"{told}; install this checkout: pip install --editable .")


def ranked(
    network: nn.Module, keep: Tensor, data: ImageData, top: int | None = None,
    machine: Machine = CPU,
) -> Race:  # fmt: skip
    """The first `top` of the candidates, bool (candidates, gates); None: all, on every image."""
    evaluator = held_out_evaluator(network, keep, data, machine.device)
    return finished(evaluator, count(network, keep).params, top)


def tested(network: nn.Module, keep: Tensor, data: ImageData) -> Score:
    """One candidate, bool (gates,), cut out, on the test split."""
    assert data.test is not None
    return score(slim(network, keep), data.test, data.preprocessing)
