"""Predicted time beside measured time, of networks that a time table has not seen.

    python -m bench.times [NAME ...] [--runtime torch] [--batch 1] [--candidates 20]

For each network a table is made as `pgnas profile` makes it. Then other random candidates of all
sizes are cut, arranged and timed in turns with the whole network; both times are shares of the
whole network's. Appends a row for each network to docs/data/times.jsonl.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

from scipy.stats import spearmanr

from bench import about, machine_line, one_checkout
from bench.figures import DATA, Row, append, latest, percent, prose, table, taken
from pgnas_cli import find_machine
from pgnas_cli.data import placed
from pgnas_cli.gates import gates
from pgnas_cli.naming import RUNTIMES
from pgnas_cli.profiling import profiled, random_candidates, samples
from pgnas_cli.registry.build import create_supernet
from pgnas_cli.slimming import wire
from pgnas_cli.timing import Forward, milliseconds
from tests.networks import randomised

PATH = DATA / "times.jsonl"
PIXELS = {
    "timm/tf_efficientnet_lite0": 112, "timm/resnet50": 160, "timm/densenet121": 160,
    "timm/mobilenetv3_large_100": 224, "multibranch-tiny": 32,
}  # fmt: skip


def row(name: str, options: argparse.Namespace) -> Row:
    pixels = PIXELS.get(name, 224)
    network = randomised(create_supernet(name, 10, input_shape=(3, pixels, pixels)))
    began = time.perf_counter()
    network = placed(network, find_machine(options.device).device)
    forward = Forward(options.runtime, options.batch)
    made = profiled(network, forward)
    seconds = time.perf_counter() - began
    keep = random_candidates(network, options.candidates, seed=1)
    timed, whole = samples(network, keep, forward)
    predicted = (milliseconds(made, wire(network, keep)) / made.whole).tolist()
    measured = [sample.whole / whole.whole for sample in timed]
    errors = [abs(p / m - 1) for p, m in zip(predicted, measured, strict=True)]
    return {
        "network": name, "px": pixels, "batch": options.batch, "runtime": options.runtime,
        "device": made.device, "gates": gates(network).count,
        "median": statistics.median(errors), "worst": max(errors),
        "spearman": float(spearmanr(predicted, measured).statistic), "seconds": round(seconds),
        "predicted": predicted, "measured": measured,
    }  # fmt: skip


def figures(rows: Sequence[Row]) -> str:
    """Sentence and table of the newest rows."""
    rows = latest(rows, "network", "batch", "runtime")
    columns = [
        [row["network"], "H100" if "H100" in row.get("device", "") else "CPU", row["runtime"],
         row["px"], row["batch"], percent(row["median"]), percent(row["worst"]),
         f"{row['spearman']:.3f}",
         f"{min(row['measured']):.2f} to {max(row['measured']):.2f}", row["seconds"]]
        for row in rows
    ]  # fmt: skip
    head = ["network", "device", "runtime", "px", "batch", "median error", "worst",
            "rank correlation", "measured", "seconds of the profile"]  # fmt: skip
    return f"{prose(taken(rows))}\n\n{table(head, columns)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(PIXELS))
    parser.add_argument("--runtime", choices=RUNTIMES, default="torch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--candidates", type=int, default=20)
    options = parser.parse_args()
    one_checkout()
    print(machine_line())
    for name in options.names:
        found = row(name, options)
        append(PATH, found | about())
        print({k: v for k, v in found.items() if k not in ("predicted", "measured")}, flush=True)


if __name__ == "__main__":
    main()
