"""fit and rank in several processes: one writer, one board, and what a lost process does."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pgnas_cli.errors import PgnasError
from pgnas_cli.run import Run, run_to_fit
from pgnas_cli.training import epochs_of

from ..conftest import object_of, refused, run
from ..processes import ends, together
from .conftest import HERE

FIT = ["fit", "--epochs", "4", "--batch-size", "64", "--target-params", "60%", "--run"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def wait_for(text: str, log: Path, process: subprocess.Popen[bytes]) -> None:
    """Until a process has said `text`."""
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)


def workers_of(agent: int) -> list[int]:
    """The processes that torchrun has started, by rank."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    return sorted(map(int, children))


@pytest.fixture(scope="module")
def fitted_by_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of torchrun's whose second process was killed, and what was said."""
    folder = tmp_path_factory.mktemp("torchrun")
    log = folder / "log"
    fit = ["-m", "pgnas_cli", "--", *FIT, str(folder / "run"), "--save-minutes", "0"]
    with log.open("w") as said:
        torchrun = subprocess.Popen(
            [sys.executable, *TORCHRUN, "--max-restarts", "3", *fit], stdout=said, stderr=said,
            cwd=Path(__file__).parents[2], env={**os.environ, "NO_COLOR": "1"},
        )  # fmt: skip
        try:
            wait_for("  1/4 ", log, torchrun)
            os.kill(workers_of(torchrun.pid)[1], signal.SIGKILL)
            assert torchrun.wait(300) == 0, log.read_text()
        finally:
            torchrun.kill()
    return folder / "run", log.read_text()


def test_a_killed_process_ends_the_others_and_torchrun_finishes_the_fit(
    fitted_by_two: tuple[Path, str],
) -> None:
    folder, said = fitted_by_two
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    (line,) = errors
    assert line.startswith("error: another process has ended, or does not answer (")
    assert line.endswith("); look at what it said; what was saved is kept")
    assert "Traceback" not in said
    assert "Warning" not in said
    assert [record.epoch for record in epochs_of(Run(folder))] == [1, 2, 3, 4]
    assert said.count("trained for 4 epochs") == 1  # one process talks
    assert sorted(path.name for path in folder.iterdir()) == [
        "commands.jsonl", "metrics.jsonl", "posterior.safetensors", "run.json",
    ]  # fmt: skip
    one = object_of(*FIT, "one")["held_out_error"]
    two = epochs_of(Run(folder))[-1].hard_error
    assert abs(two - one) < 0.06  # of 287 images


def test_a_signal_to_one_process_stops_all_after_one_step_and_any_number_goes_on(
    fitted_by_two: tuple[Path, str],
) -> None:
    """Two end with the very posterior of the other fit, that was killed elsewhere."""
    line = ["-m", "pgnas_cli", *FIT, "r", "--save-minutes", "60"]
    processes = together(2, *line)
    first, second = processes
    assert first.stderr is not None
    assert any(said.startswith("   1/4 ") for said in first.stderr)
    second.send_signal(signal.SIGTERM)
    (status, _, said), (other, _, unsaid) = ends(processes)
    assert (status, other, unsaid) == (143, 143, "")
    (stop,) = re.findall(
        r"error: interrupted; saved after step (\d+) of 68, resume with (.*)", said
    )
    assert stop[1] == "torchrun ... -m pgnas_cli -- fit --resume --run r"
    shutil.copytree("r", "alone")
    assert ends(together(2, "-m", "pgnas_cli", "fit", "--resume", "--run", "r", "-q"))[0][0] == 0
    folder, _ = fitted_by_two
    posterior = "posterior.safetensors"
    assert Path("r", posterior).read_bytes() == (folder / posterior).read_bytes()
    assert run("fit", "--resume", "--run", "alone", "-q") == 0
    one, two = (epochs_of(Run(Path(name)))[-1].hard_error for name in ("alone", "r"))
    assert abs(two - one) < 0.06


@pytest.mark.parametrize("size", [2, 3])
def test_the_board_is_that_of_one_process(size: int, fitted: Run) -> None:
    before = fitted.ranking().read_bytes(), fitted.ranking_table().read_bytes()
    fitted.ranking().unlink()
    told = ends(together(size, "-m", "pgnas_cli", "rank", "--top", "5", *HERE, "--json"))
    assert [(status, len(out)) for status, out, _ in told[1:]] == (size - 1) * [(0, 0)]
    assert told[0][0] == 0, told
    assert (fitted.ranking().read_bytes(), fitted.ranking_table().read_bytes()) == before
    board = object_of("rank", "--top", "5", *HERE)
    assert {**json.loads(told[0][1]), "seconds": 0} == {**board, "seconds": 0}


def test_what_several_processes_cannot_do_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"),
                        ("MASTER_PORT", "1")):  # fmt: skip
        monkeypatch.setenv(name, value)
    assert refused("sample", *HERE) == (
        "error: sample is the work of one process, and torchrun started 2; type pgnas sample"
        " without it; possible: fit, rank"
    )
    with pytest.raises(PgnasError, match="name the folder of the run with `run`: several"):
        run_to_fit(None, {}, resume=False)
    assert refused("fit", "--run", "r", "--device", "meta").startswith("error: no device 'meta'")
