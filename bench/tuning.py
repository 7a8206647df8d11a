"""What setting a process up for the CPU saves (machine.tune_for_cpu), against the same untouched.

    python -m bench.tuning [--rounds 3]

Each side is a process of its own: ten training steps, and ten judged batches of a candidate, of
timm/tf_efficientnet_lite0 with 40 images of 112 px, after two of each. The sides take turns;
printed are medians of their ratios, tuned to untouched, and the range.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from pgnas_cli.cli.machine import tune_for_cpu

from pgnas_cli.data import placed
from pgnas_cli.gates import draw, kl, masked, relaxed
from pgnas_cli.registry.build import create_supernet


def measured() -> tuple[float, float]:
    """Seconds of ten training steps and of ten judged batches."""
    network = create_supernet(
        "timm/tf_efficientnet_lite0", 10, input_shape=(3, 112, 112), groups="channel"
    )
    placed(network, torch.device("cpu"))
    random = torch.Generator().manual_seed(0)
    images = torch.randn(40, 3, 112, 112, generator=random)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(40) % 10
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        with relaxed(network, batch=40, generator=random, temperature=0.2):
            loss = F.cross_entropy(network(images), labels) + kl(network, l2=1.0, images=5e5)
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def judge() -> None:
        with masked(network, keep):
            network(images)

    keep = draw(network, generator=random)
    found = []
    for action, training in ((step, True), (judge, False)):
        network.train(training)
        for turn in range(12):
            if turn == 2:
                began = time.perf_counter()
            action()
        found.append(time.perf_counter() - began)
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=("tuned", "untouched"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        if options.side == "tuned":
            tune_for_cpu()
        print(*measured())
        return
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads")
    ratios: list[tuple[float, float]] = []
    for _ in range(options.rounds):
        sides = []
        for side in ("untouched", "tuned"):
            call = [sys.executable, "-m", "bench.tuning", "--side", side]
            done = subprocess.run(call, capture_output=True, text=True, check=True)
            sides.append([float(word) for word in done.stdout.split()])
        plain, tuned = sides
        ratios.append((tuned[0] / plain[0], tuned[1] / plain[1]))
    for name, column in zip(
        ("training step", "judged batch"), zip(*ratios, strict=True), strict=True
    ):
        print(f"{name}: {statistics.median(column):.2f} of the time"
              f" ({min(column):.2f} to {max(column):.2f})")  # fmt: skip


if __name__ == "__main__":
    main()
