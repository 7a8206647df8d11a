"""The backbones of this package: published sizes, noise of their own, recipes; timm's own keys."""

import dataclasses
from pathlib import Path

import pytest
import timm
import torch
from pgnas_backbones.enas import DROP_PATH, DropPath, Enas
from pgnas_backbones.multibranch import Block, shaken
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.models import WeightsEnum

from pgnas_cli.data import load_data
from pgnas_cli.errors import PgnasError
from pgnas_cli.gates import drop_probabilities, gates, kl, make_concrete_
from pgnas_cli.graph import OperationGate
from pgnas_cli.registry import Recipe, Start, preset
from pgnas_cli.registry.build import build_backbone
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.seeds import derived_seed, seeded_globals
from pgnas_cli.sizes import ExpectedSize, Target, count, parameter_count, whole_macs
from pgnas_cli.slimming import slim
from pgnas_cli.training import fit_network
from pgnas_cli.training.size_control import Phases, phases

from .networks import assert_exact, randomised, seeded, supernet


@pytest.mark.parametrize(
    ("name", "classes", "millions"),
    [
        ("multibranch-m", 10, 26.19), ("multibranch-mi", 10, 72.70), ("resnet50", 1000, 28.1),
        ("densenet121", 1000, 7.98),
        ("densenet121-inflated", 1000, 7.98 + 58 * 128 * 32 * (11 - 9) / 1e6),
        ("enas-ei", 10, 15.3),
        ("enas-e", 10, 4.39),  # as its cells with 36 filters have; ENAS itself quotes 4.6
    ],
)  # fmt: skip
def test_sizes_are_the_published_ones(name: str, classes: int, millions: float) -> None:
    """Those of ENAS with the auxiliary head, which no exported network has."""
    network = build_backbone(name, classes=classes).network
    whole = sum(parameter.numel() for parameter in network.parameters())
    assert whole == pytest.approx(1e6 * millions, rel=0.015)
    assert (parameter_count(network) < whole) == name.startswith("enas")


def test_the_auxiliary_head_is_that_of_the_released_code() -> None:
    """Behind cell 12 of 0 to 16; ReLU, 5x5 mean at a stride of 3, then 128, 768, classes."""
    network = Enas(4, (3, 32, 32), 10).train()
    seen: dict[str, torch.Tensor] = {}
    network.cells[12].register_forward_hook(lambda *call: seen.update(cell=call[2]))
    network.auxiliary[1].register_forward_hook(lambda *call: seen.update(pooled=call[2]))
    network(torch.randn(2, 3, 32, 32, generator=seeded()))
    cell = seen["cell"].relu()
    windows = [cell[..., a : a + 5, b : b + 5].mean((2, 3)) for a in (0, 3) for b in (0, 3)]
    assert torch.allclose(seen["pooled"].flatten(2), torch.stack(windows, 2), atol=1e-6)
    shapes = [tuple(m.weight.shape) for m in network.auxiliary if isinstance(m, nn.Conv2d)]
    assert shapes == [(128, cell.shape[1], 1, 1), (768, 128, 2, 2)]


@pytest.mark.parametrize("pixels", [16, 40, 64])
def test_the_auxiliary_head_takes_other_sizes(pixels: int) -> None:
    network = Enas(2, (3, pixels, pixels), 10).train()
    _, second = network(torch.randn(2, 3, pixels, pixels, generator=seeded()))
    assert second.shape == (2, 10)


# --- noise of their own ----------------------------------------------------------------------


def test_shake_shake_draws_other_weights_for_the_gradient_per_image() -> None:
    first, second = torch.randn(2, 6, 2, 3, 3, generator=seeded()).requires_grad_().unbind()

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
    x = torch.randn(3, 4, 8, 8, generator=seeded())
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


def test_a_fit_tells_the_network_how_far_it_is() -> None:
    network = make_concrete_(Enas(2, (1, 8, 8), 10), (1, 8, 8))
    told: list[float] = []
    network.at_progress = told.append
    recipe = Recipe(epochs=1, batch_size=288, lr=0.01)
    (record,) = fit_network(network, load_data("digits", seed=0), recipe)
    assert told == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert record.loss > 0


# --- operations ------------------------------------------------------------------------------


def operations() -> nn.Module:
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
    keep = draw_candidates(p, network, 3, 0)
    for row in keep:
        assert_exact(network, row)
    rounded = count(network, keep, round_to=4)
    smaller = slim(network, keep[0], round_to=4)
    assert sum(q.numel() for q in smaller.parameters()) == int(rounded.params[0])
    only = torch.tensor([1.0 if g.layer in marked else 0.0 for g in bank.groups])
    (alone,) = draw_candidates(only, network, 1, 0)
    assert_exact(network, alone)
    assert int(count(network, alone[None]).macs) < whole_macs(network)
    expected = ExpectedSize(network)(p)
    drawn = count(network, draw_candidates(p, network, 60, 0))
    assert float(expected["params"]) == pytest.approx(float(drawn.params.double().mean()), rel=0.03)


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
    where = preset(build_backbone("enas-e", classes=10), "published")["gates"]
    assert where == "all"
    network = make_concrete_(Enas(2, (3, 16, 16), 10), (3, 16, 16), layers=where)
    modules = dict(network.named_modules())
    assert not any(isinstance(modules[layer], OperationGate) for layer in gates(network).spans)


# --- recipes and weights -----------------------------------------------------------------------


def test_timm_networks_decide_p_early_and_start_from_a_probe() -> None:
    """What docs/choosing.md says of them: 15 and 22 % of a fit; chosen in docs/log.md."""
    recipe = build_backbone("timm/resnet18", classes=10, size=64).pretrained_recipe
    assert recipe is not None
    assert phases(recipe, 1000, 100, Target("params", 0.5)) == Phases(50, 150, 220)
    assert recipe.probe


def test_state_dict_keys_are_timms_own() -> None:
    plain = set(timm.create_model("resnet18", num_classes=10).state_dict())
    assert set(supernet("resnet18").state_dict()) == plain | {"gates.drop_logit"}


def test_starting_weights_of_other_classes_replace_both_heads(tmp_path: Path) -> None:
    state = build_backbone("enas-e", classes=10).network.state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "ten.safetensors")
    start = Start(weights=tmp_path / "ten.safetensors")
    assert len(build_backbone("enas-e", classes=3, start=start).remarks) == 2


# --- torchvision -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "googlenet"])
def test_a_network_of_torchvision_has_its_weights_a_new_head_and_its_own_images(
    name: str, tmp_path: Path
) -> None:
    """`squeezenet1_1` ends in a convolution, `googlenet` has auxiliary heads in training."""
    options = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    theirs = models.get_model(name, weights=None, **options).eval()
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    start = Start(weights=tmp_path / "w.safetensors")
    ours = build_backbone(f"torchvision/{name}", classes=1000, size=64, start=start)
    x = torch.randn(2, 3, 64, 64, generator=seeded())
    with torch.no_grad():
        assert torch.equal(ours.network.eval()(x), theirs(x))
    few = build_backbone(f"torchvision/{name}", classes=5, size=64, start=start)
    assert few.new_heads == few.heads
    assert few.network(x).shape == (2, 5)
    grey = build_backbone(f"torchvision/{name}", classes=5, channels=1, size=64)
    assert grey.network(x[:, :1]).shape == (2, 5)
    assert grey.images is not None
    assert (grey.images.input_shape, grey.images.crop) == ((1, 64, 64), 224 / 256)
    mean = 0.5 if name == "googlenet" else (0.485 + 0.456 + 0.406) / 3
    assert grey.images.mean == pytest.approx([mean])


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "densenet121"])
def test_the_default_weights_of_torchvision_are_loaded_for_any_classes_and_channels(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their way: `googlenet` maps its images to mean and deviation 0.5 by itself."""
    options = {"aux_logits": True, "init_weights": True} if name == "googlenet" else {}
    torch.manual_seed(0)
    state = models.get_model(name, weights=None, **options).state_dict()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *a, **k: dict(state))
    theirs = models.get_model(name, weights="DEFAULT").eval()
    start = Start(pretrained=True)
    ours = build_backbone(f"torchvision/{name}", classes=1000, size=64, start=start)
    assert ours.images is not None and ours.new_heads == ()
    bytes_ = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8, generator=seeded())
    usual = models.get_model_weights(name).DEFAULT.transforms()
    imagenet = dataclasses.replace(ours.images, mean=tuple(usual.mean), std=tuple(usual.std))
    with torch.no_grad():
        wanted = theirs(imagenet.normalised(bytes_))
        found = ours.network.eval()(ours.images.normalised(bytes_))
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))
    few = build_backbone(f"torchvision/{name}", classes=5, size=64, start=start)
    assert few.new_heads == few.heads
    assert few.recipe == few.pretrained_recipe
    grey = build_backbone(f"torchvision/{name}", classes=5, channels=1, size=64, start=start)
    first = next(key for key, value in grey.network.state_dict().items() if value.dim() == 4)
    summed = state[first].sum(1, keepdim=True)
    assert torch.allclose(grey.network.state_dict()[first], summed, atol=1e-6)


def test_torchvisions_weights_without_a_network_name_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("name or service\nnot known")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", offline)
    with pytest.raises(
        PgnasError, match=r"'resnet18' \(name or service not known\); download them"
    ):
        build_backbone("torchvision/resnet18", classes=3, start=Start(pretrained=True))
