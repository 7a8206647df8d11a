"""Tables of the cells of fit.py, and which cells they take.

A mean over seeds has a 95 % interval over seeds. Cells whose recipe differs from that of the cells
beside them are left out, by name.
"""

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bench.figures import (
    Row,
    interval,
    listed,
    over_images,
    over_seeds,
    percent,
    percents,
    prose,
    table,
    taken,
    unpacked,
)  # fmt: skip

# Names that fields of the recipe had when most cells were recorded.
RENAMED = {"learning_rate": "lr", "warmup_epochs": "drop_delay_epochs"}


def changes_of(row: Row) -> Row:
    return {RENAMED.get(key, key): value for key, value in row["set"]}


def identity(row: Row) -> tuple[Any, ...]:
    """What rows of one cell agree in; their seeds differ."""
    return row["task"], row["side"], row["epochs"], *sorted(changes_of(row).items())


# --- which cells count -------------------------------------------------------------------------

# Fields that a side sets itself, or that change nothing where no gate closes.
OWN = {"epochs", "probe"}
OF_P = {
    "drop_delay_epochs", "drop_opt", "drop_lr", "initial_drop", "temperature", "groups", "gates",
    "operation_cost", "size_ramp", "freeze", "sharpen", "until_settled", "max_epochs",
}  # fmt: skip
FREE = {"whole": OWN | OF_P, "narrow": OWN | OF_P, "random": OWN | {"drop_lr"}}


def recipe_of(row: Row) -> Row:
    return {RENAMED.get(key, key): value for key, value in row.get("recipe", {}).items()}


def neighbourhood(row: Row) -> tuple[str, bool]:
    """Cells that one table compares."""
    return row["task"], changes_of(row).get("probe", True)


def difference(row: Row, first: Row) -> str:
    """Fields in which the recipe of a cell differs unasked from that of another; empty: none."""
    mine, other = recipe_of(row), recipe_of(first)
    free = FREE.get(row["side"], OWN) | changes_of(row).keys() | changes_of(first).keys()
    fields = [k for k in other if k in mine and k not in free and mine[k] != other[k]]
    return ", ".join(f"{k} {mine[k]} instead of {other[k]}" for k in fields)


def accepted(rows: Iterable[Row]) -> tuple[list[Row], list[str]]:
    """The newest row of each cell and seed with the recipe of its neighbours; what is left out.

    The first cell of `pgnas` with a recipe is what its neighbours are compared with.
    """
    newest = list({(identity(row), row["seed"], row["final"]): row for row in rows}.values())
    first: dict[tuple[str, bool], Row] = {}
    for row in newest:
        if row["side"] == "pgnas" and "recipe" in row:
            first.setdefault(neighbourhood(row), row)
    kept, left_out = [], {}
    for row in newest:
        why = difference(row, first.get(neighbourhood(row), row))
        if why:
            left_out.setdefault(why, []).append(name_of(row))
        else:
            kept.append(row)
    return kept, [f"{listed(dict.fromkeys(names))}: {why}" for why, names in left_out.items()]


def name_of(row: Row) -> str:
    epochs = [f"{row['epochs']} epochs"] if row["epochs"] else []
    return " ".join([row["task"], row["side"], *epochs,
                     *(f"{k}={v}" for k, v in changes_of(row).items())])  # fmt: skip


# --- tables ------------------------------------------------------------------------------------

IMAGES = {"t1": 600, "t1c": 10_000, "t2": 10_000, "t3": 359}  # of the test split


@dataclasses.dataclass(frozen=True)
class Line:
    """A row of a table: cells that differ in their seeds."""

    text: str
    side: str
    changes: tuple[tuple[str, Any], ...]
    task: str = "t1"
    epochs: int | None = None
    judged: str = "drawn"  # or "permuted"; "recalibrated": with batch-norm statistics recomputed


def line(text: str, side: str, task: str = "t1", epochs: int | None = None, judged: str = "drawn",
         **changes: Any) -> Line:  # fmt: skip
    return Line(text, side, tuple(sorted(changes.items())), task, epochs, judged)


class Cells:
    """Those of one line, by seed; empty where a table has none."""

    def __init__(self, rows: Iterable[Row], of: Line) -> None:
        wanted = (of.task, of.side, of.epochs, *of.changes)
        mine = [row for row in rows if identity(row) == wanted and row["final"]]
        self.line = of
        self.found = {row["seed"]: row[of.judged] for row in mine if of.judged in row}
        self.sizes = [row["drawn"] for row in mine]
        if len({row["code"] for row in mine if "code" in row}) > 1:
            raise SystemExit(f"the seeds of {name_of(mine[0])} were made with different code")

    def __bool__(self) -> bool:
        return bool(self.found)

    @property
    def tests(self) -> list[float]:
        return [self.found[seed]["test"] for seed in sorted(self.found)]

    @property
    def test(self) -> float:
        return statistics.mean(self.tests)

    def mean(self, key: str) -> float:
        judged = self.sizes if key in SIZES else self.found.values()
        return statistics.mean(found[key] for found in judged)

    def share(self, kind: str) -> str:
        return f"{100 * self.mean(kind):.0f} %"

    @property
    def target(self) -> str:
        return self.line.text.removeprefix("pgnas, target ")

    def with_interval(self) -> str:
        """Mean test error and its 95 % interval: over images too (*) where outcomes are kept."""
        bits = [found["wrong"] for found in self.found.values() if "wrong" in found]
        if len(bits) == len(self.found) > 1:
            number = IMAGES[self.line.task]
            _, low, high = interval(np.stack([unpacked(text, number) for text in bits]))
            return f"{percent(self.test)} ({100 * low:.1f} to {100 * high:.1f})*"
        bounds = over_seeds(self.tests)
        if bounds is None:
            return percent(self.test)
        return f"{percent(self.test)} ({100 * max(0.0, bounds[0]):.1f} to {100 * bounds[1]:.1f})"


SIZES = ("params", "macs")
WHOLE = line("original network", "whole", lr=0.0005)
HALF = line("pgnas, target 50 % of the parameters", "pgnas", lr=0.001, target=0.5)
THIRD = line("pgnas, target 35 % of the parameters", "pgnas", lr=0.001, target=0.35)
HALF_MACS = line("pgnas, target 50 % of the MACs", "pgnas", lr=0.001, target=0.5, kind="macs")
OTO = line("OTO (`only_train_once`), 50 %", "oto", lr=0.001, target=0.5)
OTO_MACS = line("OTO, 50 % of the MACs", "oto", lr=0.001, target=0.5, kind="macs")
MAGNITUDE = line("magnitude, Torch-Pruning", "magnitude", lr=0.002, target=0.5)
MAGNITUDE_MACS = line("magnitude, 50 % of the MACs", "magnitude", lr=0.002, target=0.5, kind="macs")
GROUPS_MACS = line("group norms, 50 % of the MACs", "group-norm", lr=0.002, target=0.5, kind="macs")
FIXED = line("one fixed drop rate", "fixed", lr=0.002, target=0.5)
RANDOM = line("one random mask, trained as long", "random", lr=0.001, target=0.5)
PERMUTED = dataclasses.replace(HALF, text="pgnas at 50 %, drop probabilities permuted",
                               judged="permuted")  # fmt: skip
PHOTOS = (
    WHOLE, line("pgnas, target 70 % of the parameters", "pgnas", lr=0.001, target=0.7), HALF,
    dataclasses.replace(HALF, text="the same, batch-norm recomputed on 320 images",
                        judged="recalibrated"),
    OTO, MAGNITUDE, line("group norms, Torch-Pruning", "group-norm", lr=0.002, target=0.5), FIXED,
    RANDOM, PERMUTED, THIRD, HALF_MACS, OTO_MACS, MAGNITUDE_MACS, GROUPS_MACS,
)  # fmt: skip
CIFAR = tuple(
    dataclasses.replace(one, task="t1c")
    for one in (line("original network", "whole", lr=0.001), HALF)
)
EARLY = {"probe": False, "size_ramp": 0.25, "freeze": 0.4, "drop_delay_epochs": 1.0, "lr": 0.002}
RANDOM_HEAD = (
    line("original network", "whole", lr=0.001, probe=False),
    line(HALF.text, "pgnas", target=0.5, **EARLY),
    line(HALF_MACS.text, "pgnas", target=0.5, kind="macs", **EARLY),
    line(THIRD.text, "pgnas", target=0.35, **EARLY),
    line("OTO", "oto", lr=0.002, probe=False, target=0.5),
    line(MAGNITUDE.text, "magnitude", lr=0.002, probe=False, target=0.5),
    line(FIXED.text, "fixed", target=0.5, **EARLY),
)


def cells(rows: Iterable[Row], lines: Iterable[Line]) -> list[Cells]:
    """Of the lines that have any."""
    kept, _ = accepted(rows)
    return [found for found in (Cells(kept, one) for one in lines) if found]


def protocol(rows: Sequence[Row]) -> str:
    """When, and what the intervals are."""
    half = 100 * over_images(cells(rows, [WHOLE])[0].test, IMAGES["t1"])
    larger = 100 * over_images(cells(rows, CIFAR)[0].test, IMAGES["t1c"])
    coded = [row for row in rows if "code" in row]
    return prose(
        taken(rows),
        f"Errors are means over seeds with 95 % intervals over seeds (Student's t). Seeds share the"
        f" test images, whose own sampling error (binomial, 95 %) comes on top: {half:.1f} points"
        f" for the original network on {IMAGES['t1']} photos, {larger:.1f} on {IMAGES['t1c']:,}"
        " CIFAR-10 images. *: over seeds and images, where the outcomes of the images are kept.",
        f"{len(coded)} of {len(rows)} cells record the digest of their code.",
        "Left out, since the recipe differs from that of the rows beside them:"
        f" {'; '.join(accepted(rows)[1])}." if accepted(rows)[1] else "",
    )  # fmt: skip


def while_cut(rows: Iterable[Row]) -> str:
    """Winners of fits that cut channels while they train."""
    rows = list(rows)
    cells = [found for line in (HALF_MACS, HALF) if (found := Cells(rows, line))]
    said = [
        f"Winners of such fits, `t1` ({found.target}, seeds {listed(sorted(found.found))}):"
        f" {percents(found.tests)} on test, mean {found.with_interval()}."
        for found in cells
    ]
    return prose(taken(rows), *said)


def main_table(rows: Sequence[Row], lines: Iterable[Line]) -> str:
    head = ["method", "parameters", "MACs", "held-out, mean candidate", "test (95 %)"]
    columns = [
        [found.line.text, *(["", "", ""] if found.line.judged == "permuted" else
         [found.share("params"), found.share("macs"), percent(found.mean("mean"))]),
         found.with_interval()]
        for found in cells(rows, lines)
    ]  # fmt: skip
    return table(head, columns)


def gap(worse: Cells, better: Cells) -> str:
    """By how much one errs more than another on the same seeds, with its 95 % interval."""
    seeds = sorted(worse.found.keys() & better.found.keys())
    gaps = [worse.found[s]["test"] - better.found[s]["test"] for s in seeds]
    mean, bounds = 100 * statistics.mean(gaps), over_seeds(gaps)
    more = sum(g > 0 for g in gaps)
    tail = f" ({100 * bounds[0]:+.1f} to {100 * bounds[1]:+.1f})" if bounds else ""
    return f"{mean:+.1f} points{tail}, more in {more} of {len(gaps)} seeds"


def cifar(rows: Sequence[Row]) -> str:
    whole, half = cells(rows, CIFAR)
    told = prose(f"Candidates less the original network, by seed: {gap(half, whole)}"
                 f" ({percents(half.tests)} against {percents(whole.tests)}).")  # fmt: skip
    return f"{main_table(rows, CIFAR)}\n\n{told}"


def longer(rows: Sequence[Row]) -> str:
    """Six epochs behind the probe's against 27."""
    columns = []
    for one in (WHOLE, HALF):
        pair = cells(rows, [one, dataclasses.replace(one, epochs=27)])
        if len(pair) == 2:
            seeds = sorted(pair[0].found.keys() & pair[1].found.keys())
            columns.append([
                one.text, *(percents(c.found[s]["test"] for s in seeds) for c in pair),
                percents(statistics.mean(c.found[s]["mean"] for s in seeds) for c in pair),
            ])  # fmt: skip
    head = ["method", "test, 6 epochs", "test, 27 epochs", "held-out, 6 and 27 epochs"]
    return table(head, columns)


GOALS = ((HALF, 0.0), (THIRD, 0.015), (HALF_MACS, 0.01))  # above the original network, at most


def goals(rows: Sequence[Row]) -> str:
    """What was wanted of candidates, and what they reach."""
    (plain,), (whole,) = cells(rows, RANDOM_HEAD[:1]), cells(rows, [WHOLE])
    ours = [(found, plain.test + above) for one, above in GOALS for found in cells(rows, [one])]
    told = (
        f"{found.target} {percent(found.test)} (at most {percent(most)}:"
        f" {'reached' if found.test < most + 5e-4 else 'missed'};"  # as the tenths say
        f" {found.share('macs')} of the MACs)"
        for found, most in ours
    )
    lines = [
        f"Against the original network with a random head ({percent(plain.test)}): {listed(told)}.",
        f"Against the original network with the same start ({percent(whole.test)}), by seed: "
        + "; ".join(f"{found.target} {gap(found, whole)}" for found, _ in ours) + ".",
    ]  # fmt: skip
    for what, (own, *others) in (
        ("MACs", (HALF_MACS, OTO_MACS, MAGNITUDE_MACS, GROUPS_MACS, FIXED)),
        ("parameters", (HALF, OTO)),
    ):
        (mine,), rest = cells(rows, [own]), cells(rows, others)
        theirs = {s: [other.found[s]["test"] for other in rest if s in other.found]
                  for s in mine.found}  # fmt: skip
        least = sum(mine.found[s]["test"] < min(theirs[s]) for s in mine.found)
        by_seed = (
            f"{found.line.text.partition(',')[0]} {percents(found.tests)}"
            f" ({found.share('params')} of the parameters, {found.share('macs')} of the MACs)"
            for found in (mine, *rest)
        )
        lines.append(f"At half of the {what}, by seed: {', '.join(by_seed)}. pgnas errs least on"
                     f" {least} of {len(mine.found)} seeds.")  # fmt: skip
    return "\n".join(prose(f"- {text}").replace("\n", "\n  ") for text in lines)


def lost(rows: Sequence[Row]) -> str:
    """Points that candidates of half of the parameters err more on photos, by seed."""
    half, whole = cells(rows, [HALF, WHOLE])
    gaps = [100 * (half.found[s]["test"] - whole.found[s]["test"]) for s in half.found]
    return f"{min(gaps):.1f} to {max(gaps):.1f} points"


def compared(rows: Sequence[Row]) -> str:
    """The table of the README."""
    columns = []
    for text, one in (
        ("original network", WHOLE), ("best candidate, target 50 % of the parameters", HALF),
        ("the same, target 35 % of the parameters", THIRD),
        ("the same, target 50 % of the MACs", HALF_MACS),
        ("OTO (`only_train_once`), target 50 % of the parameters", OTO),
        ("OTO, target 50 % of the MACs", OTO_MACS),
        ("magnitude pruning (Torch-Pruning)", MAGNITUDE),
        ("one random mask, the same rate everywhere, trained as long", RANDOM),
    ):  # fmt: skip
        for found in cells(rows, [one]):
            outside = [c for c in cells(rows, CIFAR) if c.line.text == found.line.text]
            columns.append([text, found.share("params"), found.share("macs"), percent(found.test),
                            percent(outside[0].test) if outside else ""])  # fmt: skip
    return table(["", "parameters", "MACs", "photos", "CIFAR-10"], columns)


def at_half_of_the_macs(rows: Sequence[Row]) -> str:
    """The table of the questions."""
    columns = [
        [text, found.share("params"), found.share("macs"), percent(found.test)]
        for text, one in (("original network", WHOLE), ("pgnas", HALF_MACS), ("OTO", OTO_MACS),
                          ("magnitude pruning", MAGNITUDE_MACS), (RANDOM.text, RANDOM))
        for found in cells(rows, [one])
    ]  # fmt: skip
    return table(["", "parameters", "MACs", "test error"], columns)


# --- from scratch --------------------------------------------------------------------------------

LENGTHS = (10, 30, 40)
SCRATCH = (
    line("original network", "whole", "t2", weight_decay=0.0005),
    line("narrow", "narrow", "t2", weight_decay=0.0005, width=0.71),
    line("pgnas", "pgnas", "t2", weight_decay=0.0005, target=0.5, groups="channel"),
    line(FIXED.text, "fixed", "t2", weight_decay=0.0005, target=0.5),
    line("pgnas, drop probabilities permuted", "pgnas", "t2", judged="permuted",
         weight_decay=0.0005, target=0.5, groups="channel"),
)  # fmt: skip


def at(one: Line, rows: Sequence[Row]) -> dict[int, Cells]:
    """The cells of a line by length."""
    found = {n: cells(rows, [dataclasses.replace(one, epochs=n)]) for n in LENGTHS}
    return {n: few[0] for n, few in found.items() if few}


def scratch(rows: Sequence[Row]) -> str:
    """Table and sentences of t2."""

    def cells_of(one: Line) -> list[str]:
        found = at(one, rows)
        macs = dict.fromkeys(f"{100 * cell.mean('macs'):.0f}" for cell in found.values())
        sizes = [next(iter(found.values())).share("params"), f"{', '.join(macs)} %"]
        few = {n: f", n = {len(cell.found)}" for n, cell in found.items() if len(cell.found) < 3}
        errors = [found[n].with_interval() + few.get(n, "") if n in found else "" for n in LENGTHS]
        return [one.text, *(["", ""] if one.judged == "permuted" else sizes), *errors]

    narrow, ours = at(SCRATCH[1], rows), at(SCRATCH[2], rows)
    both = [n for n in LENGTHS if n in narrow and n in ours]
    tests = (f"after {n} epochs {gap(ours[n], narrow[n])}" for n in both)
    means = {n: percents([ours[n].mean("mean"), narrow[n].mean("mean")]) for n in both}
    held = (f"after {n} epochs {text}" for n, text in means.items())
    noise = 100 * over_images(narrow[both[-1]].test, IMAGES["t2"])
    told = prose(
        f"pgnas less the narrower network on the test split, by seed: {'; '.join(tests)}. The"
        f" sampling error of the test images (binomial, 95 %) is {noise:.1f} points.",
        f"On held-out images, mean candidate and narrower network: {'; '.join(held)}.",
    )  # fmt: skip
    head = ["method", "parameters", "MACs", *(f"{n} epochs" for n in LENGTHS)]
    return f"{table(head, map(cells_of, SCRATCH))}\n\n{told}"


def scratch_macs(rows: Sequence[Row]) -> str:
    """MACs of the narrower network and of candidates, in words."""
    narrow, ours = at(SCRATCH[1], rows), at(SCRATCH[2], rows)
    macs = [100 * cell.mean("macs") for cell in ours.values()]
    return (f"{next(iter(narrow.values())).share('macs')} of the original's against"
            f" {min(macs):.0f} to {max(macs):.0f} %")  # fmt: skip
