"""Cut what no candidate can keep out of a network that is being trained, its optimizer included.

A cut changes no mathematics: a step after it is a step of the whole network under its masks.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer

from ..gates import gates, masked, remaining
from ..graph import in_mode
from ..machine import full_float32
from ..seeds import generator, seeded_globals
from ..slimming import Place, Remainder, difference
from .checkpoint import State, restore_optimizer, save_optimizer

# Optimizers of timm that move each number by its own gradients alone: their state is cut like the
# numbers. A step of the others depends on a whole layer (trust ratios, factored or clipped moments,
# projections, cautious masks), and would be another one for a part of it.
ELEMENTWISE = frozenset((
    "adabelief", "adadelta", "adagrad", "adam", "adamax", "adamc", "adamw", "adamwlegacy", "adan",
    "adanw", "adopt", "adoptc", "adoptw", "laprop", "lapropc", "lion", "lionc", "madgrad",
    "madgradw", "momentum", "nadam", "nadamc", "nadamlegacy", "nadamw", "nesterov", "nesterovw",
    "radabelief", "radam", "radamlegacy", "radamw", "rmsprop", "rmsproptf", "rmsproptfc",
    "rmsproptfw", "sgd", "sgdc", "sgdw",
))  # fmt: skip
IMAGES = 8  # on which a cut is checked
TOLERANCE = 1e-3  # of the largest logit: batch-norm of a constant magnifies rounding


def carry_over_(
    before: Optimizer, source: Remainder, after: Optimizer, goal: Remainder, whole: nn.Module
) -> None:
    """Give `after`, an optimizer of `goal`, the state that `before` has of `source`.

    Both networks are what is left of `whole`. State of a parameter's shape is cut as it is.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    save_optimizer(before, "", tensors, numbers)
    parameters, new_ones = _parameters(before), _parameters(after)
    here = [source.places[name] for name in _names(source.network, parameters)]
    there = {
        goal.places[name].name: (index, goal.places[name])
        for index, name in enumerate(_names(goal.network, new_ones))
    }
    shapes = {name: parameter.shape for name, parameter in whole.named_parameters()}
    moved = State(0, {}, {})
    items: list[tuple[str, Tensor | float]] = [*tensors.items(), *numbers.items()]
    for key, value in items:
        _, index, slot = key.split(".", 2)
        if index == "group":
            continue
        place = here[int(index)]
        if place.name not in there:
            continue
        new, part = there[place.name]
        name = f".{new}.{slot}"
        if not isinstance(value, Tensor):
            moved.numbers[name] = value
        elif value.shape == parameters[int(index)].shape:
            cut = carried(value, place, part, shapes[place.name])
            moved.tensors[name] = torch.empty_like(new_ones[new], dtype=cut.dtype).copy_(cut)
        else:
            moved.tensors[name] = value.clone()
    restore_optimizer(after, "", moved)
    for group in after.param_groups:
        group |= {k: v for k, v in before.param_groups[0].items() if k == "step"}


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _names(network: nn.Module, parameters: Iterable[nn.Parameter]) -> list[str]:
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return [names[id(parameter)] for parameter in parameters]


def carried(value: Tensor, place: Place, part: Place, shape: torch.Size) -> Tensor:
    """What is stored of `place`, for `part` of the same tensor; new entries are zero."""
    whole = value.new_zeros(shape)
    place.write_(value, whole)
    return part.part_of(whole)


@full_float32()
@torch.no_grad()
def differs_in_training(whole: nn.Module, left: nn.Module) -> float:
    """Largest difference of logits in training mode, as a share of the largest.

    Some networks do in training what their forward in evaluation does not show. Infinite where
    `left` cannot be run at all. Batch-norm statistics and modes stay as they are.
    """
    device = gates(whole).drop_logit.device
    images = torch.randn(IMAGES, *gates(whole).graph.input_shape, generator=generator(0, "cut")).to(
        device, next(whole.parameters()).dtype
    )
    keep = remaining(whole)
    found: list[Tensor] = []
    for network in (whole, left):
        buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
        try:
            with in_mode(network, training=True), masked(network, keep), seeded_globals(0):
                for module in network.modules():
                    if isinstance(module, _DropoutNd):
                        module.eval()  # its draws depend on the number of channels
                logits = network(images)
        except (RuntimeError, ValueError, AssertionError):  # an auxiliary head, say
            return float("inf")
        finally:
            for buffer, value in buffers:
                buffer.copy_(value)
        found += logits if isinstance(logits, tuple) else [logits]
    half = len(found) // 2
    pairs = zip(found[half:], found[:half], strict=True)
    return max(difference(part, expected) for part, expected in pairs)
