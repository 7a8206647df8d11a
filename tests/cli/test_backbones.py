"""backbones: what is listed, and what is said of one."""

import pytest

from .conftest import object_of, said


def test_backbones_are_listed_with_their_package(capsys: pytest.CaptureFixture[str]) -> None:
    found = object_of(capsys, "backbones")
    assert found["backbones"]["multibranch-tiny"] == "pgnas"


def test_verbose_names_what_is_not_prunable(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, expected in (([], False), (["-v"], True)):
        _, _, err = said(capsys, "backbones", "timm/convnext_atto", "--img-size", "64", *flags)
        assert ("not prunable: stages.0.blocks.0.norm" in err) == expected
