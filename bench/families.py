"""Exactness, size and speed of slimming, one small member of many timm families.

For each: masked and slim logits at drop rates 0.3 (one layer closed besides) and 0.9, two image
sizes, both layouts, batch-norm and per-channel parameters randomised, and the counted parameters
against those of the built network. Then, at drop rate 0.3, parameters and the time of a forward
in both layouts, whole = 1. One row per family as it is done; status 1 if any is not exact.

    python -m bench.families [NAME ...]
    python -m bench.families --torchvision --no-times
"""

import argparse
import itertools
import sys
import time

import timm
import torch
import torchvision
from torch import nn

from bench import CPU, machine_line
from pgnas_cli import PgnasError, count, create_supernet, slim
from pgnas_cli.evaluation import latencies
from pgnas_cli.gates import gates
from pgnas_cli.sizes import parameter_count, whole_macs
from pgnas_cli.slimming import Layout, largest_difference, ungated_copy
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


def difference_of(network: nn.Module, sizes: tuple[int, ...]) -> float:
    """Of masked and slim logits, as a share of the largest; infinite where a count is wrong."""
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
            return float("inf")
        batches = [torch.randn(2, 3, size, size, generator=seeded(size)) for size in sizes]
        worst = max(worst, largest_difference(network, keep, smaller, batches))
    return worst


def row(name: str, *, times: bool) -> tuple[str, bool, bool]:
    """One line of the table; whether it is exact; whether it shrinks by more than a tenth."""
    began = time.perf_counter()
    sizes = (96, 128) if name in LARGE else (64, 96)
    if name.startswith(FIXED):
        sizes = (224,)
    called = name if "/" in name else f"timm/{name}"
    try:
        network = create_supernet(called, 10, input_shape=(3, sizes[0], sizes[0]))
    except PgnasError as error:
        return f"| {name} | left out: {error} |", False, False
    randomised(network)
    difference = difference_of(network, sizes)
    keep = random_keep(network, 0.3, seed=1)
    found = count(network, keep[None])
    share = int(found.params) / parameter_count(network)
    macs = int(found.macs) / whole_macs(network)
    timed = ""
    if times:
        networks = [ungated_copy(network), *(slim(network, keep, one) for one in LAYOUTS)]
        whole, small, fast = latencies(
            networks, [(3, sizes[-1], sizes[-1])] * 3, batch=8, device=CPU.device
        )  # fmt: skip
        timed = f" {small / whole:.2f} | {fast / whole:.2f} |"
    graph = gates(network).graph
    text = (
        f"| {name} | {difference:.0e} | {share:.2f} | {macs:.2f} |{timed}"
        f" {len(graph.opaque())} of {len(graph.nodes)} | {time.perf_counter() - began:.0f} |"
    )
    return text, difference <= TOLERANCE, share < 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--torchvision", action="store_true", help="its networks, not timm's")
    parser.add_argument("--no-times", action="store_true")
    options = parser.parse_args()
    times = not options.no_times
    print(f"{machine_line()}, timm {timm.__version__}, torchvision {torchvision.__version__}")
    headings = ["time small", "time fast"] if times else []
    cells = ["network", "difference", "params", "MACs", *headings, "not prunable", "s"]
    print(f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}")
    rows = []
    for name in options.names or (TORCHVISION if options.torchvision else FAMILIES):
        rows.append(row(name, times=times))
        print(rows[-1][0], flush=True)
    exact, smaller = (sum(r[i] for r in rows) for i in (1, 2))
    print(f"{len(rows)} networks: {exact} exact, {smaller} smaller by more than 10 %")
    sys.exit(exact < len(rows))


if __name__ == "__main__":
    main()
