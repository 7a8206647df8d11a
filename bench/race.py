"""How long does finding the first ten of many candidates take, against a plain loop?

    python -m bench.race RUN --name digits [--candidates 1500] [--rounds 3] [--loop NUMBER]

The plain loop is independent of the product: for each candidate, multiply every gated layer's
input by its mask in a forward hook, run the whole held-out set in batches, count errors. The two
alternate; the median of their ratios, and whether both name the same ten. A row is appended to
docs/data/race.jsonl.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bench import CPU, about
from bench.figures import DATA, Row, append, latest, percent, prose, table, taken
from pgnas_cli import count, drop_probabilities
from pgnas_cli.gates import gates
from pgnas_cli.ranking import held_out_evaluator, races
from pgnas_cli.run import Run
from pgnas_cli.run.posterior import held_out_of, posterior_of
from pgnas_cli.sampling import draw_candidates


def plain_loop(
    network: nn.Module, keep: Tensor, inputs: Tensor, labels: Tensor, batch: int
) -> Tensor:
    """Errors of every candidate on every image, int64 (candidates,)."""
    network.eval()
    errors = []
    modules = dict(network.named_modules())
    for row in keep:
        hooks = []
        for layer, (first, last) in gates(network).spans.items():
            mask = row[first:last].float().view(1, -1, 1, 1)

            def masked(_: nn.Module, given: tuple[Tensor], mask: Tensor = mask) -> tuple[Tensor]:
                wide = mask if given[0].dim() == 4 else mask.flatten(1)
                return (given[0] * wide,)

            hooks.append(modules[layer].register_forward_pre_hook(masked))
        wrong = 0
        with torch.no_grad():
            for images, own in zip(inputs.split(batch), labels.split(batch), strict=True):
                wrong += int((network(images).argmax(1) != own).sum())
        errors.append(wrong)
        for hook in hooks:
            hook.remove()
    return torch.tensor(errors)


def compared(rows: Sequence[Row]) -> list[Row]:
    """The newest rows with a plain loop."""
    return latest((row for row in rows if row["looped"]), "data", "candidates")


def shares(rows: Sequence[Row]) -> str:
    """The share of pairs that is evaluated, in words for a sentence."""
    (digits,) = (
        row["pairs"]
        for row in compared(rows)
        if (row["data"], row["candidates"]) == ("digits", 1500)
    )
    newest = latest(rows, "data", "candidates")
    others = [100 * row["pairs"] for row in newest if row["data"] != "digits"]
    return (f"{100 * digits:.0f} % of them on digits, {min(others):.0f} to {max(others):.0f} % on"
            " photos and CIFAR-10")  # fmt: skip


def figures(rows: Sequence[Row]) -> str:
    """Tables with and without a plain loop, and sentences."""
    looped = compared(rows)
    alone = latest((row for row in rows if not row["looped"]), "data", "candidates")
    agree = sum(row["same"] for row in looped)
    loop = table(
        ["data", "held-out images", "candidates", "error of the tenth", "pairs evaluated", "goal",
         "time of the loop / of `rank`"],
        [
            [row["data"], row["held_out"], f"{row['candidates']:,}", percent(row["last"]),
             percent(row["pairs"]), f"{100 * max(0.15, 3 * row['last']):.0f} %",
             f"{statistics.median(row['ratios']):.1f} ({rounds(row['ratios'])})"]
            for row in looped
        ],
    )  # fmt: skip
    race = table(
        ["data", "candidates", "pairs evaluated", "seconds of `rank`"],
        [
            [row["data"], f"{row['candidates']:,}", percent(row["pairs"]),
             f"{statistics.median(row['seconds']):.3g}" if row["seconds"] else ""]
            for row in alone
        ],
    )  # fmt: skip
    told = prose(taken(rows), f"Loop and `rank` agree in {agree} of {len(looped)}.")
    return f"{told}\n\n{loop}\n\nWithout a loop beside it:\n\n{race}"


def rounds(ratios: Sequence[float]) -> str:
    return "1 round" if len(ratios) == 1 else ", ".join(f"{ratio:.1f}" for ratio in ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--candidates", type=int, default=1500)
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--batch", type=int, default=256, help="of the plain loop")
    parser.add_argument("--loop", type=int, help="candidates in the plain loop, scaled up; 0: none")
    parser.add_argument("--name", required=True, help="of the images, for the table")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    run = Run(options.run)
    network, posterior = posterior_of(run)
    data = held_out_of(run, posterior, workers=0)
    assert data.held_out.pixels is not None
    pixels, labels = data.held_out.pixels, data.held_out.labels
    keep = draw_candidates(drop_probabilities(network), network, options.candidates, 0)
    params = count(network, keep).params
    inputs = data.preprocessing.normalised(pixels).contiguous(memory_format=torch.channels_last)
    evaluator = held_out_evaluator(network, keep, data, CPU.device)
    looped = options.candidates if options.loop is None else min(options.loop, options.candidates)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(options.rounds):
        start = time.perf_counter()
        errors = plain_loop(network, keep[:looped], inputs, labels, options.batch)
        if looped:
            times[0].append((time.perf_counter() - start) * options.candidates / looped)
        start = time.perf_counter()
        *_, race = races(evaluator, params, top=options.top)
        times[1].append(time.perf_counter() - start)
        first = race.best()
        if looped == options.candidates:
            rows = sorted((int(e), int(p), i) for i, (e, p) in
                          enumerate(zip(errors, params, strict=True)))  # fmt: skip
            same = [i for _, _, i in rows[: options.top]] == first.tolist()
        else:
            same = bool((errors >= race.errors[:looped]).all())
        row = {
            "data": options.name, "network": posterior.supernet.backbone,
            "held_out": len(labels), "candidates": options.candidates, "looped": looped,
            "top": options.top, "last": int(race.errors[first[-1]]) / len(labels),
            "pairs": int(race.seen.sum()) / len(keep) / len(labels), "same": same,
            "seconds": times[1], "ratios": [a / b for a, b in zip(*times, strict=False)],
        }  # fmt: skip
        print(row, flush=True)
    append(DATA / "race.jsonl", {**row, **about()})


if __name__ == "__main__":
    main()
