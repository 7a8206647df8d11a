"""Time from Enter to an answer: of common mistakes, and of commands that need torch or not.

    python -m bench.startup [--repeats 5]

Each command line runs in a process of its own, in an empty folder. Appends a row for each to
docs/data/startup.jsonl: seconds to its first line, and from its last line to its exit (medians).
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench import about, machine_line, one_checkout
from bench.figures import DATA, Row, append, latest, prose, table, taken

PATH = DATA / "startup.jsonl"
MISTAKES = {
    "wrong name of a backbone": "fit --backbone resnet19",
    "missing data folder": "fit --data nowhere",
    "bad number": "fit --epochs 0",
    "unknown option": "fit --no-such-option",
    "missing file": "evaluate none.safetensors",
    "existing output": "inflate resnet18 -o there.safetensors",
    "wrong device": "fit --device gpu",
    "bad size": "sample --max-params 60",
    "no run yet": "rank",
    "file of another kind": "evaluate there.safetensors",
    "contradicting options": "fit --epochs 30 --warmup-epochs 40",
    "policy that timm has not": "fit --aa nonsense",
    "share without a unit": "search --max-params 0.6",
}
COMMANDS = {
    "help": "fit -h",
    "versions": "--version",
    "list of runs": "runs",
    "list of backbones": "backbones",
    "layers of a backbone": "backbones multibranch-tiny",
}
GOAL = 0.5  # seconds, of a mistake; and from the last line to the exit


def seconds(line: str, folder: Path) -> tuple[float, float, float]:
    """Of a command line until its first output, from its last output to its exit, and in all."""
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "pgnas_cli", *line.split()], cwd=folder, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        first = last = 0.0
        while os.read(process.stdout.fileno(), 65536):
            last = time.perf_counter()
            first = first or last
        process.wait()
        ended = time.perf_counter()
    return first - began, ended - last, ended - began


def row(what: str, line: str, kind: str, repeats: int) -> Row:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "there.safetensors").write_text("no tensors", encoding="utf-8")
        found = [seconds(line, folder) for _ in range(repeats)]
    first, exits, whole = (statistics.median(column) for column in zip(*found, strict=True))
    return {"what": what, "line": f"pgnas {line}", "kind": kind, "repeats": repeats,
            "first": first, "exit": exits, "whole": whole}  # fmt: skip


def figures(rows: Sequence[Row]) -> str:
    """Sentence and table of the newest rows."""
    rows = latest(rows, "line")
    mistakes = [r for r in rows if r["kind"] == "mistake"]
    fast = sum(r["whole"] <= GOAL for r in mistakes)
    columns = [
        [r["what"], f"`{r['line']}`", *(f"{r[k]:.2f}" for k in ("first", "exit"))] for r in rows
    ]
    goal = (
        f"{fast} of {len(mistakes)} mistakes are answered, and the prompt is back, within {GOAL} s."
    )
    head = ["what", "line", "s to the first line", "s from the last line to the exit"]
    return f"{prose(taken(rows), goal)}\n\n{table(head, columns)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    one_checkout()
    print(machine_line())
    for kind, lines in (("mistake", MISTAKES), ("command", COMMANDS)):
        for what, line in lines.items():
            found = row(what, line, kind, options.repeats)
            append(PATH, found | about())
            print(f"{found['first']:6.2f} {found['exit']:6.2f}  pgnas {line}", flush=True)


if __name__ == "__main__":
    main()
