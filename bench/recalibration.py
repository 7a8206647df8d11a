"""Does it pay to estimate each candidate's batch-norm statistics anew, and on how many images?

    python -m bench.recalibration RUN [--images 0 16 64 256] [--candidates 60]

All candidates are evaluated on all held-out images: their mean error, the best one's, that one's
error on the test split, and the time. 0 images: the statistics of the fit.
"""

import argparse
import time
from pathlib import Path

from bench.opened import CPU, opened
from pgnas_cli.ranking import held_out_judge, rank
from pgnas_cli.ranking.recalibration import recalibration_images
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.sizes import count, parameter_count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, nargs="*", default=[0, 16, 64, 256])
    parser.add_argument("--candidates", type=int, default=60)
    options = parser.parse_args()
    run = opened(options.run)
    network, posterior, data = run.network, run.posterior, run.data
    keep = draw_candidates(run.probability, network, options.candidates, 0)
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
        test_error = run.test_error(keep[winner])
        network.load_state_dict(own)
        errors = found.errors.double() / found.images
        print(f"{images} images: mean {float(errors.mean()):.2%}, best {float(errors.min()):.2%},"
              f" test {test_error:.2%}, {seconds:.1f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
