"""The fitted super-network of a run on disk, and the data it was trained on.

A file may come from a stranger. What it says of its network is bounded, and the network measured on
the meta device, before anything is built: `check_supernet`.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..data import DataName, ImageData, Preprocessing, held_out_decoded, load_data
from ..data import digest as data_digest
from ..distributed import first_here
from ..errors import PgnasError
from ..fields import check_fields
from ..gates import Prior, gates
from ..registry import MOST_PIXELS, Recipe
from ..registry.build import create_supernet
from ..registry.measure import Measure, measured
from ..sizes import Target
from ..slimming import everything, remainder
from ..storage import from_json, to_json, with_digest
from ..tensors import checked, read_header, read_values, restore_, shapes, write_tensors
from ..timing import TimeTable, check_table, timed_by
from .directory import Run
from .settings import keep_data, read_settings


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
    held_out: float  # share, or number of images
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
    times: TimeTable | None = None  # what the candidates' time is told by
    digest: str = dataclasses.field(default="", compare=False)  # sha256 of the file it is read from


# --- bounds on what a file may ask for -------------------------------------------------------

MOST_CLASSES = 100_000
MOST_NAMED = 1_000  # characters of a name
MOST_CHANNELS = 256  # of an image
MOST_ACTIVATIONS = 2**33  # bytes of all steps on one image
SPARE, PER_WEIGHT = 2**29, 400  # bytes; and within that many, and so many times the weights
SMALLEST_STD = 1e-6  # of a channel scaled to [0, 1]
SMALLEST_CROP = 0.05  # share: an image is resized to its size by this
MOST_MACS = 4 * 10**12  # on one image
MOST_CUT = 100  # times the weights that are left: a fit that keeps fewer has collapsed
HARMLESS = 10_000_000  # weights of a network that is built however little is left of it
INTERPOLATIONS = (
    "nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos",
)  # fmt: skip


def check_supernet(spec: SupernetSpec, path: Path | None) -> Measure | None:
    """Raise PgnasError where the file at `path` names a network that is out of bounds; None: a fit
    that is to begin, whose files would be refused.

    Returns the network on the meta device, and what it takes; None where it cannot be measured.
    """
    images, names = spec.preprocessing, (spec.backbone, spec.data.name, *spec.classes)
    numbers = (*images.mean, *images.std)
    wrong = {
        "classes": not 2 <= len(spec.classes) <= MOST_CLASSES,
        "names": max(map(len, names)) > MOST_NAMED,
        "channels": not 1 <= images.channels <= MOST_CHANNELS,
        "size": not 1 <= images.size <= MOST_PIXELS,
        "mean and std": not len(images.mean) == len(images.std) == images.channels
        or not all(map(math.isfinite, numbers))
        or min(images.std) < SMALLEST_STD
        or max(map(abs, numbers)) > 1e6,
        "crop": not SMALLEST_CROP <= images.crop <= 1,
        "interpolation": images.interpolation not in INTERPOLATIONS,
    }
    impossible = [name for name, is_wrong in wrong.items() if is_wrong]
    if impossible and path is None:
        raise PgnasError(f"no file of a run may have such {impossible[0]}; see SECURITY.md")
    if impossible:
        raise PgnasError(f"'{path}' is damaged: its {impossible[0]} cannot be")
    if ":" in spec.backbone or spec.backbone.endswith(".safetensors"):
        return None  # the user's own function, or refused
    found = measured(
        spec.backbone, classes=len(spec.classes), input_shape=images.input_shape,
        options=spec.options,
    )  # fmt: skip
    if found is not None:
        weights = sum(t.nbytes for t in found.network.state_dict().values())
        most = min(MOST_ACTIVATIONS, SPARE + PER_WEIGHT * weights)
        if found.activations > most or found.macs > MOST_MACS:
            said = "the fit" if path is None else f"'{path}'"
            raise PgnasError(
                f"{said} names images of {images.size} pixels, on which {spec.backbone} would"
                f" take {found.activations / 2**30:.3g} GiB and {found.macs:.2g} MACs; possible:"
                f" {most / 2**30:.3g} GiB and {MOST_MACS:.2g} MACs"
            )
    return found


POSTERIOR = "pgnas.posterior/2"  # since 2 what is cut while training is not stored


def write_posterior(path: Path, network: nn.Module, posterior: Posterior) -> None:
    """Store a fitted super-network, or what was left of it to be trained."""
    state = network.state_dict()
    tensors = {f"network.{k}": v for k, v in state.items() if not k.startswith("gates.")}
    tensors["drop_logit"] = gates(network).drop_logit
    groups = [to_json(group) for group in gates(network).groups]
    content = {k: v for k, v in to_json(posterior).items() if k != "digest"}
    write_tensors(path, POSTERIOR, tensors, {**content, "groups": groups})


def read_posterior(path: Path) -> tuple[nn.Module, Posterior]:
    """The fitted super-network, gates open, in evaluation mode, and its record.

    What no candidate can keep, and was cut while training, is zero.
    """
    (network, posterior), digest = with_digest(path, _posterior_in)
    return network, dataclasses.replace(posterior, digest=digest)


def _posterior_in(path: Path) -> tuple[nn.Module, Posterior]:
    header, content = read_header(path, POSTERIOR)
    fields = {f.name for f in dataclasses.fields(Posterior)} - {"digest"}
    posterior = from_json(Posterior, {k: v for k, v in content.items() if k in fields}, path)
    _check_numbers(posterior, path)
    spec = posterior.supernet
    found = check_supernet(spec, path)
    logits = read_values(path, {k: v for k, v in header.items() if k == "drop_logit"})
    cut = any(bool((p == math.inf).any()) for p in logits.values())
    weights = {k.removeprefix("network."): v for k, v in header.items() if k != "drop_logit"}
    stored = sum(tensor.numel() for tensor in weights.values()) * (MOST_CUT if cut else 1)
    if found is not None and not found.inflates_within(spec.options, stored, path):
        if cut:
            found.is_within(max(stored, HARMLESS), path)
        else:
            checked(weights, found.network.state_dict(), path)
    network = spec.network()
    if content.get("groups") != [to_json(group) for group in gates(network).groups]:
        raise PgnasError(
            f"'{path}' has other gate groups than the backbone gives now; it was written by another"
            " version of the backbone"
        )
    names = {("gates.drop_logit" if k == "drop_logit" else k.removeprefix("network.")): k
             for k in header}  # fmt: skip
    described = {k: header[name] for k, name in names.items()}
    left = everything(network)
    if shapes(described) != shapes(network.state_dict()) and cut:
        checked(logits, {"drop_logit": gates(network).drop_logit}, path)
        gates(network).drop_logit.data.copy_(logits["drop_logit"])
        left = remainder(network) or left
    checked(described, left.network.state_dict(), path)
    tensors = read_values(path, header)
    state = {k: tensors[name] for k, name in names.items()}
    if not all(is_sound(name, value) for name, value in state.items()):
        raise PgnasError(
            f"'{path}' holds numbers that are not finite; fit again with a lower learning rate"
        )
    restore_(left.network, state)
    left.write_back(network)
    try:
        return timed_by(network.eval(), posterior.times), posterior
    except PgnasError as error:
        raise PgnasError(f"'{path}' is damaged, in its times: {error}") from None


def is_sound(name: str, tensor: Tensor) -> bool:
    """Whether a tensor that is stored is finite; a drop logit is infinite where p is 0 or 1."""
    endless = name.endswith("gates.drop_logit")
    return not bool(tensor.isnan().any() if endless else (~tensor.isfinite()).any())


def _check_numbers(posterior: Posterior, path: Path) -> None:
    """Raise PgnasError for numbers that no fit writes."""
    split, prior = posterior.split, posterior.objective.prior
    drop = posterior.objective.fixed_drop
    sane = (
        0 < split.held_out < 2**53
        and (split.held_out < 1 or split.held_out.is_integer())  # a share, or a number
        and 0 <= split.fit_images < 2**53
        and 0 <= split.held_out_images < 2**53
        and 0 <= prior.l2 <= 1e18
        and 0 < prior.images <= 1e15
        and (drop is None or 0 <= drop < 1)
    )
    if not sane:
        raise PgnasError(f"'{path}' is damaged: its numbers cannot be")
    if posterior.times is not None:
        check_table(posterior.times, path)
    try:
        check_fields(posterior.recipe)
    except PgnasError as error:
        raise PgnasError(f"'{path}' is damaged, in its recipe: {error}") from None


def posterior_of(run: Run) -> tuple[nn.Module, Posterior]:
    """The fitted super-network of a run."""
    run.check_fitted()
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

    Where they lie now is kept. Raises PgnasError where they are not there, or not the same by
    their digest.
    """
    settings = read_settings(run)
    name = moved or settings.data
    if Path(name).is_absolute() and not Path(name).is_dir():
        raise PgnasError(f"no folder '{name}' with the images of the fit; name it with `data`")
    with first_here():
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
    if moved is not None and Path(moved).is_dir():
        keep_data(run, Path(moved))
    return held_out_decoded(data, workers)
