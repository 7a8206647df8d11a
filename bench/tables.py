"""Every figure in README and docs, computed from docs/data.

    python -m bench.tables [--check] [--root FOLDER]

Rewrites what stands between `<!-- figures: NAME -->` and `<!-- end -->`. `--check` changes nothing:
its status is 1 where a block differs from what docs/data give, and it names the block.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from scipy.stats import binomtest

from bench import (
    aims,
    budgets,
    convergence,
    digits,
    families,
    fit_tables,
    growth,
    inflations,
    latency,
    loader,
    paper,
    presets,
    race,
    recipes,
    speed,
    startup,
    times,
)  # fmt: skip
from bench.figures import Row, listed, percent, prose, read, table
from pgnas_cli.ranking import error_cells
from pgnas_cli.units import large


def networks(path: Path) -> dict[str, Row]:
    """The rows of an evaluation.json by name."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return {row["name"]: row for row in content["networks"]}


def sized(row: Row, kind: str) -> str:
    """Parameters or MACs, and their share where anything was cut."""
    share = row[kind] / row[f"whole_{kind}"]
    return large(row[kind]) + (f" ({100 * share:.0f} %)" if share < 1 else "")


def evaluated(found: dict[str, Row], names: dict[str, str], *, times: bool) -> str:
    """The table of an evaluation; `names` says what each network is."""
    columns = []
    for name, row in found.items():
        cells = [names.get(name, name), *error_cells(row["errors"], row["images"]),
                 sized(row, "params"), sized(row, "macs")]  # fmt: skip
        if times:
            cells += [f"{row[batch]['slim']:.3g}" for batch in ("one", "many")]
        columns.append(cells)
    batch = next(iter(found.values()))["many"]["batch"]
    head = ["network", "test error", "95 %", "parameters", "MACs",
            *(["ms, 1 image", f"ms, {batch} images"] if times else [])]  # fmt: skip
    return table(head, columns)


def disagreement(found: dict[str, Row]) -> str:
    """Best against the original network, image by image."""
    best, whole = (set(found[name]["wrong"]) for name in ("best", "whole"))
    mine, theirs = len(best - whole), len(whole - best)
    p = float(binomtest(mine, mine + theirs).pvalue) if mine + theirs else 1.0
    told = "a difference" if p < 0.05 else "no difference can be told"
    return (
        f"Best and original network disagree on {len(best ^ whole)} of"
        f" {found['best']['images']} test images: best alone errs on {mine}, the"
        f" original network alone on {theirs} (exact paired test: p = {p:.2f}, {told})."
    )


PHOTOS = {
    "smallest": "smallest that a test could not tell from it",
    "twin": "random baseline of the same size (twin)",
    "whole": "original network, trained as long with the same recipe",
}
DEMO = {
    "whole": "whole: the network without gates, trained as long",
    "random": "random: best candidate of a network whose gates drop at one fixed rate",
    "best": "best: best candidate of the posterior",
}


def photos(data: Path) -> str:
    found = networks(data / "photos.json")
    best = found["best"]
    won = percent(best["held_out_errors"] / best["held_out_images"])
    told = prose(disagreement(found), f"The winner errs on {won} of the held-out images.")
    return f"{evaluated(found, PHOTOS, times=True)}\n\n{told}"


def picture(data: Path) -> str:
    """The picture of the README with what it shows in words."""
    found = networks(data / "photos.json")
    best = found["best"]
    params, macs = (f"{100 * best[k] / best[f'whole_{k}']:.0f} %" for k in ("params", "macs"))
    errors = {name: percent(row["errors"] / row["images"]) for name, row in found.items()}
    return (
        f"![{params} of the parameters and {macs} of the MACs at {errors['best']} test error, the"
        f" original network at {errors['whole']}; a random baseline of the same size at"
        f" {errors['twin']}](docs/pictures/report.png)"
    )


def caption(data: Path) -> str:
    lost = fit_tables.lost(read(data / "fit.jsonl"))
    return prose(
        disagreement(networks(data / "photos.json")),
        f"In three shorter fits, the best candidate erred on {lost} more of 600 photos than the"
        " original network ([below](#how-it-compares)).",
    )


def demo(data: Path) -> str:
    found = networks(data / "demo.json")
    counts = (f"{name} errs on {row['errors']}" for name, row in found.items())
    images = next(iter(found.values()))["images"]
    told = f"Of {images} test images {listed(counts)}."
    return f"{evaluated(found, DEMO, times=False)}\n\n{prose(told)}"


def of(name: str, function: Callable[[list[Row]], str]) -> Callable[[Path], str]:
    """A block of the rows of one file."""
    return lambda data: function(read(data / f"{name}.jsonl"))


def papers(name: str) -> Callable[[Path], str]:
    return lambda data: paper.figures(name, paper.Store(data / "paper.jsonl"))


BLOCKS: dict[str, Callable[[Path], str]] = {
    "families": of("families", lambda rows: families.figures(rows, "timm")),
    "families-exact": of("families", lambda rows: families.how_many(rows, "timm")),
    "torchvision-exact": of("families", lambda rows: families.how_many(rows, "torchvision")),
    "families-torchvision": of("families", lambda rows: families.figures(rows, "torchvision")),
    "latency": of("latency", latency.figures),
    "loader": of("loader", loader.figures),
    "speed-steps": of("speed", lambda rows: speed.figures(rows, "steps")),
    "speed-fit": of("speed", lambda rows: speed.figures(rows, "fit")),
    "speed-memory": of("speed", lambda rows: speed.figures(rows, "memory")),
    "race": of("race", race.figures),
    "race-shares": of("race", race.shares),
    "budgets": of("budgets", budgets.figures),
    "budgets-reach": of("budgets", budgets.reach),
    "digits": of("digits", digits.figures),
    "presets": of("presets", presets.figures),
    "recipes": of("recipes", recipes.figures),
    "inflations": of("inflations", inflations.figures),
    "convergence": of("convergence", convergence.figures),
    **{f"paper-{name}": papers(name) for name in paper.TABLES},
    "fit-protocol": of("fit", fit_tables.protocol),
    "fit-cut": of("fit_cut", fit_tables.while_cut),
    "growth": of("growth", growth.figures),
    "times": of("times", times.figures),
    **{
        name: lambda data, task=task: aims.figures(  # type: ignore[misc]
            read(data / "aims.jsonl"), read(data / "aims_times.jsonl"), task
        )
        for name, task in (("aims", "t1"), ("aims-t4", "t4"))
    },
    "startup": of("startup", startup.figures),
    "fit-cifar": of("fit", fit_tables.cifar),
    "fit-photos": of("fit", lambda rows: fit_tables.main_table(rows, fit_tables.PHOTOS)),
    "fit-longer": of("fit", fit_tables.longer),
    "fit-random-head": of("fit", lambda rows: fit_tables.main_table(rows, fit_tables.RANDOM_HEAD)),
    "fit-goals": of("fit", fit_tables.goals),
    "fit-compared": of("fit", fit_tables.compared),
    "fit-half-of-the-macs": of("fit", fit_tables.at_half_of_the_macs),
    "fit-scratch": of("fit", fit_tables.scratch),
    "fit-scratch-macs": of("fit", fit_tables.scratch_macs),
    "photos": photos,
    "picture": picture,
    "caption": caption,
    "demo": demo,
}

MARKED = re.compile(r"(<!-- figures: ([\w-]+) -->)(.*?)(<!-- end -->)", re.DOTALL)


def rewritten(text: str, data: Path) -> tuple[str, list[str]]:
    """A page with its blocks computed, and the names of those that differed.

    A block that stands on lines of its own stays there; one within a line stays within it.
    """
    differed = []

    def block(match: re.Match[str]) -> str:
        start, name, there, end = match.groups()
        if name not in BLOCKS:
            raise SystemExit(f"no figures '{name}'; possible: {', '.join(sorted(BLOCKS))}")
        found = BLOCKS[name](data)
        found = f"\n{found}\n" if there.startswith("\n") else found
        if found != there:
            differed.append(name)
        return f"{start}{found}{end}"

    return MARKED.sub(block, text), differed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    options = parser.parse_args(arguments)
    docs, stale = options.root / "docs", False
    for page in (options.root / "README.md", *sorted(docs.glob("*.md"))):
        text, differed = rewritten(page.read_text(encoding="utf-8"), docs / "data")
        if differed:
            stale = True
            print(f"{page.relative_to(options.root)}: {', '.join(differed)}")
        if differed and not options.check:
            page.write_text(text, encoding="utf-8")
    if stale and options.check:
        sys.exit("figures that docs/data do not give; run python -m bench.tables")


if __name__ == "__main__":
    main()
