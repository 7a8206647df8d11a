"""Is the posterior worth drawing from? Digits, three seeds, equal sizes.

For each seed: a network fitted with learned drop probabilities, candidates of its posterior, of the
same probabilities dealt out by chance, and of a network trained at one fixed (ramped) rate, all
with the same mean size (the file's count); and the whole network trained plainly. Prints one table
and the rank correlation of the learned probabilities between seeds. Some minutes on two cores.

    .venv/bin/python -m bench.digits [--seeds 3] [--candidates 300]
"""

import argparse
import dataclasses
import itertools
import platform

import torch
from pgnas_cli.cli.machine import tune_for_cpu
from scipy.stats import spearmanr
from torch import Tensor, nn

from pgnas_cli.data import ImageData, load_data
from pgnas_cli.gates import drop_probabilities, gates, make_concrete_
from pgnas_cli.ranking import held_out_evaluator, rank
from pgnas_cli.registry.lookup import load_backbone
from pgnas_cli.sampling import baseline_probabilities, draw_candidates
from pgnas_cli.sampling.baselines import mean_params
from pgnas_cli.seeds import generator
from pgnas_cli.sizes import count
from pgnas_cli.slimming import slim
from pgnas_cli.training import fit
from pgnas_cli.training import score as score_on_test

CPU = torch.device("cpu")


def fitted(data: ImageData, seed: int, fixed_drop: float | None = None) -> nn.Module:
    """multibranch-tiny by its own recipe."""
    shape = data.preprocessing.input_shape
    backbone = load_backbone("multibranch-tiny", classes=10, channels=1, size=8, seed=seed)
    network = make_concrete_(backbone.network, shape, initial_drop=backbone.recipe.initial_drop)
    for _ in fit(network, data, backbone.recipe, seed=seed, fixed_drop=fixed_drop):
        pass
    return network.eval()


@dataclasses.dataclass(frozen=True)
class Row:
    """One way of getting candidates, one seed."""

    params: float  # mean of the file's count
    mean: float  # mean held-out error of the candidates
    best: float  # held-out error of the winner
    test: float  # test error of the winner


def judged(
    network: nn.Module, data: ImageData, probability: Tensor, candidates: int, seed: int
) -> Row:
    """Draw, rank, and test the winner."""
    keep = draw_candidates(probability, network, candidates, seed)
    sizes = count(network, keep)
    board = rank(held_out_evaluator(network, keep, data, CPU), sizes)
    winner = keep[board.order[0]]
    assert data.test is not None
    score = score_on_test(
        slim(network, winner), data.test, data.preprocessing, device=CPU, workers=0
    )
    errors = board.errors.double() / board.images
    return Row(float(sizes.params.double().mean()), float(errors.mean()), float(errors.min()),
               score.error)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--candidates", type=int, default=300)
    options = parser.parse_args()
    tune_for_cpu()
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads,"
          f" {options.candidates} candidates")  # fmt: skip
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
            "posterior": judged(network, data, probability, options.candidates, seed),
            "permuted": judged(network, data, permuted, options.candidates, seed),
            "fixed rate": judged(trained_at, data, fixed, options.candidates, seed),
            "whole": judged(fitted(data, seed, 0.0), data, torch.zeros_like(fixed), 1, seed),
        }
        for name, row in rows.items():
            print(f"{seed:4} {name:14} {row.params:8.0f} {row.mean:7.2%} {row.best:7.2%}"
                  f" {row.test:7.2%}", flush=True)  # fmt: skip
        ratio = rows["posterior"].mean / rows["fixed rate"].mean
        print(f"     posterior / fixed rate, mean error: {ratio:.2f}")
    for a, b in itertools.combinations(range(options.seeds), 2):
        print(
            f"rank correlation of p, seeds {a} and {b}: {spearmanr(learned[a], learned[b])[0]:.2f}"
        )


if __name__ == "__main__":
    main()
