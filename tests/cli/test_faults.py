"""A fault at some writes of some commands; `python -m bench.faults` tries all of them."""

import subprocess
import sys
from pathlib import Path


def test_after_a_fault_at_any_write_the_same_line_goes_on_to_the_same_bytes() -> None:
    stages = ["fit", "rank"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.faults", "--every", "23", *stages],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    rows = [line.rsplit(maxsplit=7) for line in done.stdout.splitlines()[1:]]
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row[0] for row in rows] == stages
    assert all(int(row[1]) >= 2 for row in rows)
    assert [row[2:7] for row in rows] == 2 * [5 * ["0"]]
