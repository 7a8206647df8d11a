"""Slim networks against masked ones, counts against built networks, constants behind padding."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgnas_cli.errors import PgnasError
from pgnas_cli.gates import drop_probabilities, gates, layer_gates, make_concrete_, masked
from pgnas_cli.sampling import baseline_probabilities, draw_candidates
from pgnas_cli.sampling.draw import pack, unpack
from pgnas_cli.sizes import count, parameter_count, whole_macs
from pgnas_cli.sizes.exact import slice_sizes
from pgnas_cli.slimming import slim, wire
from pgnas_cli.slimming.layers import Constant, picked

from ..networks import random_keep, randomised, tiny


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close_layer(network: nn.Module, keep: Tensor, layer: str) -> Tensor:
    """`keep` with every input of `layer` dropped."""
    first, last = gates(network).spans[layer]
    keep = keep.clone()
    keep[first:last] = False
    return keep


def assert_same_logits(network: nn.Module, keep: Tensor, size: int) -> None:
    """Design law: 1e-4 of the largest logit, same arg-max, and the count that was announced."""
    x = torch.randn(8, gates(network).graph.input_shape[0], size, size, generator=seeded(1))
    with torch.no_grad():
        with masked(network, keep):
            expected = network(x)
        for layout in ("small", "fast"):
            smaller = slim(network, keep, layout)
            found = smaller(x)
            assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
            assert torch.equal(found.argmax(1), expected.argmax(1))
            if layout == "small":
                built = sum(p.numel() for p in smaller.parameters())
                assert built == int(count(network, keep[None]).params)


@pytest.mark.parametrize("drop", [0.0, 0.3, 0.9])
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (64, 3)])
def test_slim_network_equals_masked_network(drop: float, size: int, channels: int) -> None:
    network = tiny(size, channels)
    for seed in range(3):
        keep = random_keep(network, drop, seed)
        assert_same_logits(network, keep, size)
        assert_same_logits(network, keep, size + 8)


@pytest.mark.parametrize(
    "layer",
    ["blocks.0.branch1.3", "blocks.1.branch2.0", "blocks.1.skip.even", "blocks.2.branch1.3"],
)
def test_slim_network_equals_masked_network_without_a_whole_operation(layer: str) -> None:
    network = tiny()
    keep = close_layer(network, random_keep(network, 0.3), layer)
    assert_same_logits(network, keep, 8)
    assert isinstance(slim(network, keep).get_submodule(layer), Constant)


def test_a_branch_whose_last_layer_is_closed_loses_its_first_layer_too() -> None:
    network = tiny()
    keep = close_layer(network, torch.ones(512, dtype=torch.bool), "blocks.2.branch1.3")
    smaller = slim(network, keep)
    branch = smaller.get_submodule("blocks.2.branch1")
    assert sum(p.numel() for p in branch.parameters()) == 64  # its batch-norm's constant, no more
    assert_same_logits(network, keep, 8)


def test_a_network_of_closed_layers_is_a_constant() -> None:
    network = tiny()
    keep = torch.zeros(512, dtype=torch.bool)
    assert_same_logits(network, keep, 8)
    smaller = slim(network, keep)
    x = torch.randn(2, 1, 8, 8, generator=seeded())
    assert torch.equal(smaller(x)[0], smaller(x)[1])


@pytest.mark.parametrize("groups", ["channel", "8"])
def test_finer_groups_slim_as_exactly(groups: str) -> None:
    network = tiny(groups=groups)
    assert_same_logits(network, random_keep(network, 0.5), 8)


def test_hidden_gates_slim_without_picking_channels() -> None:
    network = tiny(layers="hidden")
    keep = random_keep(network, 0.5)
    assert_same_logits(network, keep, 8)
    assert not any("read" in key for key in slim(network, keep).state_dict())


class ConstantBehindPadding(nn.Module):
    """A closed layer whose constant goes through batch-norm into padded convolutions."""

    def __init__(self, padding: int, stride: int = 1, bias: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.closed = nn.Conv2d(6, 5, 3, stride, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(5)
        self.reader = nn.Conv2d(5, 4, 3, padding=padding)
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.norm(self.closed(F.relu(self.stem(x)))), 0.1)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(self.reader(x), 1), 1))


class ConstantInConcatenation(nn.Module):
    """A closed layer beside a live one, read together; in-place activation behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.closed = nn.Conv2d(6, 5, 1, bias=True)
        self.live = nn.Conv2d(6, 3, 1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.reader = nn.Conv2d(8, 4, 3, padding=1, bias=False)
        self.head = nn.Linear(4 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        x = self.pool(self.act(self.norm(torch.cat([self.closed(x), self.live(x)], 1))))
        return self.head(torch.flatten(self.reader(x), 1))


@pytest.mark.parametrize(
    "build",
    [
        lambda: ConstantBehindPadding(1),
        lambda: ConstantBehindPadding(0),
        lambda: ConstantBehindPadding(1, stride=2, bias=True),
        ConstantInConcatenation,
    ],
)
def test_constants_are_kept_exactly_borders_included(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = make_concrete_(randomised(build()), (3, 8, 8))
    for drop in (0.0, 0.4):
        keep = close_layer(network, random_keep(network, drop), "closed")
        assert_same_logits(network, keep, 8)


def test_a_constant_behind_padding_is_no_bias() -> None:
    """The trap that the plane of ones is for: a bias would be far off near the border."""
    torch.manual_seed(0)
    network = make_concrete_(randomised(ConstantBehindPadding(1)), (3, 8, 8))
    keep = close_layer(network, torch.ones(gates(network).count, dtype=torch.bool), "closed")
    reader = slim(network, keep).get_submodule("reader")
    assert reader.weight.shape == (4, 1, 3, 3)  # one plane of ones for five constant channels
    with torch.no_grad():
        out = reader(torch.zeros(1, 1, 8, 8))
    assert (out[..., 0, 0] - out[..., 4, 4]).abs().max() > 1e-2


class OverwrittenThroughAView(nn.Module):
    """An in-place step on a view changes what another layer reads later."""

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.step = step
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.closed = nn.Conv2d(6, 5, 1, bias=True)
        self.live = nn.Conv2d(6, 3, 1)
        self.norm = nn.BatchNorm2d(8)
        self.one = nn.Conv2d(8, 4, 1)
        self.other = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = self.norm(torch.cat([self.closed(x), self.live(x)], 1))
        y = self.one(self.step(x))
        return self.head((y + self.other(x)).mean((2, 3)))


def _divided(x: Tensor) -> Tensor:
    x /= 3.0
    return x


@pytest.mark.parametrize(
    "step",
    [
        torch.relu_,
        lambda x: F.relu(x, inplace=True),
        lambda x: x.contiguous().relu_(),
        lambda x: F.dropout(x, 0.5, training=False).relu_(),
        lambda x: x.view(x.shape).relu_(),
        lambda x: x.detach().mul_(2.0),
    ],
)
def test_constants_survive_steps_in_place_through_views(step: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    network = make_concrete_(randomised(OverwrittenThroughAView(step)), (3, 8, 8))
    for drop in (0.0, 0.4):
        keep = close_layer(network, random_keep(network, drop), "closed")
        assert_same_logits(network, keep, 8)


def test_a_forward_that_tracing_misreads_is_refused() -> None:
    with pytest.raises(PgnasError, match="computes something else when traced"):
        make_concrete_(randomised(OverwrittenThroughAView(_divided)), (3, 8, 8))


def test_a_network_with_two_outputs_is_refused() -> None:
    class Two(OverwrittenThroughAView):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = super().forward(x)
            return y, y

    with pytest.raises(PgnasError, match="does not give one row of logits per image"):
        make_concrete_(Two(torch.relu), (3, 8, 8))


class PaddedPointwise(ConstantBehindPadding):
    """A 1x1 convolution with padding: its border is bias alone, so its output is no constant."""

    def __init__(self) -> None:
        super().__init__(1)
        self.closed = nn.Conv2d(6, 5, 1, padding=1, bias=True)
        self.reader = nn.Conv2d(5, 4, 1, padding=1)


class Computed(nn.Module):
    """Layers whose weight is no parameter of their own, or also another layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 3))
        self.first, self.second = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normed(torch.relu(self.stem(x)))
        x = self.second(torch.relu(self.first(torch.relu(x))))
        return self.head(torch.relu(x).mean((2, 3)))  # type: ignore[no-any-return]


def test_weights_that_are_shared_or_computed_are_kept_whole() -> None:
    torch.manual_seed(0)
    network = make_concrete_(Computed(), (3, 8, 8))
    reasons = {row.layer: row.remark for row in layer_gates(network) if not row.gates}
    assert reasons["normed"] == "its weight is computed by a parametrization"
    assert set(reasons) == {"stem", "normed", "first", "second"}
    keep = random_keep(network.eval(), 0.5)
    assert_same_logits(network, keep, 8)
    built = sum(p.numel() for p in slim(network, keep).parameters())
    assert built == int(count(network, keep[None]).params)


def test_a_padded_pointwise_convolution_is_exact() -> None:
    torch.manual_seed(0)
    network = make_concrete_(randomised(PaddedPointwise()), (3, 8, 8))
    for drop in (0.0, 0.4):
        keep = random_keep(network, drop)
        assert_same_logits(network, keep, 8)
        assert_same_logits(network, close_layer(network, keep, "closed"), 8)


class TwoCalls(nn.Module):
    """One convolution, called twice on different tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.twice(F.relu(self.twice(x)))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def test_a_layer_that_is_called_twice_is_cut_once() -> None:
    torch.manual_seed(0)
    network = make_concrete_(TwoCalls(), (3, 8, 8)).eval()
    for seed in range(4):
        assert_same_logits(network, random_keep(network, 0.5, seed), 8)
    closed = close_layer(network, torch.ones(gates(network).count, dtype=torch.bool), "twice")
    assert_same_logits(network, closed, 8)


class Residue(nn.Module):
    """Two readers of one tensor that drop different channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.left = nn.Conv2d(4, 4, 1)
        self.right = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(self.left(x) + self.right(x), 1), 1))


def test_what_one_reader_drops_stays_for_the_others() -> None:
    network = make_concrete_(Residue(), (3, 8, 8)).eval()
    keep = torch.ones(gates(network).count, dtype=torch.bool)
    keep[0:4] = torch.tensor([True, False, True, False])  # left
    keep[4:8] = torch.tensor([True, True, False, False])  # right
    wiring = wire(network, keep[None])
    stem = next(i for i, n in enumerate(wiring.graph.nodes) if n.layer == "stem")
    assert wiring.live[stem][0].tolist() == [True, True, True, False]
    assert_same_logits(network, keep, 8)


def test_corrupting_any_kept_slice_breaks_the_equality() -> None:
    """The parity check would notice: each gated layer in turn loses one slice that it reads."""
    network = tiny()
    keep = random_keep(network, 0.3)
    x = torch.randn(8, 1, 8, 8, generator=seeded(1))
    with torch.no_grad(), masked(network, keep):
        expected = network(x)
    for layer in gates(network).spans:
        smaller = slim(network, keep)
        module = smaller.get_submodule(layer)
        inputs: list[Tensor] = []
        hook = module.register_forward_pre_hook(lambda m, args, to=inputs: to.append(args[0]))
        with torch.no_grad():
            smaller(x)
            hook.remove()
            read = getattr(module, "read", None)
            picked = inputs[0] if read is None else inputs[0].index_select(1, read)
            busiest = int(picked.abs().flatten(2).sum((0, 2)).argmax()) if picked.dim() > 2 else 0
            module.weight[:, busiest] *= -1
            assert (smaller(x) - expected).abs().max() > 1e-4 * expected.abs().max(), layer


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((2, 5, 4, 3), 1), ((2, 4, 3, 5), 3), ((2, 5, 1, 1), 1), ((2, 5), 1), ((2, 3, 5), 2)],
)
def test_picking_channels_keeps_the_memory_format(shape: tuple[int, ...], axis: int) -> None:
    """Against index_select, which is slow on channels_last and leaves it."""
    features = torch.randn(shape, generator=seeded())
    read = torch.tensor([0, 2])
    expected = features.index_select(axis, read)
    assert torch.equal(picked(features, read, axis), expected)
    if features.dim() == 4:
        last = features.contiguous(memory_format=torch.channels_last)
        found = picked(last, read, axis)
        assert torch.equal(found, expected)
        if axis == 1:
            assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_slim_network_trains_like_any_other() -> None:
    smaller = slim(tiny(), random_keep(tiny(), 0.5)).train()
    loss = F.cross_entropy(
        smaller(torch.randn(16, 1, 8, 8, generator=seeded())), torch.arange(16) % 10
    )
    loss.backward()
    assert all(p.grad is not None for p in smaller.parameters())


def test_slimming_leaves_the_supernet_as_it_was() -> None:
    network = tiny().train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    slim(network, random_keep(network, 0.5))
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert type(network.head).__name__ == "ConcreteLinear"


# --- counting ----------------------------------------------------------------------------------


def test_multiply_adds_equal_those_that_hooks_see() -> None:
    network = tiny(64, 3)
    keep = random_keep(network, 0.5)
    smaller = slim(network, keep)
    seen = [0]

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        per_output = module.weight[0].numel()
        seen[0] += output[0].numel() * per_output

    for module in smaller.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(hook)
    smaller(torch.zeros(1, 3, 64, 64))
    assert seen[0] == int(count(network, keep[None]).macs)


def test_paper_count_equals_a_loop_over_kept_slices() -> None:
    network = tiny()
    keep = random_keep(network, 0.4)
    modules = dict(network.named_modules())
    dropped = 0
    for layer, (first, last) in gates(network).spans.items():
        for channel, kept in enumerate(keep[first:last].tolist()):
            dropped += 0 if kept else modules[layer].weight[:, channel].numel()
    sizes = count(network, keep[None])
    assert int(sizes.paper_params) == parameter_count(network) - dropped
    assert int(sizes.params) <= int(sizes.paper_params)


def test_whole_network_counts_as_pytorch_counts_it() -> None:
    network = tiny()
    everything = torch.ones(1, 512, dtype=torch.bool)
    sizes = count(network, everything)
    plain = sum(p.numel() for n, p in network.named_parameters() if n != "gates.drop_logit")
    assert int(sizes.params) == int(sizes.paper_params) == plain == parameter_count(network)
    assert whole_macs(network) == int(sizes.macs)


def test_expected_size_is_the_mean_over_draws() -> None:
    network = tiny()
    gates(network).drop_logit.data = torch.randn(17, generator=seeded())
    probability = drop_probabilities(network)
    drawn = count(network, draw_candidates(probability, network, 2000, 0)).paper_params.double()
    tolerance = 4 * float(drawn.std()) / 2000**0.5
    dropped = probability.double()[gates(network).group] * slice_sizes(network)
    expected = parameter_count(network) - float(dropped.sum())
    assert abs(float(drawn.mean()) - expected) < tolerance


def test_counting_many_rows_equals_counting_each() -> None:
    network = tiny()
    keep = draw_candidates(torch.full((17,), 0.6), network, 7, 0)
    together = count(network, keep, rows=3)
    for index in range(7):
        alone = count(network, keep[index : index + 1])
        assert together.params[index] == alone.params[0]
        assert together.macs[index] == alone.macs[0]


def test_packing_is_reversible_for_any_number_of_gates() -> None:
    for width in (1, 7, 8, 9, 512):
        keep = torch.rand(5, width, generator=seeded()) < 0.5
        packed = pack(keep)
        assert packed.shape == (5, (width + 7) // 8)
        assert torch.equal(unpack(packed, width), keep)


def test_the_ith_candidate_does_not_depend_on_how_many_are_drawn() -> None:
    network = tiny()
    probability = torch.full((17,), 0.5)
    few, many = (draw_candidates(probability, network, n, 3) for n in (4, 9))
    assert torch.equal(few, many[:4])
    assert not torch.equal(few, draw_candidates(probability, network, 4, 4))


def test_permuted_probabilities_are_the_learned_ones_dealt_out_at_equal_size() -> None:
    network = tiny()
    gates(network).drop_logit.data = torch.linspace(-4, 2, 17)
    learned = drop_probabilities(network)
    dealt = baseline_probabilities(network, learned, "permuted", generator=seeded())
    assert not torch.equal(dealt.argsort(), learned.argsort())
    shift = dealt.logit().sort().values - learned.logit().sort().values
    assert (shift - shift.mean()).abs().max() < 1e-3
    level = baseline_probabilities(network, learned, "fixed", generator=seeded())
    assert level.unique().numel() == 1
    mean = [
        count(network, draw_candidates(p, network, 500, 1)).params.double().mean()
        for p in (learned, dealt, level)
    ]
    assert abs(mean[1] / mean[0] - 1) < 0.05
    assert abs(mean[2] / mean[0] - 1) < 0.05


def test_slice_sizes_are_outputs_times_kernel_area() -> None:
    network = tiny()
    sizes = slice_sizes(network)
    first, last = gates(network).spans["blocks.1.branch1.0"]
    assert sizes[first:last].tolist() == [32 * 9] * 16
    first, last = gates(network).spans["head"]
    assert sizes[first:last].tolist() == [10] * 64
