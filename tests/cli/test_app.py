"""The command line as a whole: versions, help, usage errors, backbones."""

from importlib.metadata import version

import pytest
import typer.main

from pgnas_cli.cli import app

from ..conftest import object_of, run, said

NAMES = list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_the_version_names_torch_and_timm() -> None:
    status, out, err = said("--version")
    assert (status, err) == (0, "")
    torch, timm = version("torch"), version("timm")
    assert out == f"pgnas {version('pgnas')} (torch {torch}, timm {timm})\n"


@pytest.mark.parametrize("command", [[], *([name] for name in NAMES)], ids=lambda c: "".join(c))
def test_h_is_help_and_breaks_lines_only_where_they_are_full(command: list[str]) -> None:
    status, out, _ = said(*command, "-h")
    assert (status, out) == said(*command, "--help")[:2]
    assert status == 0
    prose, panels, _ = out.partition("╭")
    assert panels
    assert max(map(len, out.splitlines())) <= 80
    for line, following in zip(prose.splitlines(), prose.splitlines()[1:], strict=False):
        if line.strip() and following.strip():
            assert len(line.rstrip()) + len(f" {following.split()[0]}") > 79, line


def test_unknown_options_are_usage_errors() -> None:
    assert run("fit", "--no-such-option") == 2
    assert run("no-such-command") == 2


def test_backbones_are_listed_with_their_package_and_v_names_what_is_not_prunable() -> None:
    assert object_of("backbones")["backbones"]["multibranch-tiny"] == "pgnas"
    for flags, expected in (([], False), (["-v"], True)):
        _, _, err = said("backbones", "timm/convnext_atto", "--img-size", "64", *flags)
        assert ("not prunable: stages.0.blocks.0.norm" in err) == expected
