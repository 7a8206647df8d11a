"""Start a new classifier at what the network's features say of the classes already: a linear probe.

A pretrained network meets new classes with a new head. Left random, its noise goes back into every
layer while it learns, and the features are worse for it on images that nobody has seen (Kumar et
al., ICLR 2022: Fine-Tuning can Distort Pretrained Features). So the head begins as the logistic
regression of the classes on the features of the starting network, one pass over the images.
"""

from contextlib import closing
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import ImageData, Part, Track, untracked
from .loading import evaluation_images, placed
from .randomness import generator

PENALTY = 0.03  # on squared weights, for features of unit variance; chosen in docs/log.md
MOST = 10_000  # images: beyond, a linear map of features gains little
_BATCH = 64
_ROUNDS, _TURNS = 10, 20  # of the solver


def probe_(
    network: nn.Module,
    head: str,  # its classifier
    data: ImageData,
    *,
    device: torch.device,
    seed: int,
    workers: int,
    track: Track,
) -> float | None:
    """Fit the classifier `head` to the features of `network`, in place.

    Returns the share of held-out images that it gets wrong; None, and the head as it was, where it
    is no linear layer that is called once with (batch, features), all of them finite.
    """
    layer = network.get_submodule(head)
    if not isinstance(layer, nn.Linear):
        return None
    read = partial(_features, network, layer, data, device=device, workers=workers, track=track)
    part = _some(data.fit, seed)
    features = read(part)
    if features is None or not bool(torch.isfinite(features).all()):
        return None
    weight, bias = logistic_regression(
        features.double(), part.labels, len(data.classes), PENALTY, track=track
    )
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(bias)
    held_out = read(data.held_out)
    assert held_out is not None
    wrong = (held_out.double() @ weight.T + bias).argmax(1) != data.held_out.labels
    return float(wrong.double().mean())


def _features(
    network: nn.Module,
    layer: nn.Linear,
    data: ImageData,
    part: Part,
    *,
    device: torch.device,
    workers: int,
    track: Track,
) -> Tensor | None:  # float32 (images, features)
    """What `layer` reads of each image of `part`, not augmented; None for other shapes."""
    found: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].cpu()))
    training, home = network.training, layer.weight.device
    placed(network, device).eval()
    batches = evaluation_images(part, data.preprocessing, batch=_BATCH, workers=workers)
    sizes = [min(_BATCH, len(part) - first) for first in range(0, len(part), _BATCH)]
    try:
        with closing(batches), torch.no_grad():
            for _ in track(range(len(sizes)), "features of the starting network"):
                network(data.preprocessing.normalised(next(batches).to(device)))
    finally:
        hook.remove()
        network.to(home).train(training)  # it has yet to be traced there
    if [tuple(piece.shape) for piece in found] != [(n, layer.in_features) for n in sizes]:
        return None
    return torch.cat(found)


def logistic_regression(
    features: Tensor,  # float64 (images, features)
    labels: Tensor,  # int64 (images,)
    classes: int,
    penalty: float,
    *,
    track: Track = untracked,
) -> tuple[Tensor, Tensor]:  # float64 (classes, features), (classes,)
    """Weight and bias that minimise mean cross-entropy + penalty x squared weights.

    The penalty is on the weights for features centred and divided by their common deviation, so
    that it means the same for every network.
    """
    mean, deviation = features.mean(0), features.std().clamp_min(1e-12)
    scaled = (features - mean) / deviation
    weight = scaled.new_zeros(classes, scaled.shape[1]).requires_grad_()
    bias = scaled.new_zeros(classes).requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=_TURNS, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
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


def _some(part: Part, seed: int) -> Part:
    """All images, or `MOST` of them by lot."""
    if len(part) <= MOST:
        return part
    chosen = torch.randperm(len(part), generator=generator(seed, "probe"))[:MOST]
    return part.subset(chosen.sort().values.tolist())
