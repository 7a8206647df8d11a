"""What candidates within a budget named after the fit are worth, against plain rejection.

    python -m bench.budgets RUN [--kind params] [--shares 0.8 0.6 0.4] [--candidates 1500]

Tilted: `sample --max-params`. Rejection: as many draws of the posterior as it is, of which those
within the budget are kept. Both are ranked; the winners' errors on held-out and test images. A row
for each budget is appended to docs/data/budgets.jsonl.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from bench import about, ranked, tested
from bench.figures import DATA, Row, append, latest, listed, percent, prose, table, taken
from pgnas_cli import PgnasError, Target, count, drop_probabilities
from pgnas_cli.run import Run
from pgnas_cli.run.posterior import held_out_of, posterior_of
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.sampling.budget import draw_within
from pgnas_cli.sizes import KINDS, ExpectedSize, Sizes

KIND = {"params": "parameters", "macs": "MACs"}
GOOD = 0.02  # test error of a winner that is still good, on digits


def newest(rows: Sequence[Row]) -> list[Row]:
    return latest(rows, "network", "groups", "kind", "share")


def reach(rows: Sequence[Row]) -> str:
    """The smallest budget of each fit with a good winner, as a share of the fit's own size."""
    found: dict[str, float] = {}
    for row in newest(rows):
        if row["kind"] == "params" and row["tilted"]["test"] < GOOD:
            share = row["share"] / row["own"]
            found[row["groups"]] = min(share, found.get(row["groups"], 1.0))
    low, high = (f"{100 * pick(found.values()):.0f}" for pick in (min, max))
    return f"{low} %" if low == high else f"{low} to {high} %"


def figures(rows: Sequence[Row]) -> str:
    """Sentences and table."""
    rows = newest(rows)
    own = {(row["groups"], row["kind"]): row["own"] for row in rows}
    sizes = (f"*{groups}* {100 * share:.0f} % of the {KIND[kind]}"
             for (groups, kind), share in own.items())  # fmt: skip
    wrong = sum(row["violations"] for row in rows)
    bound = [row["mean"] for row in rows if row["within"] < row["candidates"] and row["mean"]]
    told = [
        taken(rows), f"Mean sizes of the fits: {listed(sizes)}.",
        f"{wrong} of {sum(row['candidates'] for row in rows):,} candidates exceed their budget.",
        f"Where the budget binds, the mean size is {percent(sum(bound) / len(bound))} of it."
        if bound else "",
    ]  # fmt: skip

    def errors(found: Row | None) -> str:
        return f"{100 * found['held_out']:.1f} / {percent(found['test'])}" if found else "none"

    columns = [
        [row["groups"], f"{100 * row['share']:.0f} % {KIND[row['kind']]}",
         f"{row['within']:,} of {row['candidates']:,}", errors(row["rejection"]),
         errors(row["tilted"])]
        for row in rows
    ]  # fmt: skip
    head = ["fit", "budget", "plain draws within it", "their winner",
            "winner of the tilted posterior"]  # fmt: skip
    last = (f"Down to {reach(rows)} of the fit's own parameters, the winner errs on less than"
            f" {100 * GOOD:.0f} % of the test images.")  # fmt: skip
    return f"{prose(*told)}\n\n{table(head, columns)}\n\n{prose(last)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--kind", choices=tuple(KINDS), default="params")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.8, 0.6, 0.4])
    parser.add_argument("--candidates", type=int, default=1500)
    options = parser.parse_args()
    run = Run(options.run)
    network, posterior = posterior_of(run)
    data = held_out_of(run, posterior, workers=0)
    probability = drop_probabilities(network)
    whole = KINDS[options.kind][1](network)
    own = float(ExpectedSize(network).shares(probability)[options.kind])
    shared = {
        "network": posterior.supernet.backbone, "groups": posterior.supernet.groups,
        "kind": options.kind, "own": own, "candidates": options.candidates, **about(),
    }  # fmt: skip

    def cost(sizes: Sizes) -> Tensor:
        return getattr(sizes, options.kind)  # type: ignore[no-any-return]

    def winner(keep: Tensor, sizes: Sizes) -> Row:
        race = ranked(network, keep, data)
        best = int(race.best()[0])
        return {
            "size": int(cost(sizes)[best]) / whole,
            "held_out": int(race.errors[best]) / len(race.order),
            "test": tested(network, keep[best], data).error,
        }

    drawn = draw_candidates(probability, network, options.candidates, 0)
    drawn_sizes = count(network, drawn)
    for share in options.shares:
        start = time.perf_counter()
        try:
            budget = Target(options.kind, share)
            keep, sizes = draw_within(network, probability, budget, options.candidates, 0)
        except PgnasError as error:
            print(f"{share:.0%}: {error}")
            continue
        most = int(share * whole + 1e-6)
        kept = (cost(drawn_sizes) <= most).nonzero().flatten()
        row = {
            **shared, "share": share, "violations": int((cost(sizes) > most).sum()),
            "mean": float(cost(sizes).double().mean()) / most, "within": len(kept),
            "seconds": round(time.perf_counter() - start), "tilted": winner(keep, sizes),
            "rejection": winner(drawn[kept], drawn_sizes.part(kept)) if len(kept) else None,
        }  # fmt: skip
        append(DATA / "budgets.jsonl", row)
        print(row, flush=True)


if __name__ == "__main__":
    main()
