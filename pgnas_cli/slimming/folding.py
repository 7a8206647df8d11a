"""Fold batch-norm into the layers whose outputs it alone reads; exact in evaluation mode."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..graph import Graph, plain_twin
from .layers import Narrow, narrow_, parameter_like, replace_

LIBRARIES, OWN = ("torch", "timm", "torchvision"), __name__.partition(".")[0]


def store_applied_(network: nn.Module, graph: Graph) -> None:
    """Let convolutions that standardise their weights store them as they are applied."""
    modules = dict(network.named_modules())
    for layer, calls in graph.cut().items():
        module = modules.get(layer)
        if not isinstance(module, nn.Conv2d) or isinstance(module, Narrow):
            continue
        if graph.nodes[calls[0]].cuttable and (twin := plain_twin(module)) is not module:
            assert twin is not None
            replace_(network, module, twin.eval())


def fold_(network: nn.Module, graph: Graph) -> None:
    modules = dict(network.named_modules())
    consumers, shared = graph.consumers(), graph.shared()

    def writers(at: int, reader: int) -> list[Any] | None:
        """The layers whose outputs, one behind the other, are tensor `at`; None: not they alone."""
        node = graph.nodes[at]
        module = modules.get(node.layer)
        if consumers[at] != [reader] or node.layer in shared:
            return None
        if node.kind == "concatenate":
            found = [writers(source, at) for source in node.inputs]
            return None if None in found else [w for some in found if some for w in some]
        mixes = node.kind in ("mix", "grouped") and isinstance(module, nn.Conv2d | nn.Linear)
        return [module] if mixes and module is not None and _as_known(module) else None

    for at, node in enumerate(graph.nodes):
        if node.kind != "norm" or node.layer in shared:
            continue
        norm: Any = modules[node.layer]
        if not hasattr(norm, "running_var") or not _as_known(norm):  # a constant, or folded
            continue
        layers = writers(node.inputs[0], at)
        if layers is None or node.axis != graph.nodes[node.inputs[0]].axis:
            continue
        activates = hasattr(norm, "act") and hasattr(norm, "drop")  # timm's BatchNormAct2d
        rest = nn.Sequential(norm.drop, norm.act) if activates else nn.Identity()
        if (read := getattr(norm, "read", None)) is not None:
            narrow_(rest, read, norm.picks)
        _fold_into_(norm, layers)
        replace_(network, norm, rest.eval())


def _as_known(module: nn.Module) -> bool:
    """Whether a module does what layers of its kind do: the forward of a library, and no hooks."""
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    homes = (kind.__module__.partition(".")[0] for kind in type(module).__mro__
             if "forward" in vars(kind))  # fmt: skip
    return next(home for home in homes if home != OWN) in LIBRARIES  # ours call the next one


def _fold_into_(norm: Any, layers: Sequence[Any]) -> None:
    """Scale and shift what `layers`, one behind the other, write as `norm` does."""
    assert norm.running_mean is not None and norm.running_var is not None
    widths = [layer.weight.shape[0] for layer in layers]
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    shift = shift if norm.bias is None else shift + norm.bias.double()
    if (read := getattr(norm, "read", None)) is not None:  # the others are read by nobody
        scale = scale.new_ones(sum(widths)).index_copy(0, read, scale)
        shift = shift.new_zeros(sum(widths)).index_copy(0, read, shift)
    for layer, s, t in zip(layers, scale.split(widths), shift.split(widths), strict=True):
        old = layer.weight
        bias = t if layer.bias is None else layer.bias.double() * s + t
        layer.weight = parameter_like((old.double().transpose(0, -1) * s).transpose(0, -1), old)
        layer.bias = parameter_like(bias, old)
