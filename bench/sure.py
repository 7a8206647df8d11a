"""Is what a ranking says of its own certainty true? Random halves of the held-out images.

    python -m bench.sure RUN [--candidates 300] [--splits 100]

Each split ranks the candidates on one half and looks at the other half: does the winner's 95 %
interval hold its error there (two halves differ by the noise of both, so about 83 % of the time
if the interval is right), what error was expected of the winner and what came, and how often
does the runner-up beat the winner there against how often it was said to.
"""

import argparse
import statistics
from pathlib import Path

import torch

from bench.opened import CPU, opened
from pgnas_cli.ranking import held_out_evaluator, interval, rank
from pgnas_cli.ranking.race import PILOTS, places
from pgnas_cli.ranking.statistics import confidence, expected_error
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.seeds import generator, numpy_generator
from pgnas_cli.sizes import count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--candidates", type=int, default=300)
    parser.add_argument("--splits", type=int, default=100)
    options = parser.parse_args()
    run = opened(options.run)
    network, posterior, data = run.network, run.posterior, run.data
    keep = draw_candidates(run.probability, network, options.candidates, 0)
    sizes = count(network, keep)
    judge = held_out_evaluator(network, keep, data, CPU)
    race = rank(judge, sizes).race
    wrong = torch.stack([race.row(candidate) for candidate in range(len(keep))])
    place = places(sizes.params)
    holds, seen, said, came, beaten, stated = [], [], [], [], [], []
    for split in range(options.splits):
        order = torch.randperm(wrong.shape[1], generator=generator(split, "halves"))
        here, there = wrong[:, order[: len(order) // 2]], wrong[:, order[len(order) // 2 :]]
        ranked = (here.sum(1) * len(keep) + place).argsort()
        first, second = int(ranked[0]), int(ranked[1])
        errors, images = int(here[first].sum()), here.shape[1]
        low, high = interval(errors, images)
        other = float(there[first].double().mean())
        holds.append(low <= other <= high)
        seen.append(errors / images)
        said.append(expected_error(errors, here[:PILOTS]))
        came.append(other)
        two = torch.stack([here[first], here[second]])
        sure = confidence(two, place[[first, second]], randomness=numpy_generator(split, "again"))
        stated.append(1 - sure.first_again)
        keys = there.sum(1) * len(keep) + place
        beaten.append(int(keys[second]) < int(keys[first]))
    print(f"{posterior.subject.backbone}, {len(keep)} candidates, {wrong.shape[1]} held-out images,"
          f" {options.splits} splits in halves")  # fmt: skip
    print(f"interval of one half holds the error on the other: {statistics.mean(holds):.0%}")
    print(f"winner's error {statistics.mean(seen):.2%} where it was chosen,"
          f" expected {statistics.mean(said):.2%},"
          f" found on the other half {statistics.mean(came):.2%}")  # fmt: skip
    print(f"runner-up beats the winner on the other half in {statistics.mean(beaten):.0%},"
          f" said {statistics.mean(stated):.0%}")  # fmt: skip


if __name__ == "__main__":
    main()
