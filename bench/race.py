"""How long does finding the first ten of many candidates take, against a plain loop?

    python -m bench.race RUN [--candidates 1500] [--rounds 3]

The plain loop is independent of the product: for each candidate, multiply every gated layer's
input by its mask in a forward hook, run the whole held-out set in batches, count errors. The two
alternate; ratios of medians, and whether both name the same ten.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from bench import CPU
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--candidates", type=int, default=1500)
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--batch", type=int, default=256, help="of the plain loop")
    parser.add_argument("--loop", type=int, help="candidates in the plain loop; scaled up")
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
    looped = min(options.loop or options.candidates, options.candidates)
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(options.rounds):
        start = time.perf_counter()
        errors = plain_loop(network, keep[:looped], inputs, labels, options.batch)
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
        loop_time, race_time = (statistics.median(t) for t in times)
        last = int(race.errors[first[-1]]) / len(labels)
        share = int(race.seen.sum()) / len(keep) / len(labels)
        print(f"round {turn + 1}: {options.candidates} candidates, {len(labels)} images, error of"
              f" number {options.top} {last:.2%}, pairs {share:.2%}, loop {loop_time:.1f} s,"
              f" race {race_time:.1f} s, ratio {loop_time / race_time:.1f}, agree {same}",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
