"""Draw candidates from the posterior."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..units import large, percent
from . import options
from .options import run_of, terminal_of, typed_line

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from ..sampling import Drawn
    from ..sizes import Sizes, Target


def sample(
    n: Annotated[
        int, typer.Option("--n", "-n", help="Number of candidates, for each budget.")
    ] = 1500,
    max_params: Annotated[
        str | None,
        typer.Option(help="Parameters at most: 60%, 10M, or several budgets: 80%,60%,40%."),
    ] = None,
    max_macs: Annotated[str | None, typer.Option(help="The same in multiply-adds.")] = None,
    baseline: Annotated[
        str, typer.Option(help="permuted: learned probabilities dealt out by chance; or fixed.")
    ] = "",
    run: options.RunFolder = None,
    backbone: options.Function = None,
    seed: Annotated[int | None, typer.Option(help="Default: the seed of the fit.")] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw candidates from the posterior."""
    terminal = terminal_of(quiet)
    where = run_of(run, terminal, backbone)
    from ..run import remember
    from ..run.posterior import posterior_of
    from ..sampling import sample_stage
    from ..sizes import parameter_count, whole_macs

    network, _ = posterior_of(where)
    whole = parameter_count(network), whole_macs(network)
    if max_params or max_macs:
        for line in reach_lines(network):
            terminal.notice(line)
    drawn = sample_stage(
        where, n, baseline=baseline, seed=seed, max_params=max_params, max_macs=max_macs,
        track=terminal.track,
    )  # fmt: skip
    remember(where, typed_line())
    if as_json:
        terminal.json({"run": str(where.folder), "candidates": n, **drawn_json(drawn, *whole)})
    else:
        for budget, rows in drawn.boards():
            terminal.out.print(size_table(drawn.sizes.part(rows), *whole, budget))
    terminal.notice(f"next: pgnas rank --run {where.folder}")


def reach_lines(network: "nn.Module") -> list[str]:
    """What sizes the gates can reach, and what the posterior's own candidates have."""
    from ..gates import drop_probabilities
    from ..sampling import Tilt

    learned = drop_probabilities(network)
    tilts = {kind: Tilt(network, learned, kind, 0) for kind in ("params", "macs")}
    return [
        f"{what}: the posterior's own mean is {percent(tilts[kind].expected(0.0))}, draws go"
        f" down to about {percent(tilts[kind].reach())}"
        for kind, what in (("params", "parameters"), ("macs", "multiply-adds"))
    ]


def drawn_json(drawn: "Drawn", whole_params: int, whole_macs: int) -> dict[str, Any]:
    """Mean sizes of the drawn candidates, for each budget where there are any."""
    rows = []
    for budget, part in drawn.boards():
        means = {k: float(v.double().mean()) for k, v in vars(drawn.sizes.part(part)).items()}
        rows.append({"budget": None if budget is None else vars(budget), "mean": means})
    found = {"baseline": drawn.baseline, "whole": {"params": whole_params, "macs": whole_macs}}
    return {**found, "mean": rows[0]["mean"]} if not drawn.budgets else {**found, "budgets": rows}


def size_table(
    sizes: "Sizes", whole_params: int, whole_macs: int, budget: "Target | None" = None
) -> "Table":
    """Smallest, mean and largest of the drawn candidates."""
    from rich.table import Table

    title = "candidates" if budget is None else f"candidates within {budget}"
    table = Table(title=title, title_justify="left")
    for heading in ("", "smallest", "mean", "largest", "whole"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, values, whole in (
        ("parameters, file", sizes.params, whole_params),
        ("parameters, paper's count", sizes.paper_params, whole_params),
        ("multiply-adds", sizes.macs, whole_macs),
    ):
        found = values.double()
        row = [float(found.min()), float(found.mean()), float(found.max()), whole]
        table.add_row(name, *map(large, row))
    return table
