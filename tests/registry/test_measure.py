"""A network measured without being built."""

import resource

import pytest
import torch

from pgnas_cli.registry.build import build_backbone
from pgnas_cli.registry.measure import measured
from pgnas_cli.sizes import parameter_count, whole_macs

from ..networks import tiny


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("multibranch-tiny", (1, 8, 8)), ("enas-e", (3, 16, 16)), ("densenet121", (3, 32, 32)),
        ("timm/convnext_atto", (3, 64, 64)), ("timm/nf_regnet_b0", (3, 64, 64)),
        ("torchvision/mnasnet0_5", (3, 32, 32)),
    ],
)  # fmt: skip
def test_the_network_has_the_names_shapes_and_types_of_the_one_that_is_built(
    name: str, shape: tuple[int, int, int]
) -> None:
    found = measured(name, classes=7, input_shape=shape, options={})
    assert found is not None
    network = build_backbone(name, classes=7, channels=shape[0], size=shape[1]).network
    described = {k: (v.shape, v.dtype) for k, v in found.network.state_dict().items()}
    assert described == {k: (v.shape, v.dtype) for k, v in network.state_dict().items()}
    assert parameter_count(found.network) == parameter_count(network)
    assert all(tensor.is_meta for tensor in found.network.state_dict().values())


def test_macs_are_those_of_the_exact_count_and_activations_grow_with_the_pixels() -> None:
    found = measured("multibranch-tiny", classes=10, input_shape=(1, 8, 8), options={})
    assert found is not None
    assert found.macs == whole_macs(tiny())
    twice = measured("multibranch-tiny", classes=10, input_shape=(1, 16, 16), options={})
    assert twice is not None
    assert 3.5 < twice.activations / found.activations < 4  # the weights that are read stay


def test_a_gigantic_network_is_measured_without_its_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = measured("timm/regnety_2560", classes=100_000, input_shape=(3, 4096, 4096), options={})
    assert found is not None
    assert parameter_count(found.network) > 1e9
    assert found.activations > 1e11
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 2**18, f"{grown} KiB"


def test_what_cannot_be_measured_is_none_and_draws_nothing() -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    assert measured("no such", classes=2, input_shape=(3, 8, 8), options={}) is None
    assert measured("multibranch-tiny", classes=2, input_shape=(3, 8, 8), options={"a": 1}) is None
    assert measured("multibranch-tiny", classes=2, input_shape=(3, 8, 8), options={}) is not None
    assert torch.equal(torch.rand(2), expected)
