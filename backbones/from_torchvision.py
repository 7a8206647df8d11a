"""Any network of torchvision's classifiers, as it is: `torchvision/resnet50`, ..."""

from pathlib import Path

from pgnas_backbones.from_timm import FROM_SCRATCH, PRETRAINED
from timm.models import adapt_input_conv
from torch import nn
from torchvision import models

from pgnas_cli.data import Preprocessing
from pgnas_cli.errors import PgnasError, one_line
from pgnas_cli.registry import Backbone
from pgnas_cli.registry.weights import fit_weights_

# Without the heads that serve training alone. Their weights are for mean and deviation 0.5.
_OPTIONS = {
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}


def build(
    *,
    model: str,
    classes: int,
    channels: int = 3,
    size: int | None = None,
    pretrained: bool = False,
) -> Backbone:
    """torchvision's `model` with a head for `classes`; images as its default weights want them."""
    network = models.get_model(model, weights=None, num_classes=classes, **_OPTIONS.get(model, {}))
    layers = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    if channels != 3:
        _read_channels_(network, layers[0], channels)
    head = layers[-1]
    replaced = _load_default_(network, model, layers[0], head, channels) if pretrained else {}
    usual = models.get_model_weights(model).DEFAULT.transforms()
    pixels = size or usual.crop_size[0]
    levels = (0.5,) * 3
    mean, std = (
        tuple(level) if channels == 3 else (sum(level) / 3,) * channels
        for level in ((levels, levels) if model in _OPTIONS else (usual.mean, usual.std))
    )
    return Backbone(
        network,
        (channels, pixels, pixels),
        FROM_SCRATCH,
        "for random weights",
        PRETRAINED,
        images=Preprocessing(
            channels, pixels, mean, std, usual.interpolation.value,
            usual.crop_size[0] / usual.resize_size[0],
        ),
        heads=(head,),
        new_heads=tuple(replaced),
        remarks=tuple(replaced.values()),
    )  # fmt: skip


def _load_default_(
    network: nn.Module, model: str, first: str, head: str, channels: int
) -> dict[str, str]:
    """Load torchvision's default weights, downloaded; returns a head that was replaced, and why."""
    try:
        theirs = models.get_model(model, weights="DEFAULT", progress=False)
    except Exception as error:  # the download behind it fails in many ways
        raise PgnasError(
            f"torchvision cannot fetch the pretrained weights of '{model}' ({one_line(error)});"
            " download them where there is a network and give the file with `weights`"
        ) from None
    own = network.state_dict()
    found = {key: value for key, value in theirs.state_dict().items() if key in own}
    found[f"{first}.weight"] = adapt_input_conv(channels, found[f"{first}.weight"])
    return fit_weights_(network, found, Path(model), (head,))


def _read_channels_(network: nn.Module, path: str, channels: int) -> None:
    """Give the first convolution another number of inputs, and fresh weights."""
    old = network.get_submodule(path)
    assert isinstance(old, nn.Conv2d)
    new = nn.Conv2d(
        channels, old.out_channels, old.kernel_size, old.stride, old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )  # fmt: skip
    network.set_submodule(path, new)
