"""Build super-networks: load the backbone, inflate it where asked, put its gates in place."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import PgnasError
from ..gates import make_concrete_
from ..progress import note
from ..seeds import derived_seed, seeded_globals
from ..storage import from_json, new_file, to_json
from ..tensors import read_tensors, write_tensors
from .backbone import Backbone, Inflation, Start
from .inflate import Inflated, check, inflate_
from .lookup import load_backbone, with_replaced
from .weights import fit_weights_

SUPERNET = "pgnas.supernet/1"


def build_backbone(
    name: str,  # registered, "timm/NAME", or a file that `inflate` wrote
    *,
    classes: int,
    channels: int = 3,
    size: int | None = None,
    options: dict[str, Any] | None = None,
    start: Start = Start(),  # noqa: B008 - frozen
) -> Backbone:
    """`load_backbone`, inflated where the backbone, its options or the file ask for it."""
    own = dict(options or {})
    tensors: dict[str, Tensor] | None = None
    file = Path(name)
    if file.suffix == ".safetensors":
        if start.pretrained or start.weights is not None:
            raise PgnasError(
                f"'{file}' has weights of its own; leave out `pretrained` and `weights`"
            )
        stored, content = read_tensors(file, SUPERNET)
        parts = from_json(Parts, content.get("parts"), file)
        name, own = parts.backbone, {**own, **parts.options}
        tensors = {key.removeprefix("network."): value for key, value in stored.items()}
    given = own.pop("inflation", None)
    backbone = load_backbone(
        name, classes=classes, channels=channels, size=size, options=own, start=start
    )
    inflation = backbone.inflation if given is None else from_json(Inflation, given, file)
    if inflation is not None:
        with seeded_globals(derived_seed(start.seed, "inflation")):
            inflate_(backbone.network, backbone.input_shape, inflation)
        own["inflation"] = to_json(inflation)
    if tensors is not None:
        replaced = fit_weights_(backbone.network, tensors, file, backbone.heads)
        backbone = with_replaced(backbone, replaced)
    return dataclasses.replace(backbone, name=name, options=own)


@dataclass(frozen=True)
class Parts:
    """What rebuilds an inflated network."""

    backbone: str
    options: dict[str, Any]


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
    if path.suffix != ".safetensors":
        raise PgnasError(f"'{path}' has no known ending; possible: .safetensors")
    new_file(path, force)
    check(inflation)
    if Path(name).suffix == ".safetensors":
        raise PgnasError(f"'{name}' is inflated already; start from a backbone's name")
    backbone = load_backbone(name, classes=classes, size=img_size, start=start)
    if backbone.inflation is not None:
        raise PgnasError(f"'{name}' is inflated already; try timm/{name}")
    with seeded_globals(derived_seed(start.seed, "inflation")):
        rows = inflate_(backbone.network, backbone.input_shape, inflation)
    options = {**backbone.options, "inflation": to_json(inflation)}
    tensors = {f"network.{key}": value for key, value in backbone.network.state_dict().items()}
    write_tensors(path, SUPERNET, tensors, {"parts": {"backbone": name, "options": options}})
    for remark in backbone.remarks:
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
    channels, size = (3, None) if input_shape is None else input_shape[:2]
    backbone = build_backbone(
        name, classes=num_classes, channels=channels, size=size, options=options,
        start=Start(pretrained, None if weights is None else Path(weights), seed),
    )  # fmt: skip
    return make_concrete_(
        backbone.network,
        backbone.input_shape,
        layers=layers,
        groups=groups,
        initial_drop=backbone.recipe.initial_drop if initial_drop is None else initial_drop,
        ungated=backbone.ungated,
    )
