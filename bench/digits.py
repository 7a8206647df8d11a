"""Is the posterior worth drawing from? Digits, three seeds, equal sizes.

For each seed: a network fitted with learned drop probabilities, candidates of its posterior, of the
same probabilities dealt out by chance, and of a network trained at one fixed (ramped) rate, all
with the same mean size (the file's count); and the whole network trained plainly. Prints one table
and the rank correlation of the learned probabilities between seeds. Some minutes on two cores.

    python -m bench.digits [--seeds 3] [--candidates 300]
"""

import argparse
import dataclasses
import itertools

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from bench import machine_line, ranked, test_error
from pgnas_cli import count, drop_probabilities, fit_network, load_data
from pgnas_cli.data import ImageData
from pgnas_cli.gates import gates
from pgnas_cli.registry import Start
from pgnas_cli.registry.build import build_backbone
from pgnas_cli.sampling import baseline_probabilities, draw_candidates
from pgnas_cli.sampling.baselines import mean_params
from pgnas_cli.seeds import generator
from pgnas_cli.training import gated


def fitted(data: ImageData, seed: int, fixed_drop: float | None = None) -> nn.Module:
    """multibranch-tiny by its own recipe."""
    backbone = build_backbone(
        "multibranch-tiny", classes=10, channels=1, size=8, start=Start(seed=seed)
    )
    network = gated(backbone, backbone.recipe)
    for _ in fit_network(network, data, backbone.recipe, seed=seed, fixed_drop=fixed_drop):
        pass
    return network.eval()


@dataclasses.dataclass(frozen=True)
class Row:
    """One way of getting candidates, one seed."""

    params: float  # mean of the file's count
    mean: float  # mean held-out error of the candidates
    best: float  # held-out error of the winner
    test: float  # test error of the winner


def row_of(
    network: nn.Module, data: ImageData, probability: Tensor, candidates: int, seed: int
) -> Row:
    """Draw, rank, and test the winner."""
    keep = draw_candidates(probability, network, candidates, seed)
    race = ranked(network, keep, data)
    errors = race.errors.double() / len(race.order)
    return Row(
        float(count(network, keep).params.double().mean()), float(errors.mean()),
        float(errors.min()), test_error(network, keep[race.best()[0]], data),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--candidates", type=int, default=300)
    options = parser.parse_args()
    print(f"{machine_line()}, {options.candidates} candidates")
    print(f"{'seed':4} {'drawn from':14} {'params':>8} {'mean':>7} {'best':>7} {'test':>7}")
    learned = []
    for seed in range(options.seeds):
        data = load_data("digits", seed=seed)
        network = fitted(data, seed)
        probability = drop_probabilities(network)
        learned.append(probability.tolist())
        fixed, permuted = (
            baseline_probabilities(network, probability, name, generator=generator(seed, name))
            for name in ("fixed", "permuted")
        )
        # The closest match of the sizes that the three sets of draws really have.
        noise = torch.rand(300, gates(network).count, generator=generator(seed, "size"))
        assert abs(mean_params(network, fixed, noise) / mean_params(network, probability, noise)
                   - 1) < 0.05  # fmt: skip
        trained_at = fitted(data, seed, float(fixed[0]))
        rows = {
            "posterior": row_of(network, data, probability, options.candidates, seed),
            "permuted": row_of(network, data, permuted, options.candidates, seed),
            "fixed rate": row_of(trained_at, data, fixed, options.candidates, seed),
            "whole": row_of(fitted(data, seed, 0.0), data, torch.zeros_like(fixed), 1, seed),
        }
        for name, row in rows.items():
            print(f"{seed:4} {name:14} {row.params:8.0f} {row.mean:7.2%} {row.best:7.2%}"
                  f" {row.test:7.2%}", flush=True)  # fmt: skip
        ratio = rows["posterior"].mean / rows["fixed rate"].mean
        print(f"     posterior / fixed rate, mean error: {ratio:.2f}")
    for a, b in itertools.combinations(range(options.seeds), 2):
        correlation = spearmanr(learned[a], learned[b])[0]
        print(f"rank correlation of p, seeds {a} and {b}: {correlation:.2f}")


if __name__ == "__main__":
    main()
