"""Candidates within a size that is named after the fit.

The learned posterior p is tilted by what each group costs:

    logit q_g = logit p_g + price x cost_g,    cost_g = -d size / d p_g, per gate of the group

with the price at which the expected size is the wanted one. Among all posteriors that drop as much,
weighed by these costs, q is the one nearest to p (least Kullback-Leibler divergence). The costs are
those at p: taken anew at q they fall on whatever layer is about to close, and close it.

Draws are counted exactly; those above the budget are left out, and where it binds also those that
use less than 97 % of it.
"""

from dataclasses import dataclass
from typing import cast

import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from .budget import ExpectedSize, Target, least_share
from .candidates import Sizes, count, joined, parameter_count, whole_macs
from .concrete import hard_keep
from .errors import PgnasError
from .randomness import generator
from .supernet import gates

USED = 0.97  # least share of a budget that binds
TRIAL = 256  # draws by which the tilt is set
BLOCK = 64  # draws that are counted at a time
FUTILE = 200  # draws for one candidate within the budget, after which none is looked for


def tilted(size: ExpectedSize, channels: Tensor, drop_probability: Tensor, aim: Target) -> Tensor:
    """Drop probabilities (groups,), float64, of the posterior tilted to the expected size `aim`.

    `channels` are the gates of each group. A posterior that is smaller already stays as it is.
    """
    learned = drop_probability.detach().double().cpu().clamp(1e-9, 1 - 1e-9).requires_grad_()
    share = size.shares(learned)[aim.kind]
    if float(share.detach()) <= aim.share:
        return learned.detach()
    (slope,) = torch.autograd.grad(share, learned)
    logits, costs = learned.detach().logit(), -slope / channels.double().cpu()

    def excess(price: float) -> float:
        with torch.no_grad():
            return float(size.shares(torch.sigmoid(logits + price * costs))[aim.kind]) - aim.share

    high = 1.0
    while excess(high) > 0:
        high *= 2
    return torch.sigmoid(logits + brentq(excess, 0.0, high, rtol=1e-9) * costs)


@dataclass(frozen=True)
class Within:
    """Candidates within one budget."""

    keep: Tensor  # bool (candidates, gates)
    sizes: Sizes
    drawn: int  # draws that it took


def draw_within(
    network: nn.Module, drop_probability: Tensor, budget: Target, candidates: int, seed: int
) -> Within:
    """Draw `candidates` that have at most the budget, from the posterior tilted towards it.

    The i-th is the same for every number of candidates. Raises PgnasError for a budget that the
    gates cannot reach.
    """
    name = f"--max-{budget.kind} {100 * budget.share:.3g}%"
    least = least_share(network, budget.kind)
    if budget.share < least:
        raise PgnasError(
            f"{name} is out of reach; with 99 % of the gates closed {100 * least:.3g} % are left"
        )
    whole = parameter_count(network) if budget.kind == "params" else whole_macs(network)
    most = int(budget.share * whole + 1e-6)
    probability, binds = _aimed(network, drop_probability.double().cpu(), budget, most, seed)
    lowest = USED * most if binds else 0
    per_gate = probability.float()[gates(network).group.cpu()]
    kept, parts = [], []
    found, drawn = 0, 0
    while found < candidates:
        rows = torch.stack([
            hard_keep(per_gate, generator=generator(seed, f"within {budget}", drawn + row))
            for row in range(BLOCK)
        ])  # fmt: skip
        drawn += BLOCK
        counted = count(network, rows)
        cost = getattr(counted, budget.kind)
        within = (lowest <= cost) & (cost <= most)
        kept.append(rows[within])
        parts.append(counted.part(within))
        found += int(within.sum())
        if drawn > FUTILE * max(BLOCK, found):
            raise PgnasError(
                f"{found} of {drawn} draws are within {name}; aim elsewhere, or fit with a target"
                " of that size"
            )
    return Within(torch.cat(kept)[:candidates], joined(parts).part(slice(candidates)), drawn)


def _aimed(
    network: nn.Module, learned: Tensor, budget: Target, most: int, seed: int
) -> tuple[Tensor, bool]:
    """Probabilities (groups,) whose counted draws lie amid what is accepted; and if they differ."""
    bank = gates(network)
    size = ExpectedSize(network)
    noise = torch.rand(TRIAL, bank.count, generator=generator(seed, "tilt"))
    group = bank.group.cpu()

    def mean(probability: Tensor) -> float:
        keep = noise >= probability.float()[group]
        return float(getattr(count(network, keep), budget.kind).double().mean()) / most

    if mean(learned) <= 1:
        return learned, False
    wanted, aim, probability = (1 + USED) / 2, budget.share, learned
    for _ in range(6):  # the expected size is an estimate
        aim *= wanted / (1.0 if probability is learned else mean(probability))
        probability = tilted(size, cast(Tensor, bank.channels), learned, Target(budget.kind, aim))
        if abs(mean(probability) - wanted) < 0.003:
            break
    return probability, True
