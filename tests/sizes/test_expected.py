"""Expected sizes against counted draws and finite differences."""

import pytest
import torch

from pgnas_cli.gates import gates
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.sizes import ExpectedSize, count, parameter_count, whole_macs

from ..networks import supernet, tiny


@pytest.mark.parametrize("layers", ["all", "hidden"])
@pytest.mark.parametrize(
    "name", ["multibranch-tiny", "resnet18", "efficientnet_b0", "densenet121", "regnety_002"]
)
def test_expected_size_is_the_mean_of_counted_draws(name: str, layers: str) -> None:
    network = supernet(name, layers=layers)
    groups = len(gates(network).groups)
    for level in (0.3, 0.6):
        p = torch.full((groups,), level)
        p[::3] = 0.1
        params, macs = ExpectedSize(network)(p)
        drawn = count(network, draw_candidates(p, network, 40, 0))
        assert float(params) == pytest.approx(float(drawn.params.double().mean()), rel=0.03)
        assert float(macs) == pytest.approx(float(drawn.macs.double().mean()), rel=0.03)
    whole = ExpectedSize(network)(torch.zeros(groups))
    counts = [parameter_count(network), whole_macs(network)]
    assert [float(size) for size in whole] == pytest.approx(counts, rel=1e-6)


def test_the_slope_of_the_expected_size_is_that_of_finite_differences() -> None:
    size = ExpectedSize(tiny())
    p = torch.linspace(0.1, 0.8, len(size.group.unique()), dtype=torch.float64).requires_grad_()
    for which in (0, 1):
        (slope,) = torch.autograd.grad(size(p)[which], p)
        for group in (0, 3, len(p) - 1):
            step = torch.zeros_like(p)
            step[group] = 1e-6
            with torch.no_grad():
                change = float(size(p + step)[which] - size(p - step)[which]) / 2e-6
            assert float(slope[group]) == pytest.approx(change, rel=1e-4)
