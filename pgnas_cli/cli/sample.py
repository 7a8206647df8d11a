"""`pgnas sample`: draw candidates from the posterior."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import command
from ..fields import check_range
from ..run import MOST_CANDIDATES, remember
from ..units import duration, large, named_sizes
from . import options
from .options import loading, run_of, terminal_of, typed_line

if TYPE_CHECKING:
    from ..sampling import Candidates


def sample(
    n: Annotated[
        int, typer.Option("--n", "-n", help="Number of candidates, for each budget.")
    ] = 1500,
    max_params: Annotated[
        str | None,
        typer.Option(help="Parameters at most: 60%, 10M, or several budgets: 80%,60%,40%."),
    ] = None,
    max_macs: Annotated[str | None, typer.Option(help="The same in MACs.")] = None,
    max_time: Annotated[
        str | None, typer.Option(help="The same in time, after fit --target-time: 60%, 4ms.")
    ] = None,
    baseline: Annotated[
        str, typer.Option(help="permuted: learned probabilities, randomly permuted; or fixed.")
    ] = "",
    run: options.RunFolder = None,
    backbone: options.Function = None,
    seed: Annotated[int | None, typer.Option(help="Default: the seed of the fit.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Delete a ranking of other candidates.")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw candidates from the posterior."""
    terminal = terminal_of(quiet)
    check_range("n", n, 1, MOST_CANDIDATES)
    named_sizes(params=max_params, macs=max_macs, time=max_time)
    where = run_of(run, terminal)
    with loading(terminal):
        from ..sampling import sample as draw

    drawn = draw(
        where, n, baseline=baseline, seed=seed, max_params=max_params, max_macs=max_macs,
        max_time=max_time, force=force,
    )  # fmt: skip
    remember(where, typed_line())
    if as_json:
        terminal.json({"run": str(where.folder), "candidates": n, **candidates_json(drawn)})
    else:
        for one in drawn:
            within = "" if one.budget is None else f" within {one.budget}"
            headings = ("<", "smallest", "mean", "largest", "whole")
            terminal.table(f"candidates{within}", headings, size_rows(one))
    terminal.note(f"next: {command('rank', '--run', where.folder)}")


def candidates_json(drawn: "list[Candidates]") -> dict[str, Any]:
    """Mean sizes of the candidates, for each budget where there are any."""
    rows = [
        {
            "budget": None if one.budget is None else vars(one.budget),
            "mean": {k: float(v.double().mean()) for k, v in one.costs.items()},
        }
        for one in drawn
    ]
    found = {"baseline": drawn[0].baseline, "whole": drawn[0].whole}
    single = drawn[0].budget is None
    return {**found, "mean": rows[0]["mean"]} if single else {**found, "budgets": rows}


def size_rows(drawn: "Candidates") -> list[list[str]]:
    """Smallest, mean and largest size of the candidates, beside the whole network's."""
    rows = []
    for name, field, of in (
        ("parameters, file", "params", "params"),
        ("parameters, paper's count", "paper_params", "params"),
        ("MACs", "macs", "macs"),
        ("time, predicted", "time", "time"),
    ):
        if of not in drawn.whole:
            continue
        found = getattr(drawn.sizes, field).double()
        sizes = [float(found.min()), float(found.mean()), float(found.max()), drawn.whole[of]]
        rows.append([name, *map(duration if of == "time" else large, sizes)])
    return rows
