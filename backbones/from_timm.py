"""Any convolutional network of timm, as it is: `timm/resnet50`, `timm/efficientnet_b0`, ..."""

import logging
import socket
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
from huggingface_hub import constants, try_to_load_from_cache
from timm.models import PretrainedCfg, get_pretrained_cfg
from torch import nn

from pgnas_cli.data import Preprocessing
from pgnas_cli.errors import PgnasError, one_line
from pgnas_cli.progress import note
from pgnas_cli.registry import OBJECTIVE, Backbone, Recipe

# Supplement of the paper, by the name of the network: a tenth of the rate at each milestone;
# N = 1.2 M images.
_IMAGENET: dict[str, Any] = {
    **OBJECTIVE, "opt": "nesterov", "lr": 0.1, "sched": "multistep", "scale": (0.08, 1.0),
    "kl_images": 1.2e6, "drop_opt": "weights",
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "resnet50": {
        **_IMAGENET, "decay_milestones": (30, 60), "epochs": 90, "batch_size": 256, "l2": 80.0,
    },
    "densenet121": {
        **_IMAGENET, "decay_milestones": (90, 140, 160), "epochs": 180, "batch_size": 300,
        "l2": 100.0,
    },
}  # fmt: skip
# The same, for smaller images and memories: the rate falls with the batch (Goyal et al., 2017).
_SMALL: dict[str, Any] = {"batch_size": 64, "scale": (0.35, 1.0), "drop_opt": "adam"}

PATIENCE = 3.0  # seconds, for the hub to take a connection
FROM_SCRATCH = Recipe(epochs=30, batch_size=64, lr=0.025, weight_decay=1e-4)
# Chosen on held-out photos (docs/log.md).
PRETRAINED = Recipe(
    epochs=10, batch_size=40, opt="adamw", lr=1e-3, weight_decay=1e-4, initial_drop=0.02,
    gates="hidden", groups="channel", drop_delay_epochs=0.5, size_ramp=0.15, freeze=0.22,
    probe=True,
)  # fmt: skip


def build(
    *,
    model: str,
    classes: int,
    channels: int = 3,
    size: int | None = None,
    pretrained: bool = False,
) -> Backbone:
    """timm's `model` with a head for `classes`; images as its own configuration wants them."""
    architecture = model.split(".")[0]
    if "." in model and model.partition(".")[2] not in _tags(model):
        raise PgnasError(
            f"timm has no weights '{model}'; it has {', '.join(_tags(model)) or 'none'}"
        )
    loud = logging.getLogger("huggingface_hub")  # tells of each try again
    level = loud.level
    loud.setLevel(logging.ERROR)
    about: dict[str, Any] = {"num_classes": classes, "in_chans": channels}
    try:
        network = (
            _fetched(model, **about) if pretrained
            else timm.create_model(model, pretrained=False, **about)
        )  # fmt: skip
    except Exception as error:  # the hub behind timm fails in many ways
        if not pretrained:
            raise
        if damaged := _cached(model):
            raise PgnasError(
                f"the file of the pretrained weights of '{model}' does not load"
                f" ({one_line(error)}); remove '{damaged}', to download it again"
            ) from None
        raise PgnasError(
            f"timm cannot fetch the pretrained weights of '{model}' ({one_line(error)}); download"
            " them where there is a network and give the file with `weights`"
        ) from None
    finally:
        loud.setLevel(level)
    config = get_pretrained_cfg(model) or PretrainedCfg()
    mean, std = config.mean, config.std
    if channels == 1:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    named = config.classifier or ()
    heads = (named,) if isinstance(named, str) else tuple(named)
    pixels = size or int(config.input_size[-1])
    published = PUBLISHED.get(architecture, {})
    recipe = FROM_SCRATCH
    if published:
        rate = published["lr"] * _SMALL["batch_size"] / published["batch_size"]
        recipe = Recipe(**{**published, **_SMALL, "lr": rate})
    return Backbone(
        network,
        (channels, pixels, pixels),
        recipe,
        "of the paper" if published else "for random weights",
        PRETRAINED,
        images=Preprocessing(
            channels, pixels, tuple(mean), tuple(std), config.interpolation, config.crop_pct
        ),
        heads=heads,
        new_heads=heads if pretrained and classes != config.num_classes else (),
        presets={"published": published} if published else {},
    )


def _fetched(model: str, **options: Any) -> nn.Module:
    """timm's network with its pretrained weights: from its cache, else downloaded.

    A hub that takes no connection within `PATIENCE` is not asked: its client tries for a minute.
    """
    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        return timm.create_model(model, pretrained=True, **options)
    except Exception:  # the hub behind timm fails in many ways
        if offline or not _answers(constants.ENDPOINT):
            raise
    finally:
        constants.HF_HUB_OFFLINE = offline
    note(f"downloading the pretrained weights of timm/{model}")
    return timm.create_model(model, pretrained=True, **options)


def _cached(model: str) -> str:
    """The file of a network's weights in the cache; "" where it is not there."""
    config = get_pretrained_cfg(model)
    for name in ("model.safetensors", "pytorch_model.bin"):
        found = config and config.hf_hub_id and try_to_load_from_cache(config.hf_hub_id, name)
        if isinstance(found, str):
            return found
    return ""


def _answers(address: str) -> bool:
    """Whether a server takes connections; behind a proxy only a request tells."""
    if getproxies():
        return True
    parts = urlsplit(address)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname, port), PATIENCE).close()
    except OSError:
        return False
    return True


def _tags(model: str) -> list[str]:
    name = model.partition(".")[0]
    return [n.partition(".")[2] for n in timm.list_models(f"{name}.*", pretrained=True)]
