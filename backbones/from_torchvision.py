"""Any network of torchvision's classifiers, as it is: `torchvision/resnet50`, ..."""

import difflib

from pgnas_backbones.from_timm import FROM_SCRATCH, PRETRAINED
from torch import nn
from torchvision import models

from pgnas_cli.data import Preprocessing
from pgnas_cli.errors import PgnasError
from pgnas_cli.registry import Backbone

# Without the heads that serve training alone.
_OPTIONS = {
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}


def build(*, model: str, classes: int, channels: int = 3, size: int | None = None) -> Backbone:
    """torchvision's `model` with a head for `classes`; images as its ImageNet weights want them."""
    known = models.list_models(module=models)
    if model not in known:
        near = difflib.get_close_matches(model, known, n=3)
        meant = f"did you mean {', '.join('torchvision/' + n for n in near)}?"
        hint = meant if near else f"it has {', '.join(known[:2])}, ..."
        raise PgnasError(f"torchvision has no network '{model}'; {hint}")
    network = models.get_model(model, weights=None, num_classes=classes, **_OPTIONS.get(model, {}))
    layers = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    if channels != 3:
        _read_channels_(network, layers[0], channels)
    usual = models.get_model_weights(model).DEFAULT.transforms()
    pixels = size or usual.crop_size[0]
    mean, std = (
        tuple(level) if channels == 3 else (sum(level) / 3,) * channels
        for level in (usual.mean, usual.std)
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
        heads=(layers[-1],),
    )  # fmt: skip


def _read_channels_(network: nn.Module, path: str, channels: int) -> None:
    """Give the first convolution another number of inputs, and fresh weights."""
    old = network.get_submodule(path)
    assert isinstance(old, nn.Conv2d)
    new = nn.Conv2d(
        channels, old.out_channels, old.kernel_size, old.stride, old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )  # fmt: skip
    network.set_submodule(path, new)
