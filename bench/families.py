"""Exactness, size and speed of slimming, one small member of many timm families.

For each: masked and slim logits at drop rates 0.3 (one layer closed besides) and 0.9, two image
sizes, both layouts, batch-norm and per-channel parameters randomised, and the counted parameters
against those of the built network. Then, at drop rate 0.3, parameters and the time of a forward
in both layouts, the whole network in layout "fast" = 1. Appends a row to docs/data/families.jsonl
as each network is done; status 1 if any is not exact.

    python -m bench.families [NAME ...]
    python -m bench.families --torchvision --no-times
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor, nn

from bench import CPU, about
from bench.figures import DATA, Row, append, latest, listed, prose, table, taken
from pgnas_cli import PgnasError, count, create_supernet, slim
from pgnas_cli.formats import OnnxNetwork, quick_onnx
from pgnas_cli.gates import gates
from pgnas_cli.latency import latencies
from pgnas_cli.sizes import parameter_count, whole_macs
from pgnas_cli.slimming import Layout, arranged, largest_difference, ungated_copy
from tests.networks import random_keep, randomised, seeded

FAMILIES = """
resnet18 resnet26d resnetaa50 resnetblur18 resnext50_32x4d wide_resnet50_2 seresnet18 ecaresnet26t
resnetrs50 gcresnet33ts legacy_seresnet18 resnetv2_50 resnetv2_50d_gn resnetv2_18 tresnet_m
densenet121 rdnet_tiny efficientnet_b0 efficientnet_lite0 efficientnet_es tf_efficientnetv2_b0
mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small mobilenet_edgetpu_v2_xs mnasnet_small
spnasnet_100 semnasnet_075 regnetx_002 regnety_002 convnext_atto convnextv2_atto inception_next_atto
hrnet_w18_small inception_v3 inception_v4 inception_resnet_v2 nasnetalarge pnasnet5large dpn68
ghostnet_050 ghostnetv2_100 repghostnet_050 mixnet_s tf_mixnet_s nfnet_l0 eca_nfnet_l0 nf_resnet26
nf_regnet_b0 dla34 dla46_c res2net50_14w_8s res2next50 skresnet18 resnest14d vgg11 vgg11_bn
repvgg_a0
cspresnet50 cspdarknet53 cs3darknet_s darknet53 hardcorenas_a lcnet_050 fbnetc_100 fbnetv3_b
rexnet_100 xception41 legacy_xception selecsls42b ese_vovnet19b_slim_dw ese_vovnet19b_dw gernet_s
tinynet_e starnet_s1 edgenext_xx_small fasternet_t0 mobileone_s0 repvit_m0_9 hgnet_tiny hgnetv2_b0
convmixer_768_32 focalnet_tiny_srf mambaout_femto
""".split()  # noqa: SIM905 - a list of this length is read better so
TORCHVISION = [
    f"torchvision/{name}" for name in torchvision.models.list_models(module=torchvision.models)
]
FIXED = ("torchvision/maxvit", "torchvision/vit")  # take 224 pixels and nothing else
LARGE = {"inception_v3", "inception_v4", "inception_resnet_v2", "xception41", "legacy_xception",
         "torchvision/inception_v3", "torchvision/alexnet"}  # fmt: skip
LAYOUTS: tuple[Layout, ...] = ("small", "fast")
TOLERANCE = 1e-4  # of the largest logit
ATTENTION = ("swin", "maxvit", "vit")  # what names of networks with attention start with


def difference_of(network: nn.Module, sizes: tuple[int, ...]) -> float:
    """Of masked and slim logits, as a share of the largest; 1 where a count is wrong."""
    worst = 0.0
    for drop, layout in itertools.product((0.3, 0.9), LAYOUTS):
        keep = random_keep(network, drop, seed=1)
        if drop < 0.5:  # the layer in the middle has no input left
            spans = list(gates(network).spans.values())
            first, last = spans[len(spans) // 2]
            keep[first:last] = False
        smaller = slim(network, keep, layout)
        built = sum(p.numel() for p in smaller.parameters())
        if layout == "small" and built != int(count(network, keep[None]).params):
            return 1.0
        batches = [torch.randn(2, 3, size, size, generator=seeded(size)) for size in sizes]
        worst = max(worst, largest_difference(network, keep, smaller, batches))
    return worst


def row(name: str, *, times: bool) -> Row:
    """What is found of one network."""
    source, _, short = called_of(name).partition("/")
    found: Row = {"source": source, "network": short}
    began = time.perf_counter()
    sizes = (96, 128) if name in LARGE else (64, 96)
    if name.startswith(FIXED):
        sizes = (224,)
    try:
        network = create_supernet(called_of(name), 10, input_shape=(3, sizes[0], sizes[0]))
    except PgnasError as error:
        return {**found, "left_out": str(error)}
    randomised(network)
    difference = difference_of(network, sizes)
    keep = random_keep(network, 0.3, seed=1)
    counted, graph = count(network, keep[None]), gates(network).graph
    found |= {
        "difference": difference, "params": int(counted.params) / parameter_count(network),
        "macs": int(counted.macs) / whole_macs(network),
        "opaque": len(graph.opaque()), "steps": len(graph.nodes),
    }  # fmt: skip
    if times:
        whole_network = arranged(ungated_copy(network).eval(), "fast", graph)
        networks = [whole_network, *(slim(network, keep, one) for one in LAYOUTS)]
        whole, small, fast = latencies(
            networks, [(3, sizes[-1], sizes[-1])] * 3, batch=8, device=CPU.device
        )  # fmt: skip
        found |= {"small": small / whole, "fast": fast / whole}
        found |= onnx_time(network, keep, sizes[-1])
    return {**found, "seconds": round(time.perf_counter() - began)}


def onnx_time(network: nn.Module, keep: Tensor, size: int) -> Row:
    """Share of the time in ONNX Runtime, one image; nothing where a network cannot be exported."""
    image, graph = torch.zeros(1, 3, size, size), gates(network).graph
    both = [arranged(ungated_copy(network).eval(), "onnx", graph), slim(network, keep, "onnx")]
    try:
        files = [OnnxNetwork(quick_onnx(one.eval(), image)) for one in both]
    except PgnasError:
        return {}
    whole, fast = latencies(files, [(3, size, size)] * 2, batch=1, device=CPU.device)
    return {"onnx": fast / whole}


def called_of(name: str) -> str:
    return name if "/" in name else f"timm/{name}"


def exact(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.get("difference", 1) <= TOLERANCE]


def of(rows: Sequence[Row], source: str) -> list[Row]:
    return [row for row in latest(rows, "source", "network") if row["source"] == source]


def how_many(rows: Sequence[Row], source: str) -> str:
    rows = of(rows, source)
    return f"{len(exact(rows))} of {len(rows)}"


def figures(rows: Sequence[Row], source: str) -> str:
    """Sentences and table of the networks of timm or torchvision."""
    rows = of(rows, source)
    built = [row for row in rows if "left_out" not in row]

    def shrunk(what: str, chosen: Sequence[Row]) -> str:
        still = [row["network"] for row in chosen if row["params"] >= 0.9]
        return (f"{len(chosen) - len(still)} of {len(chosen)} {what} lose more than a tenth of"
                f" their parameters{f' (not {listed(still)})' if still else ''}.")  # fmt: skip

    attention = [row for row in built if row["network"].startswith(ATTENTION)]
    convolutional = [row for row in built if row not in attention]
    worst = max(row["difference"] for row in built)
    timed = [min(row["small"], row["fast"]) for row in built if "small" in row]
    sentences = [
        f"{how_many(rows, source)} are exact (all within {worst:.0e}).".replace("e-0", "e-"),
        shrunk("convolutional networks", convolutional),
        shrunk("with attention", attention) if attention else "",
    ]
    if timed:
        sentences.append(
            f"The median time is {statistics.median(timed):.2f} of the original network's in the"
            f" better layout; {sum(share >= 0.95 for share in timed)} take 0.95 or more."
        )
        onnx = [row["onnx"] for row in built if "onnx" in row]
        if onnx:
            sentences.append(
                f"In ONNX Runtime, one image, it is {statistics.median(onnx):.2f};"
                f" {sum(share >= 0.95 for share in onnx)} of {len(onnx)} take 0.95 or more."
            )
    head = ["network", "difference", "params", "MACs", "not prunable"]
    columns = [
        [row["network"], f"{row['difference']:.0e}", f"{row['params']:.2f}", f"{row['macs']:.2f}",
         f"{row['opaque']} of {row['steps']}"]
        for row in built
    ]  # fmt: skip
    if timed:
        head[4:4] = ["time small", "time fast", "ONNX Runtime"]
        for row, cells in zip(built, columns, strict=True):
            cells[4:4] = [f"{row[k]:.2f}" if k in row else "" for k in ("small", "fast", "onnx")]
    left_out = [f"{row['network']}: {row['left_out']}." for row in rows if "left_out" in row]
    return f"{prose(taken(rows), *sentences, *left_out)}\n\n{table(head, columns)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--torchvision", action="store_true", help="its networks, not timm's")
    parser.add_argument("--no-times", action="store_true")
    options = parser.parse_args()
    times = not options.no_times
    taken_with, rows = about(), []
    for name in options.names or (TORCHVISION if options.torchvision else FAMILIES):
        rows.append({**row(name, times=times), **taken_with})
        append(DATA / "families.jsonl", rows[-1])
        print(rows[-1], flush=True)
    sys.exit(len(exact(rows)) < len(rows))


if __name__ == "__main__":
    main()
