"""SIGKILLs at random instants of one fit with default saving: is the end the same, what is lost?

    python -m bench.kills [--kills 200] [--workers 0 2] [--life 8]

The lives are shorter than an epoch. Each is a process of its own, killed at a random instant from
its start on and resumed by the same line. What a life loses are the steps that the next one does
again, in seconds of its own pace.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import safetensors
from PIL import Image

from pgnas_cli.run import Run
from pgnas_cli.seeds import numpy_generator

LINE = (
    "fit --data photos --backbone multibranch-tiny --img-size 32 -b 8 --epochs 2 --run {} --resume"
)
IMAGES = 1600  # for training: two classes
REPORT = """
import sys, time
from pgnas_cli.training import loop
advance, began = loop.Loop.advance, time.time()
def told(self, *batch):
    advance(self, *batch)
    print(self.step, time.time(), file=log, flush=True)
log = open(sys.argv.pop(1), "a")
loop.Loop.advance = told
from pgnas_cli.cli import main
main()
"""


def photos(folder: Path) -> None:
    """Noise in two tones, too large to be held in memory as small images."""
    draws = numpy_generator(0, "photos")
    for part, count in (("train", IMAGES), ("val", 20)):
        for label, tone in (("a", 60), ("b", 140)):
            place = folder / part / label
            place.mkdir(parents=True)
            for index in range(count // 2):
                pixels = draws.integers(0, 100, (48, 48, 3), dtype="uint8") + tone
                Image.fromarray(pixels.astype("uint8")).save(place / f"{index}.jpg")


def started(folder: Path, run: str, workers: int) -> subprocess.Popen[str]:
    line = [*LINE.format(run).split(), "--workers", str(workers), "-q"]
    return subprocess.Popen(
        [sys.executable, "-c", REPORT, str(folder / f"{run}.steps"), *line], cwd=folder, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")},
    )  # fmt: skip


def steps_of(folder: Path, run: str) -> list[tuple[int, float]]:
    """(step, time) of every step so far, in the order in which they were done."""
    path = folder / f"{run}.steps"
    lines = path.read_text().splitlines() if path.exists() else []
    pairs = [line.split() for line in lines]
    return [(int(pair[0]), float(pair[1])) for pair in pairs if len(pair) == 2]


def lost(folder: Path, run: str, before: int) -> float:
    """Seconds of the steps that a life did, behind `before` others, and its checkpoint lacks."""
    path = Run(folder / run).checkpoint
    kept = 0
    if path.exists():
        with safetensors.safe_open(path, framework="pt") as handle:
            kept = json.loads(handle.metadata()["pgnas"])["step"]
    done = steps_of(folder, run)[before:]
    if not done or done[-1][0] <= kept:
        return 0.0
    at = dict(done)
    return done[-1][1] - at.get(kept, done[0][1])


def killed(folder: Path, run: str, workers: int, kills: int, life: float, seed: int) -> list[float]:
    """Fit to the end through so many kills; seconds lost by each life.

    Every third is killed while it starts, if that takes so long, the others after their first step.
    """
    draws, losses = random.Random(seed), []
    while True:
        process = started(folder, run, workers)
        before, seconds = len(steps_of(folder, run)), draws.uniform(0, life)
        while len(losses) % 3 and process.poll() is None and len(steps_of(folder, run)) == before:
            time.sleep(0.01)
        try:
            _, said = process.communicate(timeout=seconds if len(losses) < kills else None)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            losses.append(lost(folder, run, before))
            continue
        assert process.returncode == 0, said
        return losses


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--life", type=float, default=8.0, help="seconds at most")
    given = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        photos(folder / "photos")
        process = started(folder, "straight", 0)
        _, said = process.communicate()
        assert process.returncode == 0, said
        steps = steps_of(folder, "straight")
        took = steps[-1][1] - steps[0][1]
        print(f"undisturbed: {len(steps)} steps in {took:.0f} s")
        wanted = Run(folder / "straight").posterior.read_bytes()
        done, ends, losses = 0, 0, [0.0]
        for attempt in range(10**6):
            if done >= given.kills:
                break
            run, workers = f"killed{attempt}", given.workers[attempt % len(given.workers)]
            found = killed(folder, run, workers, given.kills - done, given.life, attempt)
            done, losses, ends = done + len(found), losses + found, ends + 1
            same = Run(folder / run).posterior.read_bytes() == wanted
            bad += not same
            print(
                f"workers {workers}: {len(found)} kills, identical {same},"
                f" most lost {max(found, default=0):.1f} s", flush=True,
            )  # fmt: skip
    print(f"{done} kills in {ends} fits: {bad} not identical; most lost {max(losses):.1f} s")
    return int(bad > 0 or max(losses) > 20)


if __name__ == "__main__":
    sys.exit(main())
