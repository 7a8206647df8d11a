"""What others make of the same budget: Torch-Pruning and OTO (Only-Train-Once).

    pip install torch-pruning==1.6.1; pip install only-train-once==3.0.1

Torch-Pruning trains for half of the steps, cuts once to the wanted size, and trains on for the
other half; each half has its own cosine schedule. `magnitude`: L2 norms, the same share of every
layer. `group-norm`: norms over coupled layers (DepGraph), regularised towards the cut in the
first half, one threshold for the whole network. OTO trains once with HESSO: its groups are zeroed
between a quarter and a half of the steps, then its own sub-network is built.

Each takes a plain network and returns a smaller one; the caller judges it.
"""

import copy
import math
import sys
import tempfile
from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame, get_same_padding
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pgnas_cli.data import Preprocessing

Batches = Iterable[tuple[Tensor, Tensor]]
PRUNERS = ("magnitude", "group-norm")  # of Torch-Pruning


def size_of(network: nn.Module, kind: str, example: Tensor) -> int:
    """Parameters, or multiply-adds for one image."""
    if kind == "params":
        return sum(p.numel() for p in network.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(example)
    return counter.get_total_flops() // 2


def trained(
    network: nn.Module,
    batches: Batches,
    steps: int,
    preprocessing: Preprocessing,
    rate: float,
    optimizer: torch.optim.Optimizer | None = None,
    regularise: Any = None,
) -> None:
    """`steps` steps with a cosine schedule, in place; AdamW unless there is an optimizer."""
    network.train()
    optimizer = optimizer or torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-2)
    for step, (images, labels) in enumerate(islice(batches, steps)):
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        inputs = preprocessing.normalised(images).contiguous(memory_format=torch.channels_last)
        F.cross_entropy(network(inputs), labels).backward()
        if regularise is not None:
            regularise(network)
        optimizer.step()


def torch_pruned(
    side: str,
    network: nn.Module,
    batches: Batches,
    steps: int,
    preprocessing: Preprocessing,
    rate: float,
    *,
    head: nn.Module,
    share: float,
    kind: str,
) -> nn.Module:
    """Half the steps, a cut to `share` of the size, half the steps."""
    import torch_pruning as tp

    device = next(network.parameters()).device
    example = torch.zeros(1, *preprocessing.input_shape, device=device)
    batches = iter(batches)
    grouped = side == "group-norm"

    def pruner(model: nn.Module, head: nn.Module, ratio: float) -> Any:
        importance = tp.importance.GroupMagnitudeImportance(p=2)
        build = tp.pruner.GroupNormPruner if grouped else tp.pruner.MagnitudePruner
        return build(
            model, example, importance=importance, global_pruning=grouped, pruning_ratio=ratio,
            ignored_layers=[head],
        )  # fmt: skip

    regularise = None
    if grouped:
        towards = pruner(network, head, 1 - share)
        towards.update_regularizer()
        regularise = towards.regularize
    trained(network, batches, steps // 2, preprocessing, rate, regularise=regularise)
    wanted = share * size_of(network, kind, example)

    def cut(ratio: float) -> nn.Module:
        smaller, own_head = copy.deepcopy((network, head))
        pruner(smaller, own_head, ratio).step()
        return smaller

    low, high = 0.0, 1.0
    for _ in range(12):  # the smallest ratio that reaches the size
        middle = (low + high) / 2
        if size_of(cut(middle), kind, example) > wanted:
            low = middle
        else:
            high = middle
    smaller = cut(high)
    trained(smaller, batches, steps - steps // 2, preprocessing, rate)
    return smaller


def _as_oto_imports() -> None:
    """OTO 3.0.1 looks for parts of torch.onnx where older versions of torch had them."""
    import torch.onnx
    from torch.onnx._internal.torchscript_exporter import _globals, utils

    sys.modules["torch.onnx._globals"] = _globals
    torch.onnx._optimize_graph = utils._optimize_graph  # type: ignore[attr-defined]
    torch.onnx.utils = utils
    if not torch.cuda.is_available():  # HESSO moves a mask there without asking
        torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]


def _as_oto_reads(network: nn.Module, example: Tensor) -> nn.Module:
    """The same function at this image size, in modules that OTO knows."""
    network = copy.deepcopy(network).eval()
    sizes: dict[nn.Module, int] = {}  # of the padded layers' square inputs

    def noted(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes[module] = inputs[0].shape[-1]

    padded = [m for m in network.modules() if isinstance(m, Conv2dSame)]
    hooks = [m.register_forward_pre_hook(noted) for m in padded]
    before = network(example)
    for hook in hooks:
        hook.remove()
    for name, module in list(network.named_modules()):
        new: nn.Module | None = None
        if isinstance(module, BatchNormAct2d):
            norm = nn.BatchNorm2d(module.num_features, eps=module.eps, momentum=module.momentum)
            norm.load_state_dict(module.state_dict())
            new = nn.Sequential(norm, module.act)
        elif isinstance(module, Conv2dSame):
            conv = nn.Conv2d(
                module.in_channels, module.out_channels, module.kernel_size, module.stride,
                groups=module.groups, bias=module.bias is not None,
            )  # fmt: skip
            conv.load_state_dict(module.state_dict())
            pad = get_same_padding(
                sizes[module], module.kernel_size[0], module.stride[0], module.dilation[0]
            )
            new = nn.Sequential(nn.ZeroPad2d((pad // 2, pad - pad // 2) * 2), conv)
        if new is not None:
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, new)
    assert torch.allclose(network.eval()(example), before, atol=1e-3)
    return network


def only_trained_once(
    network: nn.Module,
    batches: Batches,
    steps: int,
    preprocessing: Preprocessing,
    rate: float,
    *,
    share: float,
    kind: str,
) -> nn.Module:
    """One training run with HESSO, then OTO's own sub-network."""
    _as_oto_imports()
    from only_train_once import OTO

    example = torch.randn(1, *preprocessing.input_shape)
    network = _as_oto_reads(network, example)
    wanted = share * size_of(network, kind, example)

    first, batches = peeked(batches, 12)

    def run(sparsity: float, batches: Batches, steps: int, rate: float, begin: int) -> nn.Module:
        oto = OTO(model=copy.deepcopy(network), dummy_input=example)
        optimizer = oto.hesso(
            variant="adamw", lr=rate, weight_decay=1e-2, target_group_sparsity=sparsity,
            start_pruning_step=begin, pruning_periods=min(10, begin), pruning_steps=begin,
        )  # fmt: skip
        trained(oto._model, batches, steps, preprocessing, rate, optimizer)
        with tempfile.TemporaryDirectory() as folder:
            oto.construct_subnet(out_dir=folder)
            # A pickled module is all that OTO writes; this one it has written just now.
            return torch.load(oto.compressed_model_path, weights_only=False)

    low, high = 0.0, 0.98
    for _ in range(6):  # what a run that hardly moves the weights zeroes stands for the real one
        middle = (low + high) / 2
        if size_of(run(middle, first, 12, 1e-7, 5), kind, example) > wanted:
            low = middle
        else:
            high = middle
    return run(high, batches, steps, rate, steps // 4)


def peeked(batches: Batches, number: int) -> tuple[list[tuple[Tensor, Tensor]], Batches]:
    """The first batches, and all of them."""
    rest = iter(batches)
    first = list(islice(rest, number))
    return first, chain(first, rest)
