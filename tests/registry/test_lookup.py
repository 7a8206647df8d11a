"""Super-networks by name: what is not known, and what is near."""

import pytest

from pgnas_cli.errors import PgnasError
from pgnas_cli.registry.lookup import load_backbone


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet19", r"timm has no network 'resnet19'; did you mean .*timm/resnet18"),
        ("torchvision/resnet19", r"torchvision has no .*; did you mean .*torchvision/resnet18"),
        ("torchvision/x", r"torchvision has no network 'x'; it has alexnet, convnext_base, \.\.\."),
        ("timm", "no backbone named 'timm'"),
        ("torchvision", "no backbone named 'torchvision'"),
        ("multibranch-tiny/x", "no backbone named 'multibranch-tiny/x'"),
        ("multibranch-tinny", "no backbone named .*; did you mean multibranch-tiny?"),
        ("vit/x", "no backbone named 'vit/x'; known: .*, timm/NAME, torchvision/NAME"),
    ],
)
def test_unknown_names_propose_near_ones(name: str, message: str) -> None:
    with pytest.raises(PgnasError, match=message):
        load_backbone(name, classes=10)
