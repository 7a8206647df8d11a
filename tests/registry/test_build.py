"""Building super-networks: equal from equal seeds, with nothing left in the global generators."""

import pytest
import torch

from pgnas_cli.errors import PgnasError
from pgnas_cli.registry.build import create_supernet

from ..networks import tiny


def test_equal_seeds_give_equal_networks_and_others_do_not() -> None:
    a, same, other = (
        create_supernet("multibranch-tiny", 10, input_shape=(1, 8, 8), seed=s) for s in (3, 3, 4)
    )
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), same.parameters(), strict=True))
    assert not torch.equal(a.head.weight, other.head.weight)


def test_building_leaves_the_global_generators_alone() -> None:
    before = torch.random.get_rng_state()
    tiny()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("classes", "shape", "message"),
    [
        (1, None, "1 classes are too few; possible: 2 or more"),
        (10, (3, 64, 96), r"input_shape \(3, 64, 96\) is not \(channels, size, size\)"),
        (10, (0, 64, 64), r"is not \(channels, size, size\)"),
        (10, (3, 9000, 9000), "`img_size` 9000 is out of range; possible: 1 to 8192"),
        (10, (3, 0, 0), "`img_size` 0 is out of range; possible: 1 to 8192"),
    ],
)
def test_wrong_arguments_are_refused(
    classes: int, shape: tuple[int, int, int] | None, message: str
) -> None:
    with pytest.raises(PgnasError, match=message):
        create_supernet("multibranch-tiny", classes, input_shape=shape)
