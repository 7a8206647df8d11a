"""Does a second round of draws pay? A cross-entropy step on the best tenth of the first.

    python -m bench.rounds RUN [--candidates 1500] [--splits 5]

Two rounds: half of the candidates are ranked on one half of the held-out images; the drop
probability of each group moves by 0.7 towards its share of closed gates among their best tenth; the
other half of the candidates comes from there and is ranked on the other half of the images. One
round: all candidates of the posterior, ranked on all held-out images. Errors on the test split,
averaged over splits.
"""

import argparse
import statistics
from pathlib import Path

import torch
from torch import Tensor

from bench.opened import CPU, opened
from pgnas_cli.gates import gates
from pgnas_cli.ranking import rank
from pgnas_cli.ranking.evaluator import Evaluator
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.seeds import generator
from pgnas_cli.sizes import count, parameter_count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--candidates", type=int, default=1500)
    parser.add_argument("--splits", type=int, default=5)
    options = parser.parse_args()
    run = opened(options.run)
    network, posterior, data = run.network, run.posterior, run.data
    pixels, labels = data.held_out.pixels, data.held_out.labels
    assert pixels is not None
    probability = run.probability
    half = options.candidates // 2

    def first(keep: Tensor, images: Tensor, top: int) -> Tensor:
        judge = Evaluator(network, keep, pixels[images], labels[images], data.preprocessing, CPU)
        return rank(judge, count(network, keep), top=top).order

    def worth(keep: Tensor) -> tuple[float, float]:
        size = float(count(network, keep[None]).params[0]) / parameter_count(network)
        return run.test_error(keep), size

    rows: dict[str, list[tuple[float, float]]] = {"one round": [], "two rounds": []}
    for split in range(options.splits):
        keep = draw_candidates(probability, network, options.candidates, split)
        order = torch.randperm(len(labels), generator=generator(split, "rounds"))
        here, there = order[: len(order) // 2], order[len(order) // 2 :]
        rows["one round"].append(worth(keep[first(keep, order, 1)[0]]))
        elite = keep[first(keep[:half], here, half // 10)]
        bank = gates(network)
        closed = torch.zeros(len(bank.groups)).index_add_(
            0, bank.group.cpu(), (~elite).float().mean(0)
        )
        moved = 0.3 * probability + 0.7 * closed / bank.channels.cpu()  # type: ignore[operator]
        second = draw_candidates(moved, network, half, 1000 + split)
        rows["two rounds"].append(worth(second[first(second, there, 1)[0]]))
    print(f"{posterior.subject.backbone}, {options.candidates} candidates, {len(labels)} held-out"
          f" and {len(data.test)} test images, {options.splits} splits")  # fmt: skip
    for name, found in rows.items():
        errors, sizes = zip(*found, strict=True)
        spread = statistics.stdev(errors) / len(errors) ** 0.5
        print(f"{name}: test {statistics.mean(errors):.2%} +- {spread:.2%} at"
              f" {statistics.mean(sizes):.1%} of the parameters")  # fmt: skip


if __name__ == "__main__":
    main()
