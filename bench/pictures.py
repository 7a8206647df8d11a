"""Pictures for docs/, drawn from the metrics of a real fit.

    python -m bench.pictures RUN PICTURE.png [--title TEXT]

Above: where the drop probabilities of the gates are, epoch by epoch. Below: the size of the mean
candidate, and the held-out errors under relaxed gates (soft) and hard ones.
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np


def draw(metrics: list[dict[str, object]], title: str, path: Path) -> None:
    epochs = [m["epoch"] for m in metrics]
    shares = np.array([m["drop_histogram"] for m in metrics], dtype=float).T
    shares /= shares.sum(0)
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(6.4, 5.2), sharex=True, height_ratios=(3, 2), layout="constrained"
    )
    extent = (0.5, len(metrics) + 0.5, 0, 1)
    image = above.imshow(
        100 * shares, origin="lower", aspect="auto", extent=extent, cmap="Blues", vmin=0, vmax=100,
    )  # fmt: skip
    above.set_ylabel("drop probability p")
    above.set_title(title, loc="left", fontsize=11)
    figure.colorbar(image, ax=above, label="% of the gates", pad=0.01)
    for key, label, style in (
        ("expected_share", "parameters, mean candidate", "k-"),
        ("soft_error", "held-out error, soft gates", "C0--"),
        ("hard_error", "held-out error, hard gates", "C1-"),
    ):
        below.plot(epochs, [100 * float(str(m[key])) for m in metrics], style, label=label)
    below.set_ylim(0, 100)
    below.set_ylabel("%")
    below.set_xlabel("epoch")
    below.legend(frameon=False, fontsize=9)
    for side in ("top", "right"):
        below.spines[side].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--title", default="")
    options = parser.parse_args()
    lines = (options.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    draw([json.loads(line) for line in lines], options.title, options.picture)


if __name__ == "__main__":
    main()
