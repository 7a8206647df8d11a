"""Starting weights: from a file, from timm, and what does not fit."""

import shlex
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from pgnas_cli.errors import PgnasError
from pgnas_cli.registry import Start
from pgnas_cli.registry.build import create_supernet
from pgnas_cli.registry.lookup import load_backbone

from ..networks import seeded


def test_weights_from_a_file_are_loaded_and_a_head_of_other_size_is_replaced(
    tmp_path: Path,
) -> None:
    path = tmp_path / "w.safetensors"
    torch.manual_seed(0)
    whole = timm.create_model("resnet18", num_classes=7).eval()
    save_file(whole.state_dict(), path)
    network = create_supernet("timm/resnet18", 7, weights=path, input_shape=(3, 64, 64)).eval()
    images = torch.randn(2, 3, 64, 64, generator=seeded())
    with torch.no_grad():
        assert torch.equal(network(images), whole(images))
    other = load_backbone("timm/resnet18", classes=3, size=64, start=Start(weights=path, seed=5))
    assert other.remarks == ("the head 'fc' has 7 outputs, here are 3: replaced",)
    assert other.new_heads == ("fc",)
    assert torch.equal(other.network.conv1.weight, whole.conv1.weight)
    assert other.network.fc.weight.shape == (3, 512)


@pytest.mark.parametrize(
    ("prefix", "wrapper"),
    [("module.", ""), ("_orig_mod.", ""), ("model.", ""), ("module._orig_mod.model.", ""),
     ("backbone.net.", ""), ("", "module."), ("", "_orig_mod.")],
)  # fmt: skip
def test_what_wrappers_add_to_all_names_is_taken_off(
    tmp_path: Path, prefix: str, wrapper: str
) -> None:
    """`wrapper` is around one block alone, `prefix` around the network."""
    state = timm.create_model("test_resnet", num_classes=10).state_dict()
    named = {
        prefix + key.replace("layer1.", f"layer1.{wrapper}"): value for key, value in state.items()
    }
    save_file(named, tmp_path / "w.safetensors")
    found = load_backbone(
        "timm/test_resnet", classes=10, start=Start(weights=tmp_path / "w.safetensors")
    )
    assert found.remarks == ()
    for key, value in found.network.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize(
    ("names", "remark"),
    [
        ((), "no weights for the head 'fc': new"),
        (("classifier.weight", "classifier.bias"),
         "no weights for the head 'fc', but for 'classifier': new"),
        (("head.0.weight", "head.2.weight"), "no weights for the head 'fc', but for 'head': new"),
    ],
)  # fmt: skip
def test_a_body_is_taken_without_its_head_or_with_another_one(
    tmp_path: Path, names: tuple[str, ...], remark: str
) -> None:
    state = timm.create_model("test_resnet", num_classes=0).state_dict()
    path = tmp_path / "w.safetensors"
    save_file({**state, **{name: torch.ones(7) for name in names}}, path)
    found = load_backbone("timm/test_resnet", classes=3, start=Start(weights=path))
    assert (found.remarks, found.new_heads) == ((remark,), ("fc",))
    assert torch.equal(found.network.conv1[0].weight, state["conv1.0.weight"])
    save_file({**state, "head.weight": torch.ones(7), "other.bias": torch.ones(7)}, path)
    with pytest.raises(PgnasError, match=r"missing none; surplus head\.weight, other\.bias"):
        load_backbone("timm/test_resnet", classes=3, start=Start(weights=path))


def test_a_body_is_found_under_its_prefix_beside_a_head_of_another_name(tmp_path: Path) -> None:
    """And where two networks lie in a file, none is chosen."""
    state = timm.create_model("test_resnet", num_classes=0).state_dict()
    path = tmp_path / "w.safetensors"
    body = {f"backbone.{key}": value for key, value in state.items()}
    save_file({**body, "head.fc.weight": torch.ones(7, 3)}, path)
    found = load_backbone("timm/test_resnet", classes=3, start=Start(weights=path))
    assert found.remarks == ("no weights for the head 'fc', but for 'head': new",)
    assert torch.equal(found.network.conv1[0].weight, state["conv1.0.weight"])
    save_file({**body, **{f"ema.{key}": value.clone() for key, value in state.items()}}, path)
    with pytest.raises(PgnasError, match=r"missing .* surplus backbone\."):
        load_backbone("timm/test_resnet", classes=3, start=Start(weights=path))


def test_the_mean_of_many_steps_is_loaded(tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=3)
    mean = AveragedModel(network)
    assert "n_averaged" in mean.state_dict()
    save_file(mean.state_dict(), tmp_path / "w.safetensors")
    found = load_backbone(
        "timm/test_resnet", classes=3, start=Start(weights=tmp_path / "w.safetensors")
    )
    assert found.remarks == ()
    assert torch.equal(found.network.fc.weight, network.fc.weight)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("nested", ["", "state_dict", "model"])
def test_the_command_in_the_message_converts_a_pth_file(
    tmp_path: Path, legacy: bool, nested: str
) -> None:
    network = timm.create_model("test_resnet", num_classes=3)
    state = network.state_dict()
    path = tmp_path / "my weights.pth"
    whole = {"epoch": 3, nested: state} if nested else state
    torch.save(whole, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        PgnasError, match=r"is a \.pth file of PyTorch's, which can run code"
    ) as refused:
        load_backbone("timm/test_resnet", classes=3, start=Start(weights=path))
    _, command = shlex.split(str(refused.value).partition("safetensors file: python ")[2])
    exec(command, {})
    start = Start(weights=path.with_suffix(".safetensors"))
    found = load_backbone("timm/test_resnet", classes=3, start=start).network.state_dict()
    assert all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer1.0.conv1.weight": None, "extra": torch.ones(1)},
         r"missing layer1\.0\.conv1\.weight; surplus extra; of another shape none"),
        ({"conv1.weight": torch.ones(1)}, "surplus none; of another shape conv1.weight"),
        ({"bn1.bias": torch.full((64,), torch.nan)}, "numbers that are not finite: bn1.bias"),
        ({"bn1.bias": torch.ones(64).int()}, "whole numbers where weights are wanted: bn1.bias"),
        ({"network.x": torch.ones(1), "fingerprint": torch.ones(1)}, "is an exported network, not"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_listed(
    tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    state = {**timm.create_model("resnet18", num_classes=10).state_dict(), **change}
    path = tmp_path / "w.safetensors"
    save_file({key: value for key, value in state.items() if value is not None}, path)
    with pytest.raises(PgnasError, match=message):
        create_supernet("timm/resnet18", 10, weights=path)
    with pytest.raises(PgnasError, match="no file"):
        create_supernet("timm/resnet18", 10, weights=tmp_path / "none.safetensors")


def test_pretrained_without_a_network_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("couldn't connect\nto the hub")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(PgnasError, match=r"couldn't connect to the hub.* the file with `weights`"):
        create_supernet("timm/resnet18", 10, pretrained=True)
    with pytest.raises(PgnasError, match="'multibranch-tiny' has no pretrained weights"):
        create_supernet("multibranch-tiny", 10, pretrained=True)


@pytest.mark.parametrize(("classes", "new"), [(10, ("fc",)), (1000, ())])
def test_a_pretrained_network_has_a_new_head_where_the_classes_are_others(
    classes: int, new: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, pretrained, **k: real(*a, **k))
    for start, heads in ((Start(pretrained=True), new), (Start(), ())):
        found = load_backbone("timm/resnet18", classes=classes, size=64, start=start)
        assert found.heads == ("fc",)
        assert found.new_heads == heads
