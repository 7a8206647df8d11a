"""The fitted super-network of a run on disk, and the data it was trained on."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data import DataName, ImageData, Preprocessing, held_out_decoded, load_data
from ..data import digest as data_digest
from ..errors import PgnasError, command
from ..gates import Prior, gates
from ..registry import Recipe
from ..registry.build import create_supernet
from ..sizes import Target
from ..storage import from_json, to_json
from ..tensors import checked, read_tensors, restore_, write_tensors
from .directory import Run
from .settings import read_settings


@dataclass(frozen=True)
class SupernetSpec:
    """What rebuilds a super-network, and what its images and classes are."""

    backbone: str
    options: dict[str, Any]
    layers: str  # which layers carry gates: "all" or "hidden"
    groups: str  # "layer", "channel", or a number of channels
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    data: DataName

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
class DataSplit:
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

    prior: Prior
    fixed_drop: float | None  # one p for all gates; None: learned
    target: Target | None


@dataclass(frozen=True)
class Posterior:
    """A fitted super-network and where it comes from."""

    supernet: SupernetSpec
    split: DataSplit
    objective: Objective
    recipe: Recipe
    seed: int


POSTERIOR = "pgnas.posterior/1"


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
    network = posterior.supernet.network()
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
        raise PgnasError(
            f"'{path}' holds numbers that are not finite; fit again with a lower learning rate"
        )
    restore_(network, state)
    return network.eval(), posterior


def posterior_of(run: Run) -> tuple[nn.Module, Posterior]:
    """The fitted super-network of a run."""
    if not run.posterior.exists():
        if run.checkpoint.exists():
            raise PgnasError(
                f"the fit in '{run.folder}' is not finished; resume it with"
                f" {command('fit', '--resume', '--run', run.folder)}"
            )
        raise PgnasError(f"no posterior in '{run.folder}'; fit one with pgnas fit")
    return read_posterior(run.posterior)


def held_out_of(
    run: Run,
    posterior: Posterior,
    workers: int,
    *,
    fitting: bool = False,  # the training images are wanted as well
    moved: str | None = None,  # where they lie now; None: where the fit found them
) -> ImageData:
    """The data of a run with its held-out part decoded, split as for the fit.

    Raises PgnasError where they are not there, or not the same by their digest.
    """
    settings = read_settings(run)
    name = moved or settings.data
    if Path(name).is_absolute() and not Path(name).is_dir():
        raise PgnasError(f"no folder '{name}' with the images of the fit; name it with `data`")
    data = load_data(
        name,
        seed=posterior.split.seed,
        held_out=posterior.split.held_out,
        root=Path(settings.data_root),
        skip_corrupt=settings.skip_corrupt,
        preprocessing=posterior.supernet.preprocessing,
        fitting=fitting,
    )
    if data_digest(data.held_out) != posterior.split.digest:
        raise PgnasError(
            f"the images of '{name}' are not those of the fit: the held-out part has changed; bring"
            " back the data, name it with `data`, or fit again"
        )
    if fitting and data_digest(data.fit) != posterior.split.fit_digest:
        raise PgnasError(
            f"the images of '{name}' are not those of the fit: bring back the data, or name it with"
            " `data`"
        )
    return held_out_decoded(data, workers)
