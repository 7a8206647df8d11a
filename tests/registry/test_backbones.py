"""The paper's super-networks: published sizes, noise of their own, presets, and one contract."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import tomllib
import torch
from pgnas_backbones.enas import DROP_PATH, DropPath, Enas
from pgnas_backbones.multibranch import Block, shaken
from safetensors.torch import save_file

from pgnas_cli.backbone_check import checks
from pgnas_cli.gates import drop_probabilities, gates, kl, make_concrete_
from pgnas_cli.graph import OperationGate
from pgnas_cli.registry import backbone_names, preset
from pgnas_cli.registry.build import build_backbone
from pgnas_cli.run import FitSettings
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.seeds import derived_seed, seeded_globals
from pgnas_cli.sizes import ExpectedSize, count, parameter_count, whole_macs
from pgnas_cli.slimming import slim

from ..conftest import run as command
from ..networks import randomised
from .test_slimming import assert_same_logits

PIXELS = {"multibranch-m": 8, "multibranch-mi": 8, "multibranch-tiny": 8, "enas-e": 16,
          "enas-ei": 16, "resnet50": 32, "densenet121": 32, "densenet121-deep": 32}  # fmt: skip


def names() -> list[str]:
    """Every installed backbone, with one of timm's for the entry point "timm"."""
    return ["timm/resnet18" if name == "timm" else name for name in backbone_names()]


@pytest.mark.parametrize("name", names())
def test_every_backbone_does_what_a_backbone_must(name: str) -> None:
    found = list(checks(name, size=PIXELS.get(name, 32)))
    assert [row.what for row in found if not row.passed] == [], found[-1].found
    assert len(found) == 7


@pytest.mark.parametrize(
    ("name", "classes", "millions"),
    [
        ("multibranch-m", 10, 26.19),
        ("multibranch-mi", 10, 72.70),
        ("resnet50", 1000, 28.1),
        ("densenet121", 1000, 7.98),
    ],
)
def test_sizes_are_the_published_ones(name: str, classes: int, millions: float) -> None:
    found = parameter_count(build_backbone(name, classes=classes).network)
    assert found == pytest.approx(1e6 * millions, rel=0.015)


def test_the_enas_networks_have_the_published_sizes_with_their_auxiliary_head() -> None:
    """E's 4.6 M are those that ENAS itself quotes; the cells with 36 filters give 4.37 M."""
    whole = {}
    for name in ("enas-e", "enas-ei"):
        network = build_backbone(name, classes=10).network
        whole[name] = sum(parameter.numel() for parameter in network.parameters())
        assert parameter_count(network) < whole[name]
    assert whole["enas-ei"] == pytest.approx(15.3e6, rel=0.015)
    assert whole["enas-e"] == pytest.approx(4.37e6, rel=0.015)


# --- noise of their own ----------------------------------------------------------------------


def test_shake_shake_draws_other_weights_for_the_gradient_per_image() -> None:
    first, second = (torch.randn(6, 2, 3, 3, requires_grad=True) for _ in "ab")

    def mixed(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with seeded_globals(derived_seed(seed, "forward", 5, 0)):
            out = shaken(first, second)
        forward = ((out - second) / (first - second)).detach()
        (grad,) = torch.autograd.grad(out.sum(), first)
        return out.detach(), forward[:, 0, 0, 0], grad[:, 0, 0, 0]

    out, forward, backward = mixed(0)
    again = mixed(0)
    assert torch.equal(out, again[0])
    assert torch.equal(backward, again[2])
    assert not torch.equal(out, mixed(1)[0])
    assert ((forward > -1e-4) & (forward < 1 + 1e-4)).all()
    assert ((backward >= 0) & (backward <= 1)).all()
    assert len(forward.unique()) == len(backward.unique()) == 6
    assert (forward - backward).abs().min() > 1e-3


def test_shake_shake_is_the_mean_of_the_branches_in_evaluation() -> None:
    block = randomised(Block(4, 4, 1, shake=True)).eval()
    x = torch.randn(3, 4, 8, 8)
    active = torch.relu(x)
    expected = x + (block.branch1(active) + block.branch2(active)) / 2
    assert torch.allclose(block(x), expected, atol=1e-6)
    assert not torch.allclose(block.train()(x), expected, atol=1e-3)


def test_drop_path_reaches_its_rate_in_the_last_cell_at_the_last_step() -> None:
    network = Enas(4, (3, 16, 16), 10)
    paths = [m for m in network.modules() if isinstance(m, DropPath)]
    network.at_progress(1.0)
    assert paths[-1].rate == pytest.approx(DROP_PATH)
    assert paths[0].rate == pytest.approx(DROP_PATH / 17)
    network.at_progress(0.25)
    assert paths[-1].rate == pytest.approx(DROP_PATH / 4)
    network.at_progress(1.0)
    x = torch.ones(20_000, 1, 1, 1)
    out = paths[-1].train()(x)
    assert float((out == 0).float().mean()) == pytest.approx(DROP_PATH, abs=0.015)
    assert float(out.mean()) == pytest.approx(1.0, abs=0.03)
    assert torch.equal(paths[-1].eval()(x), x)


def test_a_fit_tells_the_network_how_far_it_is(tmp_path: Path) -> None:
    from pgnas_cli.data import load_data
    from pgnas_cli.registry import Recipe
    from pgnas_cli.training import fit

    network = make_concrete_(Enas(2, (1, 8, 8), 10), (1, 8, 8))
    told: list[float] = []
    network.at_progress = told.append
    data = load_data("digits", seed=0)
    recipe = Recipe(epochs=1, batch_size=288, lr=0.01)
    record = next(iter(fit(network, data, recipe, seed=0)))
    assert told == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert record.loss > 0


# --- operations ------------------------------------------------------------------------------


def operations() -> torch.nn.Module:
    network = make_concrete_(
        Enas(4, (3, 16, 16), 10), (3, 16, 16), layers="all+operations", operation_cost=7.0
    )
    return randomised(network)


def test_operations_without_weights_have_one_gate_each_and_cut_exactly() -> None:
    network = operations()
    bank = gates(network)
    marked = [n for n, m in network.named_modules() if isinstance(m, OperationGate)]
    assert [g.layer for g in bank.groups if g.layer in marked] == marked
    assert all(g.stop == 1 for g in bank.groups if g.layer in marked)
    p = torch.full((len(bank.groups),), 0.4)
    keep = draw_candidates(p, network, 6, 0)
    for row in range(6):
        assert_same_logits(network, keep[row], 16)
    rounded = count(network, keep, round_to=4)
    smaller = slim(network, keep[0], round_to=4)
    assert sum(q.numel() for q in smaller.parameters()) == int(rounded.params[0])
    only = torch.tensor([1.0 if g.layer in marked else 0.0 for g in bank.groups])
    (alone,) = draw_candidates(only, network, 1, 0)
    assert_same_logits(network, alone, 16)
    assert int(count(network, alone[None]).macs) < whole_macs(network)
    expected = ExpectedSize(network)(p)
    drawn = count(network, draw_candidates(p, network, 60, 0))
    assert float(expected[0]) == pytest.approx(float(drawn.params.double().mean()), rel=0.03)


def test_an_operation_costs_what_the_recipe_says_and_learns() -> None:
    network = operations()
    bank = gates(network)
    at = next(i for i, g in enumerate(bank.groups) if g.stop == 1)
    kl(network, l2=2.0, images=10.0).backward()
    p = float(drop_probabilities(network)[at])
    # d/dlogit of (l2 x cost x (1 - p) - H(p)) / images: dH/dp = ln((1 - p) / p)
    slope = (-2.0 * 7.0 - torch.tensor((1 - p) / p).log().item()) * p * (1 - p) / 10
    assert bank.drop_logit.grad is not None
    assert float(bank.drop_logit.grad[at]) == pytest.approx(slope, rel=1e-3)


def test_operations_are_open_in_the_published_preset() -> None:
    backbone = build_backbone("enas-e", classes=10)
    recipe = dataclasses.replace(backbone.recipe, **preset(backbone, "published"))
    assert recipe.gates == "all"
    network = make_concrete_(Enas(2, (3, 16, 16), 10), (3, 16, 16), layers=recipe.gates)
    modules = dict(network.named_modules())
    assert not any(isinstance(modules[layer], OperationGate) for layer in gates(network).spans)


# --- presets and plug-ins --------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in backbone_names() if n not in ("timm",)])
def test_published_presets_name_fields_of_a_recipe(name: str) -> None:
    backbone = build_backbone(name, classes=10)
    for which in backbone.presets:
        recipe = dataclasses.replace(backbone.recipe, **preset(backbone, which))
        assert recipe.l2 and recipe.kl_images
        assert recipe.initial_drop == 0.1
    assert bool(backbone.presets) == (name != "multibranch-tiny")


PLUGIN = """
    from torch import nn
    from pgnas_cli.registry import Backbone

    def build(*, classes, channels=3, size=None):
        network = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))
        return Backbone(network, (channels, size or 8, size or 8))
"""


def test_a_function_of_ones_own_is_built_from_the_command_line_and_from_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pgnas_cli.registry import lookup as registry

    (tmp_path / "ownnet.py").write_text(textwrap.dedent(PLUGIN))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_ADMITTED", set())
    own = ["--backbone", "ownnet:build"]
    assert command("backbones", "ownnet:build", "--check", "--img-size", "8") == 0
    assert command("fit", *own, "--epochs", "1", "--run", "run", "-q") == 0
    monkeypatch.setattr(registry, "_ADMITTED", set())
    sys.modules.pop("ownnet")
    capsys.readouterr()
    assert command("sample", "-n", "3", "--run", "run") == 1
    assert "name it again on the command line: --backbone ownnet:build" in capsys.readouterr().err
    assert "ownnet" not in sys.modules
    for given in (["sample", "-n", "3"], ["rank"], ["export", "out.safetensors"]):
        monkeypatch.setattr(registry, "_ADMITTED", set())
        assert command(*given, "--run", "run", *own, "-q") == 0
    monkeypatch.setattr(registry, "_ADMITTED", set())
    assert command("evaluate", "out.safetensors") == 1
    assert command("evaluate", "out.safetensors", *own) == 0
    assert command("fit", "--backbone", "ownnet:", "--run", "other") == 1
    assert "names no function" in capsys.readouterr().err
    assert command("fit", "--backbone", "ownnet:nothing", "--run", "other") == 1
    assert "(from the command line, ownnet:nothing) does not load" in capsys.readouterr().err


def test_a_network_that_breaks_the_contract_is_told_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = PLUGIN.replace("return Backbone(", "network[2].weight.data.fill_(float('nan'))\n"
                            "        return Backbone(")  # fmt: skip
    (tmp_path / "brokennet.py").write_text(textwrap.dedent(broken))
    monkeypatch.chdir(tmp_path)
    assert command("backbones", "brokennet:build", "--check") == 1
    text = capsys.readouterr()
    assert "FAILED builds, with finite logits of one row per image: logits that are not" in text.out
    assert "does not pass" in text.err
    assert command("backbones", "brokennet:build", "--check", "--json") == 1
    assert json.loads(capsys.readouterr().out)["checks"][-1]["passed"] is False


def test_the_plug_in_of_the_documentation_is_found_and_passes(tmp_path: Path) -> None:
    """As an installed distribution: its module, and the entry points of its pyproject."""
    text = (Path(__file__).parents[1] / "docs" / "backbones.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (project,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(code.strip().splitlines()) <= 10
    assert len(project.strip().splitlines()) <= 5
    declared = tomllib.loads(project)["project"]
    (tmp_path / "mynets.py").write_text(code)
    info = tmp_path / f"{declared['name']}-{declared['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {declared['name']}\nVersion: {declared['version']}\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items())
             for group, points in declared["entry-points"].items()]  # fmt: skip
    (info / "entry_points.txt").write_text("".join(lines))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def pgnas(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pgnas_cli", *arguments], capture_output=True, text=True,
            env=environment, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "small  (from mynets)" in pgnas("backbones")
    assert pgnas("backbones", "small", "--check").count("ok ") == 7


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # A record has the rate of the step to come.
        ({"epochs": 7, "cycle_epochs": 1, "min_lr": 1e-4},  # cycles of 1, 2, 4 epochs
         lambda e: {1: (0, 2), 2: (1, 2), 3: (0, 4), 4: (1, 4), 5: (2, 4), 6: (3, 4)}[e]),
        ({"epochs": 4, "sched": "cosine"}, lambda e: (e, 4)),
    ],
)  # fmt: skip
def test_cosines_restart_where_the_recipe_says(
    fields: dict[str, object], expected: Callable[[int], tuple[int, int]]
) -> None:
    rates = learning_rates(**fields)
    low = float(fields.get("min_lr", 0.0))  # type: ignore[arg-type]
    for epoch in range(1, int(fields["epochs"])):  # type: ignore[call-overload]
        at, length = expected(epoch)
        wanted = low + 0.5 * (0.05 - low) * (1 + math.cos(math.pi * at / length))
        assert rates[epoch - 1] == pytest.approx(wanted, rel=1e-3)


def test_milestones_divide_the_rate_by_ten() -> None:
    rates = learning_rates(epochs=6, sched="multistep", decay_milestones=(2, 4))
    assert rates[:5] == pytest.approx([0.05, 0.005, 0.005, 0.0005, 0.0005])


def learning_rates(**fields: object) -> list[float]:
    """The rate after each epoch, of three steps."""
    from pgnas_cli.data import load_data
    from pgnas_cli.registry import Recipe
    from pgnas_cli.training import fit

    backbone = build_backbone("multibranch-tiny", classes=10, channels=1, size=8)
    network = make_concrete_(backbone.network, (1, 8, 8))
    recipe = dataclasses.replace(Recipe(batch_size=350, lr=0.05), **fields)  # type: ignore[arg-type]
    return [r.learning_rate for r in fit(network, load_data("digits", seed=0), recipe, seed=0)]


def test_every_published_preset_starts() -> None:
    """20 steps of each are in bench/presets.py; here are their schedules, in full length."""
    from pgnas_cli.data import load_data
    from pgnas_cli.training.loop import _Run

    data = load_data("digits", seed=0)
    for name in ("multibranch-m", "multibranch-mi", "enas-e", "resnet50", "densenet121"):
        backbone = build_backbone(name, classes=10)
        recipe = dataclasses.replace(backbone.recipe, **preset(backbone, "published"))
        tiny = build_backbone("multibranch-tiny", classes=10, channels=1, size=8)
        network = make_concrete_(tiny.network, (1, 8, 8))
        run = _Run(network, data, recipe, 0, None, False, None, torch.device("cpu"))
        assert run.weights.param_groups[0]["lr"] == pytest.approx(recipe.lr)
        run.step = run.steps - 1
        run._set_rates()
        end = recipe.min_lr
        if recipe.sched == "multistep":
            end = recipe.lr / 10 ** len(recipe.decay_milestones)
        last = run.weights.param_groups[0]["lr"]
        assert last == pytest.approx(end, abs=2e-3 * recipe.lr)


@pytest.mark.parametrize(
    ("given", "l2", "decay"),
    [({}, 50, 5e-4), ({"l2": None}, None, 5e-4), ({"weight_decay": 1e-3}, None, 1e-3),
     ({"l2": 7.0, "weight_decay": 1e-3}, 7.0, 1e-3)],
)  # fmt: skip
def test_options_take_precedence_over_a_preset(
    given: dict[str, object], l2: float | None, decay: float
) -> None:
    backbone = build_backbone("multibranch-m", classes=10)
    recipe = FitSettings(preset="published", recipe=given).recipe_of(backbone)
    assert (recipe.l2, recipe.weight_decay, recipe.epochs) == (l2, decay, 1800)
    other = build_backbone("densenet121", classes=10)
    cosine = FitSettings(preset="published", recipe={"sched": "cosine"}).recipe_of(other)
    assert cosine.decay_milestones == ()


def test_a_fit_prints_the_recipe_that_it_follows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--run", str(tmp_path / "run"), "--epochs", "1"]
    given = ["--sched", "multistep", "--milestones", "5", "--cutout", "2", "-b", "300"]
    assert command("fit", *given, *run) == 0
    text = capsys.readouterr().err
    assert "recipe: nesterov, multistep from 0.1, a tenth at 5; batch 300, cutout 2" in text
    assert "note: milestones [5] lie behind the 1 epochs" in text
    assert "gates all, groups layer" in text
    for wrong in (["--milestones", "5"], ["--sched", "multistep"]):
        assert command("fit", *wrong, "--run", str(tmp_path / "other")) == 1
        assert "--sched multistep and --milestones go together" in capsys.readouterr().err


def test_starting_weights_of_other_classes_replace_both_heads(tmp_path: Path) -> None:
    state = build_backbone("enas-e", classes=10).network.state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "ten.safetensors")
    found = build_backbone("enas-e", classes=3, weights=tmp_path / "ten.safetensors")
    assert len(found.remarks) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("network, (channels", "None, (channels"), "AttributeError"),
        (("network, (channels, size or 8, size or 8)", "network, (channels, 8)"), "builds, with"),
        (("size or 8))", "size or 8), presets={'mine': {'epoch': 3}})"), "has unknown fields"),
        (("size or 8))", "size or 8), presets={'mine': {'epochs': '3'}})"), "epochs"),
        (("size or 8))", "size or 8), Recipe(optimizer='nothing'))"), "no optimizer 'nothing'"),
    ],
)
def test_what_a_stranger_gets_wrong_is_a_failed_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    change: tuple[str, str], message: str,
) -> None:  # fmt: skip
    text = PLUGIN.replace("import Backbone", "import Backbone, Recipe").replace(*change)
    assert change[1] in text
    (tmp_path / "wrongnet.py").write_text(textwrap.dedent(text))
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("wrongnet", None)
    assert command("backbones", "wrongnet:build", "--check") == 1
    found = capsys.readouterr().out
    assert "FAILED" in found
    assert message in found.splitlines()[-1]
