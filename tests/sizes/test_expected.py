"""Expected sizes against counted draws and finite differences."""

import pytest
import torch

from pgnas_cli.gates import gates, per_gate
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.sizes import ExpectedSize, count, parameter_count, whole_macs, whole_sizes
from pgnas_cli.timing import timed_by

from ..networks import made_up_times, supernet, tiny


@pytest.mark.parametrize("layers", ["all", "hidden"])
@pytest.mark.parametrize(
    "name", ["multibranch-tiny", "resnet18", "efficientnet_b0", "densenet121", "regnety_002"]
)
def test_expected_size_is_the_mean_of_counted_draws(name: str, layers: str) -> None:
    network = supernet(name, layers=layers)
    timed_by(network, made_up_times(network))
    groups = len(gates(network).groups)
    for level in (0.3, 0.6):
        p = torch.full((groups,), level)
        p[::3] = 0.1
        expected = ExpectedSize(network)(p)
        drawn = count(network, draw_candidates(p, network, 40, 0))
        for kind, size in expected.items():
            mean = float(getattr(drawn, kind).double().mean())
            near = 0.04 if kind == "time" else 0.03  # numbers of channels are not quite normal
            assert float(size) == pytest.approx(mean, rel=near), kind
    whole = ExpectedSize(network)(torch.zeros(groups))
    counts = {"params": parameter_count(network), "macs": whole_macs(network)}
    assert {k: float(whole[k]) for k in counts} == pytest.approx(counts, rel=1e-6)


@pytest.mark.parametrize("name", ["multibranch-tiny", "resnet18", "efficientnet_b0", "densenet121"])
@pytest.mark.parametrize("closed", [0.998, 1.0])
def test_layers_that_drop_all_their_inputs_count_as_constants(name: str, closed: float) -> None:
    """One p for each layer, of which some are closed, or all but closed."""
    network = supernet(name, groups="layer")
    timed_by(network, made_up_times(network))
    groups = len(gates(network).groups)
    p = torch.full((groups,), 0.4)
    p[1::4] = closed
    expected = ExpectedSize(network)(p)
    drawn = count(network, draw_candidates(p, network, 300, 0))
    whole = whole_sizes(network)
    for kind, size in expected.items():
        mean = float(getattr(drawn, kind).double().mean())
        # What depends on each other counts as independent, numbers of channels as normal.
        near = 0.04 if closed < 1 else 0.03 if kind == "time" else 0.01
        assert float(size) / whole[kind] == pytest.approx(mean / whole[kind], abs=near), kind


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("mobilenetv3_small_050", ".conv_pw"),
        ("efficientnet_b0", ".conv_pw"),
        ("resnet50", ".conv1"),
    ],
)
def test_a_closed_branch_is_what_the_count_says_beside_zero_padding(name: str, first: str) -> None:
    """A constant varies near the border of a padded convolution, and costs on."""
    network = supernet(name)
    timed_by(network, made_up_times(network))
    inner = [group.layer for group in gates(network).groups
             if group.layer.endswith(first) and ".0." not in group.layer[6:]]  # fmt: skip
    p = torch.tensor([float(group.layer in inner) for group in gates(network).groups])
    counted = count(network, (per_gate(network, p) < 0.5)[None])
    assert inner
    for kind, size in ExpectedSize(network)(p.double()).items():
        whole = whole_sizes(network)[kind]
        assert float(size) / whole == pytest.approx(int(getattr(counted, kind)) / whole, abs=0.005)


def test_the_slope_of_the_expected_size_is_that_of_finite_differences() -> None:
    network = tiny()
    size = ExpectedSize(timed_by(network, made_up_times(network)))
    p = torch.linspace(0.1, 0.8, len(size.group.unique()), dtype=torch.float64).requires_grad_()
    for which in ("params", "macs", "time"):
        (slope,) = torch.autograd.grad(size(p)[which], p)
        for group in (0, 3, len(p) - 1):
            step = torch.zeros_like(p)
            step[group] = 1e-6
            with torch.no_grad():
                change = float(size(p + step)[which] - size(p - step)[which]) / 2e-6
            assert float(slope[group]) == pytest.approx(change, rel=1e-4)
