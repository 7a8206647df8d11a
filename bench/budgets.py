"""What candidates within a budget named after the fit are worth, against plain rejection.

    python -m bench.budgets RUN [--kind params] [--shares 0.8 0.6 0.4] [--candidates 1500]

Tilted: `sample --max-params`. Rejection: as many draws of the posterior as it is, of which those
within the budget are kept. Both are ranked; the winners' errors on held-out and test images.
"""

import argparse
import time
from pathlib import Path

from torch import Tensor

from bench import ranked, test_error
from pgnas_cli import PgnasError, Target, count, drop_probabilities
from pgnas_cli.run import Run
from pgnas_cli.run.posterior import held_out_of, posterior_of
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.sampling.budget import draw_within
from pgnas_cli.sizes import KINDS, ExpectedSize, Sizes


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
    print(f"{posterior.supernet.backbone}, posterior's mean {own:.1%} of the {options.kind}")

    def cost(sizes: Sizes) -> Tensor:
        return getattr(sizes, options.kind)  # type: ignore[no-any-return]

    def winner(keep: Tensor, sizes: Sizes) -> str:
        race = ranked(network, keep, data)
        best = int(race.best()[0])
        held_out = int(race.errors[best]) / len(race.order)
        return (f"winner {int(cost(sizes)[best]) / whole:.1%}, held-out {held_out:.2%},"
                f" test {test_error(network, keep[best], data):.2%}")  # fmt: skip

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
        seconds = time.perf_counter() - start
        most = int(share * whole + 1e-6)
        print(f"{share:.0%} tilted: {len(keep)} candidates, {int((cost(sizes) > most).sum())}"
              f" violations, mean {float(cost(sizes).double().mean()) / most:.2%} of the budget,"
              f" {seconds:.0f} s; {winner(keep, sizes)}", flush=True)  # fmt: skip
        kept = (cost(drawn_sizes) <= most).nonzero().flatten()
        rejected = "none within the budget"
        if len(kept):
            rejected = winner(drawn[kept], drawn_sizes.part(kept))
        print(f"{share:.0%} rejection: {len(kept)} of {options.candidates}; {rejected}", flush=True)


if __name__ == "__main__":
    main()
