"""Super-networks from ordinary ones: a convolution becomes several side by side, of other sizes.

Each k x k convolution (k >= 3, not the first) gives way to branches whose outputs are concatenated:
each has a share of the outputs, and where the convolution is grouped or depthwise, a share of the
groups and the channels that these read. A branch larger than 3x3 is a 3x3 or 5x5 with holes, as in
the paper: 5 is 3x3 with dilation 2, 9 is 5x5 with dilation 2.

Where all that reads the outputs can be widened (through batch-norm, activations, concatenations),
their number may change: by `width`, or because the original convolution is kept beside the
branches. The readers' weights for added channels start at zero there, so that the network computes
what it did.

Without the original, branches start from its filters as well as their taps allow: each has the
filters whose outputs it can predict best, of images whose neighbouring pixels correlate. Readers
that can be widened can be permuted, so that any branch may take the place of any output.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import PgnasError
from ..gates import gateable
from ..graph import ChannelSlice, Graph, trace
from .backbone import Inflation

CORRELATION = 0.8  # of neighbouring pixels of features; chosen on a trained network (docs/log.md)


@dataclass(frozen=True)
class Inflated:
    """What became of one convolution."""

    layer: str
    kernel: int
    branches: tuple[str, ...]  # each as "5x5 (3x3, dilation 2) -> 16"
    reason: str  # why there are none, or ""


@dataclass(frozen=True)
class Branch:
    """A convolution beside others."""

    conv: nn.Conv2d
    part: ChannelSlice | None  # of the input, that it reads; None: all of it
    text: str


class Parallel(nn.Module):
    """Convolutions of one input, or of some of its channels each; their outputs one behind the
    other."""

    def __init__(self, branches: list[Branch]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branch.conv for branch in branches)
        self.parts = nn.ModuleList(branch.part for branch in branches if branch.part is not None)

    def forward(self, input: Tensor) -> Tensor:
        inputs = [part(input) for part in self.parts] or [input] * len(self.branches)
        return torch.cat([branch(x) for branch, x in zip(self.branches, inputs, strict=True)], 1)


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
    network: nn.Module,
    input_shape: tuple[int, int, int],
    inflation: Inflation,
    *,
    copy: bool = True,  # start from the filters of the originals; else at random
) -> list[Inflated]:
    """Inflate every convolution of `network` that can be, in place; says what became of each."""
    check(inflation)
    graph = trace(network, input_shape)
    reasons = _reasons(network, graph, inflation)
    found = {}
    came_from: dict[int, Tensor] = {}  # node -> of each channel: the original one, -1 if added
    for position, node in enumerate(graph.nodes):
        _follow_(network, graph, position, came_from, zeros=inflation.keep_original)
        if node.layer not in reasons or node.layer in found:
            continue
        conv = cast(nn.Conv2d, network.get_submodule(node.layer))
        branches: list[Branch] = []
        if not reasons[node.layer]:
            assigned = copy and _widenable(network, graph, position)
            origins = _origins(conv, inflation, assigned=assigned)
            branches = _branches(conv, inflation, origins, copy=copy)
            parent, _, name = node.layer.rpartition(".")
            setattr(network.get_submodule(parent), name, Parallel(branches))
            if not torch.equal(origins, torch.arange(node.channels)):
                came_from[position] = origins
        texts = tuple(branch.text for branch in branches)
        found[node.layer] = Inflated(node.layer, conv.kernel_size[0], texts, reasons[node.layer])
    if not any(row.branches for row in found.values()):
        why = sorted({row.reason for row in found.values()})
        raise PgnasError(
            f"{type(network).__name__} has no convolution of 3x3 or more that can be inflated"
            + (f": {'; '.join(why)}" if why else "")
        )
    return list(found.values())


def _resized(inflation: Inflation) -> bool:
    """Whether the number of outputs changes."""
    return inflation.width != 1 or inflation.keep_original


def _reasons(network: nn.Module, graph: Graph, inflation: Inflation) -> dict[str, str]:
    """Convolutions of 3x3 and more: "" where they can be inflated, else why not."""
    calls, places = graph.calls(), gateable(network, graph)
    found = {}
    for layer, module in network.named_modules():
        if not isinstance(module, nn.Conv2d) or max(module.kernel_size) < 3:
            continue
        own = calls.get(layer, [])
        grouped = {graph.nodes[at].kind for at in own} == {"grouped"}
        pieces = module.groups if grouped else round(inflation.width * module.out_channels)
        reason = ("" if grouped else places[layer]) or _unfit(module)
        if not reason and len(own) > 1:
            reason = "used twice"
        elif not reason and grouped and inflation.width != 1:
            reason = "grouped: the number of its outputs is fixed"
        elif not reason and _resized(inflation) and not _widenable(network, graph, own[0]):
            reason = "what reads its outputs fixes their number"
        elif not reason and pieces < len(inflation.kernels):
            what = "groups" if grouped else "outputs"
            reason = f"it has fewer {what} than there are kernels"
        found[layer] = reason
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


def _widenable(network: nn.Module, graph: Graph, at: int) -> bool:
    """Whether everything that reads the outputs of node `at` takes another number of channels."""
    consumers, calls, nodes = graph.consumers(), graph.calls(), graph.nodes
    ahead, seen = [*consumers[at]], set()
    while ahead:
        at = ahead.pop()
        if at in seen:
            continue
        seen.add(at)
        node = nodes[at]
        if node.kind == "mix":
            plain = type(network.get_submodule(node.layer)) in (nn.Conv2d, nn.Linear)
        else:
            plain = node.kind in ("norm", "channelwise", "concatenate")
            plain |= node.kind == "flatten" and node.channels == nodes[node.inputs[0]].channels
            plain |= _scale(network, graph, at) != ""
            ahead += consumers[at]
        if not plain or (node.cuttable and len(calls[node.layer]) > 1):
            return False
    return True


def _scale(network: nn.Module, graph: Graph, at: int) -> str:
    """The last layer of the squeeze-excite block that scales features in product `at`, or ""."""
    consumers, nodes = graph.consumers(), graph.nodes
    if not nodes[at].product or len(nodes[at].inputs) != 2:
        return ""
    for source in nodes[at].inputs:
        while nodes[source].kind == "channelwise" and len(consumers[source]) == 1:
            source = nodes[source].inputs[0]
        layer = nodes[source].layer
        alone = len(consumers[source]) == 1 and len(graph.calls().get(layer, ())) == 1
        pixel = nodes[source].kind == "mix" and set(nodes[source].size) == {1}
        if alone and pixel and type(network.get_submodule(layer)) is nn.Conv2d:
            return layer
    return ""


def _follow_(
    network: nn.Module, graph: Graph, at: int, came_from: dict[int, Tensor], *, zeros: bool
) -> None:
    """Where the inputs of node `at` have other channels than before, give it these."""
    node = graph.nodes[at]
    if not any(source in came_from for source in node.inputs):
        return
    scale = _scale(network, graph, at)
    if scale:
        origins = next(came_from[source] for source in node.inputs if source in came_from)
        _widen_outputs_(cast(nn.Conv2d, network.get_submodule(scale)), origins)
        came_from[at] = origins
        return
    parts, first = [], 0
    for source in node.inputs:
        channels = graph.nodes[source].channels
        origins = came_from.get(source, torch.arange(channels))
        parts.append(origins.where(origins < 0, origins + first))
        first += channels
    origins = torch.cat(parts)
    if node.kind == "mix":
        _widen_inputs_(cast(Any, network.get_submodule(node.layer)), origins, zeros=zeros)
        return
    came_from[at] = origins
    if node.kind == "norm":
        _widen_norm_(cast(Any, network.get_submodule(node.layer)), origins)


def _shares(module: nn.Conv2d, inflation: Inflation) -> list[range]:
    """The outputs of each branch, or where `module` is grouped, its groups."""
    grouped = module.groups > 1
    pieces = module.groups if grouped else round(inflation.width * module.out_channels)
    each, more = divmod(pieces, len(inflation.kernels))
    ends = [0]
    for place in range(len(inflation.kernels)):
        ends.append(ends[-1] + each + (place < more))
    return [range(*pair) for pair in pairwise(ends)]


def _origins(module: nn.Conv2d, inflation: Inflation, *, assigned: bool) -> Tensor:
    """Of each output of all branches, the output of `module` whose place it takes; -1: none.

    int64 (outputs,). Where `assigned`, each branch takes those that it can predict best.
    """
    outputs = module.out_channels
    if inflation.keep_original:
        added = outputs if module.groups > 1 else round(inflation.width * outputs)
        return torch.cat([torch.arange(outputs), torch.full((added,), -1)])
    if module.groups > 1:
        return torch.arange(outputs)
    if inflation.width != 1 or not assigned:
        origins = torch.arange(round(inflation.width * outputs))
        return origins.where(origins < outputs, -1)
    from scipy.optimize import linear_sum_assignment

    kept = []
    for kernel, share in zip(inflation.kernels, _shares(module, inflation), strict=True):
        taps = _offsets(*grid_of(kernel))
        energy = _energy(_predicted(module, taps), taps)
        kept += [energy] * len(share)
    return torch.from_numpy(linear_sum_assignment(torch.stack(kept).numpy(), maximize=True)[1])


@torch.no_grad()
def _branches(
    module: nn.Conv2d, inflation: Inflation, origins: Tensor, *, copy: bool
) -> list[Branch]:
    """The branches that take the place of `module`."""
    grouped, kernel = module.groups > 1, module.kernel_size[0]
    inputs, outputs = module.in_channels // module.groups, module.out_channels // module.groups
    made: list[Branch] = []
    if inflation.keep_original:
        whole = ChannelSlice(0, module.in_channels) if grouped else None
        text = f"the original {kernel}x{kernel} -> {module.out_channels}"
        made.append(Branch(module, whole, text))
    for size, share in zip(inflation.kernels, _shares(module, inflation), strict=True):
        part, groups, width = None, 1, len(share)
        if grouped:
            part = ChannelSlice(share.start * inputs, share.stop * inputs)
            groups, width = len(share), len(share) * outputs
        taps, dilation = grid_of(size)
        branch = nn.Conv2d(
            groups * inputs, width, taps, cast(tuple[int, int], module.stride),
            padding=dilation * (taps - 1) // 2, dilation=dilation, groups=groups,
            bias=module.bias is not None,
        ).to(module.weight.device, module.weight.dtype)  # fmt: skip
        nn.init.kaiming_normal_(branch.weight, mode="fan_out", nonlinearity="relu")
        branch.weight *= groups**0.5  # the fan-out is that of a group
        if branch.bias is not None:
            nn.init.zeros_(branch.bias)
        if copy and not inflation.keep_original:
            first = share.start * (outputs if grouped else 1)
            _start_(branch, module, origins[first : first + width])
        holes = f" ({taps}x{taps}, dilation {dilation})" if dilation > 1 else ""
        made.append(Branch(branch, part, f"{size}x{size}{holes} -> {width}"))
    return made


@torch.no_grad()
def _start_(branch: nn.Conv2d, original: nn.Conv2d, origins: Tensor) -> None:
    """Start from the original's filters `origins`; outputs without one (-1) stay random."""
    filters = _predicted(original, _offsets(branch.kernel_size[0], branch.dilation[0]))
    there = origins >= 0
    branch.weight[there] = filters[origins[there]].to(branch.weight.dtype)
    if branch.bias is not None and original.bias is not None:
        branch.bias[there] = original.bias[origins[there]]


def _offsets(taps: int, dilation: int) -> Tensor:
    """Where the taps along a side lie, in pixels from the centre, int64 (taps,)."""
    return dilation * (torch.arange(taps) - (taps - 1) // 2)


def _correlations(one: Tensor, other: Tensor) -> Tensor:
    """Of pixels at two lists of offsets, float64 (len(one), len(other))."""
    return torch.pow(CORRELATION, (one[:, None] - other).abs().double())


@torch.no_grad()
def _predicted(module: nn.Conv2d, taps: Tensor) -> Tensor:
    """The filters of `module` at other taps: least squares on correlated pixels, float64.

    (outputs, inputs of a group, len(taps), len(taps)). Equal where the taps are.
    """
    own = _offsets(module.kernel_size[0], module.dilation[0])
    fit: Tensor = torch.linalg.solve(_correlations(taps, taps), _correlations(taps, own))
    return fit @ module.weight.detach().cpu().double() @ fit.T


def _energy(filters: Tensor, taps: Tensor) -> Tensor:
    """Mean square of what each of `filters` gives on correlated pixels, float64 (outputs,)."""
    around = _correlations(taps, taps)
    return (filters * (around @ filters @ around)).sum((1, 2, 3))


@torch.no_grad()
def _widen_norm_(module: _BatchNorm, origins: Tensor) -> None:
    """Give a batch-norm the channels `origins`; added ones (-1) start fresh."""
    start = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    for name, value in start.items():
        old = getattr(module, name)
        if old is not None:
            new = torch.where(origins < 0, value, old[origins])
            setattr(module, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
    module.num_features = len(origins)


@torch.no_grad()
def _widen_inputs_(module: Any, origins: Tensor, *, zeros: bool) -> None:
    """Give a convolution or linear layer the inputs `origins`; added ones (-1) start at random."""
    new = module.weight[:, origins].clone()
    fresh = torch.zeros_like(new)
    if not zeros:
        nn.init.kaiming_normal_(fresh, mode="fan_out", nonlinearity="relu")
    new[:, origins < 0] = fresh[:, origins < 0]
    module.weight = nn.Parameter(new)
    if isinstance(module, nn.Conv2d):
        module.in_channels = len(origins)
    else:
        module.in_features = len(origins)


@torch.no_grad()
def _widen_outputs_(module: nn.Conv2d, origins: Tensor) -> None:
    """Give a convolution the outputs `origins`; added ones (-1) are zero."""
    added = origins < 0
    module.weight = nn.Parameter(module.weight[origins].masked_fill(added[:, None, None, None], 0))
    if module.bias is not None:
        module.bias = nn.Parameter(module.bias[origins].masked_fill(added, 0))
    module.out_channels = len(origins)
