"""Inflated networks: branches as asked for, the same function where the original stays."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pgnas_cli.errors import PgnasError
from pgnas_cli.gates import gates, make_concrete_
from pgnas_cli.registry import Inflation
from pgnas_cli.registry.build import build_backbone
from pgnas_cli.registry.inflate import grid_of, inflate_

from ..conftest import run as command
from ..files import Change, rewrite
from ..networks import randomised, seeded

NOT_A_NUMBER = torch.full((10,), 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn)


def timm_network(name: str) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return randomised(timm.create_model(name, num_classes=5))


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "resnet26"])
def test_beside_its_branches_an_original_keeps_the_function(name: str) -> None:
    network = timm_network(name)
    image = torch.randn(2, 3, 64, 64, generator=seeded(1))
    with torch.no_grad():
        before = network(image)
        rows = inflate_(network, (3, 64, 64), Inflation((1, 5), keep_original=True))
        after = network.eval()(image)
    assert any(row.branches for row in rows)
    assert torch.allclose(before, after, atol=1e-5 * float(before.abs().max()))


def test_depthwise_convolutions_are_not_inflated() -> None:
    with pytest.raises(PgnasError, match=r"no convolution of 3x3 or more.*: .*grouped"):
        inflate_(timm_network("efficientnet_lite0"), (3, 64, 64), Inflation((1, 5)))


def test_branches_share_the_outputs_start_from_the_original_and_see_what_their_size_says() -> None:
    network = timm_network("resnet26")
    original = network.layer1[0].conv2.weight.detach().clone()
    rows = inflate_(network, (3, 64, 64), Inflation((1, 3, 5, 9)))
    assert all(row.branches for row in rows if row.layer.endswith("conv2"))
    branches = network.layer1[0].conv2.branches
    assert [branch.out_channels for branch in branches] == [16, 16, 16, 16]
    assert torch.equal(branches[1].weight, original[16:32])
    for branch, first in ((branches[0], 0), (branches[2], 32), (branches[3], 48)):
        rest = branch.weight.detach().clone()
        middle = rest.shape[-1] // 2
        assert torch.equal(rest[:, :, middle, middle], original[first : first + 16, :, 1, 1])
        rest[:, :, middle, middle] = 0
        assert not rest.any()
    impulse = torch.zeros(1, 64, 21, 21)
    impulse[:, :, 10, 10] = 1
    for branch, reach in zip(branches, (0, 1, 2, 4), strict=True):
        nn.init.ones_(branch.weight)
        seen = (branch(impulse)[0, 0] != 0).nonzero()
        assert int((seen - 10).abs().max()) == reach
    make_concrete_(network, (3, 64, 64), layers="hidden")  # each branch has a p behind it
    groups = [(g.start, g.stop) for g in gates(network).groups if g.layer == "layer1.0.conv3"]
    assert groups == [(0, 16), (16, 32), (32, 48), (48, 64)]


def test_width_changes_what_one_reader_sees() -> None:
    network = timm_network("resnet26")
    before = sum(p.numel() for p in network.parameters())
    inflate_(network, (3, 64, 64), Inflation((3, 5), width=1.5))
    assert network.layer1[0].conv3.in_channels == network.layer1[0].bn2.num_features == 96
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    assert sum(p.numel() for p in network.parameters()) > before


def test_a_layer_with_fewer_outputs_than_kernels_stays() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4),
        nn.Conv2d(4, 32, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2),
    )  # fmt: skip
    rows = inflate_(network, (3, 16, 16), Inflation((1, 3, 5, 7, 9)))
    assert [bool(row.branches) for row in rows] == [False, False, True]
    assert rows[1].reason == "it has fewer outputs than there are kernels"
    assert network(torch.randn(1, 3, 16, 16)).shape == (1, 2)


@pytest.mark.parametrize(("kernel", "made"), [(1, (1, 1)), (5, (3, 2)), (7, (3, 3)), (9, (5, 2))])
def test_sizes_are_made_by_taps_and_holes_or_refused(kernel: int, made: tuple[int, int]) -> None:
    assert grid_of(kernel) == made
    assert made[1] * (made[0] - 1) + 1 == kernel
    for wrong in (2, 0, -3, 11):
        with pytest.raises(PgnasError, match="no branch has size"):
            grid_of(wrong)


def test_an_inflated_file_is_fitted_and_its_winner_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], photo_folder: Callable[..., Path]
) -> None:
    photos = str(photo_folder())
    start, file = tmp_path / "start.safetensors", tmp_path / "wide.safetensors"
    state: dict[str, Tensor] = timm_network("resnet18").state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, start)
    given = ["timm/resnet18", "-o", str(file), "--kernels", "1,5", "--keep-original"]
    more = ["--weights", str(start), "--classes", "5", "--img-size", "32"]
    assert command("inflate", *given, *more) == 0
    text = capsys.readouterr()
    assert "5x5 (3x3, dilation 2)" in text.out
    assert "next: pgnas fit --backbone" in text.err
    image = torch.randn(2, 3, 32, 32, generator=seeded())
    whole = build_backbone(str(file), classes=5).network.eval()
    with torch.no_grad():
        assert torch.allclose(whole(image), timm_network("resnet18")(image), atol=1e-4)
    stored = load_file(file)
    assert "network.layer1.0.conv1.branches.2.weight" in stored
    run = ["--run", str(tmp_path / "run")]
    how = ["--epochs", "2", "--batch-size", "8", "--img-size", "32", "--target-params", "60%"]
    own = ["--backbone", str(file), "--data", photos]
    assert command("fit", *own, *how, *run, "-j", "0") == 0
    assert "the head 'fc' has 5 outputs, here are 3: replaced" in capsys.readouterr().err
    file.unlink()  # the run names its parts, not the file
    best = tmp_path / "best.safetensors"
    assert command("sample", "-n", "6", *run, "-q") == 0
    assert command("rank", *run, "-q", "-j", "0") == 0
    assert command("export", str(best), *run, "--json", "-j", "0") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["params"] > 0
    assert command("evaluate", str(best), "--data", photos, "-q", "-j", "0") == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["timm/resnet18", "--kernels", "1,4"], "no branch has size 4"),
        (["timm/resnet18", "--kernels", "3,3"], "different odd sizes"),
        (["timm/resnet18", "--kernels", "a"], "--kernels 'a' are not sizes"),
        (["timm/resnet18", "--width", "0"], "--width 0 is out of range"),
        (["timm/resnet18", "--classes", "0"], "--classes 0 is out of range"),
        (["own:net"], "is not an installed backbone; package it first"),
        (["timm/densenet121", "--keep-original"], "what reads its outputs fixes their number"),
        (["resnet50"], "is inflated already; try timm/resnet50"),
    ],
)
def test_wrong_inflations_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], message: str
) -> None:
    out = ["-o", str(tmp_path / "out.safetensors"), "--img-size", "32"]
    assert command("inflate", *given, *out) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, t: c.pop("parts"), "its field parts is not what this pgnas writes"),
        (lambda c, t: c["parts"].update(backbone="os:system"),
         "'os:system' is a function that is not installed"),
        (lambda c, t: t.update({"network.fc.bias": NOT_A_NUMBER}),
         "holds numbers that are not finite: fc.bias"),
    ],
)  # fmt: skip
def test_a_damaged_inflated_file_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Change, message: str
) -> None:
    file = tmp_path / "wide.safetensors"
    given = ["timm/resnet18", "-o", str(file), "--kernels", "1,3", "--classes", "10"]
    assert command("inflate", *given, "--img-size", "32", "-q") == 0
    rewrite(file, "pgnas.supernet/1", change)
    capsys.readouterr()
    assert command("fit", "--backbone", str(file), "--run", str(tmp_path / "run")) == 1
    _, error = capsys.readouterr().err.splitlines()  # the run, and the error
    assert message in error
