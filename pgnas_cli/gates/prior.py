"""Divergence of the posterior from its prior (Eq. 15): what kept weights pay, less the entropy."""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..graph import OperationGate
from .supernet import gates


@dataclass(frozen=True)
class Prior:
    """The prior on kernel slices, as the objective needs it (Eq. 15)."""

    l2: float  # the paper's prior strength (Table 4), in the released convention (c = 1)
    images: float  # N
    constant: bool = False  # the l2 term does not know p: the ablation of Table 2

    def weight_decay(self, drop_probability: float = 0.0) -> float:
        """The weight decay that pulls as this prior does, on a weight dropped with p."""
        return 2 * self.l2 * (1 - drop_probability) / self.images

    def divergence(self, network: nn.Module) -> Tensor:  # (), nats per image
        """The prior's part of the loss, differentiable."""
        return self._of(network, squared_norms(network))

    def _of(self, network: nn.Module, sums: Tensor) -> Tensor:
        bank = gates(network)
        return kl_divergence(
            per_group(sums, network), bank.drop_logit, bank.channels, l2=self.l2,
            images=self.images, constant=self.constant,
        )  # fmt: skip

    def backward(self, network: nn.Module) -> Tensor:  # (), nats per image
        """Add the gradients of `divergence` to those of weights and drop logits; returns it.

        The gradient of a squared weight is known, and added in one pass: autograd takes four.
        """
        with torch.no_grad():
            sums = squared_norms(network)
        sums.requires_grad_()
        with torch.enable_grad():
            found = self._of(network, sums)
            found.backward()
        behind = weights_behind(network)
        if behind:
            of_inputs = 2 * cast(Tensor, sums.grad)[torch.cat([places for _, places in behind])]
            slopes = of_inputs.split([len(places) for _, places in behind])
            with torch.no_grad():
                for (weight, _), slope in zip(behind, slopes, strict=True):
                    if weight.grad is None:
                        weight.grad = torch.zeros_like(weight)
                    shaped = slope.view(1, -1, *[1] * (weight.dim() - 2)).to(weight.dtype)
                    weight.grad.addcmul_(weight, shaped)
        return found.detach()


def bernoulli_entropy(drop_logit: Tensor) -> Tensor:
    """-p ln p - (1-p) ln(1-p) in nats, elementwise, from the log-odds of p.

    Eq. 15 prints p log p alone; the full entropy is what Gal, Hron and Kendall (2017) derive.
    The form used here stays exact where p is so near 0 or 1 that 1 - p rounds.
    """
    finite = drop_logit.clamp(-1e4, 1e4)  # infinite where p is exactly 0 or 1
    return F.softplus(finite) - finite * torch.sigmoid(finite)


def weight_cost(
    squared_norm: Tensor,  # (groups,), sum of the squared weights behind the group's gates
    drop_logit: Tensor,  # (groups,)
    *,
    l2: float,  # the paper's prior strength (Table 4)
    constant: bool = False,
) -> Tensor:  # (groups,), nats
    """The weight term of Eq. 15: kept weights pay, dropped ones do not.

    The printed factor 1/2 is absent: the published values of l2 belong to the released code, which
    has none. `constant` is the ablation of Table 2, an ordinary l2 term that does not know p.
    """
    if constant:
        return l2 * squared_norm
    return l2 * torch.sigmoid(-drop_logit) * squared_norm


def kl_divergence(
    squared_norm: Tensor,  # (groups,)
    drop_logit: Tensor,  # (groups,)
    channels: Tensor,  # (groups,), gates in each group: K of Eq. 15
    *,
    l2: float,
    images: float,  # N: training images times the augmentation factor
    constant: bool = False,
) -> Tensor:  # (), nats per image, up to a constant
    """Divergence of the posterior from the prior, per image: what Eq. 15 adds to the loss."""
    cost = weight_cost(squared_norm, drop_logit, l2=l2, constant=constant)
    return (cost - channels * bernoulli_entropy(drop_logit)).sum() / images


def weights_behind(network: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """Weights (outputs, inputs, ...) of all layers with gates, and the gates of their inputs."""
    modules, bank = dict(network.named_modules()), gates(network)
    return [
        (cast(nn.Parameter, modules[name].weight), bank.places_of(name))
        for name in bank.spans
        if not isinstance(modules[name], OperationGate)
    ]


def squared_norms(network: nn.Module) -> Tensor:
    """Sum of the squared weights behind each gate, (gates,), differentiable."""
    modules, bank = dict(network.named_modules()), gates(network)
    costs = [
        (bank.drop_logit.new_full((1,), float(modules[name].cost)), bank.places_of(name))
        for name in bank.spans
        if isinstance(modules[name], OperationGate)
    ]
    found = [(_input_squares(weight), places) for weight, places in weights_behind(network)] + costs
    if not found:
        return bank.drop_logit.new_zeros(bank.count)
    sums = torch.cat([values for values, _ in found])
    places = torch.cat([places for _, places in found])
    return sums.new_zeros(bank.count).index_add(0, places, sums)


def _input_squares(weight: Tensor) -> Tensor:
    """(outputs, inputs, ...) -> (inputs,); rows of inputs lie side by side in channels-last."""
    if weight.is_cuda and not torch.is_grad_enabled():  # one kernel; slow on a CPU
        others = [axis for axis in range(weight.dim()) if axis != 1]
        norms: Tensor = torch.linalg.vector_norm(weight, dim=others)
        return norms.square()
    rows = weight.movedim(1, -1).reshape(-1, weight.shape[1])
    return (rows * rows).sum(0)


def per_group(values: Tensor, network: nn.Module) -> Tensor:
    """Sum of `values` (gates,) over each group, (groups,)."""
    bank = gates(network)
    return torch.zeros_like(bank.channels).index_add(0, bank.group, values)


def kl(network: nn.Module, *, l2: float, images: float, constant: bool = False) -> Tensor:
    """The divergence term of the loss for this network, (), nats per image (Eq. 15, c = 1)."""
    return Prior(l2, images, constant).divergence(network)
