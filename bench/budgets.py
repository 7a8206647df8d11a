"""What candidates within a budget named after the fit are worth, against plain rejection.

    python -m bench.budgets RUN [--kind params] [--shares 0.8 0.6 0.4] [--candidates 1500]

Tilted: `sample --max-params`. Rejection: as many draws of the posterior as it is, of which those
within the budget are kept. Both are ranked; the winners' errors on held-out and test images.
"""

import argparse
import time
from pathlib import Path

from torch import Tensor

from bench.opened import CPU, opened
from pgnas_cli.errors import PgnasError
from pgnas_cli.ranking import held_out_evaluator, rank
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.sampling.budget import draw_within
from pgnas_cli.sizes import ExpectedSize, Sizes, Target, count, parameter_count, whole_macs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--kind", choices=("params", "macs"), default="params")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.8, 0.6, 0.4])
    parser.add_argument("--candidates", type=int, default=1500)
    options = parser.parse_args()
    run = opened(options.run)
    network, posterior, data = run.network, run.posterior, run.data
    probability = run.probability
    whole = parameter_count(network) if options.kind == "params" else whole_macs(network)
    own = float(ExpectedSize(network).shares(probability)[options.kind])
    print(f"{posterior.subject.backbone}, posterior's mean {own:.1%} of the {options.kind}")

    def winner(keep: Tensor, sizes: Sizes) -> str:
        found = rank(held_out_evaluator(network, keep, data, CPU), sizes, top=10)
        best = int(found.order[0])
        test_error = run.test_error(keep[best])
        size = int(getattr(sizes, options.kind)[best]) / whole
        held_out = int(found.errors[best]) / found.images
        return f"winner {size:.1%}, held-out {held_out:.2%}, test {test_error:.2%}"

    drawn = draw_candidates(probability, network, options.candidates, 0)
    drawn_sizes = count(network, drawn)
    for share in options.shares:
        budget = Target(options.kind, share)
        start = time.perf_counter()
        try:
            within = draw_within(network, probability, budget, options.candidates, 0)
        except PgnasError as error:
            print(f"{share:.0%}: {error}")
            continue
        seconds = time.perf_counter() - start
        found = getattr(within.sizes, options.kind)
        print(f"{share:.0%} tilted: {options.candidates} of {within.drawn} draws,"
              f" {int((found > share * whole).sum())} violations, mean"
              f" {float(found.double().mean()) / whole / share:.2%} of the budget, {seconds:.0f} s;"
              f" {winner(within.keep, within.sizes)}", flush=True)  # fmt: skip
        kept = (getattr(drawn_sizes, options.kind) <= share * whole).nonzero().flatten()
        rejected = "none within the budget"
        if len(kept):
            rejected = winner(drawn[kept], drawn_sizes.part(kept))
        print(f"{share:.0%} rejection: {len(kept)} of {options.candidates}; {rejected}", flush=True)


if __name__ == "__main__":
    main()
