"""What tests of training share: digits, small fits, and steps one by one."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from pgnas_cli.data import ImageData, load_data, training_batches
from pgnas_cli.registry import Recipe
from pgnas_cli.registry.build import build_backbone
from pgnas_cli.sizes import Target
from pgnas_cli.training import EpochRecord, fit_network, gated, prior_of
from pgnas_cli.training.fitting import supernet_loop
from pgnas_cli.training.loop import Loop

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return load_data("digits", seed=0)


def prepared(**changes: object) -> tuple[nn.Module, Recipe]:
    """multibranch-tiny for digits with gates, untrained, and a recipe of 3 epochs."""
    backbone = build_backbone("multibranch-tiny", classes=10, channels=1, size=8)
    recipe = dataclasses.replace(backbone.recipe, **{"epochs": 3, "batch_size": 100, **changes})
    return gated(backbone, recipe), recipe


def small_fit(
    data: ImageData,
    *,
    constant: bool = False,
    target: Target | None = None,
    fixed_drop: float | None = None,
    **changes: object,
) -> tuple[nn.Module, list[EpochRecord]]:
    """The network and the records of a fit; `changes` are of the recipe."""
    network, recipe = prepared(**changes)
    prior = prior_of(recipe, len(data.fit), constant=constant)
    fit = fit_network(network, data, recipe, prior, target=target, fixed_drop=fixed_drop)
    return network, list(fit)


def loop_of(
    data: ImageData,
    *,
    target: Target | None = None,
    fixed_drop: float | None = None,
    device: torch.device = CPU,
    bfloat16: bool = False,
    **changes: object,
) -> Loop:
    """The loop of such a fit, before its first step."""
    network, recipe = prepared(**changes)
    return supernet_loop(
        network, data, recipe, prior_of(recipe, len(data.fit)), seed=0, device=device,
        target=target, fixed_drop=fixed_drop, bfloat16=bfloat16,
    )  # fmt: skip


def steps(loop: Loop) -> Iterator[int]:
    """Take the steps that a loop has left; yields their number after each."""
    loop.network.train()
    for batch in training_batches(
        loop.data, batch=loop.batch, seed=loop.seed, first_step=loop.step, steps=loop.steps,
        workers=0, cutout=loop.recipe.cutout,
    ):  # fmt: skip
        loop.advance(*batch)
        yield loop.step
