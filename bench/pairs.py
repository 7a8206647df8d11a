"""All pairs of commands at once on one run: each ends well or in one line, and nothing is mixed.

    python -m bench.pairs [--rounds 1]

Both start together on a copy of a run that is fitted, drawn, ranked, exported and evaluated, the
second a little later in each round. At the end every file must be whole, the ranking that of the
candidates, the candidates those of the posterior, and the networks in the run of one of both.
"""

import argparse
import itertools
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

from bench.faults import damaged, digests
from pgnas_cli.cli import main
from pgnas_cli.errors import PgnasError
from pgnas_cli.evaluation import evaluations_of
from pgnas_cli.formats import read_network
from pgnas_cli.ranking import read_ranking
from pgnas_cli.run import Run, commands_of, read_settings
from pgnas_cli.run.posterior import posterior_of
from pgnas_cli.sampling import read_candidates

FIT = "fit --epochs 1 -b 400 --target-params 59.4%"  # as the search below does
FIRST = (
    f"{FIT} --run r -q", "sample -n 20 --run r -q", "rank --top 3 --run r -q",
    "export r/best.safetensors --run r -q", "evaluate r/best.safetensors --run r -q",
)  # fmt: skip
LINES = {
    "fit": f"{FIT} --seed 1 --run r --force -q",
    "resume": "fit --resume --run r -q",
    "sample": "sample -n 30 --seed 5 --force --run r -q",
    "rank": "rank --exhaustive --run r -q",
    "export": "export r/best.safetensors --force --run r -q",
    "evaluate": "evaluate r/best.safetensors --run r -q",
    "report": "report --run r -q",
    "finetune": "finetune r/best.safetensors --epochs 1 --force --run r -q",
    "search": "search --epochs 1 -b 400 -n 20 --run r -q",
}


def begun(line: str, folder: Path, log: Path, wait: float) -> int:
    """The process of a command, in a fork of this one."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.chdir(folder)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.argv = ["pgnas", *line.split()]
        time.sleep(wait)
        main(line.split())
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def mixed(folder: Path) -> str:
    """What of a run contradicts the rest of it; "" for nothing."""
    run = Run(folder / "r")
    found = damaged(folder, {})
    if found:
        return found
    left = [file for file in digests(folder) if Path(file).name.startswith(".")]
    if left:
        return f"left: {left}"
    for line in run.commands.read_text().splitlines() if run.commands.exists() else []:
        if not line.startswith("{") or not line.endswith("}"):
            return f"half a line in {run.commands.name}: {line}"
    commands_of(run), evaluations_of(run), read_settings(run)
    if not run.posterior.exists():
        return "no posterior"
    network, posterior = posterior_of(run)
    for label in run.budgets():
        try:
            candidates = read_candidates(run, network, posterior, label)
        except PgnasError as error:
            return str(error)
        if run.ranking(label).exists() and read_ranking(run, candidates) is None:
            return "a ranking of other candidates"
    for path in run.folder.glob("*.safetensors"):
        if path.stem in ("best", "twin", "best-finetuned"):
            read_network(path)
    return ""


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1, help="each with another delay")
    parser.add_argument("commands", nargs="*", default=[], help="of " + ", ".join(LINES))
    given = parser.parse_args()
    names = given.commands or list(LINES)
    bad = tried = 0
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        base, trial = Path(work, "base"), Path(work, "trial")
        base.mkdir()
        for line in FIRST:
            process = begun(line, base, Path(work, "log"), 0)
            assert os.waitpid(process, 0)[1] == 0, Path(work, "log").read_text()
        pairs = itertools.combinations_with_replacement(names, 2)
        for (one, other), turn in itertools.product(pairs, range(given.rounds)):
            shutil.rmtree(trial, ignore_errors=True)
            shutil.copytree(base, trial)
            logs = [Path(work, f"{i}.log") for i in range(2)]
            processes = [
                begun(LINES[name], trial, log, wait)
                for name, log, wait in zip((one, other), logs, (0.0, 0.4 * turn), strict=True)
            ]
            ends = [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in processes]
            tried += 1
            problems = []
            for name, status, log in zip((one, other), ends, logs, strict=True):
                said = log.read_text(errors="replace")
                errors = [line for line in said.splitlines() if line.startswith("error: ")]
                if status not in (0, 1) or "Traceback" in said or len(errors) != status:
                    problems.append(f"{name} ended with {status}: {said[-1500:]}")
            try:
                found = mixed(trial)
            except Exception as error:
                found = f"{type(error).__name__}: {error}"
            problems += [f"mixed: {found}"] if found else []
            bad += bool(problems)
            told = "; ".join(problems) or "well"
            refused = [
                log.read_text().strip()[:100] for log, s in zip(logs, ends, strict=True) if s
            ]
            print(f"{one} + {other}: {ends} {told} {refused}", flush=True)
    print(f"{tried} pairs, {bad} mixed or not in one line")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(run())
