"""What a backbone's network would take, measured on the meta device: nothing is allocated."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ..errors import PgnasError
from ..graph import evaluating
from .lookup import load_backbone

SMALL = 2**16  # elements; a backbone may compute with what it makes of up to so many


@dataclass(frozen=True)
class Measure:
    """A network that was not built, and what it would take."""

    network: nn.Module  # on the meta device; not inflated
    activations: int  # bytes of all steps on one image
    macs: int  # on one image

    def inflates_within(self, options: dict[str, Any], weights: int, path: Path) -> bool:
        """Whether the `options` in the file at `path` inflate the network, so that its sizes are
        known only once it is built.

        Raises PgnasError where it would have far more than the `weights` that the file says.
        """
        inflation = options.get("inflation")
        if not isinstance(inflation, dict):
            return False
        width = inflation.get("width", 1.0)
        if type(width) not in (int, float) or not width >= 0:
            raise PgnasError(f"'{path}' is damaged: its network is inflated to no width")
        self.is_within(4 * weights, path, width * width)
        return True

    def is_within(self, weights: int, path: Path, times: float = 1.0) -> None:
        """Raise PgnasError where the network in the file at `path` has more, `times` its own."""
        if not times * sum(p.numel() for p in self.network.parameters()) <= weights:
            raise PgnasError(f"'{path}' is damaged: its network has more than {weights} weights")


def measured(
    name: str,
    *,
    classes: int,
    input_shape: tuple[int, int, int] | None,  # channels, height, width; None: its own
    options: dict[str, Any],
) -> Measure | None:
    """The backbone called `name`, as `load_backbone` has it; None where it cannot be measured.

    What fails here fails as well, and with a message, when it is built; but for backbones that
    need the values of their weights.
    """
    channels, size = (None, None) if input_shape is None else input_shape[:2]
    own = {key: value for key, value in options.items() if key != "inflation"}
    try:
        with _Weightless():
            backbone = load_backbone(
                name, classes=classes, channels=channels, size=size, options=own
            )
        network = backbone.network.to("meta")
        image = torch.empty(1, *backbone.input_shape, device="meta")
        counted, steps = FlopCounterMode(display=False), _Bytes()
        with torch.no_grad(), evaluating(network), counted, steps:
            network(image)
    except Exception:  # strangers' code, on a device that it may not know
        return None
    return Measure(network, steps.total, counted.get_total_flops() // 2)


class _Weightless(TorchFunctionMode):
    """Large tensors are made on the meta device."""

    makers = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in self.makers and given.get("device") is None:
            sizes = given.get("size", args[0] if args and _is_size(args[0]) else args)
            if torch.Size(n for n in sizes if isinstance(n, int)).numel() > SMALL:
                given["device"] = "meta"
        return func(*args, **given)


def _is_size(value: Any) -> bool:
    return isinstance(value, Iterable)


class _Bytes(TorchDispatchMode):
    """Adds up the bytes of what every step gives."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        self.total += sum(t.nbytes for t in tree_leaves(made) if isinstance(t, Tensor))
        return made
