"""The expected size of a candidate, and its expected time, differentiable.

`ExpectedSize` walks the graph as slimming.wiring does, with probabilities in place of bits: a layer
varies with the image unless it drops every input that does, a channel is needed unless every
consumer drops it, consumers drop independently, and a layer costs (inputs that it keeps and that
vary) x (outputs that are needed). It is the file's count, in expectation.

Time depends on blocks of outputs. Numbers of channels are taken as normal, independent of each
other: with mean m and variance v, `block` times the sum over k >= 0 of P(number > k x block).
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..gates import followers, gates
from ..graph import Graph
from ..slimming import BLOCK, spread
from ..timing import COEFFICIENTS, TimeTable, terms, time_table
from .exact import NANOSECONDS, untouched_params, whole_layer_macs, whole_sizes

LEAST = 1e-9  # probability of being dropped: its logarithm stays finite
LEAST_VARIANCE = 0.1  # of a number of channels: the time of a decided layer still has a slope


class ExpectedSize:
    """Expected parameters, MACs and time of the candidates of one network."""

    def __init__(self, network: nn.Module) -> None:
        bank = gates(network)
        self.graph: Graph = bank.graph
        self.spans = bank.spans
        self.group = bank.group
        self.modules = dict(network.named_modules())
        self.followers = followers(bank.graph)
        self.whole = whole_sizes(network)
        self.untouched = untouched_params(network)
        rest = [n for n in self.graph.nodes if not n.cuttable]
        self.rest_macs = sum(whole_layer_macs(self.modules.get(n.layer), n) for n in rest)
        self.cut = self.graph.cut()
        self.shared = self.graph.shared()
        table = time_table(network)
        self.clock = ExpectedTime(table, self.graph) if table else None

    def shares(self, drop_probability: Tensor) -> dict[str, Tensor]:
        """Of the whole network's size in each kind, each (), from (groups,) on any device."""
        return {
            kind: size / max(1, self.whole[kind]) for kind, size in self(drop_probability).items()
        }

    def __call__(self, drop_probability: Tensor) -> dict[str, Tensor]:
        """Parameters (the file's count), MACs and, with a time table, nanoseconds, each ().

        From (groups,) on any device.
        """
        if self.group.device != drop_probability.device:
            self.group = self.group.to(drop_probability.device)
        # A p of 1 is exact: a rest of it would grow with the width of every layer in front.
        drop = drop_probability.double().clamp(LEAST, 1)[self.group]
        kept = {layer: 1 - drop[first:last] for layer, (first, last) in self.spans.items()}
        varying = self._varying(kept, drop)
        unneeded = self._settled(self._unneeded(kept, varying, drop))
        params, macs = drop.new_zeros(()), drop.new_zeros(())
        for calls in self.cut.values():
            for call in calls:
                node = self.graph.nodes[call]
                outputs = -torch.expm1(unneeded[call]).sum()
                weights, others = self._cost(call, outputs, kept, varying)
                if node.kind in ("mix", "grouped"):
                    macs = macs + weights * math.prod(node.size)
                if call == calls[0]:
                    params = params + weights + others
        found = {"params": params + self.untouched, "macs": macs + self.rest_macs}
        if self.clock:
            found["time"] = NANOSECONDS * self.clock(unneeded, kept, varying)
        return found

    def _varying(self, kept: dict[str, Tensor], like: Tensor) -> list[Tensor]:
        """Per node, the probability that a channel depends on the image: (1,) where it is the same
        for all, else (channels,)."""
        nodes, found = self.graph.nodes, list[Tensor]()
        always = like.new_ones(1)
        for node in nodes:
            given = [found[source] for source in node.inputs]
            # Beside zero padding a constant is none; a module with several calls has one value.
            anyhow = node.borders or (node.cuttable and node.layer in self.shared)
            if node.kind == "parameter":
                own = like.new_zeros(1)
            elif not given or node.kind in ("output", "opaque"):
                own = always
            elif node.kind == "mix":
                share, source = kept.get(node.layer), always if anyhow else given[0]
                if share is None and len(source) == 1:
                    own = source
                else:
                    reads = source if share is None else share * source
                    own = -torch.expm1(torch.log1p(-reads.clamp(max=1 - LEAST)).sum())[None]
            elif anyhow:
                own = always
            elif node.kind == "switch":
                own = given[0] * kept.get(node.layer, always)
            elif node.kind == "concatenate":
                widths = [nodes[source].channels for source in node.inputs]
                parts = zip(given, widths, strict=True)
                own = torch.cat([part.expand(width) for part, width in parts])
            elif node.kind == "slice":
                whole = given[0].expand(nodes[node.inputs[0]].channels)
                own = whole[node.first : node.first + node.channels]
            else:
                fitting = [one if len(one) in (1, node.channels) else one.max()[None]
                           for one in given]  # fmt: skip
                own = fitting[0]
                for other in fitting[1:]:
                    own = own if other is own else 1 - (1 - own) * (1 - other)
            found.append(own)
        return found

    def _unneeded(  # noqa: C901, PLR0915 - one rule per kind of node
        self, kept: dict[str, Tensor], varying: list[Tensor], like: Tensor
    ) -> list[Tensor]:
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
                reads = -torch.expm1(own.sum()) * share * varying[node.inputs[0]]
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

    def _cost(
        self, at: int, outputs: Tensor, kept: dict[str, Tensor], varying: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Weights that are multiplied and other parameters of one layer, each ()."""
        node = self.graph.nodes[at]
        if node.kind == "parameter":
            return torch.zeros_like(outputs), outputs
        module, source, varies = (
            self.modules[node.layer],
            varying[node.inputs[0]],
            varying[at].mean(),
        )
        own = sum(p.numel() for p in module.parameters(recurse=False))
        fixed = outputs * (1 - varies)  # the numbers of a constant
        if node.kind == "norm":
            return torch.zeros_like(outputs), outputs * varies * (own // node.channels) + fixed
        weight = cast(Tensor, module.weight)
        per_output = weight[0].numel()
        if node.kind == "mix":
            inputs = kept.get(node.layer)
            area = weight[0, 0].numel()
            reads = per_output * source.mean() if inputs is None else (inputs * source).sum() * area
            weights = outputs * reads
        else:
            weights = outputs * varies * per_output
        return weights, outputs * varies * (module.bias is not None) + fixed


class ExpectedTime:
    """Milliseconds of a forward, in expectation, by a table of one network."""

    def __init__(self, table: TimeTable, graph: Graph) -> None:
        self.table, self.graph = table, graph
        steps = table.steps
        names = (*COEFFICIENTS, "block")
        numbers = {name: [float(getattr(step, name)) for step in steps] for name in names}
        self.numbers = {k: torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()}
        self.never_pick = torch.tensor([not step.picks for step in steps])
        self.widest = max(node.channels for node in graph.nodes)
        self.most = torch.tensor([float(node.channels) for node in graph.nodes]).double()
        self.blocks = {  # and the steps with that block, where it is larger than all have
            block: torch.tensor([at for at, step in enumerate(steps) if step.block == block])
            for block in {step.block for step in steps if step.block > BLOCK}
        }

    def __call__(
        self, unneeded: list[Tensor], kept: dict[str, Tensor], varying: list[Tensor]
    ) -> Tensor:
        """From the logarithm of the probability that nobody needs a channel, per node (channels,),
        of each gated layer the share that it keeps, (inputs,), and the probability that a channel
        varies, per node (1,) or (channels,)."""
        self._move_to(unneeded[0].device)
        moments: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # nodes on a chain share tensors
        pairs = [(id(log), id(varies)) for log, varies in zip(unneeded, varying, strict=True)]
        for pair, log, varies in zip(pairs, unneeded, varying, strict=True):
            if pair not in moments:
                there = -torch.expm1(log)
                mean = varies.mean()
                moments[pair] = there.sum() * mean, (there * (1 - there)).sum() * mean
        outputs = torch.stack([moments[pair][0] for pair in pairs])
        variance = torch.stack([moments[pair][1] for pair in pairs])
        widths = list(self._up_to(BLOCK, outputs, variance, self.most).unbind())
        inputs = [self._inputs(at, widths, kept, varying) for at in range(len(widths))]
        there, read, by_choice, always = (torch.stack(one) for one in zip(*inputs, strict=True))
        runs = torch.stack([self._runs(at, log, varying[at]) for at, log in enumerate(unneeded)])
        rounded = torch.stack(widths)
        for block, places in self.blocks.items():
            most = (self.most[places] / block).ceil() * block
            part = self._up_to(block, outputs[places], variance[places], most)
            rounded = rounded.index_copy(0, places, part)
        both = by_choice + always
        some, any_ = always.clamp(0, 1), both.clamp(0, 1)
        reading = self._steps(terms(runs, there, rounded, runs * always, runs * some))
        picking = self._steps(terms(runs, read, rounded, runs * both, runs * any_))
        steps = torch.where(self.never_pick, reading, torch.minimum(reading, picking))
        return (self.table.constant + self.table.scale * steps.sum()).clamp(min=0)

    def _inputs(
        self, at: int, widths: list[Tensor], kept: dict[str, Tensor], varying: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Channels that there are to read, that are read, that the layer at `at` picks if that is
        faster, and that it picks anyway; each (). Widens its tensor where its parts are wider."""
        nodes, node, none = self.graph.nodes, self.graph.nodes[at], torch.zeros_like(widths[at])
        there = sum((widths[i] for i in node.inputs), none)
        if node.kind == "concatenate":  # as wide as its parts, whoever reads it
            widths[at] = there
        elif node.kind in ("channelwise", "elementwise"):
            for operand in node.inputs:
                if nodes[operand].channels == node.channels:
                    widths[at] = torch.maximum(widths[at], widths[operand])
        elif node.kind == "mix" and node.layer in kept:
            reads = (kept[node.layer] * varying[node.inputs[0]]).sum()
            return there, reads, reads * (there - reads).clamp(0, 1), none
        elif node.kind in ("norm", "grouped"):  # reads what it writes
            reads = widths[at] * (nodes[node.inputs[0]].channels / node.channels)
            return reads, reads, none, reads * (there - reads).clamp(0, 1)
        return there, there, none, none

    def _runs(self, at: int, unneeded: Tensor, varies: Tensor) -> Tensor:
        """Probability that the step at `at` depends on the image, and is needed; ()."""
        node = self.graph.nodes[at]
        if not node.cuttable:
            return torch.ones_like(unneeded[:1].sum())
        return -torch.expm1(unneeded.sum()) * varies.mean()

    def _steps(self, parts: dict[str, Tensor]) -> Tensor:
        return torch.stack([self.numbers[name] * part for name, part in parts.items()]).sum(0)

    def _up_to(
        self, block: int, mean: Tensor, variance: Tensor, most: Tensor
    ) -> Tensor:  # (nodes,)
        """Expected numbers of channels, up to whole blocks, at most `most`."""
        edges = block * torch.arange(math.ceil(self.widest / block), device=mean.device) + 0.5
        spread = (variance[:, None] + LEAST_VARIANCE).sqrt()
        above = torch.special.ndtr((mean[:, None] - edges) / spread)
        parts = (most[:, None] - edges + 0.5).clamp(0, block)
        found: Tensor = (parts * above).sum(1)
        return found

    def _move_to(self, device: torch.device) -> None:
        if self.numbers["fixed"].device != device:
            self.numbers = {k: v.to(device) for k, v in self.numbers.items()}
            self.blocks = {k: places.to(device) for k, places in self.blocks.items()}
            self.most, self.never_pick = self.most.to(device), self.never_pick.to(device)
