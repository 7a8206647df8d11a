"""What is left of a super-network computes, and learns, what the whole one does under its masks."""

from typing import Any

import pytest
import torch
from timm.layers import ScaledStdConv2d
from torch import Tensor, nn

from pgnas_cli.gates import draw, gates, kl, make_concrete_, masked, relaxed
from pgnas_cli.graph import OperationGate
from pgnas_cli.sizes import count, parameter_count
from pgnas_cli.slimming import Remainder, remainder

from ..networks import Five, randomised, seeded, settled, supernet, tiny, without


def one_step(network: nn.Module, images: Tensor, keep: Tensor | None) -> Tensor:
    """Logits of a step in training mode; gradients of logits and divergence are in place."""
    acting = (
        relaxed(network, batch=len(images), generator=seeded(7), temperature=0.2)
        if keep is None
        else masked(network, keep)
    )
    network.train()
    with acting:
        logits: Tensor = network(images)
        loss = logits.square().mean() + kl(network, l2=50.0, images=1000)
    loss.backward()
    return logits.detach()


def left_of(network: nn.Module) -> Remainder:
    left = remainder(network)
    assert left is not None
    return left


def assert_same_step(network: nn.Module, size: int = 32, *, hard: bool = True) -> Remainder:
    """Same logits, gradients of all that is left, and batch-norm statistics, in float64."""
    network.double()
    left = left_of(network)
    channels = gates(network).graph.input_shape[0]
    images = torch.randn(6, channels, size, size, generator=seeded(3), dtype=torch.float64)
    keep = torch.stack([draw(network, generator=seeded(row)) for row in range(len(images))])
    keep_or_not = keep if hard else None
    expected = one_step(network, images, keep_or_not)
    found = one_step(left.network, images, keep_or_not)
    assert expected.abs().max() > 0
    assert (found - expected).abs().max() <= 1e-9 * expected.abs().max()
    whole: dict[str, Any] = dict(network.named_parameters())
    scale = max(float(p.grad.abs().max()) for p in whole.values() if p.grad is not None)
    for name, parameter in left.network.named_parameters():
        if name == "gates.drop_logit":
            continue
        place = left.places[name]
        gradient = whole[place.name].grad
        assert (gradient is None) == (parameter.grad is None), name
        if gradient is not None:
            assert parameter.grad is not None
            assert (place.part_of(gradient) - parameter.grad).abs().max() <= 1e-9 * scale, name
    buffers, state = dict(network.named_buffers()), left.network.state_dict()
    for name, place in left.places.items():
        if "running" in name or "tracked" in name:
            assert torch.allclose(place.part_of(buffers[place.name]), state[name], atol=1e-9), name
    return left


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("groups", ["channel", "4", "layer"])
def test_branches(groups: str, hard: bool) -> None:
    network = tiny(groups=groups)
    settled(network)
    left = assert_same_step(network, 8, hard=hard)
    assert parameter_count(left.network) < 0.9 * parameter_count(network)


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("resnet18", {"groups": "channel"}, 32),  # shared tensors
        ("resnet18", {"groups": "channel", "layers": "hidden"}, 32),
        ("densenet121", {"groups": "8"}, 32),  # batch-norm picks from a concatenation
        ("mobilenetv3_small_050", {"groups": "channel"}, 64),  # depthwise, squeeze-excite
        ("efficientnet_lite0", {"groups": "layer"}, 64),
    ],
)
def test_networks_of_timm(name: str, options: dict[str, str], size: int) -> None:
    network = supernet(name, **options)
    settled(network, closed=0.1 if options["groups"] == "layer" else 0.4)
    left = assert_same_step(network, size)
    assert parameter_count(left.network) < 0.9 * parameter_count(network)


def test_a_layer_without_inputs_is_its_bias_which_goes_on_learning() -> None:
    network = Five(lambda f, x: (f.bn(f.b(x)) + f.a(f.c(x).relu())).mean((2, 3)))
    network = randomised(make_concrete_(network, (3, 8, 8), groups="layer"))
    first, _ = gates(network).spans["b"]
    gates(network).drop_logit.data[gates(network).group[first]] = torch.inf
    left = assert_same_step(network, 8)
    assert left.places["b.value"].name == "b.bias"
    assert left.network.get_parameter("b.value").grad is not None
    assert "b.weight" not in left.network.state_dict()


def test_a_layer_that_nobody_reads_leaves_with_its_batch_norm() -> None:
    network = Five(lambda f, x: (f.a(f.bn(f.b(x)).relu()) + f.c(x)).mean((2, 3)))
    network = randomised(make_concrete_(network, (3, 8, 8), groups="layer"))
    first, _ = gates(network).spans["a"]
    gates(network).drop_logit.data[gates(network).group[first]] = torch.inf
    left = assert_same_step(network, 8)
    names = set(left.network.state_dict())
    assert not any(name.startswith(("b.", "bn.")) for name in names)
    assert "a.value" in names and "c.weight" in names


def test_standardised_weights_stay_whole() -> None:
    network = Five(
        lambda f, x: f.c(f.bn(f.b(f.a(x).relu())).relu()).mean((2, 3)),
        b=ScaledStdConv2d(16, 16, 3, padding=1),
    )
    network = randomised(make_concrete_(network, (3, 8, 8), groups="channel"))
    settled(network, closed=0.5)
    left = assert_same_step(network, 8)
    assert left.network.get_parameter("b.weight").shape == (16, 16, 3, 3)
    assert left.network.get_parameter("a.weight").shape[0] == 16
    assert left.network.get_parameter("c.weight").shape[1] < 16


def test_operations_that_are_closed_for_good_make_zeros() -> None:
    network = Five(
        lambda f, x: f.c(f.skip(f.a(x)) + f.bn(f.b(x))).mean((2, 3)), skip=OperationGate()
    )
    network = randomised(make_concrete_(network, (3, 8, 8), layers="all+operations"))
    place, _ = gates(network).spans["skip"]
    logits = gates(network).drop_logit.data
    logits[gates(network).group[place]] = torch.inf
    first, _ = gates(network).spans["b"]
    gates(network).drop_logit.data[gates(network).group[first]] = -torch.inf
    left = assert_same_step(network, 8)
    assert "skip" not in gates(left.network).spans
    assert "a.weight" not in left.network.state_dict()


def test_a_chain_keeps_as_many_parameters_as_its_one_candidate() -> None:
    network = Five(lambda f, x: f.c(f.bn(f.b(f.a(x).relu())).relu()).mean((2, 3)))
    network = randomised(make_concrete_(network, (3, 8, 8), groups="channel", layers="hidden"))
    closed = settled(network, closed=0.5, opened=0.5)
    left = left_of(network)
    expected = int(count(network, ~closed[None], round_to=8).params)
    assert parameter_count(left.network) == expected < parameter_count(network)


def test_nothing_is_left_out_where_no_gate_is_closed_for_good() -> None:
    network = tiny(groups="channel")
    gates(network).drop_logit.data[:5] = 30.0  # p is not exactly 1
    gates(network).drop_logit.data[5:9] = -torch.inf
    assert remainder(network) is None


def test_what_was_learned_is_written_back_with_zeros_for_what_has_left() -> None:
    network = tiny(groups="channel")
    settled(network)
    left = left_of(network)
    with torch.no_grad():
        for parameter in left.network.parameters():
            if parameter is not gates(network).drop_logit:
                parameter.add_(0.1)
    keep = draw(network, generator=seeded(5))
    images = torch.randn(4, 1, 8, 8, generator=seeded(2))
    left.write_back(network)
    with torch.no_grad(), masked(network, keep), masked(left.network, keep):
        assert torch.allclose(network.eval()(images), left.network.eval()(images), atol=1e-5)
    trained = sum(int((p != 0).sum()) for n, p in network.named_parameters() if "gates" not in n)
    assert trained == parameter_count(left.network)


def test_masks_stay_in_terms_of_the_whole_network() -> None:
    network = tiny(groups="channel")
    closed = settled(network)
    left = left_of(network)
    assert gates(left.network).count == gates(network).count
    assert gates(left.network).drop_logit is gates(network).drop_logit
    layer = next(iter(gates(left.network).spans))
    keep = without(network, layer)
    with masked(left.network, keep & ~closed):
        assert not left.network.get_submodule(layer).keep.any()  # type: ignore[union-attr, operator]
