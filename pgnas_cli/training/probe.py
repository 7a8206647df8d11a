"""Initialise a new classifier head by a linear probe: logistic regression on frozen features.

A pretrained network meets new classes with a new head. Left random, its noise goes back into every
layer while it learns, and the features are worse for it on images that nobody has seen (Kumar et
al., ICLR 2022: Fine-Tuning can Distort Pretrained Features). So the head begins as the logistic
regression of the classes on the features of the starting network, one pass over the images.
"""

import copy
from contextlib import closing
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import ImageData, Part, evaluation_images, placed
from ..graph import evaluating
from ..machine import Machine
from ..progress import track
from ..seeds import generator, seeded_globals

PENALTY = 0.03  # on squared weights, for features of unit variance; chosen in docs/log.md
MOST = 10_000  # images: beyond, a linear map of features gains little
_BATCH = 64
_ROUNDS, _TURNS = 50, 2  # of the solver; progress is shown after each round


def probe_(
    network: nn.Module,
    head: str,  # its classifier
    data: ImageData,
    *,
    machine: Machine,
    seed: int,
) -> str:
    """Fit the classifier `head` to the features of `network`, in place; says what came of it.

    The head stays as it was where it is no linear layer (or 1x1 convolution) with a bias that is
    called once with a vector of features for each image, where these are not finite, and where
    the network in training, whose batch-norm sees batches, would do worse with it than before.
    """
    layer = network.get_submodule(head)
    if not isinstance(layer, (nn.Linear, nn.Conv2d)) or layer.bias is None:
        return _left(head, "it is no linear layer with a bias")
    part = _some(data.fit.readable(), len(data.classes), seed)
    device = machine.device
    read = partial(_features, network, layer, data, machine=machine)
    features = read(part)
    if features is None:
        return _left(head, "it does not read one vector of features for each image")
    if not bool(torch.isfinite(features).all()):
        return _left(head, "the features of the starting network are not finite")
    before = layer.weight.detach().clone(), layer.bias.detach().clone()
    labels = part.labels.to(device)
    weight, bias = logistic_regression(features, labels, len(data.classes), PENALTY)
    few = _batch(part, data, seed, device)
    loss = _loss_in_training(network, *few)
    _set(layer, weight, bias)
    if not _loss_in_training(network, *few) < loss:
        _set(layer, *before)
        return _left(head, "images of this size are too unlike those that the weights know")
    held_out = read(data.held_out)
    assert held_out is not None
    wrong = F.linear(held_out, weight, bias).argmax(1).cpu() != data.held_out.labels
    return (
        f"the head '{head}' starts as a linear probe of the starting weights: it errs on"
        f" {100 * float(wrong.double().mean()):.1f} % of the held-out images"
    )


def _left(head: str, reason: str) -> str:
    return f"the head '{head}' starts at random, not as a linear probe: {reason}"


def _set(layer: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    with torch.no_grad():
        layer.weight.copy_(weight.view(layer.weight.shape))
        cast(Tensor, layer.bias).copy_(bias)


def _features(
    network: nn.Module,
    layer: nn.Linear | nn.Conv2d,
    data: ImageData,
    part: Part,
    *,
    machine: Machine,
) -> Tensor | None:  # float32 (images, features), on the device
    """What `layer` reads of each image of `part`, not augmented; None for other shapes."""
    found: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        features = (*given, *named.values())[0]
        flat = features.dim() == 4 and features.shape[2:] == (1, 1)
        found.append(features.flatten(1) if flat else features)

    hook = layer.register_forward_pre_hook(keep, with_kwargs=True)
    home = layer.weight.device
    batches = evaluation_images(part, data.preprocessing, batch=_BATCH, workers=machine.workers)
    sizes = [min(_BATCH, len(part) - first) for first in range(0, len(part), _BATCH)]
    try:
        placed(network, machine.device)
        with closing(batches), torch.no_grad(), evaluating(network):
            for _ in track(range(len(sizes)), "features of the starting network"):
                network(data.preprocessing.normalised(next(batches).to(machine.device)))
    finally:
        hook.remove()
        network.to(home)
    if [tuple(piece.shape) for piece in found] != [(n, layer.weight.shape[1]) for n in sizes]:
        return None
    return torch.cat(found)


def _batch(part: Part, data: ImageData, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images and labels of one random batch: one class alone has other statistics than all."""
    by_lot = torch.randperm(len(part), generator=generator(seed, "batch of the probe"))
    few = part.subset(by_lot[:_BATCH].tolist())
    with closing(evaluation_images(few, data.preprocessing, batch=_BATCH)) as batches:
        images = data.preprocessing.normalised(next(batches).to(device))
    return images, few.labels.to(device)


@torch.no_grad()
def _loss_in_training(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Cross-entropy of a copy of `network` in training mode on one batch, nats per image."""
    copied = placed(copy.deepcopy(network), images.device).train()
    with seeded_globals(0):  # a network's own dropout
        logits = copied(images)
    logits = logits[0] if isinstance(logits, tuple) else logits
    return float(F.cross_entropy(logits, labels))


def logistic_regression(
    features: Tensor,  # (images, features)
    labels: Tensor,  # int64 (images,)
    classes: int,
    penalty: float,
) -> tuple[Tensor, Tensor]:  # (classes, features), (classes,)
    """Weight and bias that minimise mean cross-entropy + penalty x squared weights.

    The penalty is on the weights for features centred and divided by the deviation of all their
    values, so that the scale of the features does not matter.
    """
    mean, deviation = features.mean(0), features.std().clamp_min(1e-12)
    scaled = (features - mean) / deviation
    weight = scaled.new_zeros(classes, scaled.shape[1]).requires_grad_()
    bias = scaled.new_zeros(classes).requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_TURNS,
        tolerance_grad=1e-6,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(F.linear(scaled, weight, bias), labels)
        value = value + penalty * weight.square().sum()
        value.backward()
        return value

    for _ in track(range(_ROUNDS), "starting classifier"):  # once it is there, they cost nothing
        solver.step(loss)
    weight, bias = weight.detach() / deviation, bias.detach()
    return weight, bias - weight @ mean


def _some(part: Part, classes: int, seed: int) -> Part:
    """All images, or `MOST` random ones, and one of each class that they lack."""
    if len(part) <= MOST:
        return part
    shuffled = torch.randperm(len(part), generator=generator(seed, "probe"))
    chosen, others = shuffled[:MOST].tolist(), shuffled[MOST:].tolist()
    missing = set(range(classes)) - set(part.labels[chosen].tolist())
    for index in others:
        label = int(part.labels[index])
        if label in missing:
            missing.remove(label)
            chosen.append(index)
    return part.subset(sorted(chosen))
