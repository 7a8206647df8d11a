"""Time ONNX files, as a whole and step by step. Needs onnxruntime and numpy, not pgnas.

    python onnx_runs.py networks.zip -o runs.json [--threads 1] [--seconds 40]

`pgnas profile --pack networks.zip` writes the networks and this script; `pgnas profile --runs
runs.json` makes the time table.
"""

import argparse
import json
import platform
import re
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

STEPWISE = 12  # runs of a network in which its steps are timed
TURNS = 5  # of all networks, at least; and as many as take less than
SECONDS = 40.0
MOST_TURNS = 40
UNDISTURBED = 0.2  # quantile of repeated times: other work on the machine only adds to them


def in_turns(networks: int, seconds: float, tell: Callable[[int, int], None]) -> Iterator[int]:
    """Positions of networks to be run, all of them again and again for about so many seconds.

    After each run `tell` hears how many are done, and of how many.
    """
    began, turn = time.perf_counter(), 0
    while turn < TURNS or (turn < MOST_TURNS and time.perf_counter() - began < seconds):
        for at in range(networks):
            yield at
            done = turn * networks + at + 1
            pace = (time.perf_counter() - began) / done * networks
            turns = round(max(TURNS, min(MOST_TURNS, seconds / pace))) if turn else TURNS
            tell(done, max(done, turns * networks))
        turn += 1


def undisturbed(seconds: Sequence[float]) -> float:
    """Milliseconds of a run that other work on the machine does not slow."""
    return 1000 * float(np.quantile(seconds, UNDISTURBED))


def session(content: bytes, threads: int, steps_in: str | None = None) -> Any:
    """A network ready to run; its steps are timed into a file in the folder `steps_in`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if steps_in is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(steps_in) / "steps")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def step_times(content: bytes, images: Any, threads: int) -> dict[str, float]:
    """Milliseconds of each step of a network, by the name that ONNX Runtime gives it."""
    with tempfile.TemporaryDirectory() as folder:
        run = session(content, threads, folder)
        for _ in range(STEPWISE):
            run.run(None, {"images": images})
        events = json.loads(Path(run.end_profiling()).read_text(encoding="utf-8"))
    found: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            found[re.sub("_kernel_time$", "", event["name"])].append(event["dur"] / 1e6)
    return {name: undisturbed(times) for name, times in found.items()}


def timed(
    contents: Iterable[bytes],
    images: Any,  # float32 (batch, channels, height, width)
    *,
    threads: int,
    seconds: float,
    tell: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    """Of each network the milliseconds of a forward and of its steps, networks taking turns."""
    found: list[dict[str, Any]] = []
    runs = []
    for content in contents:
        found.append({"steps": step_times(content, images, threads)})
        runs.append(session(content, threads))
        runs[-1].run(None, {"images": images})
    times: list[list[float]] = [[] for _ in runs]
    for at in in_turns(len(runs), seconds, tell):
        start = time.perf_counter()
        runs[at].run(None, {"images": images})
        times[at].append(time.perf_counter() - start)
    for row, own in zip(found, times, strict=True):
        row["whole"] = undisturbed(own)
    return found


def images_of(batch: int, input_shape: Sequence[int]) -> Any:
    """The images that are timed, float32 (batch, channels, height, width)."""
    return np.random.default_rng(0).standard_normal((batch, *input_shape), dtype=np.float32)


def main() -> None:
    """Time the networks of a pack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pack", type=Path)
    parser.add_argument("--output", "-o", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args()
    if options.threads < 1 or not options.seconds >= 0:
        parser.error("--threads is 1 or more, --seconds 0 or more")
    with zipfile.ZipFile(options.pack) as pack:
        about = json.loads(pack.read("about.json"))
        names = sorted(name for name in pack.namelist() if name.endswith(".onnx"))
        rows = timed(
            (pack.read(name) for name in names),
            images_of(about["batch"], about["input_shape"]),
            threads=options.threads, seconds=options.seconds,
            tell=lambda done, total: print(f"\r{done} of {total} runs", end="", flush=True),
        )  # fmt: skip
    device = platform.processor() or platform.machine()
    found = {**about, "threads": options.threads, "device": device, "networks": rows}
    options.output.write_text(json.dumps(found), encoding="utf-8")
    print(f"\nwrote {options.output}")


if __name__ == "__main__":
    main()
