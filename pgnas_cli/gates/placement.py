"""Where gates can sit in a traced network, and which channels share a drop probability."""

from collections.abc import Iterator

from torch import nn

from ..graph import Graph, Node, OperationGate


def gateable(network: nn.Module, graph: Graph) -> dict[str, str]:
    """Layers that could have gates, in order of execution: "" where gateable, else why not.

    Convolutions, linear layers, and the marked places behind operations without weights.
    """
    modules = dict(network.named_modules())
    calls = graph.calls()
    image = _reads_image(graph)
    follows = followers(graph)
    reasons: dict[str, str] = {}
    for path in (*calls, *(name for name in modules if name not in calls)):
        module = modules.get(path)
        if not isinstance(module, nn.Conv2d | nn.Linear | OperationGate):
            continue
        kinds = {graph.nodes[at].kind for at in calls.get(path, [])}
        if not kinds:
            reason = "not used in evaluation"
        elif isinstance(module, OperationGate):
            once = kinds == {"switch"} and len(calls[path]) == 1
            reason = "" if once else "used more than once, or not on an image's channels"
        elif isinstance(module, nn.Conv2d) and module.groups > 1:
            reason = "grouped: a dropped input would leave its outputs alive"
        elif any(image[at] for at in calls[path]):
            reason = "reads the image"
        elif "weight" not in module._parameters:
            reason = "its weight is computed by a parametrization"
        elif kinds != {"mix"}:
            reason = "its input is not one row of channels"
        elif path in follows:
            reason = f"shares the gates of {follows[path]}"
        else:
            reason = ""
        reasons[path] = reason
    return reasons


def followers(graph: Graph) -> dict[str, str]:
    """Small consumers beside a main one -> the main one.

    A squeeze-excite block reads features, and multiplies them, before the layer that they are for.
    The squeeze sees them through the same gates, so that a channel can die.
    """
    return {squeeze: main for squeeze, main, _ in _squeezes(graph)}


def segments(graph: Graph, layer: str) -> tuple[int, ...]:
    """Channel counts of the pieces whose concatenation `layer` reads; one piece as a rule."""
    source = graph.nodes[graph.calls()[layer][0]].inputs[0]
    return tuple(_pieces(graph, source))


def reads_hidden_channels(graph: Graph, layer: str) -> bool:
    """Whether `layer` is the one consumer of some other layer's outputs.

    Channels between the two die with their gate; the input of any other layer is shared, so that a
    dropped channel goes on being computed for the others.
    """
    calls = graph.calls()[layer]
    consumers = graph.consumers()
    products = {product: main for _, main, product in _squeezes(graph)}
    return len(calls) == 1 and _hidden(
        graph, consumers, products, layer, graph.nodes[calls[0]].inputs[0]
    )


def _hidden(
    graph: Graph, consumers: list[list[int]], products: dict[int, str], layer: str, at: int
) -> bool:
    """Whether the tensor `at` comes from layers that write for nobody but `layer`."""
    beside = 1  # consumers of one tensor, the squeeze of a squeeze-excite block not counted
    while len(consumers[at]) == beside:
        node = graph.nodes[at]
        if node.kind == "mix":
            return True
        if node.kind == "concatenate":
            return all(_hidden(graph, consumers, products, layer, source) for source in node.inputs)
        if products.get(at) == layer:
            at, beside = node.inputs[0], 2
        elif node.kind in ("norm", "channelwise", "flatten") or _depthwise(graph, node):
            at, beside = node.inputs[0], 1
        else:
            return False
    return False


def _depthwise(graph: Graph, node: Node) -> bool:
    """Whether each output is one input's own."""
    inputs = graph.nodes[node.inputs[0]].channels if node.inputs else 0
    return node.kind == "grouped" and node.groups == node.channels == inputs


def _reads_image(graph: Graph) -> list[bool]:
    """For each node, whether nothing but the image and fixed steps lies behind it."""
    image: list[bool] = []
    for node in graph.nodes:
        behind = [image[i] and graph.nodes[i].kind not in ("mix", "grouped") for i in node.inputs]
        image.append(all(behind))
    return image


def _pieces(graph: Graph, at: int) -> Iterator[int]:
    node = graph.nodes[at]
    if node.kind in ("norm", "channelwise") or _depthwise(graph, node):
        yield from _pieces(graph, node.inputs[0])
    elif node.kind == "concatenate":
        for source in node.inputs:
            yield from _pieces(graph, source)
    elif node.kind == "flatten":
        pixels = node.channels // graph.nodes[node.inputs[0]].channels
        yield from (pixels * piece for piece in _pieces(graph, node.inputs[0]))
    else:
        yield node.channels


def _squeezes(graph: Graph) -> Iterator[tuple[str, str, int]]:
    """(squeeze, main layer, position of the product) of each squeeze-excite block."""
    consumers = graph.consumers()
    behind = _ancestors(graph)
    for product, node in enumerate(graph.nodes):
        if not node.product or node.kind != "elementwise" or len(node.inputs) != 2:
            continue
        for features, scale in (node.inputs, node.inputs[::-1]):
            squeezes = [
                at
                for at in behind[scale]
                if graph.nodes[at].kind == "mix"
                and _through_channelwise(graph, graph.nodes[at].inputs[0], features)
            ]
            main = _only_mix_ahead(graph, consumers, product)
            if len(squeezes) == 1 and len(consumers[features]) == 2 and main is not None:
                squeeze = graph.nodes[squeezes[0]]
                alone = all(len(graph.calls()[n.layer]) == 1 for n in (squeeze, main))
                same = graph.nodes[features].channels == graph.nodes[main.inputs[0]].channels
                if alone and same:
                    yield squeeze.layer, main.layer, product


def _through_channelwise(graph: Graph, at: int, goal: int) -> bool:
    while at != goal and graph.nodes[at].kind == "channelwise":
        at = graph.nodes[at].inputs[0]
    return at == goal


def _only_mix_ahead(graph: Graph, consumers: list[list[int]], at: int) -> Node | None:
    while len(consumers[at]) == 1:
        at = consumers[at][0]
        if graph.nodes[at].kind == "mix":
            return graph.nodes[at]
        if graph.nodes[at].kind not in ("norm", "channelwise"):
            return None
    return None


def _ancestors(graph: Graph) -> list[set[int]]:
    """For each node, the nodes behind it within a few steps: enough for a squeeze-excite block."""
    near: list[set[int]] = []
    for position in range(len(graph.nodes)):
        found, edge = {position}, {position}
        for _ in range(8):
            edge = {i for at in edge for i in graph.nodes[at].inputs} - found
            found |= edge
        near.append(found)
    return near
