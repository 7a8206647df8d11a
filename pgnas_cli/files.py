"""The files of a run, as described in storage.py; where the data lies is in run.json alone.

RUN/run.json                  the options of the fit
RUN/metrics.jsonl             one line per epoch
RUN/checkpoint.safetensors    an unfinished fit
RUN/posterior.safetensors     network.<key>, drop_logit
RUN/candidates.safetensors    keep, params, paper_params, macs
RUN/ranking.safetensors       how far each candidate came; RUN/ranking.csv for people
RUN/commands.jsonl            the command lines that wrote into it
RUN/evaluation.json           test errors and times of its networks
RUN/report.html               all of this as a page
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .budget import Target
from .data import Preprocessing
from .errors import PgnasError
from .registry import Recipe
from .states import State
from .storage import checked, from_json, read_tensors, to_json, typed, write_tensors
from .supernet import create_supernet, gates


@dataclass(frozen=True)
class Subject:
    """What rebuilds a super-network, and what its images and classes are."""

    backbone: str
    options: dict[str, Any]
    layers: str  # which layers carry gates: "all" or "hidden"
    groups: str  # "layer", "channel", or a number of channels
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    data: str  # name of the data set

    def network(self) -> nn.Module:
        """The super-network with gates in place; weights are to be loaded."""
        if self.backbone.endswith(".safetensors"):  # a file may not send us to another one
            raise PgnasError(
                f"it names a file as its backbone, '{self.backbone}'; that is not read"
            )
        return create_supernet(
            self.backbone,
            len(self.classes),
            input_shape=self.preprocessing.input_shape,
            layers=self.layers,
            groups=self.groups,
            options=self.options,
        )


@dataclass(frozen=True)
class Cutting:
    """How the data were cut for a fit; enough to cut them the same way again."""

    seed: int
    held_out: float  # share
    fit_images: int
    held_out_images: int
    digest: str  # of the held-out images' names and labels
    fit_digest: str  # of those that are fitted


@dataclass(frozen=True)
class Objective:
    """What a fit minimised."""

    l2: float
    kl_images: float
    fixed_drop: float | None
    constant_l2: bool
    target: Target | None = None


@dataclass(frozen=True)
class Posterior:
    """A fitted super-network and where it comes from."""

    subject: Subject
    cutting: Cutting
    objective: Objective
    recipe: Recipe
    seed: int


@dataclass(frozen=True)
class Run:
    """A run directory."""

    folder: Path

    @property
    def settings(self) -> Path:
        return self.folder / "run.json"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def posterior(self) -> Path:
        return self.folder / "posterior.safetensors"

    @property
    def candidates(self) -> Path:
        return self.folder / "candidates.safetensors"

    @property
    def ranking(self) -> Path:
        return self.folder / "ranking.safetensors"

    @property
    def ranking_table(self) -> Path:
        return self.folder / "ranking.csv"

    def files(self) -> tuple[Path, ...]:
        """All that commands read again: nothing else may be written over them."""
        return (self.settings, self.metrics, self.checkpoint, self.posterior, self.candidates,
                self.ranking, self.ranking_table, self.commands, self.evaluation)  # fmt: skip

    @property
    def commands(self) -> Path:
        return self.folder / "commands.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation.json"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"


def newest_run(root: Path = Path("runs"), *, fitted: bool = False) -> Run:
    """The run below `root` that was started last; `fitted` prefers those with a posterior."""
    found = sorted(root.glob("*/run.json"), key=lambda p: (p.stat().st_mtime_ns, str(p)))
    if fitted:
        found = [p for p in found if Run(p.parent).posterior.exists()] or found
    if not found:
        raise PgnasError(f"no run below '{root}'; start one with pgnas fit, or name one with --run")
    return Run(found[-1].parent)


# --- posterior and checkpoint ----------------------------------------------------------------

POSTERIOR = "pgnas.posterior/1"
CHECKPOINT = "pgnas.checkpoint/1"


def write_posterior(path: Path, network: nn.Module, posterior: Posterior) -> None:
    """Store a fitted super-network."""
    state = network.state_dict()
    tensors = {f"network.{k}": v for k, v in state.items() if not k.startswith("gates.")}
    tensors["drop_logit"] = gates(network).drop_logit
    groups = [to_json(group) for group in gates(network).groups]
    write_tensors(path, POSTERIOR, tensors, {**to_json(posterior), "groups": groups})


def read_posterior(path: Path) -> tuple[nn.Module, Posterior]:
    """The fitted super-network, gates open, in evaluation mode, and its record."""
    tensors, content = read_tensors(path, POSTERIOR)
    fields = {f.name for f in dataclasses.fields(Posterior)}
    posterior = from_json(Posterior, {k: v for k, v in content.items() if k in fields}, path)
    network = posterior.subject.network()
    if content.get("groups") != [to_json(group) for group in gates(network).groups]:
        raise PgnasError(
            f"'{path}' has other gate groups than the backbone gives now; it was written by another"
            " version of the backbone"
        )
    state = {
        ("gates.drop_logit" if k == "drop_logit" else k.removeprefix("network.")): v
        for k, v in tensors.items()
    }
    checked(state, network.state_dict(), path)
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise PgnasError(f"'{path}' holds numbers that are not finite; fit again with a lower --lr")
    network.load_state_dict(state)
    return network.eval(), posterior


def write_checkpoint(path: Path, state: State, posterior: Posterior) -> None:
    """Store an unfinished fit and what it is a fit of."""
    content = {"step": state.step, "numbers": state.numbers, "posterior": to_json(posterior)}
    write_tensors(path, CHECKPOINT, state.tensors, content)


def read_checkpoint(path: Path) -> tuple[State, Posterior]:
    """The unfinished fit in `path`, and what it is a fit of."""
    tensors, content = read_tensors(path, CHECKPOINT)
    step = typed(int, content.get("step"), "step", path)
    numbers = typed(dict[str, float], content.get("numbers"), "numbers", path)
    posterior = from_json(Posterior, content.get("posterior"), path)
    return State(step, tensors, numbers), posterior
