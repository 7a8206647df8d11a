"""The plan of a fit: what is known before its first step, and what its options do not do."""

from dataclasses import dataclass

import torch

from ..distributed import world_size
from ..gates import Prior, gates
from ..registry import Recipe
from ..run import FitSettings
from ..run.posterior import Posterior
from ..sizes import Target, parameter_count
from .cutting import ELEMENTWISE
from .loop import Loop
from .memory import activation_bytes


@dataclass(frozen=True)
class FitPlan:
    """What is known before the first step."""

    params: int
    gated_layers: int
    gates: int
    groups: int
    fit_images: int
    held_out_images: int
    prior: Prior
    divergence: float  # the prior's part of the loss at the start, nats per image
    steps: int
    classes: int
    target: Target | None
    recipe: Recipe
    recipe_of: str  # where it comes from
    drop_lr: float  # of the logits of p, as the recipe has it or by the rule
    remarks: tuple[str, ...]
    not_prunable: tuple[str, ...]  # steps of the forward that the analysis does not cut
    without_gates: bool = False  # none of them ever drops: the original network
    activation_bytes: int | None = None  # kept of one image in a step, an estimate; None: not known
    step_images: int = 0  # in memory at once


def plan_of(loop: Loop, posterior: Posterior, recipe_of: str, remarks: list[str]) -> FitPlan:
    """The plan of a fit whose loop is set up."""
    bank, data, prior = gates(loop.network), loop.data, posterior.objective.prior
    assert loop.drops is not None
    with torch.no_grad():
        divergence = float(prior.divergence(loop.network))
    return FitPlan(
        params=parameter_count(loop.network), gated_layers=len(bank.spans), gates=bank.count,
        groups=len(bank.groups), fit_images=len(data.fit.readable()),
        held_out_images=len(data.held_out), prior=prior, divergence=divergence, steps=loop.steps,
        classes=len(data.classes), target=posterior.objective.target, recipe=loop.recipe,
        recipe_of=recipe_of, drop_lr=loop.drops.rate, remarks=tuple(remarks),
        not_prunable=tuple(bank.graph.opaque()),
        without_gates=posterior.objective.fixed_drop == 0,
        activation_bytes=activation_bytes(loop.network, data.preprocessing.input_shape),
        step_images=-(-loop.batch // (world_size() * loop.recipe.accumulate)),
    )  # fmt: skip


def on_options(loop: Loop, settings: FitSettings) -> list[str]:
    """Options that have no effect here, and a default that another value beats."""
    recipe, data, found = loop.recipe, loop.data, []
    if not settings.targeted:
        named = [f for f in ("size_ramp", "freeze", "sharpen") if f in settings.recipe]
        if named:
            names = " and ".join(f"`{field}`" for field in named)
            found.append(f"{names}: no effect without a target size")
    elif recipe.warmup_epochs > recipe.freeze * recipe.epochs:
        found.append(
            f"`warmup_epochs` {recipe.warmup_epochs:g} last longer than p learns, to epoch"
            f" {recipe.freeze * recipe.epochs:.3g}"
        )
    if settings.time_table and not settings.target_time:
        found.append("`time_table`: no effect without `target_time`")
    usual = FitSettings()
    of_time = ("time_runtime", "time_batch", "time_threads", "time_precision")
    if settings.time_table or not settings.target_time:
        found += [
            f"`{name}`: no effect; it is for a `target_time` that is measured here"
            for name in of_time
            if getattr(settings, name) != getattr(usual, name)
        ]
    if settings.recipe.get("probe") and not recipe.probe:
        found.append("`probe`: no effect, there is no new head on trained weights")
    if recipe.cutout and data.fit.pixels is None:
        found.append("`cutout`: no effect on photos, it is for small images")
    if recipe.layer_decay is not None and loop.scales is None:
        found.append("`layer_decay`: no effect, this network does not name its layers as timm's do")
    if recipe.certain and recipe.opt not in ELEMENTWISE:
        found.append(
            f"a step of `opt` {recipe.opt} depends on whole layers: nothing is cut while training"
        )
    if settings.sync_bn and world_size() == 1:
        found.append("`sync_bn`: no effect in one process")
    return found + _on_schedule(recipe)


def _on_schedule(recipe: Recipe) -> list[str]:
    """Milestones that have no effect."""
    found = []
    early = [epoch for epoch in recipe.decay_milestones if epoch < recipe.warmup_epochs]
    if early:
        found.append(f"`decay_milestones` {early} lie within the warm-up: `lr` is never reached")
    late = [epoch for epoch in recipe.decay_milestones if epoch >= recipe.epochs]
    if late:
        found.append(f"`decay_milestones` {late} lie behind the {recipe.epochs} epochs")
    return found
