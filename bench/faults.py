"""A fault at every write of every command: what is lost, and does the same line go on?

Each point is one operation on a file of one command (open for writing, write, fsync, rename,
unlink, mkdir, rmdir) and one fault there: an error (ENOSPC), half of the bytes and then the error,
a SIGKILL before it, a SIGKILL after half of the bytes. The command runs in a fork of this process,
dies or ends, and runs again without a fault; then its files must be those of an undisturbed run,
byte for byte.

    python -m bench.faults [--every N] [STAGE ...]
"""

import argparse
import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a fork has no threads

import safetensors
import torch

from pgnas_cli import latency, tensors
from pgnas_cli.cli import main

FIT = "fit --epochs 1 -b 400 --run r --data digits --resume --save-minutes 0 -q"
SAMPLE = "sample -n 20 --run r -q"
RANK = "rank --top 3 --run r -q"
EXPORT = "export best.safetensors --run r -q"


@dataclass(frozen=True)
class Stage:
    """A command, what comes before it, and which files it ends in."""

    line: str
    before: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


STAGES = {
    "fit": Stage(FIT, (), ("r/posterior.safetensors",)),
    "sample": Stage(SAMPLE, (FIT,), ("r/candidates.safetensors",)),
    "sample again": Stage(
        "sample -n 25 --max-params 80%,60% --force --run r -q", (FIT, SAMPLE, RANK),
        ("r/candidates-params-80.safetensors", "r/candidates-params-60.safetensors"),
    ),
    "rank": Stage(RANK, (FIT, SAMPLE), ("r/ranking.safetensors", "r/ranking.csv")),
    "export": Stage(EXPORT, (FIT, SAMPLE, RANK), ("best.safetensors",)),
    "finetune": Stage(
        "finetune best.safetensors --epochs 1 --save-minutes 0 --run r -q",
        (FIT, SAMPLE, RANK, EXPORT), ("best-finetuned.safetensors",),
    ),
    "search": Stage(
        "search --epochs 1 -b 400 -n 20 --run s -q", (),
        tuple(f"s/{name}" for name in (
            "posterior.safetensors", "candidates-params-60.safetensors",
            "ranking-params-60.safetensors", "ranking-params-60.csv", "best.safetensors",
            "twin.safetensors",
        )),
    ),
}  # fmt: skip
FAULTS = ("error", "half", "kill", "half, kill")
LIMIT = 120  # seconds for one command


# --- operations, counted and disturbed -------------------------------------------------------


class Operations:
    """Counts the operations below a folder; at the one that is wanted, the fault."""

    def __init__(self, root: Path, at: int = -1, fault: str = "") -> None:
        self.root, self.at, self.fault = f"{root}/", at, fault
        self.names: list[str] = []

    def watch(self) -> None:
        """From now on, in this process, for good."""
        sys.addaudithook(self._audit)
        os.fsync = self._wrapped(os.fsync, "fsync")
        Path.write_text = self._written(Path.write_text)  # type: ignore[method-assign]
        Path.write_bytes = self._written(Path.write_bytes)  # type: ignore[method-assign]
        plain = tensors.save_file

        def save_file(content: Any, path: Path, **more: Any) -> None:
            def half() -> None:
                plain(content, path, **more)
                os.truncate(path, path.stat().st_size // 2)

            self._operation("write", half)
            plain(content, path, **more)

        tensors.save_file = save_file

    def _audit(self, event: str, given: tuple[Any, ...]) -> None:
        name = {"os.rename": "rename", "os.remove": "unlink", "os.mkdir": "mkdir",
                "os.rmdir": "rmdir"}.get(event)  # fmt: skip
        if event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            name = "open"
        ours = name and isinstance(given[0], str | os.PathLike)
        if ours and str(Path(given[0]).absolute()).startswith(self.root):
            self._operation(name)

    def _wrapped(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def called(*given: Any) -> Any:
            self._operation(name)
            return function(*given)

        return called

    def _written(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(path: Path, content: Any, *rest: Any, **more: Any) -> Any:
            self._operation("write", lambda: function(path, content[: len(content) // 2]))
            return function(path, content, *rest, **more)

        return called

    def _operation(self, name: str, half: Callable[[], object] | None = None) -> None:
        self.names.append(name)
        if len(self.names) - 1 != self.at:
            return
        if "half" in self.fault and half is not None:
            half()
        if "kill" in self.fault:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- one command in a fork -------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int  # negative: by a signal
    said: str
    operations: list[str]


def carried_out(line: str, folder: Path, at: int = -1, fault: str = "") -> Ended:
    """Run a command in a fork of this process, in `folder`."""
    log, counted = folder.with_suffix(".log"), folder.with_suffix(".ops")
    counted.unlink(missing_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 70
        with contextlib.suppress(BaseException):
            status = _child(line, folder, log, counted, at, fault)
        os._exit(status)
    deadline = time.monotonic() + LIMIT
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Ended(-99, "Traceback: it hangs", [])
        time.sleep(0.005)
    names = counted.read_text().split() if counted.exists() else []
    return Ended(os.waitstatus_to_exitcode(status), log.read_text(errors="replace"), names)


def _child(line: str, folder: Path, log: Path, counted: Path, at: int, fault: str) -> int:
    os.chdir(folder)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv = ["pgnas", *line.split()]
    operations = Operations(folder, at, fault)
    operations.watch()
    status = 0
    try:
        main(line.split())
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    operations.at = -1
    counted.write_text(" ".join(operations.names))
    return status


# --- the points ------------------------------------------------------------------------------


@dataclass
class Tally:
    """What became of the points of one stage."""

    points: int = 0
    lost: list[str] = field(default_factory=list)  # files that are not whole, or not as they were
    tracebacks: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # the same line, again
    different: list[str] = field(default_factory=list)  # from an undisturbed run
    left: list[str] = field(default_factory=list)  # temporary files, after the same line

    def row(self) -> list[int]:
        return [self.points, *map(len, (self.lost, self.tracebacks, self.refused, self.different,
                                        self.left))]  # fmt: skip


def tried(name: str, stage: Stage, work: Path, every: int) -> Tally:
    """All points of a stage, or one in `every`."""
    base, trial = prepared(stage.before, work), work / "trial"
    kept = digests(base)
    ended = carried_out(stage.line, _copied(base, trial))
    assert ended.status == 0, ended.said
    wanted = {file: digests(trial)[file] for file in stage.files}
    points = [
        (at, fault)
        for at, operation in enumerate(ended.operations)
        for fault in FAULTS
        if "half" not in fault or operation == "write"
    ]
    tally = Tally()
    for at, fault in points[every // 2 :: every]:
        where = f"{name}, operation {at} ({ended.operations[at]}), {fault}"
        folder = _copied(base, trial)
        first = carried_out(stage.line, folder, at, fault)
        broken = damaged(folder, kept)
        again = carried_out(stage.line, folder)
        found = digests(folder)
        same = all(found.get(file) == digest for file, digest in wanted.items())
        tally.points += 1
        if broken:
            tally.lost.append(f"{where}: {broken}")
        for one in (first, again):
            if "Traceback" in one.said or one.status not in (0, 1, -signal.SIGKILL):
                tally.tracebacks.append(f"{where}: {one.status}: {one.said[-1500:]}")
        if again.status and not (same and "exists; choose another name" in again.said):
            tally.refused.append(f"{where}: {again.said.strip()[-300:]}")
        if not same:
            tally.different.append(f"{where}: {[f for f in wanted if found.get(f) != wanted[f]]}")
        hidden = [file for file in found if ".part/" in file or "/.tmp" in file]
        if hidden:
            tally.left.append(f"{where}: {hidden}")
    return tally


def prepared(lines: Sequence[str], work: Path) -> Path:
    """A folder in which those commands were carried out, made once."""
    folder = work / f"base{len(lines)}"
    if not lines:
        folder.mkdir(exist_ok=True)
    elif not folder.exists():
        _copied(prepared(lines[:-1], work), folder)
        ended = carried_out(lines[-1], folder)
        assert ended.status == 0, ended.said
    return folder


def _copied(base: Path, trial: Path) -> Path:
    shutil.rmtree(trial, ignore_errors=True)
    shutil.copytree(base, trial)
    return trial


def digests(folder: Path) -> dict[str, str]:
    """sha256 of each file, by its path below `folder`."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


DERIVED = ("candidates", "ranking", "evaluation", "report", "commands")  # may be replaced


def damaged(folder: Path, before: dict[str, str]) -> str:
    """What is not whole, or is not what it was; "" for nothing."""
    now = digests(folder)
    for file, digest in before.items():
        if not Path(file).name.startswith(DERIVED) and now.get(file) != digest:
            return f"{file} has changed"
    for file in now:
        path = folder / file
        if ".part/" in file:
            continue
        try:
            if path.suffix == ".safetensors":
                with safetensors.safe_open(path, framework="pt") as handle:
                    assert "schema" in handle.metadata()["pgnas"]
            elif path.suffix == ".json":
                json.loads(path.read_text())
        except Exception as error:
            return f"{file} is damaged: {error}"
    return ""


def run(work: Path) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", default=[], help=f"of {', '.join(STAGES)}")
    parser.add_argument("--every", type=int, default=1, help="try one point in so many")
    given = parser.parse_args()
    latency.forward_times = functools.partial(latency.forward_times, seconds=0.02)
    torch.set_num_threads(1)
    print(f"{'stage':14} points lost tracebacks refused different left  seconds")
    bad = 0
    for name in given.stages or STAGES:
        began = time.monotonic()
        tally = tried(name, STAGES[name], work, given.every)
        row = tally.row()
        print("{:14} {:6} {:4} {:10} {:7} {:9} {:4}".format(name, *row)
              + f"  {time.monotonic() - began:7.0f}", flush=True)  # fmt: skip
        bad += sum(row[1:])
        for text in (*tally.lost, *tally.tracebacks, *tally.refused, *tally.different, *tally.left):
            print(f"  {text}", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(run(Path(folder)))
