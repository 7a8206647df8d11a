"""Does it pay to estimate each candidate's batch-norm statistics anew, and on how many images?

    python -m bench.recalibration RUN [--images 0 16 64 256] [--candidates 60]

All candidates are evaluated on all held-out images: their mean error, the best one's, that one's
error on the test split, and the time. 0 images: the statistics of the fit.
"""

import argparse
import time
from pathlib import Path

import torch

from pgnas_cli.candidates import count, draw_candidates, parameter_count
from pgnas_cli.drawing import held_out_of, posterior_of
from pgnas_cli.evaluation import test_score as score_on_test
from pgnas_cli.files import Run
from pgnas_cli.ranking import held_out_judge, rank
from pgnas_cli.recalibration import recalibration_images
from pgnas_cli.settings import read_settings
from pgnas_cli.slimming import slim
from pgnas_cli.sources import find_data
from pgnas_cli.supernet import drop_probabilities

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, nargs="*", default=[0, 16, 64, 256])
    parser.add_argument("--candidates", type=int, default=60)
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    run = Run(options.run)
    network, posterior = posterior_of(run)
    settings = read_settings(run)
    data = held_out_of(run, posterior, settings, 0, lambda items, _: items)
    test = find_data(settings.data).test
    assert test is not None
    keep = draw_candidates(drop_probabilities(network), network, options.candidates, 0)
    sizes = count(network, keep)
    own = {key: value.clone() for key, value in network.state_dict().items()}
    share = float(sizes.params.double().mean()) / parameter_count(network)
    print(f"{posterior.subject.backbone}, {len(keep)} candidates of {share:.0%} on average,"
          f" {len(data.held_out)} held-out images")  # fmt: skip
    for images in options.images:
        batches = recalibration_images(data, images, 0) if images else None
        start = time.perf_counter()
        judge = held_out_judge(network, keep, data, CPU, batches)
        found = rank(judge, sizes)
        seconds = time.perf_counter() - start
        winner = int(found.order[0])
        if judge.recalibration is not None:
            judge.recalibration.apply_(winner)
        score = score_on_test(
            slim(network, keep[winner]), test, data.preprocessing, device=CPU, workers=0
        )
        network.load_state_dict(own)
        errors = found.errors.double() / found.images
        print(f"{images} images: mean {float(errors.mean()):.2%}, best {float(errors.min()):.2%},"
              f" test {score.error:.2%}, {seconds:.1f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
