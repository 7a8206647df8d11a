"""Counts against built networks, hooks and plain loops."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pgnas_cli.gates import drop_probabilities, gates, per_gate
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.sizes import count, exact, parameter_count, whole_macs
from pgnas_cli.sizes.exact import slice_sizes
from pgnas_cli.slimming import slim

from ..networks import everything, random_keep, seeded, tiny


def test_multiply_adds_equal_those_that_hooks_see() -> None:
    network = tiny(64, 3)
    keep = random_keep(network, 0.5)
    smaller = slim(network, keep)
    seen = []

    def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output[0].numel() * module.weight[0].numel())

    for module in smaller.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(hook)
    smaller(torch.zeros(1, 3, 64, 64))
    assert sum(seen) == int(count(network, keep[None]).macs)


def test_paper_count_equals_a_loop_over_kept_slices() -> None:
    network = tiny()
    keep = random_keep(network, 0.4)
    widths, dropped = slice_sizes(network), 0
    for layer, (first, last) in gates(network).spans.items():
        weight = network.get_submodule(layer).weight
        for channel, kept in enumerate(keep[first:last].tolist()):
            assert widths[first + channel] == weight[:, channel].numel()
            dropped += 0 if kept else weight[:, channel].numel()
    sizes = count(network, keep[None])
    assert int(sizes.paper_params) == parameter_count(network) - dropped
    assert int(sizes.params) <= int(sizes.paper_params)


def test_whole_network_counts_as_pytorch_counts_it() -> None:
    network = tiny()
    sizes = count(network, everything(network)[None])
    plain = sum(p.numel() for n, p in network.named_parameters() if n != "gates.drop_logit")
    assert int(sizes.params) == int(sizes.paper_params) == plain == parameter_count(network)
    assert whole_macs(network) == int(sizes.macs)


def test_the_papers_expected_size_is_the_mean_over_draws() -> None:
    network = tiny()
    gates(network).drop_logit.data = torch.randn(17, generator=seeded())
    probability = drop_probabilities(network)
    drawn = count(network, draw_candidates(probability, network, 2000, 0)).paper_params.double()
    dropped = per_gate(network, probability.double()) * slice_sizes(network)
    expected = parameter_count(network) - float(dropped.sum())
    assert abs(float(drawn.mean()) - expected) < 4 * float(drawn.std()) / 2000**0.5


def test_counting_many_rows_equals_counting_each(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny()
    monkeypatch.setattr(exact, "ROWS", 3)
    keep = draw_candidates(torch.full((17,), 0.6), network, 7, 0)
    together = count(network, keep)
    for index in range(7):
        alone = count(network, keep[index : index + 1])
        assert together.params[index] == alone.params[0]
        assert together.macs[index] == alone.macs[0]
