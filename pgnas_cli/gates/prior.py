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
        """The prior's part of the loss."""
        return kl(network, l2=self.l2, images=self.images, constant=self.constant)


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


def squared_norms(network: nn.Module) -> Tensor:
    """Sum of the squared weights behind each gate, (gates,), differentiable."""
    modules = dict(network.named_modules())
    total: list[Tensor] = []
    places: list[Tensor] = []
    bank = gates(network)
    for name in bank.spans:
        module = modules[name]
        places.append(bank.places_of(name))
        if isinstance(module, OperationGate):
            total.append(bank.drop_logit.new_tensor([module.cost]))
            continue
        weight = cast(Tensor, module.weight)
        total.append(weight.square().sum([a for a in range(weight.dim()) if a != 1]))
    if not total:
        return bank.drop_logit.new_zeros(bank.count)
    sums = torch.cat(total)
    return sums.new_zeros(bank.count).index_add(0, torch.cat(places), sums)


def per_group(values: Tensor, network: nn.Module) -> Tensor:
    """Sum of `values` (gates,) over each group, (groups,)."""
    bank = gates(network)
    return torch.zeros_like(bank.channels).index_add(0, bank.group, values)


def kl(network: nn.Module, *, l2: float, images: float, constant: bool = False) -> Tensor:
    """The divergence term of the loss for this network, (), nats per image (Eq. 15, c = 1)."""
    bank = gates(network)
    return kl_divergence(
        per_group(squared_norms(network), network),
        bank.drop_logit,
        bank.channels,
        l2=l2,
        images=images,
        constant=constant,
    )
