"""The expected size of a candidate, differentiable.

`ExpectedSize` walks the graph as slimming.wiring does, with probabilities in place of bits: a
channel is needed unless every consumer drops it, consumers drop independently, and a layer costs
(inputs that it keeps) x (outputs that are needed). It is the file's count, in expectation.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..gates import followers, gates
from ..graph import Graph, Node
from ..slimming import spread
from .exact import parameter_count, untouched_params, whole_layer_macs, whole_macs

LEAST = 1e-9  # probability of being dropped: its logarithm stays finite


class ExpectedSize:
    """Expected parameters and MACs of the candidates of one network."""

    def __init__(self, network: nn.Module) -> None:
        bank = gates(network)
        self.graph: Graph = bank.graph
        self.spans = bank.spans
        self.group = bank.group
        self.modules = dict(network.named_modules())
        self.followers = followers(bank.graph)
        self.whole = parameter_count(network), whole_macs(network)
        self.untouched = untouched_params(network)
        rest = [n for n in self.graph.nodes if not n.cuttable]
        self.rest_macs = sum(whole_layer_macs(self.modules.get(n.layer), n) for n in rest)
        self.cut = self.graph.cut()

    def shares(self, drop_probability: Tensor) -> dict[str, Tensor]:
        """Of the whole network's parameters and MACs, each (), from (groups,) on any device."""
        params, macs = self(drop_probability)
        return {"params": params / self.whole[0], "macs": macs / max(1, self.whole[1])}

    def __call__(self, drop_probability: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters (the file's count) and MACs, each (), from (groups,) on any device."""
        if self.group.device != drop_probability.device:
            self.group = self.group.to(drop_probability.device)
        drop = drop_probability.double().clamp(LEAST, 1 - LEAST)[self.group]
        kept = {layer: 1 - drop[first:last] for layer, (first, last) in self.spans.items()}
        unneeded = self._settled(self._unneeded(kept, drop))
        params, macs = drop.new_zeros(()), drop.new_zeros(())
        for calls in self.cut.values():
            for call in calls:
                node = self.graph.nodes[call]
                outputs = -torch.expm1(unneeded[call]).sum()
                weights, others = self._cost(node, outputs, kept)
                if node.kind in ("mix", "grouped"):
                    macs = macs + weights * math.prod(node.size)
                if call == calls[0]:
                    params = params + weights + others
        return params + self.untouched, macs + self.rest_macs

    def _unneeded(self, kept: dict[str, Tensor], like: Tensor) -> list[Tensor]:  # noqa: C901, PLR0915 - one rule per kind of node
        """Per node, the logarithm of the probability that nobody needs a channel, (channels,).

        Nodes on a chain share one tensor, which keeps the number of operations small.
        """
        nodes = self.graph.nodes
        found: list[Tensor | None] = [None] * len(nodes)

        def add(source: int, log: Tensor) -> None:
            own = found[source]
            found[source] = log if own is None else own + log

        for position in range(len(nodes) - 1, -1, -1):
            node, known = nodes[position], found[position]
            own = like.new_zeros(node.channels) if known is None else known
            found[position] = own
            if node.kind in ("output", "opaque"):
                for source in node.inputs:
                    found[source] = like.new_full((nodes[source].channels,), math.log(LEAST))
            elif node.kind == "mix":
                if node.layer in self.followers and node.layer in self.spans:
                    continue  # its gates are those of another consumer
                width = nodes[node.inputs[0]].channels
                share = kept.get(node.layer, like.new_ones(width))
                reads = -torch.expm1(own.sum()) * share
                add(node.inputs[0], torch.log((1 - reads).clamp(min=LEAST)))
            elif node.kind == "grouped":
                source = node.inputs[0]
                per_group = own if node.groups == len(own) else own.view(node.groups, -1).sum(1)
                found[position] = spread(per_group, node.channels)  # a group is cut whole
                add(source, spread(per_group, nodes[source].channels))
            elif node.kind == "switch":
                share = kept.get(node.layer, like.new_ones(1))
                reads = -torch.expm1(own) * share
                add(node.inputs[0], torch.log((1 - reads).clamp(min=LEAST)))
            elif node.kind == "concatenate":
                widths = [nodes[source].channels for source in node.inputs]
                for source, part in zip(node.inputs, own.split(widths), strict=True):
                    add(source, part)
            elif node.kind == "slice":
                source = node.inputs[0]
                after = nodes[source].channels - node.first - node.channels
                add(source, F.pad(own, (node.first, after)))
            elif node.kind == "flatten":
                source = node.inputs[0]
                alike = nodes[source].channels == node.channels
                add(source, own if alike else own.view(nodes[source].channels, -1).sum(1))
            elif node.kind in ("norm", "channelwise", "elementwise"):
                for source in node.inputs:
                    width = nodes[source].channels
                    add(source, own if width == node.channels else own.sum().expand(width))
        return [cast(Tensor, log) for log in found]

    def _settled(self, logs: list[Tensor]) -> list[Tensor]:
        """The operands of a sum stay as long as any of them is needed."""
        nodes = self.graph.nodes
        order = range(len(nodes))
        for position in (*order, *reversed(order)):
            node = nodes[position]
            if node.kind in ("channelwise", "elementwise"):
                places = [i for i in node.inputs if nodes[i].channels == node.channels]
                places.append(position)
            elif node.kind == "norm":
                places = [node.inputs[0]]  # its input widens with it, not it with its input
            else:
                continue
            least = logs[position]
            for log in {id(logs[place]): logs[place] for place in places}.values():
                if log is not least:
                    least = torch.minimum(least, log)
            for place in places:
                logs[place] = least
        return logs

    def _cost(self, node: Node, outputs: Tensor, kept: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Weights that are multiplied and other parameters of one layer, each ()."""
        if node.kind == "parameter":
            return torch.zeros_like(outputs), outputs
        module = self.modules[node.layer]
        own = sum(p.numel() for p in module.parameters(recurse=False))
        if node.kind == "norm":
            return torch.zeros_like(outputs), outputs * (own // node.channels)
        weight = cast(Tensor, module.weight)
        per_output = weight[0].numel()
        if node.kind == "mix":
            inputs = kept.get(node.layer)
            area = weight[0, 0].numel()
            weights = outputs * (per_output if inputs is None else inputs.sum() * area)
        else:
            weights = outputs * per_output
        return weights, outputs * (module.bias is not None)
