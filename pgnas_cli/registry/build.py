"""Build super-networks: load the backbone, inflate it where asked, put its gates in place."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import PgnasError
from ..gates import make_concrete_
from ..graph import evaluating
from ..progress import note
from ..seeds import derived_seed, generator, seeded_globals
from ..storage import check_ending, from_json, new_file, to_json
from ..tensors import read_header, read_values, write_tensors
from .backbone import Backbone, Inflation, Start
from .inflate import Inflated, check, inflate_
from .lookup import load_backbone, with_replaced
from .measure import measured
from .weights import fit_weights_

SUPERNET = "pgnas.supernet/1"


def build_backbone(
    name: str,  # registered, "timm/NAME", or a file that `inflate` wrote
    *,
    classes: int,
    channels: int | None = None,
    size: int | None = None,
    options: dict[str, Any] | None = None,
    start: Start = Start(),  # noqa: B008 - frozen
) -> Backbone:
    """`load_backbone`, inflated where the backbone, its options or the file ask for it."""
    own = dict(options or {})
    tensors: dict[str, Tensor] | None = None
    file = Path(name)
    survives: float | None = None
    if file.suffix == ".safetensors":
        if start.pretrained or start.weights is not None:
            raise PgnasError(
                f"'{file}' has weights of its own; leave out `pretrained` and `weights`"
            )
        header, content = read_header(file, SUPERNET)
        parts = from_json(Parts, content.get("parts"), file)
        survives = parts.survives
        name, own = parts.backbone, {**own, **parts.options}
        found = measured(parts.backbone, classes=2, input_shape=None, options=parts.options)
        stored = sum(tensor.numel() for tensor in header.values())
        if found is not None:
            found.inflates_within(parts.options, stored, file)
        values = read_values(file, header)
        tensors = {key.removeprefix("network."): value for key, value in values.items()}
    given = own.pop("inflation", None)
    backbone = load_backbone(
        name, classes=classes, channels=channels, size=size, options=own, start=start
    )
    inflation = backbone.inflation if given is None else from_json(Inflation, given, file)
    if start.keep_original:
        if inflation is None or tensors is not None:
            raise PgnasError(
                f"`keep_original` is for networks that a fit inflates, not for '{file}'; give it to"
                " pgnas inflate"
            )
        inflation = dataclasses.replace(inflation, keep_original=True)
    if inflation is not None:
        backbone, _, share = _inflated(backbone, inflation, start)
        survives = share if tensors is None else survives
        own["inflation"] = to_json(inflation)
    if tensors is not None:
        replaced = fit_weights_(backbone.network, tensors, file, backbone.heads)
        backbone = with_replaced(backbone, replaced)
    if survives is not None:
        backbone = dataclasses.replace(backbone, remarks=(*backbone.remarks, _surviving(survives)))
    given_weights = start.pretrained or start.weights is not None or survives is not None
    if given_weights and backbone.pretrained_recipe is not None:
        backbone = dataclasses.replace(
            backbone, recipe=backbone.pretrained_recipe, recipe_of="for pretrained weights"
        )
    return dataclasses.replace(backbone, options=own)


def _inflated(
    backbone: Backbone, inflation: Inflation, start: Start
) -> tuple[Backbone, list[Inflated], float | None]:
    """`backbone`, its network inflated in place, with the paper's gates; what became of each
    convolution; and how much of the function of given weights survives, in [0, 1]."""
    network, given = backbone.network, start.pretrained or start.weights is not None
    before = _logits(network, backbone.input_shape) if given else None
    with seeded_globals(derived_seed(start.seed, "inflation")):
        rows = inflate_(network, backbone.input_shape, inflation, copy=given)
    papers: dict[str, Any] = {"gates": "all", "groups": "layer"}
    own = backbone.pretrained_recipe
    backbone = dataclasses.replace(
        backbone,
        recipe=dataclasses.replace(backbone.recipe, **papers),
        pretrained_recipe=None if own is None else dataclasses.replace(own, **papers),
    )
    share = None
    if before is not None:
        after = _logits(network, backbone.input_shape)
        change = (after - before).norm() / before.norm().clamp_min(1e-12)
        share = max(0.0, 1 - float(change))
    return backbone, rows, share


@torch.no_grad()
def _logits(network: nn.Module, input_shape: tuple[int, int, int]) -> Tensor:
    """Of eight random images, smooth at several scales as photos are; the network's modes stay."""
    channels, *size = input_shape
    g = generator(0, "inflation")
    grids = [torch.randn(8, channels, pixels, pixels, generator=g) for pixels in (2, 4, 8, 16)]
    images = sum(F.interpolate(grid, size, mode="bilinear") for grid in grids) / 2
    with evaluating(network):
        logits: Tensor = network(images)
    return logits


def _surviving(share: float) -> str:
    """The remark on an inflated network that starts from given weights."""
    advice = "" if share > 0.99 else "; `keep_original` keeps it all, at more parameters"
    return (
        f"{100 * share:.0f} % of the function of the starting weights survives the inflation"
        f" (1 - relative change of the logits, random images){advice}"
    )


@dataclass(frozen=True)
class Parts:
    """What rebuilds an inflated network."""

    backbone: str
    options: dict[str, Any]
    survives: float | None = None  # of the function of the weights that it started from


def inflate(
    name: str,
    path: str | Path,
    inflation: Inflation = Inflation(),  # noqa: B008 - frozen
    *,
    classes: int = 1000,  # of the head; a fit replaces it
    img_size: int | None = None,  # None: the backbone's own
    start: Start = Start(),  # noqa: B008 - frozen
    force: bool = False,
) -> tuple[list[Inflated], int]:
    """Write an inflated network to `path`; returns what became of each convolution, parameters."""
    path = Path(path)
    if classes < 2:
        raise PgnasError(f"`classes` {classes} is out of range; possible: 2 or more")
    if ":" in name:
        raise PgnasError(
            f"'{name}' is not an installed backbone; package it first: docs/backbones.md"
        )
    check_ending(path, [".safetensors"])
    new_file(path, force)
    check(inflation)
    if Path(name).suffix == ".safetensors":
        raise PgnasError(f"'{name}' is inflated already; start from a backbone's name")
    backbone = load_backbone(name, classes=classes, size=img_size, start=start)
    backbone, rows, survives = _inflated(backbone, inflation, start)
    options = {**backbone.options, "inflation": to_json(inflation)}
    tensors = {f"network.{key}": value for key, value in backbone.network.state_dict().items()}
    parts = Parts(backbone.name, options, survives)
    write_tensors(path, SUPERNET, tensors, {"parts": to_json(parts)})
    remarks = [] if survives is None else [_surviving(survives)]
    for remark in (*backbone.remarks, *remarks):
        note(f"note: {remark}")
    return rows, sum(p.numel() for p in backbone.network.parameters())


def create_supernet(  # noqa: PLR0913 - public; each is an option of its own
    name: str,
    num_classes: int,
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,  # a plain state dict in a safetensors file
    input_shape: tuple[int, int, int] | None = None,  # None: RGB of the backbone's own size
    layers: str = "all",
    groups: str = "layer",
    initial_drop: float | None = None,  # None: as the backbone's recipe has it
    options: dict[str, Any] | None = None,  # of the backbone
    seed: int = 0,  # of the initial weights
) -> nn.Module:
    """Build the backbone called `name`, or "timm/NAME", and put its gates in place."""
    if num_classes < 2:
        raise PgnasError(f"{num_classes} classes are too few; possible: 2 or more")
    square = input_shape is None or (len(input_shape) == 3 and input_shape[1] == input_shape[2])
    if not square or (input_shape is not None and input_shape[0] < 1):
        raise PgnasError(f"input_shape {input_shape} is not (channels, size, size)")
    channels, size = (None, None) if input_shape is None else input_shape[:2]
    backbone = build_backbone(
        name, classes=num_classes, channels=channels, size=size, options=options,
        start=Start(pretrained, None if weights is None else Path(weights), seed),
    )  # fmt: skip
    if input_shape not in (None, tuple(backbone.input_shape)):
        raise PgnasError(f"backbone '{name}' takes images of {backbone.input_shape} only")
    return make_concrete_(
        backbone.network,
        backbone.input_shape,
        layers=layers,
        groups=groups,
        initial_drop=backbone.recipe.initial_drop if initial_drop is None else initial_drop,
        ungated=backbone.ungated,
    )
