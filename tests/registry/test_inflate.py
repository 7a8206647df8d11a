"""Inflated networks: branches as asked for, the same function where the original stays."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.densenet import DenseNet
from torch import Tensor, nn

from pgnas_cli.errors import PgnasError
from pgnas_cli.gates import gates, make_concrete_
from pgnas_cli.registry import Inflation, Start, preset
from pgnas_cli.registry.build import build_backbone
from pgnas_cli.registry.inflate import CORRELATION, grid_of, inflate_
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.sizes import ExpectedSize, count

from ..conftest import run as command
from ..files import Change, rewrite
from ..networks import assert_exact, random_keep, randomised, seeded

NOT_A_NUMBER = torch.full((10,), 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn)


def timm_network(name: str) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        if name == "densenet":
            return randomised(DenseNet(growth_rate=8, block_config=(2, 2), num_classes=5))
        return randomised(timm.create_model(name, num_classes=5))


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet26", "mobilenetv3_small_050", "regnetx_002", "densenet"]
)
def test_beside_its_branches_an_original_keeps_the_function(name: str) -> None:
    network = timm_network(name)
    image = torch.randn(2, 3, 64, 64, generator=seeded(1))
    with torch.no_grad():
        before = network(image)
        rows = inflate_(network, (3, 64, 64), Inflation((1, 5), keep_original=True))
        after = network.eval()(image)
    assert any(row.branches for row in rows)
    assert torch.allclose(before, after, atol=1e-5 * float(before.abs().max()))


def test_branches_of_a_depthwise_convolution_share_its_channels() -> None:
    network = timm_network("mobilenetv2_035")
    rows = inflate_(network, (3, 64, 64), Inflation((1, 3, 5)))
    assert [row.reason for row in rows if not row.branches] == ["reads the image"]
    block = network.blocks[1][0].conv_dw
    image = torch.randn(2, 48, 9, 9, generator=seeded())
    parts = [
        branch(part)
        for branch, part in zip(block.branches, image.split([16, 16, 16], 1), strict=True)
    ]
    assert all(branch.groups == 16 for branch in block.branches)
    assert torch.equal(block(image), torch.cat(parts, 1))


@pytest.mark.parametrize("name", ["mobilenetv2_035", "regnetx_002"])
def test_candidates_of_inflated_grouped_convolutions_are_cut_exactly(name: str) -> None:
    network = timm_network(name)
    inflate_(network, (3, 64, 64), Inflation((1, 3, 5)))
    make_concrete_(network, (3, 64, 64))
    randomised(network)
    for drop in (0.3, 0.9):
        keep = random_keep(network, drop, 1)
        assert_exact(network, keep)
    p = torch.full((len(gates(network).groups),), 0.3)
    drawn = count(network, draw_candidates(p, network, 60, 0)).params.double()
    assert float(ExpectedSize(network)(p)["params"]) == pytest.approx(float(drawn.mean()), rel=0.02)


def test_branches_share_the_outputs_start_from_the_original_and_see_what_their_size_says() -> None:
    network = timm_network("resnet26")
    original = network.layer1[0].conv2.weight.detach().clone()
    rows = inflate_(network, (3, 64, 64), Inflation((1, 3, 5, 9)))
    assert all(row.branches for row in rows if row.layer.endswith("conv2"))
    branches = network.layer1[0].conv2.branches
    assert [branch.out_channels for branch in branches] == [16, 16, 16, 16]
    three = branches[1].weight
    places = [int((original - row).abs().flatten(1).sum(1).argmin()) for row in three]
    assert torch.allclose(three, original[places], atol=1e-6)
    assert len(set(places)) == 16
    impulse = torch.zeros(1, 64, 21, 21)
    impulse[:, :, 10, 10] = 1
    for branch, reach in zip(branches, (0, 1, 2, 4), strict=True):
        nn.init.ones_(branch.weight)
        seen = (branch(impulse)[0, 0] != 0).nonzero()
        assert int((seen - 10).abs().max()) == reach
    make_concrete_(network, (3, 64, 64), layers="hidden")  # each branch has a p behind it
    groups = [(g.start, g.stop) for g in gates(network).groups if g.layer == "layer1.0.conv3"]
    assert groups == [(0, 16), (16, 32), (32, 48), (48, 64)]


def test_filters_are_predicted_as_well_as_other_taps_can() -> None:
    """Least squares on the covariance of all pixels that either kernel sees, tap by tap."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    original = network[1].weight.detach().clone().double()
    inflate_(network, (3, 16, 16), Inflation((5, 9)))

    def covariance(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> Tensor:
        return torch.tensor([[CORRELATION ** (abs(a - c) + abs(b - d)) for c, d in other]
                             for a, b in one], dtype=torch.float64)  # fmt: skip

    own = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    for row, (branch, places) in enumerate(
        zip(network[1].branches, ((-2, 0, 2), (-4, -2, 0, 2, 4)), strict=True)
    ):
        taps = [(a, b) for a in places for b in places]
        fit = torch.linalg.solve(covariance(taps, taps), covariance(taps, own))
        expected = original[row].flatten(1) @ fit.T
        assert torch.allclose(branch.weight[0].flatten(1).double(), expected, atol=1e-6)


def test_a_branch_takes_the_filters_that_it_can_hold() -> None:
    """Where half of the filters are 1x1 in a 3x3, branches of 1x1 and 3x3 keep the function."""
    network = timm_network("resnet26")
    for name, module in network.named_modules():
        if name.endswith("conv2"):
            few = torch.randperm(len(module.weight), generator=seeded(3))[::2]
            centre = module.weight[few, :, 1, 1].detach()
            module.weight.data[few] = 0
            module.weight.data[few, :, 1, 1] = centre
    image = torch.randn(2, 3, 64, 64, generator=seeded(1))
    with torch.no_grad():
        before = network(image)
        inflate_(network, (3, 64, 64), Inflation((1, 3)))
        after = network.eval()(image)
    assert torch.allclose(before, after, atol=1e-5 * float(before.abs().max()))


def test_branches_start_at_random_where_no_weights_are_given() -> None:
    """As PyTorch's own initialisation: no tap is left at zero."""
    network = build_backbone("densenet121-inflated", classes=5, size=64).network
    (block,) = [
        m for n, m in network.named_modules() if n.endswith("denseblock1.denselayer1.conv2")
    ]
    assert [branch.out_channels for branch in block.branches] == [8, 8, 8, 8]
    for branch in block.branches:
        expected = (2 / (8 * branch.kernel_size[0] ** 2)) ** 0.5
        assert float(branch.weight.detach().std()) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("keep", [False, True])
def test_a_start_says_how_much_of_the_function_survives(tmp_path: Path, keep: bool) -> None:
    plain = randomised(timm.create_model("densenet121", num_classes=5))
    state = {k: v.contiguous() for k, v in plain.state_dict().items()}
    save_file(state, tmp_path / "plain.safetensors")
    start = Start(weights=tmp_path / "plain.safetensors", keep_original=keep)
    found = build_backbone("densenet121-inflated", classes=5, size=64, start=start)
    (remark,) = found.remarks
    assert "of the function of the starting weights survives the inflation" in remark
    assert remark.startswith("100 %") == keep
    assert ("`keep_original` keeps it all" in remark) != keep
    assert (found.recipe.gates, found.recipe.groups) == ("all", "layer")
    if keep:
        image = torch.randn(2, 3, 64, 64, generator=seeded())
        with torch.no_grad():
            expected = plain(image)
            after = found.network.eval()(image)
        assert torch.allclose(after, expected, atol=1e-5 * float(expected.abs().max()))


def test_the_original_is_kept_only_where_a_fit_inflates() -> None:
    with pytest.raises(PgnasError, match="is for networks that a fit inflates, not for 'timm/res"):
        build_backbone("timm/resnet18", classes=5, size=64, start=Start(keep_original=True))


@pytest.mark.parametrize("name", ["timm/resnet50", "densenet121", "resnet50"])
def test_files_made_from_the_papers_networks_know_their_published_preset(
    tmp_path: Path, name: str
) -> None:
    file = tmp_path / "own.safetensors"
    assert command("inflate", name, "-o", str(file), "--kernels", "1,3", "--img-size", "32",
                   "-q") == 0  # fmt: skip
    own = preset(build_backbone(str(file), classes=5), "published")
    registered = name.removeprefix("timm/")
    assert own == preset(build_backbone(registered, classes=5), "published")


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
    survives = "note: 100 % of the function of the starting weights survives the inflation"
    assert survives in text.err
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
    err = capsys.readouterr().err
    assert "the head 'fc' has 5 outputs, here are 3: replaced" in err
    assert survives in err
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
        (["timm/convnext_atto", "--keep-original"], "what reads its outputs fixes their number"),
        (["timm/mobilenetv2_035", "--width", "2"], "grouped: the number of its outputs is fixed"),
        (["timm/test_vit"], "no convolution of 3x3 or more that can be inflated: reads the image"),
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
