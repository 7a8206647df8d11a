"""Super-networks from ordinary ones: a convolution becomes several side by side, of other sizes.

Each k x k convolution (k >= 3, not grouped, not the first) gives way to branches whose outputs are
concatenated. A branch larger than 3x3 is a 3x3 or 5x5 with holes, as in the paper: 5 is 3x3 with
dilation 2, 9 is 5x5 with dilation 2.

Where the outputs have one consumer, behind batch-norm and activation, their number may change: by
`width`, or because the original convolution is kept beside the branches. The consumer's weights for
added channels start at zero there, so that the network computes what it did.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import PgnasError
from ..gates import gateable
from ..graph import Graph, trace
from .backbone import Inflation


@dataclass(frozen=True)
class Inflated:
    """What became of one convolution."""

    layer: str
    kernel: int
    branches: tuple[str, ...]  # each as "5x5 (3x3, dilation 2) -> 16"
    reason: str  # why there are none, or ""


class Parallel(nn.Module):
    """Convolutions of one input, their outputs one behind the other."""

    def __init__(self, branches: list[nn.Conv2d]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([branch(input) for branch in self.branches], 1)


def grid_of(kernel: int) -> tuple[int, int]:
    """The taps along a side and the dilation that make a kernel of this size.

    Raises PgnasError for sizes that none makes.
    """
    if kernel in (1, 3):
        return kernel, 1
    if kernel in (5, 7):
        return 3, (kernel - 1) // 2
    if 7 < kernel <= 33 and (kernel - 1) % 4 == 0:
        return 5, (kernel - 1) // 4
    raise PgnasError(f"no branch has size {kernel}; possible: 1, 3, 5, 7, 9, 13, ... 33")


def kernels_of(text: str) -> tuple[int, ...]:
    """The sizes that "1,3,5" names."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise PgnasError(f"`kernels` '{text}' are not sizes; possible: 1,3,5,9") from None


def check(inflation: Inflation) -> None:
    """Raises PgnasError for what cannot be made."""
    if not inflation.kernels or len(set(inflation.kernels)) < len(inflation.kernels):
        raise PgnasError("`kernels` are different odd sizes, say 1,3,5,9")
    for kernel in inflation.kernels:
        grid_of(kernel)
    if not 0.1 <= inflation.width <= 16:
        raise PgnasError(f"`width` {inflation.width:g} is out of range; possible: 0.1 to 16")


def inflate_(
    network: nn.Module, input_shape: tuple[int, int, int], inflation: Inflation
) -> list[Inflated]:
    """Inflate every convolution of `network` that can be, in place; says what became of each."""
    check(inflation)
    graph = trace(network, input_shape)
    modules = dict(network.named_modules())
    reasons = gateable(network, graph)
    found = []
    for layer, reason in reasons.items():
        module = modules[layer]
        if not isinstance(module, nn.Conv2d) or max(module.kernel_size) < 3:
            continue
        reason = reason or _unfit(module) or ("used twice" if len(graph.calls()[layer]) > 1 else "")
        consumer = None if reason else _consumer(graph, layer)
        resized = inflation.width != 1 or inflation.keep_original
        if not reason and resized and (consumer is None or not _plain(modules, graph, consumer)):
            reason = "what reads its outputs fixes their number"
        if not reason and round(inflation.width * module.out_channels) < len(inflation.kernels):
            reason = "it has fewer outputs than there are kernels"
        kernel = module.kernel_size[0]
        if reason:
            found.append(Inflated(layer, kernel, (), reason))
            continue
        branches = _branches(module, inflation)
        parent, _, name = layer.rpartition(".")
        setattr(network.get_submodule(parent), name, Parallel([b for b, _ in branches]))
        before, after = module.out_channels, sum(b.out_channels for b, _ in branches)
        if resized and consumer is not None:
            for at in consumer:
                node = graph.nodes[at]
                if node.layer:
                    _resize_(modules[node.layer], before, after, zeros=inflation.keep_original)
        found.append(Inflated(layer, kernel, tuple(text for _, text in branches), ""))
    if not any(row.branches for row in found):
        why = sorted({row.reason for row in found})
        raise PgnasError(
            f"{type(network).__name__} has no convolution of 3x3 or more that can be inflated"
            + (f": {'; '.join(why)}" if why else "")
        )
    return found


def _unfit(module: nn.Conv2d) -> str:
    """Why this convolution cannot be replaced by branches, or ""."""
    if type(module) is not nn.Conv2d:
        return f"it is a {type(module).__name__}"
    kernel, dilation, padding = module.kernel_size, module.dilation, module.padding
    if kernel[0] != kernel[1] or kernel[0] % 2 == 0:
        return "its kernel is not odd and square"
    same = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    if padding not in (same, "same") or module.padding_mode != "zeros":
        return "its padding does not centre the kernel"
    return ""


def _consumer(graph: Graph, layer: str) -> list[int] | None:
    """The way from the outputs of `layer` to the one layer that reads them, that included."""
    consumers = graph.consumers()
    at = graph.calls()[layer][0]
    way: list[int] = []
    while len(consumers[at]) == 1:
        at = consumers[at][0]
        node = graph.nodes[at]
        if node.kind == "mix":
            return [*way, at]
        if node.kind not in ("norm", "channelwise"):
            return None
        way.append(at)
    return None


def _plain(modules: dict[str, nn.Module], graph: Graph, way: list[int]) -> bool:
    """Whether everything on the way can be given another number of channels."""
    calls = graph.calls()
    for at in way:
        node = graph.nodes[at]
        module = modules.get(node.layer)
        if module is None:
            continue
        if len(calls[node.layer]) > 1:
            return False
        if node.kind == "mix" and type(module) not in (nn.Conv2d, nn.Linear):
            return False
    return True


def _branches(module: nn.Conv2d, inflation: Inflation) -> list[tuple[nn.Conv2d, str]]:
    """The branches that take the place of `module`, with what to call them."""
    stride = cast(tuple[int, int], module.stride)
    total = round(inflation.width * module.out_channels)
    each, more = divmod(total, len(inflation.kernels))
    made = []
    if inflation.keep_original:
        made.append((module, f"the original {module.kernel_size[0]}x{module.kernel_size[0]}"
                             f" -> {module.out_channels}"))  # fmt: skip
    first = 0
    for place, kernel in enumerate(inflation.kernels):
        outputs = each + (place < more)
        taps, dilation = grid_of(kernel)
        branch = nn.Conv2d(
            module.in_channels, outputs, taps, stride, padding=dilation * (taps - 1) // 2,
            dilation=dilation, bias=module.bias is not None,
        ).to(module.weight.device, module.weight.dtype)  # fmt: skip
        nn.init.kaiming_normal_(branch.weight, mode="fan_out", nonlinearity="relu")
        if branch.bias is not None:
            nn.init.zeros_(branch.bias)
        if not inflation.keep_original:
            _copy_(branch, module, first)
        holes = f" ({taps}x{taps}, dilation {dilation})" if dilation > 1 else ""
        made.append((branch, f"{kernel}x{kernel}{holes} -> {outputs}"))
        first += outputs
    return made


@torch.no_grad()
def _copy_(branch: nn.Conv2d, original: nn.Conv2d, first: int) -> None:
    """Start from the original's filters [first, ...): taps at the same place; others are zero.

    A 3x3 has all of a 3x3's, a 1x1 the one in the centre, and so has one with holes. Outputs that
    the original lacks keep their random weights.
    """
    rows = slice(first, min(first + branch.out_channels, original.out_channels))
    count = rows.stop - rows.start
    if count <= 0:
        return
    branch.weight[:count] = 0
    steps = [
        [d * (tap - (k - 1) // 2) for tap in range(k)]
        for k, d in ((branch.kernel_size[0], branch.dilation[0]),
                     (original.kernel_size[0], original.dilation[0]))
    ]  # fmt: skip
    same = [(a, steps[1].index(at)) for a, at in enumerate(steps[0]) if at in steps[1]]
    for down, theirs_down in same:
        for right, theirs_right in same:
            branch.weight[:count, :, down, right] = original.weight[
                rows, :, theirs_down, theirs_right
            ]
    if branch.bias is not None and original.bias is not None:
        branch.bias[:count] = original.bias[rows]


@torch.no_grad()
def _resize_(module: nn.Module, before: int, after: int, *, zeros: bool) -> None:
    """Give what follows `before` channels of old and more, or fewer, to make `after`."""
    layer = cast(Any, module)
    if isinstance(module, _BatchNorm):
        start = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
        for name, value in start.items():
            old = getattr(layer, name)
            if old is None:
                continue
            new = torch.full((after,), value, dtype=old.dtype, device=old.device)
            new[:before] = old[:after]
            setattr(layer, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
        layer.num_features = after
    elif isinstance(module, nn.Conv2d | nn.Linear):
        old = layer.weight
        new = old.new_zeros(old.shape[0], after, *old.shape[2:])
        if not zeros:
            nn.init.kaiming_normal_(new, mode="fan_out", nonlinearity="relu")
        new[:, :before] = old[:, :after]
        layer.weight = nn.Parameter(new)
        if isinstance(module, nn.Conv2d):
            layer.in_channels = after
        else:
            layer.in_features = after
