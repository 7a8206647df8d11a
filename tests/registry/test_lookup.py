"""Super-networks by name: what is not known, and what is near."""

import pytest
import timm
import torchvision

from pgnas_cli.errors import PgnasError
from pgnas_cli.registry import LIBRARIES, PHOTOS, SMALL_IMAGES, full_name
from pgnas_cli.registry.lookup import library_networks, load_backbone


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


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("resnet18", "timm/resnet18"),  # torchvision has one as well
        ("resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("alexnet", "torchvision/alexnet"),  # timm has none
        ("resnet50", "resnet50"),  # registered
        ("timm/resnet50", "timm/resnet50"),
        ("torchvision/resnet18", "torchvision/resnet18"),
        ("ownnet:build", "ownnet:build"),
        (SMALL_IMAGES, "multibranch-tiny"),
        (PHOTOS, "timm/tf_efficientnet_lite0"),
    ],
)
def test_a_short_name_is_a_registered_one_else_timms_else_torchvisions(
    name: str, meant: str
) -> None:
    assert full_name(name) == meant


def test_a_network_is_called_by_its_full_name_wherever_it_is_built() -> None:
    assert load_backbone("test_resnet", classes=3).name == "timm/test_resnet"


def test_the_networks_of_libraries_are_those_that_they_list() -> None:
    theirs = (timm.list_models(), torchvision.models.list_models(module=torchvision.models))
    for library, networks in zip(LIBRARIES, theirs, strict=True):
        assert library_networks(library) == set(networks)
