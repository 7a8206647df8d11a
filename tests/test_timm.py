"""Networks that nobody here wrote: gates, exact slimming and export of timm's families."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from pgnas_cli.candidates import count, parameter_count
from pgnas_cli.cli import main
from pgnas_cli.errors import PgnasError
from pgnas_cli.export import load
from pgnas_cli.slimming import slim
from pgnas_cli.supernet import create_supernet, gates, layer_gates, masked

from .conftest import random_keep, randomised

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
    for key, value in network.named_parameters():
        if key.endswith("gamma") or key.endswith("gain"):
            value.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
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
    assert rows[1]["latency_one"]["layout"] == "onnx"
    network = load("a.safetensors")
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (x,)).module()
    with torch.no_grad():
        assert torch.allclose(program(x), network(x), atol=1e-5)
