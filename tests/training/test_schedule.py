"""The learning rate over a fit, against cosines and milestones written out."""

import math
from dataclasses import replace
from itertools import accumulate

import pytest
import torch

from pgnas_cli.data import load_data
from pgnas_cli.registry import Recipe, preset
from pgnas_cli.registry.build import build_backbone
from pgnas_cli.training import gated, prior_of
from pgnas_cli.training.fitting import supernet_loop
from pgnas_cli.training.schedule import schedule_of

PER_EPOCH = 3  # steps


def learning_rates(**fields: object) -> list[float]:
    """The rate of each step of a fit."""
    recipe = Recipe(lr=0.05, **fields)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=recipe.lr)
    schedule = schedule_of(optimizer, recipe, per_epoch=PER_EPOCH, least=recipe.min_lr)
    found = []
    for step in range(recipe.epochs * PER_EPOCH):
        if schedule is not None:
            schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize(
    ("fields", "cycles"),
    [
        ({"epochs": 4}, [4]),
        ({"epochs": 7, "cycle_epochs": 1, "min_lr": 1e-4}, [1, 2, 4]),
        ({"epochs": 8, "cycle_epochs": 3, "lr_cycle_mul": 1.0}, [3, 3, 3]),
        ({"epochs": 5, "cycle_epochs": 2}, [2, 4]),
    ],
)
def test_cosines_restart_where_the_recipe_says(fields: dict[str, float], cycles: list[int]) -> None:
    low, begins = fields.get("min_lr", 0.0), [0, *accumulate(cycles)]
    for step, rate in enumerate(learning_rates(**fields)):
        cycle = sum(begin * PER_EPOCH <= step for begin in begins) - 1
        done = (step / PER_EPOCH - begins[cycle]) / cycles[cycle]
        assert rate == pytest.approx(low + 0.5 * (0.05 - low) * (1 + math.cos(math.pi * done)))


def test_a_warm_up_is_of_the_weights_and_leaves_the_rate_of_p() -> None:
    data = load_data("digits", seed=0)
    rates = []
    for warmup in (0.0, 2.0):
        backbone = build_backbone("multibranch-tiny", classes=10, channels=1, size=8)
        recipe = replace(backbone.recipe, epochs=3, warmup_epochs=warmup)
        loop = supernet_loop(
            gated(backbone, recipe), data, recipe, prior_of(recipe, 1000), seed=0,
            device=torch.device("cpu"),
        )  # fmt: skip
        assert loop.drops is not None
        found = []
        for step in range(3 * loop.per_epoch):
            loop.drops.schedule.step_update(step)
            found.append(loop.drops.optimizer.param_groups[0]["lr"])
        rates.append(found)
    assert rates[0] == rates[1]


def test_milestones_divide_the_rate_by_ten_and_no_schedule_leaves_it() -> None:
    rates = learning_rates(epochs=6, sched="multistep", decay_milestones=(2, 4))
    assert rates == pytest.approx([0.05] * 6 + [0.005] * 6 + [0.0005] * 6)
    assert learning_rates(epochs=2, sched="none") == [0.05] * 6


@pytest.mark.parametrize("name", ["multibranch-m", "multibranch-mi", "enas-e", "resnet50",
                                  "densenet121"])  # fmt: skip
def test_every_published_preset_starts(name: str) -> None:
    """20 steps of each are in bench/presets.py; here are their schedules, in full length."""
    backbone = build_backbone(name, classes=10, size=32)
    recipe = replace(backbone.recipe, **preset(backbone, "published"))
    tiny = build_backbone("multibranch-tiny", classes=10, channels=1, size=8)
    loop = supernet_loop(
        gated(tiny, tiny.recipe), load_data("digits", seed=0), recipe, prior_of(recipe, 1000),
        seed=0, device=torch.device("cpu"),
    )  # fmt: skip
    rates = loop.weights.param_groups[0]
    assert rates["lr"] == pytest.approx(recipe.lr)
    loop.step = loop.steps - 1
    loop._set_rates()
    end = recipe.min_lr
    if recipe.sched == "multistep":
        end = recipe.lr / 10 ** len(recipe.decay_milestones)
    assert rates["lr"] == pytest.approx(end, abs=2e-3 * recipe.lr)
