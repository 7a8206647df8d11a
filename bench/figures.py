"""Rows of the studies in docs/data, and what tables and sentences are made of."""

import base64
import json
import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

DATA = Path(__file__).resolve().parent.parent / "docs" / "data"
WIDTH = 120  # of a line of prose
Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """The rows of a file of JSON lines; none where there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def append(path: Path, row: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def latest(rows: Iterable[Row], *keys: str) -> list[Row]:
    """The newest row of each key, in the order in which the keys came first."""
    return list({tuple(row.get(key) for key in keys): row for row in rows}.values())


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    def line(cells: Sequence[object]) -> str:
        return re.sub(" +", " ", f"| {' | '.join(map(str, cells))} |")

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def prose(*sentences: str) -> str:
    """One paragraph, wrapped; empty sentences are left out. A number keeps its % sign."""
    text = " ".join(s for s in sentences if s).replace(" %", "\u00a0%")
    filled = textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    return filled.replace("\u00a0", " ")


def listed(items: Iterable[object]) -> str:
    *rest, last = map(str, items)
    return f"{', '.join(rest)} and {last}" if rest else last


def taken(rows: Sequence[Row]) -> str:
    """When and on what: days, then each machine and set of versions."""
    days = sorted({row["date"] for row in rows})
    found: dict[str, int] = {}
    for row in rows:
        versions = (f"{name} {row[name]}" for name in ("timm", "torchvision") if row.get(name))
        on = ", ".join((row["on"], *versions))
        found[on] = found.get(on, 0) + 1
    count = " ({} of " + str(len(rows)) + " rows)"
    ons = (on + (count.format(n) if len(found) > 1 else "") for on, n in found.items())
    return f"{' to '.join(dict.fromkeys((days[0], days[-1])))}; {'; '.join(ons)}."


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def percents(shares: Iterable[float]) -> str:
    return f"{', '.join(f'{100 * share:.1f}' for share in shares)} %"


def over_seeds(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean over other seeds: Student's t with n - 1 degrees of freedom."""
    number = len(values)
    if number < 2:
        return None
    half = float(t.ppf(0.975, number - 1) * np.std(values, ddof=1)) / math.sqrt(number)
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def over_images(share: float, images: int) -> float:
    """Half of the 95 % interval of a share of so many images (binomial, normal)."""
    return 1.96 * math.sqrt(share * (1 - share) / images)


def interval(wrong: np.ndarray) -> tuple[float, float, float]:
    """Mean of (seeds, images), and its 95 % interval over other seeds and other images."""
    seeds, number = wrong.shape
    of_images, of_seeds = _resamples(seeds, number)
    sums = wrong.astype(np.float32) @ of_images.astype(np.float32).T  # whole numbers: exact
    means = np.take_along_axis(sums.T, of_seeds, axis=1).mean(1, dtype=np.float64) / number
    low, high = np.quantile(means, (0.025, 0.975))
    return float(wrong.mean()), float(low), float(high)


@cache
def _resamples(seeds: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each image is in each resample, and its seeds; the same for all rows."""
    g = np.random.default_rng(0)
    of_images = np.empty((2000, number), dtype=np.uint8)
    of_seeds = np.empty((2000, seeds), dtype=np.int64)
    for place in range(len(of_images)):
        of_images[place] = np.bincount(g.integers(0, number, number), minlength=number)
        of_seeds[place] = g.integers(0, seeds, seeds)
    return of_images, of_seeds


def packed(wrong: Iterable[int], images: int) -> str:
    """Which of so many images are wrong, as text: a bit for each."""
    bits = np.zeros(images, dtype=bool)
    bits[list(wrong)] = True
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def unpacked(text: str, images: int) -> np.ndarray:
    found = np.frombuffer(base64.b64decode(text), dtype=np.uint8)
    return np.unpackbits(found, count=images).astype(float)
