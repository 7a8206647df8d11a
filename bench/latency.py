"""Time of slim networks beside their multiply-adds: does what is dropped save time on this CPU?

Gates at one drop rate, batch 16, both layouts and the whole network taking turns; median of runs.

    python -m bench.latency [NAME ...] [--gates hidden] [--profile]
"""

import argparse

import torch
from torch.profiler import ProfilerActivity, profile

from bench import CPU, machine_line
from pgnas_cli import count, create_supernet, slim
from pgnas_cli.evaluation import latencies
from pgnas_cli.sizes import parameter_count, whole_macs
from pgnas_cli.slimming import ungated_copy
from tests.networks import random_keep, randomised


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["resnet50", "densenet121"])
    parser.add_argument("--drop", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each network")
    parser.add_argument("--round-to", type=int, default=1)
    parser.add_argument("--gates", default="all", choices=("all", "hidden"))
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    print(f"{machine_line()}, batch {options.batch}, {options.size} px, drop rate {options.drop}")
    shape = (3, options.size, options.size)
    for name in options.names:
        network = randomised(
            create_supernet(f"timm/{name}", 1000, input_shape=shape, layers=options.gates)
        )
        keep = random_keep(network, options.drop, seed=1)
        found = count(network, keep[None], round_to=options.round_to)
        macs = int(found.macs) / whole_macs(network)
        networks = [ungated_copy(network)]
        networks += [
            slim(network, keep, layout, round_to=options.round_to) for layout in ("small", "fast")
        ]
        whole, small, fast = latencies(
            networks, [shape] * 3, batch=options.batch, device=CPU.device, seconds=options.seconds
        )
        best = min(small, fast) / whole
        print(f"{name}: params {int(found.params) / parameter_count(network):.2f}, MACs {macs:.2f},"
              f" time small {small / whole:.2f}, fast {fast / whole:.2f};"
              f" MAC ratio / time ratio {macs / best:.2f} (goal 0.8)", flush=True)  # fmt: skip
        for what, one in zip(("whole", "small", "fast"), networks, strict=True):
            if options.profile:
                x = torch.randn(options.batch, *shape).contiguous(memory_format=torch.channels_last)
                with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as found_by:
                    one(x)
                print(what)
                print(found_by.key_averages().table(sort_by="self_cpu_time_total", row_limit=8,
                                                    max_name_column_width=40))  # fmt: skip


if __name__ == "__main__":
    main()
