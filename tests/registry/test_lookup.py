"""Super-networks by name: what is not known, and what is near."""

import pytest

from pgnas_cli.errors import PgnasError
from pgnas_cli.registry import admit
from pgnas_cli.registry.lookup import load_backbone


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet19", r"timm has no network 'resnet19'; did you mean .*timm/resnet18"),
        ("timm", "no backbone named 'timm'"),
        ("multibranch-tiny/x", "no backbone named 'multibranch-tiny/x'"),
        ("multibranch-tinny", "no backbone named .*; did you mean multibranch-tiny?"),
        ("vit/x", "no backbone named 'vit/x'; known: .*, timm/NAME"),
        ("os:system", "is a function that is not installed; if it is yours, name it again"),
        ("__import__('os')", "no backbone named"),
    ],
)
def test_unknown_names_propose_near_ones(name: str, message: str) -> None:
    with pytest.raises(PgnasError, match=message):
        load_backbone(name, classes=10)


@pytest.mark.parametrize("name", ["ownnet:", ":build", "a b:c", "a:b:c", "a.:b", "a:b()"])
def test_only_a_function_in_a_module_is_admitted(name: str) -> None:
    with pytest.raises(PgnasError, match="names no function; possible: module:function"):
        admit(name)


@pytest.mark.parametrize("option", ["pretrained", "classes", "model"])
def test_options_that_name_an_argument_are_refused(option: str) -> None:
    with pytest.raises(PgnasError, match=f"a backbone has no option '{option}' of its own"):
        load_backbone("multibranch-tiny", classes=10, options={option: 1})
