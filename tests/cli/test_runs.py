"""`pgnas runs`: what the small files of runs say, newest first."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pgnas_cli
from pgnas_cli.run import Run, overviews

from ..conftest import object_of, said


def at(run: Run, name: str, age: int) -> Run:
    """A copy in runs/, whose files are so many seconds old as of a fixed time."""
    copy = Run(Path(shutil.copytree(run.folder, Path("runs") / name)))
    for path in copy.folder.iterdir():
        os.utime(path, (2_000_000_000 - age,) * 2)
    return copy


def test_runs_are_listed_by_age_with_the_stage_that_each_has_reached(fitted: Run) -> None:
    Path("runs").mkdir()
    stages = {
        "exported": (),
        "ranked": ("best.safetensors", "commands.jsonl"),
        "sampled": ("ranking.safetensors",),
        "fitted": ("candidates.safetensors",),
        "fitting": ("posterior.safetensors",),
        "started": ("checkpoint.safetensors",),
    }
    gone: list[str] = []
    for age, (name, files) in enumerate(stages.items()):
        run, gone = at(fitted, name, age), [*gone, *files]
        if name == "fitting":
            run.posterior.rename(run.checkpoint)
        for file in gone:
            (run.folder / file).unlink(missing_ok=True)
        os.utime(run.settings, (2_000_000_000 - age,) * 2)
    damaged = at(fitted, "damaged", 9)
    damaged.settings.write_text("{")
    os.utime(damaged.settings, (2_000_000_000 - 9,) * 2)
    rows = object_of("runs")["runs"]
    assert [row["state"] for row in rows] == [*stages, "damaged"]
    assert [Path(row["run"]).name for row in rows] == [*stages, "damaged"]
    about = pgnas_cli.load(fitted.folder / "best.safetensors").info
    first, *others, _ = rows
    assert first["reached"] == about.params / about.whole_params
    assert first["held_out_error"] == about.held_out_errors / about.held_out_images
    assert (first["backbone"], first["data"]) == ("multibranch-tiny", "digits")
    assert (first["asked"], first["at"]) == ("60% params", "2033-05-18T03:33:20+00:00")
    last = json.loads(fitted.metrics.read_text().splitlines()[-1])
    for row in others:
        told = (row["reached"], row["held_out_error"])
        assert told == (last["expected_share"], last["hard_error"])


def test_a_list_of_runs_needs_neither_torch_nor_numpy(fitted: Run) -> None:
    code = (
        "import sys\nfrom pgnas_cli.cli import main\n"
        "try: main(['runs', '.'])\nexcept SystemExit as end: print(end.code)\n"
        "print([name for name in ('torch', 'numpy', 'timm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["0", "[]"]
    assert "exported" in done.stdout
    assert [one.run for one in overviews(Path())] == [fitted.folder.name]


def test_a_folder_that_is_no_run_does_not_hide_the_runs(fitted: Run) -> None:
    Path("odd/run.json").mkdir(parents=True)
    Path("gone").mkdir()
    Path("gone/run.json").symlink_to("nowhere")
    status, out, _ = said("runs", ".")
    assert status == 0
    assert fitted.folder.name in out and "odd" not in out


def test_where_there_are_no_runs_it_says_how_to_start_one() -> None:
    assert said("runs") == (0, "", "no runs in 'runs'; start one with pgnas search, or pgnas fit\n")
