"""Networks that nobody here wrote: gates, exact slimming and export of timm's families."""

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from pgnas_cli.cli import main
from pgnas_cli.errors import PgnasError
from pgnas_cli.formats.network import load
from pgnas_cli.gates import gates, layer_gates, make_concrete_, masked
from pgnas_cli.registry.build import create_supernet
from pgnas_cli.registry.lookup import load_backbone
from pgnas_cli.sizes import Target, count, parameter_count
from pgnas_cli.slimming import slim, wire
from pgnas_cli.training.size_control import Phases, phases

from ..networks import random_keep, randomised

SMALL = (3, 64, 64)

# One small member of families that differ in what the analysis must understand.
FAMILIES = [
    "resnet18",  # residual sums
    "regnety_002",  # grouped convolutions, squeeze-excite
    "efficientnet_b0",  # depthwise, squeeze-excite beside the main reader
    "mobilenetv3_small_050",  # a linear subclass, hard activations
    "convnext_atto",  # layer norm, layer scale, channels last
    "ghostnet_050",  # slices of a concatenation
    "resnetv2_50",  # standardised weights, activation inside the norm
    "ese_vovnet19b_slim_dw",  # long concatenations
]


def supernet(name: str, **options: object) -> nn.Module:
    network = create_supernet(f"timm/{name}", 10, input_shape=SMALL, **options)
    return randomised(network)


@pytest.mark.parametrize("name", FAMILIES)
def test_slim_timm_network_equals_the_masked_one(name: str) -> None:
    network = supernet(name)
    layers = list(gates(network).spans)
    for drop, size in ((0.3, 64), (0.9, 96)):
        keep = random_keep(network, drop)
        if drop == 0.3:
            first, last = gates(network).spans[layers[len(layers) // 2]]
            keep[first:last] = False
        x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(2))
        with torch.no_grad(), masked(network, keep):
            expected = network(x)
        assert expected.abs().max() > 0
        for layout in ("small", "fast"):
            smaller = slim(network, keep, layout)
            with torch.no_grad():
                found = smaller(x)
            assert (found - expected).abs().max() <= 1e-4 * expected.abs().max(), (drop, layout)
            assert torch.equal(found.argmax(1), expected.argmax(1))
            if layout == "small":
                built = sum(p.numel() for p in smaller.parameters())
                assert built == int(count(network, keep[None]).params)
                assert built < 0.9 * parameter_count(network)


@pytest.mark.parametrize("name", ["resnet18", "regnety_002", "ese_vovnet19b_slim_dw"])
def test_corrupting_any_layer_of_a_slim_network_shows(name: str) -> None:
    """The parity check can fail: in each gated layer in turn one slice that it reads is changed."""
    network = supernet(name)
    keep = random_keep(network, 0.3)
    smaller = slim(network, keep)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    reads = {}
    for layer in gates(network).spans:
        module = smaller.get_submodule(layer)
        if isinstance(module, nn.Conv2d | nn.Linear):
            noted = partial(note_activity, reads, layer)
            reads[layer] = module.register_forward_pre_hook(noted)
    with torch.no_grad(), masked(network, keep):
        expected = network(x)
        smaller(x)
        tried = 0
        for layer, activity in reads.items():
            module = smaller.get_submodule(layer)
            busiest = int(activity.argmax())
            whole = module.weight.clone()
            module.weight[:, busiest] *= -10
            changed = float((smaller(x) - expected).abs().max() / expected.abs().max())
            assert changed > 1e-4, layer
            module.weight.copy_(whole)
            tried += 1
        assert tried == len(reads) > 15
        assert (smaller(x) - expected).abs().max() <= 1e-4 * expected.abs().max()


def note_activity(found: dict, layer: str, module: nn.Module, inputs: tuple) -> None:
    """Replace the hook in `found` by the mean size of each channel that the layer multiplies."""
    found[layer].remove()
    read = getattr(module, "read", None)
    features = inputs[0] if read is None else inputs[0].index_select(1, read)
    found[layer] = features.abs().transpose(0, 1).flatten(1).mean(1)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "regnety_002"])
def test_dead_channels_have_no_gradient_and_live_ones_have(name: str) -> None:
    """On smooth activations, against autograd: what the wiring calls needed, and nothing else."""
    network = randomised(make_concrete_(timm.create_model(name, act_layer="silu"), SMALL))
    keep = random_keep(network, 0.5)
    wiring = wire(network, keep[None])
    assert not wiring.graph.opaque()
    outputs = {}

    def note(layer: str, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        output.retain_grad()
        outputs[layer] = output

    calls = wiring.graph.calls()
    for layer, positions in calls.items():
        if wiring.graph.nodes[positions[0]].kind in ("mix", "grouped"):
            network.get_submodule(layer).register_forward_hook(partial(note, layer))
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with masked(network, keep):
        logits = network(x)
    logits.mul(
        torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))
    ).sum().backward()
    dead = live = 0
    for layer, output in outputs.items():
        gradient = output.grad.abs().transpose(0, 1).flatten(1).amax(1)
        needed = wiring.needed[calls[layer][0]][0]
        assert (gradient[~needed] == 0).all(), layer
        assert (gradient[needed] > 0).all(), layer
        dead, live = dead + int((~needed).sum()), live + int(needed.sum())
    assert dead > 500 and live > 500


@pytest.mark.parametrize("name", ["resnet18", "regnety_002", "ghostnet_050", "densenet121"])
def test_rounding_brings_channels_back_with_the_same_logits(name: str) -> None:
    network = supernet(name)
    keep = random_keep(network, 0.6)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), masked(network, keep):
        expected = network(x)
    plain, rounded = slim(network, keep), slim(network, keep, round_to=8)
    with torch.no_grad():
        assert (rounded(x) - expected).abs().max() <= 1e-4 * expected.abs().max()
    uneven = 0
    for layer in gates(network).spans:
        module, whole = rounded.get_submodule(layer), network.get_submodule(layer)
        if not isinstance(module, nn.Conv2d):
            continue
        there = getattr(module, "picks", 0) or module.in_channels
        assert module.in_channels % 8 == 0 or module.in_channels == there
        assert module.out_channels % 8 == 0 or module.out_channels == whole.out_channels
        before = plain.get_submodule(layer)
        uneven += isinstance(before, nn.Conv2d) and before.out_channels % 8 > 0
    assert uneven > 5  # it had something to do
    built = sum(p.numel() for p in rounded.parameters())
    assert built == int(count(network, keep[None], round_to=8).params)
    assert built > sum(p.numel() for p in plain.parameters())


def test_densenet_has_a_group_for_every_segment() -> None:
    rows = layer_gates(supernet("densenet121"))
    of = {row.layer: row.groups for row in rows}
    assert sum(n for layer, n in of.items() if layer.endswith("conv1")) == 535
    assert sum(n for layer, n in of.items() if layer.endswith("conv2")) == 58
    assert [n for layer, n in of.items() if "transition" in layer] == [7, 13, 25]
    assert of["classifier"] == 17


def test_a_squeeze_shares_the_gates_of_the_layer_it_serves() -> None:
    rows = {row.layer: row for row in layer_gates(supernet("efficientnet_b0"))}
    squeezes = [row for name, row in rows.items() if name.endswith("conv_reduce")]
    assert len(squeezes) == 16
    assert all(row.remark.startswith("shares the gates of") for row in squeezes)
    assert all(row.remark.endswith("conv_pwl") or "blocks.0" in row.layer for row in squeezes)
    assert rows["conv_stem"].remark == "reads the image"
    assert rows["blocks.1.0.conv_dw"].remark.startswith("grouped")


def test_no_residual_sum_is_taken_for_a_squeeze() -> None:
    for name in ("resnet18", "mobilenetv3_small_050"):
        for row in layer_gates(supernet(name)):
            if "shares" in row.remark:
                assert ".se." in row.layer


def test_state_dict_keys_are_timms_own() -> None:
    plain = timm.create_model("resnet18", num_classes=10).state_dict()
    keys = set(supernet("resnet18").state_dict())
    assert keys - set(plain) == {"gates.drop_logit"}
    assert set(plain) <= keys


def test_an_image_too_small_for_the_network_is_said_so() -> None:
    with pytest.raises(PgnasError, match=r"InceptionV3 does not take images of 32x32.*--img-size"):
        create_supernet("timm/inception_v3", 10, input_shape=(3, 32, 32))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet19", r"timm has no network 'resnet19'; did you mean .*timm/resnet18"),
        ("timm", "no backbone named 'timm'"),
        ("multibranch-tiny/x", "no backbone named 'multibranch-tiny/x'"),
        ("vit/x", "no backbone named 'vit/x'"),
    ],
)
def test_unknown_names_propose_near_ones(name: str, message: str) -> None:
    with pytest.raises(PgnasError, match=message):
        create_supernet(name, 10)


# --- weights -----------------------------------------------------------------------------------


def test_weights_from_a_file_are_loaded_and_a_head_of_other_size_is_replaced(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    whole = timm.create_model("resnet18", num_classes=7)
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    network = create_supernet(
        "timm/resnet18", 7, weights=tmp_path / "w.safetensors", input_shape=SMALL
    ).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(network(x), whole.eval()(x))
    other = create_supernet("timm/resnet18", 3, weights=tmp_path / "w.safetensors", seed=5)
    assert torch.equal(other.conv1.weight, whole.conv1.weight)
    assert other.fc.weight.shape == (3, 512)


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    state = timm.create_model("resnet18", num_classes=10).state_dict()
    state["extra"] = state.pop("layer1.0.conv1.weight")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(PgnasError, match=r"missing layer1\.0\.conv1\.weight; surplus extra"):
        create_supernet("timm/resnet18", 10, weights=tmp_path / "w.safetensors")
    with pytest.raises(PgnasError, match="no file"):
        create_supernet("timm/resnet18", 10, weights=tmp_path / "none.safetensors")


def test_pretrained_without_a_network_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("couldn't connect\nto the hub")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(PgnasError, match=r"couldn't connect to the hub.* the file with --weights"):
        create_supernet("timm/resnet18", 10, pretrained=True)
    with pytest.raises(PgnasError, match="'multibranch-tiny' has no pretrained weights"):
        create_supernet("multibranch-tiny", 10, pretrained=True)


# --- through the commands ------------------------------------------------------------------------


def run(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0


def test_a_timm_network_goes_through_all_commands(
    photo_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_file(
        timm.create_model("mobilenetv3_small_050", num_classes=1000).state_dict(),
        "weights.safetensors",
    )
    folder = str(photo_folder())
    fit = ["fit", "--backbone", "timm/mobilenetv3_small_050", "--weights", "weights.safetensors",
           "--data", folder, "--img-size", "64", "--epochs", "2", "--batch-size", "6",
           "--initial-drop", "0.2", "--run", "r"]  # fmt: skip
    run(fit)
    err = capsys.readouterr().err
    assert "note: the head 'classifier' has 1000 outputs, here are 3: replaced" in err
    run(["sample", "-n", "3", "--run", "r", "-q"])
    run(["export", "a.safetensors", "--run", "r", "-q"])
    run(["export", "a.onnx", "--run", "r", "-q"])
    capsys.readouterr()
    run(["evaluate", "a.safetensors", "a.onnx", "--data", folder, "--json"])
    rows = json.loads(capsys.readouterr().out)["networks"]
    assert rows[0]["errors"] == rows[1]["errors"]
    assert rows[0]["latency_one"]["layout"] in ("small", "fast")
    assert rows[1]["latency_one"]["layout"] == "small, onnx"
    network = load("a.safetensors")
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (x,)).module()
    with torch.no_grad():
        assert torch.allclose(program(x), network(x), atol=1e-5)


@pytest.mark.parametrize(("classes", "new"), [(10, ("fc",)), (1000, ())])
def test_a_pretrained_network_has_a_new_head_where_the_classes_are_others(
    classes: int, new: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, pretrained, **k: real(*a, **k))
    for pretrained in (True, False):
        found = load_backbone("timm/resnet18", classes=classes, size=64, pretrained=pretrained)
        assert found.heads == ("fc",)
        assert found.new_heads == (new if pretrained else ())


def test_timm_networks_decide_p_early_and_start_from_a_probe() -> None:
    """What docs/choosing.md says of them: 15 and 22 % of a fit; chosen in docs/log.md."""
    recipe = load_backbone("timm/resnet18", classes=10, size=64).recipe
    assert phases(recipe, 1000, 100, Target("params", 0.5)) == Phases(50, 150, 220)
    assert recipe.probe
    assert recipe.lr == 0.001
