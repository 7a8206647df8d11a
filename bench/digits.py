"""Is the posterior worth drawing from? Digits, three seeds, equal sizes.

For each seed: a network fitted with learned drop probabilities, candidates of its posterior, of the
same probabilities randomly permuted, and of a network trained at one fixed (ramped) rate, all with
the same mean size (the file's count); and the whole network trained plainly. Appends a row for each
seed to docs/data/digits.jsonl. Some minutes on two cores.

    python -m bench.digits [--seeds 3] [--candidates 300]
"""

import argparse
import statistics
from collections.abc import Sequence

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from bench import about, ranked, tested
from bench.figures import DATA, Row, append, latest, over_seeds, percent, prose, table, taken
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


def row_of(
    network: nn.Module, data: ImageData, probability: Tensor, candidates: int, seed: int
) -> Row:
    """Draw, rank, and test the winner."""
    keep = draw_candidates(probability, network, candidates, seed)
    race = ranked(network, keep, data)
    errors = race.errors.double() / len(race.order)
    return {
        "params": float(count(network, keep).params.double().mean()),
        "mean": float(errors.mean()), "best": float(errors.min()),
        "test": tested(network, keep[race.best()[0]], data).error,
    }  # fmt: skip


SIDES = ("posterior", "permuted", "fixed rate", "original network")


def figures(rows: Sequence[Row]) -> str:
    """Sentences and table."""
    rows = latest(rows, "seed")

    def errors(side: str, which: str) -> str:
        found = [row["found"][side][which] for row in rows]
        low, high = over_seeds(found) or (found[0], found[0])
        return f"{percent(statistics.mean(found))} ({100 * max(0, low):.1f} to {100 * high:.1f})"

    ratios = [
        row["found"]["posterior"]["mean"] / row["found"]["fixed rate"]["mean"] for row in rows
    ]
    correlations = [c for row in rows for c in row["correlations"]]
    told = [
        taken(rows), f"Seeds {', '.join(str(row['seed']) for row in rows)};",
        "means, and 95 % intervals over seeds (Student's t).",
        f"The posterior's candidates err {min(ratios):.2f} to {max(ratios):.2f} times as often as"
        " those of a fixed rate.",
        f"Rank correlation of p between seeds: {', '.join(f'{c:.2f}' for c in correlations)}.",
    ]  # fmt: skip
    columns = [[side, errors(side, "mean"), errors(side, "test")] for side in SIDES]
    head = ["drawn from", "held-out, mean candidate", "test, winner"]
    return f"{prose(*told)}\n\n{table(head, columns)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--candidates", type=int, default=300)
    options = parser.parse_args()
    learned: list[list[float]] = []
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
        whole = fitted(data, seed, 0.0)
        found = {
            "posterior": row_of(network, data, probability, options.candidates, seed),
            "permuted": row_of(network, data, permuted, options.candidates, seed),
            "fixed rate": row_of(trained_at, data, fixed, options.candidates, seed),
            "original network": row_of(whole, data, torch.zeros_like(fixed), 1, seed),
        }
        correlations = [float(spearmanr(p, learned[-1])[0]) for p in learned[:-1]]
        row = {"seed": seed, "candidates": options.candidates, "found": found,
               "correlations": correlations, **about()}  # fmt: skip
        append(DATA / "digits.jsonl", row)
        print(row, flush=True)


if __name__ == "__main__":
    main()
