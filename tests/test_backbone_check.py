"""What a backbone must do: done by every installed one, and missed by strangers in many ways."""

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import tomllib

import pgnas_cli
from pgnas_cli import backbone_check
from pgnas_cli.backbone_check import checks
from pgnas_cli.errors import PgnasError
from pgnas_cli.registry import admit, backbone_names, lookup
from pgnas_cli.registry.build import build_backbone, create_supernet

from .conftest import refused, run, said

PIXELS = {"multibranch-m": 8, "multibranch-mi": 8, "multibranch-tiny": 8, "enas-e": 16,
          "enas-ei": 16}  # fmt: skip

READ_ELSEWHERE = ("resnet50", "timm/resnet18", "multibranch-tiny")  # a process takes seconds
EXAMPLES = {"timm": "timm/resnet18", "torchvision": "torchvision/squeezenet1_1"}

PLUGIN = """
    from torch import nn
    from pgnas_cli.registry import Backbone, Recipe

    def build(*, classes, channels=3, size=None):
        network = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))
        return Backbone(network, (channels, size or 8, size or 8))
"""
NOT_FINITE = (
    "return Backbone(", "network[2].weight.data.fill_(float('nan'))\n        return Backbone("
)  # fmt: skip


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write `PLUGIN`, changed, into the working directory; returns its name. None is admitted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lookup, "_ADMITTED", set())
    monkeypatch.delitem(sys.modules, "ownnet", raising=False)

    def write(*change: str) -> str:
        text = PLUGIN.replace(*change) if change else PLUGIN
        assert not change or text != PLUGIN
        (tmp_path / "ownnet.py").write_text(textwrap.dedent(text))
        return "ownnet:build"

    return write


def read_here(line: list[str], **_: object) -> subprocess.CompletedProcess[str]:
    """Read an exported network as the other process of the check does, in this one."""
    pgnas_cli.load(line[3])
    return subprocess.CompletedProcess(line, 0, "", "")


@pytest.mark.parametrize("name", [EXAMPLES.get(n, n) for n in backbone_names()])
def test_every_backbone_does_what_a_backbone_must(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone_check, "EPOCHS", 2)  # 10 steps instead of 20
    if name not in READ_ELSEWHERE:
        monkeypatch.setattr(subprocess, "run", read_here)
    found = list(checks(name, size=PIXELS.get(name, 32)))
    assert [row.what for row in found if not row.passed] == [], found[-1].found
    assert len(found) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("network, (channels", "None, (channels"), "gives a NoneType as its network"),
        (("(channels, size or 8, size or 8)", "(channels, 8)"), "takes images of 3x8; possible: "),
        (("size or 8, size or 8", "8, 16"), "takes images of 3x8x16; possible: (channels, size"),
        (("size or 8))", "size or 8), presets={'mine': {'epoch': 3}})"), "has unknown fields"),
        (("size or 8))", "size or 8), presets={'mine': {'epochs': '3'}})"), "epochs"),
        (("size or 8))", "size or 8), Recipe(opt='nothing'))"), "`opt` 'nothing' is not known"),
    ],
)
def test_what_a_stranger_gets_wrong_is_a_failed_check(
    plugin: Callable[..., str], change: tuple[str, str], message: str
) -> None:
    *passed, last = checks(admit(plugin(*change)), size=8)
    assert all(row.passed for row in passed)
    assert not last.passed
    assert message in last.found


STOCHASTIC = """
    import torch
    from torch import nn
    from pgnas_cli.registry import Backbone, Recipe

    class Net(nn.Module):
        def __init__(self, channels, classes):
            super().__init__()
            self.a, self.b = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.pool, self.head = nn.AdaptiveAvgPool2d(2), nn.Linear(32, classes)

        def forward(self, x):
            x = self.a(x).relu()
            if not self.training or torch.rand(1).item() > 0.5:
                x = x + self.b(x)
            return self.head(self.pool(x.relu()).view(x.size(0), -1))

    def build(*, classes, channels=3, size=None):
        network = nn.DataParallel(Net(channels, classes))
        return Backbone(network, (channels, size or 8, size or 8))
"""


def test_stochastic_depth_a_wrapper_and_a_view_are_ordinary(plugin: Callable[..., str]) -> None:
    """The view fails on channels_last, in which other networks are trained."""
    name = plugin(PLUGIN, STOCHASTIC)
    assert [row.found for row in checks(admit(name)) if not row.passed] == []


@pytest.mark.parametrize(("channels", "images"), [(4, 3), (3, 1)])
def test_a_network_for_other_channels_than_the_images_have_is_refused_at_once(
    plugin: Callable[..., str], channels: int, images: int
) -> None:
    change = "(channels, size or 8", f"({channels}, size or 8"
    name = admit(plugin(*change))
    assert build_backbone(name, classes=3).input_shape == (channels, 8, 8)
    with pytest.raises(PgnasError, match=f"takes images of {channels} channels, here are {images}"):
        build_backbone(name, classes=3, channels=images)


def test_a_network_of_one_channel_is_built_for_colours_unless_these_were_asked_for(
    plugin: Callable[..., str],
) -> None:
    name = admit(plugin("(channels, size or 8", "(1, size or 8"))
    assert build_backbone(name, classes=3, channels=3).input_shape == (1, 8, 8)
    with pytest.raises(PgnasError, match=r"takes images of \(1, 8, 8\) only"):
        create_supernet(name, 3, input_shape=(3, 8, 8))


def test_a_weight_that_never_gets_a_gradient_is_named(plugin: Callable[..., str]) -> None:
    *_, last = checks(admit(plugin(PLUGIN, STOCHASTIC.replace("> 0.5", "> 1"))))
    assert last.found == "b.weight has no gradient in 40 steps"


def test_a_network_that_breaks_the_contract_is_told_where(
    plugin: Callable[..., str],
) -> None:
    check = ["backbones", plugin(*NOT_FINITE), "--check"]
    status, out, err = said(*check)
    assert status == 1
    assert "FAILED builds, with finite logits of one row per image: logits that are not" in out
    assert "does not pass" in err
    status, out, _ = said(*check, "--json")
    assert (status, json.loads(out)["checks"][-1]["passed"]) == (1, False)


def test_a_function_of_ones_own_is_built_from_the_command_line_and_from_nowhere_else(
    plugin: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ["--backbone", plugin()]
    assert run("backbones", "ownnet:build", "--check", "--img-size", "8") == 0
    assert run("fit", *own, "--epochs", "1", "--run", "run", "-q") == 0
    monkeypatch.setattr(lookup, "_ADMITTED", set())
    sys.modules.pop("ownnet")
    unnamed = refused("sample", "-n", "3", "--run", "run")
    assert "name it again: --backbone ownnet:build" in unnamed
    assert "ownnet" not in sys.modules
    for given in (["sample", "-n", "3"], ["rank"], ["export", "out.safetensors"]):
        monkeypatch.setattr(lookup, "_ADMITTED", set())
        assert run(*given, "--run", "run", *own, "-q") == 0
    monkeypatch.setattr(lookup, "_ADMITTED", set())
    assert run("evaluate", "out.safetensors") == 1
    assert run("evaluate", "out.safetensors", *own) == 0
    monkeypatch.setattr(lookup, "_ADMITTED", set())
    with pytest.raises(PgnasError, match=r"in Python pgnas_cli\.admit\('ownnet:build'\)$"):
        pgnas_cli.load("out.safetensors")
    assert pgnas_cli.admit("ownnet:build") == "ownnet:build"
    assert pgnas_cli.load("out.safetensors").info.supernet.backbone == "ownnet:build"
    for name, message in (
        ("ownnet:", "names no function"),
        ("ownnet:nothing", "(from the command line, ownnet:nothing) does not load"),
    ):
        assert message in refused("fit", "--backbone", name, "--run", "other")


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

    def pgnas(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pgnas_cli", *arguments], capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "small  (from mynets)" in pgnas("backbones")
    assert pgnas("backbones", "small", "--check").count("ok ") == 7
