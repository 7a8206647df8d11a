"""What a network computes, as a list of channel-wise facts.

Each step of the forward is a `Node` whose `kind` says what the step does to channels. That is all
the later rooms need: where gates can sit, which channels somebody still reads, what a layer costs.

Kinds:

    input          the image
    parameter      a tensor of the network that the forward reads itself, one number per channel
    mix            convolution (not grouped) or linear layer: each output reads all inputs
    grouped        grouped or depthwise convolution: each group of outputs reads its inputs
    norm           batch-norm: one channel in, the same out, with parameters per channel
    switch         an operation's output that a single gate keeps or takes out
    channelwise    activation, pool, dropout, permutation of axes: one channel in, the same out
    elementwise    sum, product, ... of operands with equal channels, or one
    concatenate    operands one behind the other along the channels
    slice          some consecutive channels of its input (ChannelSlice)
    flatten        each channel becomes height x width features
    shape          a size that is not a number of channels
    opaque         anything else: reads all of its inputs and writes all of its outputs; as a rule
                   exact, only less saving
    output         the logits
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import fx

Kind = Literal[
    "input", "parameter", "mix", "grouped", "norm", "switch", "channelwise", "elementwise",
    "concatenate", "slice", "flatten", "shape", "opaque", "output",
]  # fmt: skip


@dataclass(frozen=True)
class Node:
    """One step of the forward."""

    name: str
    kind: Kind
    inputs: tuple[int, ...]  # positions of the operands in Graph.nodes
    channels: int  # of the output; 0 where it is no tensor
    axis: int  # of the channels, counted from the last one: -3 in (batch, channels, height, width)
    size: tuple[int, ...]  # the other axes but the batch: height and width as a rule
    layer: str = ""  # dotted path of the module called or the parameter read
    groups: int = 1  # of a convolution
    borders: bool = False  # zero padding makes a constant input vary near the border
    memory: int = 0  # equal for tensors that are views of one another
    in_place: bool = False  # writes into an operand
    product: bool = False  # of its operands (elementwise)
    first: int = 0  # channel of its input that a slice begins with

    @property
    def cuttable(self) -> bool:
        """Whether its module has tensors with a row per channel, and picks its inputs."""
        return self.kind in ("mix", "grouped", "norm")


@dataclass(frozen=True)
class Graph:
    """The whole forward, in order of execution."""

    nodes: tuple[Node, ...]
    program: fx.Graph
    input_shape: tuple[int, int, int]  # channels, height, width of the example
    contiguous: bool = False  # the forward fails on images in channels_last

    def consumers(self) -> list[list[int]]:
        """For each node, the positions of the nodes that read it."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for position, node in enumerate(self.nodes):
            for source in node.inputs:
                found[source].append(position)
        return found

    def calls(self) -> dict[str, list[int]]:
        """For each module or parameter, the positions of its uses (two where it is used twice)."""
        return self._calls

    @cached_property
    def _calls(self) -> dict[str, list[int]]:  # asked for at every layer of every candidate
        found: dict[str, list[int]] = {}
        for position, node in enumerate(self.nodes):
            if node.layer:
                found.setdefault(node.layer, []).append(position)
        return found

    def cut(self) -> dict[str, list[int]]:
        """The modules and parameters that a candidate makes smaller, and their uses."""
        return {
            layer: calls
            for layer, calls in self.calls().items()
            if self.nodes[calls[0]].cuttable or self.nodes[calls[0]].kind == "parameter"
        }

    def shared(self) -> dict[str, list[int]]:
        """What is cut and used more than once: all uses are cut alike."""
        return {layer: calls for layer, calls in self.cut().items() if len(calls) > 1}

    def opaque(self) -> list[str]:
        """What the analysis keeps whole: each opaque step that handles tensors, and in what."""
        return [
            node.layer or described(step)
            for node, step in zip(self.nodes, self.program.nodes, strict=True)
            if node.kind == "opaque" and node.channels
        ]


def described(step: fx.Node) -> str:
    """A step of a program by the path of the module that it is in, and its name."""
    owner = next(reversed(step.meta.get("nn_module_stack", {})), "")
    return f"{owner} ({step.name})" if owner else step.name
