"""The command line as a whole: versions, help, usage errors, backbones."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer.main

from pgnas_cli.cli import app

from ..conftest import object_of, run, said

NAMES = list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_the_version_names_torch_and_timm() -> None:
    status, out, err = said("--version")
    assert (status, err) == (0, "")
    torch, timm, python = version("torch"), version("timm"), sys.version.split()[0]
    assert out.startswith(f"pgnas {version('pgnas')} (torch {torch}, timm {timm}, Python {python},")
    assert f" {os.cpu_count()} cores" in out


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


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="it is bash that is set up")
def test_a_shell_that_completion_is_installed_for_completes_commands(tmp_path: Path) -> None:
    """Typer's own: a real shell, whose home is empty, loads what was installed and asks it."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "pgnas"
    program.write_text(f"#!{sys.executable}\nfrom pgnas_cli.cli import main\nmain()\n")
    program.chmod(0o755)
    script = (
        "pgnas --install-completion && . ~/.bashrc && COMP_WORDS=(pgnas sa) COMP_CWORD=1 &&"
        " _pgnas_completion pgnas && echo completed ${COMPREPLY[@]}"
    )
    done = subprocess.run(
        ["/bin/bash", "--norc", "-c", script], capture_output=True, text=True, check=False,
        env={**os.environ, "HOME": str(tmp_path), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "completed sample", done.stderr


# Of timm's train.py: an option of ours that has one of these names means the same there.
TIMM = """
aa amp amp-dtype aug-repeats aug-splits batch-size bce-loss bn-eps bn-momentum channels-last
checkpoint-hist class-map clip-grad clip-mode color-jitter cooldown-epochs crop-pct cutmix
cutmix-minmax data-dir dataset decay-epochs decay-milestones decay-rate device dist-bn drop
drop-block drop-path epoch-repeats epochs eval-metric experiment fuser gp grad-accum-steps
grad-checkpointing hflip img-size in-chans initial-checkpoint input-size interpolation jsd-loss
layer-decay log-interval log-wandb lr lr-base lr-cycle-decay lr-cycle-limit lr-cycle-mul lr-k-decay
lr-noise lr-noise-pct lr-noise-std mean min-lr mixup mixup-mode mixup-off-epoch mixup-prob
mixup-switch-prob model model-ema model-ema-decay momentum no-aug num-classes opt opt-betas opt-eps
output patience-epochs pin-mem pretrained ratio recount recovery-interval remode reprob resplit
resume save-images scale sched seed smoothing split-bn start-epoch std sync-bn torchcompile
torchscript train-interpolation train-split tta val-split validation-batch-size vflip warmup-epochs
warmup-lr weight-decay worker-seeding workers
"""
# Compared one by one. --resume takes no file here: the run has it.
ALIKE = """
aa batch-size cutmix data-dir decay-milestones device epochs img-size initial-checkpoint layer-decay
lr lr-cycle-mul min-lr mixup model model-ema model-ema-decay momentum opt pretrained reprob resume
scale sched seed smoothing sync-bn warmup-epochs weight-decay workers
"""


def test_an_option_of_fit_with_a_name_of_timms_means_the_same() -> None:
    fit = typer.main.get_command(app).commands["fit"]  # type: ignore[attr-defined]
    ours = {flag.removeprefix("--") for parameter in fit.params for flag in parameter.opts}
    assert ours & set(TIMM.split()) == set(ALIKE.split())


def test_defaults_are_shown_where_the_backbone_has_none_of_its_own() -> None:
    _, out, _ = said("fit", "-h")
    options, _, recipe = out.partition("Recipe (defaults: the backbone's; fit prints them)")
    assert options.count("[default: (digits)]") == 1
    assert "[default: (0)]" in options
    assert "[default" not in recipe.partition("Advanced")[0]


def test_unknown_options_are_usage_errors() -> None:
    assert run("fit", "--no-such-option") == 2
    assert run("no-such-command") == 2


def test_backbones_are_listed_with_their_package_and_v_names_what_is_not_prunable() -> None:
    assert object_of("backbones")["backbones"]["multibranch-tiny"] == "pgnas"
    for flags, expected in (([], False), (["-v"], True)):
        _, _, err = said("backbones", "timm/convnext_atto", "--img-size", "64", *flags)
        assert ("not prunable: stages.0.blocks.0.norm" in err) == expected
