"""What a fit needs before its first step: data, gated network, prior, and what a file will say."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..data import ImageData, Source, cut_data, find_data, held_out_decoded, remarks_on
from ..data import digest as data_digest
from ..distributed import check_alike, first_here, of_first, rank, synchronised, world_size
from ..errors import PgnasError, one_line
from ..gates import Prior, make_concrete_
from ..machine import Machine
from ..profiling import forward_of, read_table, table_in, table_of, tell, text_of
from ..registry import Backbone, Recipe, Start
from ..registry.build import build_backbone
from ..run import FitSettings, check_recipe
from ..run.posterior import DataSplit, Objective, Posterior, SupernetSpec, check_supernet
from ..sizes import target_of
from ..storage import as_read, to_json
from ..timing import TimeTable, time_table, timed_by

SMALLEST_N = 500_000  # the paper's N on CIFAR: 10 x 50,000


def prior_of(recipe: Recipe, images: int, *, constant: bool = False) -> Prior:
    """The prior that a recipe names, for so many training images.

    Without `l2` it pulls like `weight_decay` at the start: the gradient of l2 (1-p) w^2 / N is
    2 l2 (1-p) w / N. Without `kl_images` N is ten times the images, but not below the paper's.
    """
    n = recipe.kl_images or max(10 * images, SMALLEST_N)
    auto = recipe.weight_decay * n / (2 * (1 - recipe.initial_drop))
    return Prior(auto if recipe.l2 is None else recipe.l2, n, constant)


@dataclass(frozen=True)
class Prepared:
    """What a fit begins with."""

    network: nn.Module
    data: ImageData
    posterior: Posterior
    new_heads: tuple[str, ...]
    remarks: tuple[str, ...]
    recipe_of: str  # where the recipe comes from


def prepared(settings: FitSettings, started: Posterior | None, machine: Machine) -> Prepared:
    """Data and gated network; `started` is of an unfinished fit, whose recipe a later one keeps."""
    with first_here():
        source = find_data(
            settings.data, root=Path(settings.data_root), skip_corrupt=settings.skip_corrupt
        )
    weights = None if settings.weights is None else Path(settings.weights)
    pretrained = settings.pretrained is True
    backbone = build_backbone(
        settings.backbone, classes=len(source.classes), channels=source.channels,
        size=source.small if settings.img_size is None else settings.img_size,
        start=Start(pretrained, weights, settings.seed, settings.keep_original),
    )  # fmt: skip
    data = _cut(source, backbone, settings)
    named = SupernetSpec(
        backbone.name, _kept_options(backbone), "", "", data.classes, data.preprocessing,
        data.name,
    )  # fmt: skip
    check_supernet(named, None)
    split = DataSplit(
        settings.seed, settings.held_out, len(data.fit), len(data.held_out),
        data_digest(data.held_out), data_digest(data.fit),
    )  # fmt: skip
    data = held_out_decoded(data, machine.workers)
    if started is not None:
        backbone = dataclasses.replace(backbone, recipe=started.recipe)
        if source.train.damaged:  # no measure of what is left
            mean, std = started.supernet.preprocessing.mean, started.supernet.preprocessing.std
            same = dataclasses.replace(data.preprocessing, mean=mean, std=std)
            data = dataclasses.replace(data, preprocessing=same)
    recipe, origin = settings.recipe_of(backbone)
    if not backbone.new_heads:
        recipe = dataclasses.replace(recipe, probe=False)
    check_recipe(recipe, settings)
    network = _gated_for(settings, backbone, recipe, started, machine)
    target = target_of(
        network, params=settings.target_params, macs=settings.target_macs,
        time=settings.target_time,
    )  # fmt: skip
    prior = prior_of(recipe, len(data.fit), constant=settings.constant_l2)
    posterior = Posterior(
        dataclasses.replace(
            named, layers=recipe.gates, groups=recipe.groups, preprocessing=data.preprocessing
        ),
        split,
        Objective(prior, settings.fixed_drop, target),
        recipe,
        settings.seed,
        time_table(network),
    )  # fmt: skip
    check_alike(
        json.dumps(to_json(posterior), sort_keys=True),
        "all machines need the same images, options and versions of pgnas, torch and timm",
    )
    shares = _shares(recipe, len(data.fit))
    remarks = (*backbone.remarks, *data.remarks, *remarks_on(data), *shares)
    return Prepared(network, data, posterior, backbone.new_heads, remarks, origin)


def _cut(source: Source, backbone: Backbone, settings: FitSettings) -> ImageData:
    """The images in the size of the backbone, some of them held out."""
    channels, size, _ = backbone.input_shape
    if settings.img_size not in (None, size):
        raise PgnasError(
            f"backbone '{backbone.name}' takes images of {size}x{size} pixels only; leave out"
            " `img_size`"
        )
    return cut_data(
        source, seed=settings.seed, held_out=settings.held_out,
        preprocessing=backbone.images, size=size, channels=channels,
    )  # fmt: skip


def _gated_for(
    settings: FitSettings, backbone: Backbone, recipe: Recipe, started: Posterior | None,
    machine: Machine,
) -> nn.Module:  # fmt: skip
    """The gated network; for a target time it is timed here, unless the fit had begun."""
    network = gated(backbone, recipe)
    if settings.sync_bn:
        network = synchronised(network, machine.device)
    if not settings.target_time:
        return network
    table = _time_table(network, settings, machine) if started is None else started.times
    return timed_by(network, table)


def _time_table(network: nn.Module, settings: FitSettings, machine: Machine) -> TimeTable:
    """What the candidates' time is told by: a file of another device, or this one's."""
    if settings.time_table:
        table = read_table(Path(settings.time_table))
        tell(table, f"from '{settings.time_table}'")
        return table
    found = ""
    if rank() == 0:  # each would measure something else
        found = text_of(table_of(network, forward_of(settings), machine))
    return table_in(of_first(found), Path("the first process's times"))


def _kept_options(backbone: Backbone) -> dict[str, Any]:
    """The options that a file keeps; raises PgnasError where it would keep something else."""
    try:
        found: dict[str, Any] = as_read(backbone.options)
    except TypeError as error:
        raise PgnasError(
            f"the backbone {backbone.name} has `options` that a file cannot keep"
            f" ({one_line(error)}); possible: text, numbers, lists and dicts of them"
        ) from None
    return found


def _shares(recipe: Recipe, images: int) -> list[str]:
    """How several processes share a batch; raises PgnasError for one that is too small."""
    batch, processes = min(recipe.batch_size, images), world_size()
    if processes > 1 and batch < 2 * processes:
        raise PgnasError(
            f"a batch of {batch} images is too small for {processes} processes, which need two"
            " each: raise `batch_size`, or start fewer"
        )
    if recipe.accumulate > 1 and batch < 2 * processes * recipe.accumulate:
        raise PgnasError(
            f"a batch of {batch} images is too small for `accumulate` {recipe.accumulate}: each"
            f" part needs two; possible: up to {max(1, batch // (2 * processes))}"
        )
    return [f"{processes} processes share each batch of {batch}"] if processes > 1 else []


def gated(backbone: Backbone, recipe: Recipe) -> nn.Module:
    """The backbone's network with the gates that the recipe asks for."""
    return make_concrete_(
        backbone.network, backbone.input_shape, layers=recipe.gates, groups=recipe.groups,
        initial_drop=recipe.initial_drop, operation_cost=recipe.operation_cost,
        ungated=backbone.ungated,
    )  # fmt: skip
