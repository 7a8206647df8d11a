"""The network drawn: its blocks in order of execution, and what the winner keeps of each."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..gates import gates
from ..graph import OperationGate
from ..slimming import wire

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
MOST = 12  # operations of a block that are named; of more only those that are left


@dataclass(frozen=True)
class Operation:
    """A convolution, linear layer, pool or skip."""

    name: str  # within its block; empty for a block of its own
    kind: str  # "conv 3x3", "depthwise 3x3", "linear", "pool or skip"
    channels: int  # outputs in the super-network
    kept: int  # of them in the slim network; 0: it is gone, or a constant

    @property
    def share(self) -> float:
        """Of the outputs that are kept."""
        return self.kept / self.channels


@dataclass(frozen=True)
class Block:
    """Operations between one meeting of channels and the next."""

    name: str
    operations: tuple[Operation, ...]

    @property
    def gone(self) -> int:
        """Number of operations that the winner lacks."""
        return sum(not operation.kept for operation in self.operations)

    @property
    def named(self) -> tuple[Operation, ...]:
        """The operations that are drawn."""
        if len(self.operations) <= MOST:
            return self.operations
        return tuple(operation for operation in self.operations if operation.kept)


def blocks_of(network: nn.Module, keep: Tensor) -> tuple[Block, ...]:
    """The blocks of a gated network; `keep`, bool (gates,), is the candidate."""
    wiring, modules = wire(network, keep[None]), dict(network.named_modules())
    found: dict[str, list[Operation]] = {}
    for layer, calls in gates(network).graph.calls().items():
        node = wiring.graph.nodes[calls[0]]
        if node.kind in ("mix", "grouped"):
            kept = int(wiring.live[calls[0]][0].sum()) if bool(wiring.varies(layer)) else 0
        elif node.kind == "switch":
            closed = layer in wiring.closed and bool(wiring.closed[layer][0])
            kept = 0 if closed or not bool(wiring.wanted(layer)) else node.channels
        else:
            continue
        block = _block_of(layer, modules)
        name = layer.removeprefix(block).lstrip(".")
        operation = Operation(name, kind_of(modules[layer]), node.channels, kept)
        found.setdefault(block, []).append(operation)
    return tuple(Block(name, tuple(operations)) for name, operations in found.items())


def kind_of(module: Any) -> str:
    """What a layer is called in tables and drawings."""
    if isinstance(module, OperationGate):
        return "pool or skip"
    size = getattr(module, "kernel_size", None)
    if size is None:
        return "linear"
    depthwise = module.groups > 1 and module.groups == module.in_channels
    return f"{'depthwise' if depthwise else 'conv'} {'x'.join(map(str, size))}"


def _block_of(layer: str, modules: dict[str, nn.Module]) -> str:
    """The outermost module around a layer that is neither a container nor a row of blocks."""
    parts = layer.split(".")
    for length in range(1, len(parts)):
        module = modules[".".join(parts[:length])]
        if not isinstance(module, CONTAINERS) and not _has_blocks(module):
            return ".".join(parts[:length])
    return layer


def _has_blocks(module: nn.Module) -> bool:
    """Whether it holds several modules of one class one after the other, as a stage does."""
    for inner in module.modules():
        if isinstance(inner, CONTAINERS):
            kinds = [type(child) for child in _compound(inner)]
            if any(kinds.count(kind) > 1 for kind in kinds):
                return True
    return False


def _compound(container: nn.Module) -> Iterator[nn.Module]:
    for child in container.children():
        if not isinstance(child, CONTAINERS) and next(child.children(), None) is not None:
            yield child
