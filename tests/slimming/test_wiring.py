"""Which channels somebody still reads, against autograd and by hand."""

from functools import partial

import pytest
import timm
import torch
from torch import Tensor, nn

from pgnas_cli.gates import gates, make_concrete_, masked
from pgnas_cli.slimming import wire

from ..networks import Five, assert_exact, everything, random_keep, randomised, seeded


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "regnety_002"])
def test_dead_channels_have_no_gradient_and_live_ones_have(name: str) -> None:
    """On smooth activations, against autograd: what the wiring calls needed, and nothing else."""
    plain = timm.create_model(name, act_layer="silu")
    network = randomised(make_concrete_(plain, (3, 64, 64)))
    keep = random_keep(network, 0.5)
    wiring = wire(network, keep[None])
    assert not wiring.graph.opaque()
    outputs: dict[str, Tensor] = {}

    def note(layer: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        output.retain_grad()
        outputs[layer] = output

    calls = wiring.graph.calls()
    for layer, positions in calls.items():
        if wiring.graph.nodes[positions[0]].kind in ("mix", "grouped"):
            network.get_submodule(layer).register_forward_hook(partial(note, layer))
    images = torch.randn(4, 3, 64, 64, generator=seeded(2))
    with masked(network, keep):
        logits = network(images)
    (logits * torch.randn(logits.shape, generator=seeded(3))).sum().backward()
    dead = live = 0
    for layer, output in outputs.items():
        assert output.grad is not None
        gradient = output.grad.abs().transpose(0, 1).flatten(1).amax(1)
        needed = wiring.needed[calls[layer][0]][0]
        assert (gradient[~needed] == 0).all(), layer
        assert (gradient[needed] > 0).all(), layer
        dead, live = dead + int((~needed).sum()), live + int(needed.sum())
    assert dead > 500 and live > 500


def test_what_one_reader_drops_stays_for_the_others() -> None:
    plain = Five(lambda m, x: (m.a(x) + m.c(x)).mean((2, 3)))
    network = make_concrete_(plain, (3, 8, 8)).eval()
    left, right = torch.arange(16) % 2 == 0, torch.arange(16) < 8
    keep = everything(network)
    for layer, kept in (("a", left), ("c", right)):
        keep[slice(*gates(network).spans[layer])] = kept
    wiring = wire(network, keep[None])
    stem = next(i for i, n in enumerate(wiring.graph.nodes) if n.layer == "stem")
    assert torch.equal(wiring.live[stem][0], left | right)
    assert_exact(network, keep)
