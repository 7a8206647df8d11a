"""Time of slim networks beside their multiply-adds: does what is dropped save time on this CPU?

Gates at one drop rate, batch 16, both layouts and the whole network (in layout "fast") taking
turns; median of runs. Appends a row for each network to docs/data/latency.jsonl.

    python -m bench.latency [NAME ...] [--gates hidden] [--profile]
"""

import argparse
from collections.abc import Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from bench import CPU, about, machine_line
from bench.figures import DATA, Row, append, latest, prose, table, taken
from pgnas_cli import count, create_supernet, slim
from pgnas_cli.gates import gates
from pgnas_cli.latency import latencies
from pgnas_cli.sizes import parameter_count, whole_macs
from pgnas_cli.slimming import arranged, ungated_copy
from tests.networks import random_keep, randomised

GOAL = 0.8  # MACs, as a share, over time


def best(row: Row) -> float:
    return float(min(row["small"], row["fast"]))


def figures(rows: Sequence[Row]) -> str:
    """Sentence and table."""
    keys = ("network", "gates", "drop", "batch", "size", "round_to")
    rows = [row for row in latest(rows, *keys) if (row["drop"], row["round_to"]) == (0.5, 1)]
    reached = [row["network"] for row in rows if row["macs"] / best(row) >= GOAL]
    columns = [
        [row["network"] + (", gates `hidden`" if row["gates"] == "hidden" else ""),
         *(f"{row[k]:.2f}" for k in ("params", "macs", "small", "fast")),
         f"{row['macs'] / best(row):.2f}"]
        for row in rows
    ]  # fmt: skip
    head = ["network", "params", "MACs", "time small", "time fast", "MACs / best time"]
    goal = f"The goal of {GOAL} in the last column is reached in {len(reached)} of {len(rows)}."
    return f"{prose(taken(rows), goal)}\n\n{table(head, columns)}"


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
        networks = [arranged(ungated_copy(network).eval(), "fast", gates(network).graph)]
        networks += [
            slim(network, keep, layout, round_to=options.round_to) for layout in ("small", "fast")
        ]
        whole, small, fast = latencies(
            networks, [shape] * 3, batch=options.batch, device=CPU.device, seconds=options.seconds
        )
        row = {
            "network": name, "gates": options.gates, "drop": options.drop, "batch": options.batch,
            "size": options.size, "round_to": options.round_to,
            "params": int(found.params) / parameter_count(network), "macs": macs,
            "small": small / whole, "fast": fast / whole, "seconds": options.seconds, **about(),
        }  # fmt: skip
        append(DATA / "latency.jsonl", row)
        print(row, f"MACs / time {macs / best(row):.2f}", flush=True)
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
