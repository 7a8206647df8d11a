"""How soon a command answers, and leaves: mistakes before torch is loaded, the prompt at once."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.startup import MISTAKES, seconds
from pgnas_cli.run import settings_of

from .test_terminal import in_a_terminal


@pytest.mark.parametrize("line", MISTAKES.values())
def test_a_common_mistake_is_answered_without_torch(line: str) -> None:
    Path("there.safetensors").write_text("no tensors")
    code = (
        "import sys\nfrom pgnas_cli.cli import main\n"
        f"try: main({line.split()!r})\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules, 'timm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() in (["1", "False", "False"], ["2", "False", "False"])
    assert done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "fit --scale 1,0.3",
        "fit --pretrained --weights x",
        "fit --target-params 50% --until-settled",
        "fit --target-params 50% --fixed-drop 0.3",
        "fit --sched none --warmup-epochs 1",
        "fit --max-epochs 3 --epochs 4",
        "predict there.safetensors x.jpg --top 0",
        "predict there.safetensors x.jpg --precision int8",
        "predict there.safetensors - -",
    ],
)
def test_options_that_contradict_each_other_are_answered_without_torch(line: str) -> None:
    test_a_common_mistake_is_answered_without_torch(line)


def test_options_that_fit_each_other_are_not_refused_early() -> None:
    for given in (
        {"max_epochs": 3}, {"decay_milestones": (1, 2)}, {"sched": "multistep"}, {"min_lr": 0.5},
        {"size_ramp": 0.9, "target_params": "50%"}, {"warmup_epochs": 9.0},
    ):  # fmt: skip
        settings_of(given)


def test_a_command_that_loads_torch_says_so_and_leaves_at_once(tmp_path: Path) -> None:
    """Without _leave, the interpreter takes longer for its end than for a mistake as a whole."""
    line, program = (
        "backbones multibranch-tiny --img-size 32",
        "from pgnas_cli.cli import main; main()",
    )
    sent = in_a_terminal(tmp_path, *line.split(), program=program)
    assert sent.index("loading torch") < sent.index("layers in order of execution")
    _, leaving, _ = seconds(line, tmp_path)
    *_, mistake = seconds("fit --epochs 0", tmp_path)
    assert leaving < mistake


@pytest.mark.parametrize(
    ("line", "status"), [("--version", 0), ("fit --epochs 0", 1), ("fit --no-such", 2)]
)
def test_leaving_at_once_keeps_the_status_and_the_output(
    line: str, status: int, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pgnas_cli", *line.split()], cwd=tmp_path, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == status
    assert done.stdout or done.stderr
