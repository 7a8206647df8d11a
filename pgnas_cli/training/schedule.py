"""The learning rate over a fit, by timm's schedulers."""

import logging
from typing import Any

import torch
from timm.scheduler import create_scheduler_v2

from ..registry import Recipe

WARMUP_LR = 1e-3  # of the learning rate, where a warm-up begins


def schedule_of(
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    *,
    per_epoch: int,  # steps
    least: float,  # rate at the end of a cosine
) -> Any:
    """The scheduler that the recipe names, stepped after each update; None for a constant rate."""
    cycles = 1
    while recipe.cycle_epochs and cycles < recipe.epochs and _goes_on(recipe, cycles):
        cycles += 1
    loud = logging.getLogger("timm.scheduler")  # remarks on fits of a single step
    level = loud.level
    loud.setLevel(logging.ERROR)
    try:
        schedule, _ = create_scheduler_v2(
            optimizer,
            sched=recipe.sched,
            num_epochs=recipe.cycle_epochs or recipe.epochs,  # type: ignore[arg-type]
            min_lr=least,
            warmup_epochs=recipe.warmup_epochs,  # type: ignore[arg-type]
            warmup_lr=WARMUP_LR * recipe.lr,
            cycle_mul=recipe.lr_cycle_mul if recipe.cycle_epochs else 1.0,
            cycle_decay=1.0,
            cycle_limit=cycles,
            # timm's multistep is one update early.
            decay_milestones=[epoch + 1 / per_epoch for epoch in recipe.decay_milestones],  # type: ignore[misc]
            step_on_epochs=False,
            updates_per_epoch=per_epoch,
        )
    finally:
        loud.setLevel(level)
    return schedule


def _goes_on(recipe: Recipe, cycles: int) -> bool:
    """Whether the fit is longer than so many cycles."""
    lengths = (recipe.cycle_epochs * recipe.lr_cycle_mul**cycle for cycle in range(cycles))
    return sum(lengths) < recipe.epochs
