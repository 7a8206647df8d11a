"""Baselines: candidates as large as those of the posterior that owe it nothing but their size.

Gates of p = 1 stay closed in them: what those close was cut while training.
"""

import torch
from torch import Tensor, nn

from ..errors import PgnasError
from ..gates import drop_probabilities, gates, per_gate, remaining
from ..progress import note
from ..run import Run
from ..run.posterior import posterior_of
from ..seeds import generator
from ..sizes import count
from ..units import percent
from .budget import bisected, movable_logits

TWINS = 100  # draws among which the random baseline is looked for
NEAR = 0.02  # of its size, within which it counts as that large


def baseline_probabilities(
    network: nn.Module, drop_probability: Tensor, baseline: str, *, generator: torch.Generator
) -> Tensor:  # (groups,)
    """What to draw from to see what the posterior is worth, at the mean size of its own draws.

    "permuted" permutes the learned probabilities at random among groups: if its candidates do as
    well, the posterior taught nothing but how much to drop. "fixed" gives every group one rate.
    The drop logits are shifted together until the mean candidate is as large (the file's count).
    """
    learned = drop_probability.cpu()
    noise = torch.rand(64, gates(network).count, generator=generator)
    target = mean_params(network, learned, noise)
    if baseline == "permuted":
        start = permuted(learned, generator=generator)
    elif baseline == "fixed":
        start = torch.where(learned < 1, 0.5, learned)
    else:
        raise PgnasError(f"no baseline '{baseline}'; possible: permuted, fixed")
    return shifted_to_size(network, start, target, noise)


def fixed_rate(run: Run) -> float:
    """The one drop probability at which candidates are as large as those of `run`."""
    network, posterior = posterior_of(run)
    learned = drop_probabilities(network)
    noise = torch.rand(64, gates(network).count, generator=generator(posterior.seed, "fixed rate"))
    params = mean_params(network, learned, noise)
    return float(shifted_to_size(network, torch.full_like(learned, 0.5), params, noise)[0])


def permuted(learned: Tensor, *, generator: torch.Generator) -> Tensor:
    """The drop probabilities (groups,), permuted at random among those below 1."""
    below = (learned < 1).nonzero().flatten()
    dealt = learned.clone()
    dealt[below] = learned[below[torch.randperm(len(below), generator=generator)]]
    return dealt


def shifted_to_size(
    network: nn.Module,
    drop_probability: Tensor,  # (groups,)
    params: float,  # wanted mean of the file's count
    noise: Tensor,  # uniform (candidates, gates); the mean is over these draws
) -> Tensor:  # (groups,)
    """Add one number to all drop logits so that the mean candidate has `params` parameters.

    A p of 1 stays.
    """
    logits = movable_logits(drop_probability)

    def mean(shift: float) -> float:  # falling: a larger shift drops more
        return mean_params(network, torch.sigmoid(logits + shift), noise)

    low, high = bisected(mean, params, -40.0, 40.0, 24)
    return torch.sigmoid(logits + (low + high) / 2).float()


def mean_params(network: nn.Module, drop_probability: Tensor, noise: Tensor) -> float:
    """Mean of the file's count over the draws that `noise`, uniform (candidates, gates), makes."""
    keep = noise >= per_gate(network, drop_probability)
    return float(count(network, keep).params.double().mean())


def random_baseline(network: nn.Module, params: int, seed: int) -> Tensor:
    """A random candidate of `params` parameters: the learned probabilities, randomly permuted.

    Of each of `TWINS` draws the drop logits are shifted until it is as large, as far as its gates
    allow. The first within `NEAR` of the size is taken, else the nearest, which is said; errors are
    not looked at.
    """
    randomness = generator(seed, "twin")
    learned = drop_probabilities(network).cpu()
    noise = torch.rand(TWINS, gates(network).count, generator=randomness)
    logits = movable_logits(permuted(learned, generator=randomness))
    # A gate is dropped from its own shift on: the logit of its noise less that of its p.
    thresholds = noise.double().clamp(1e-15, 1 - 1e-15).logit() - per_gate(network, logits)
    order = thresholds.argsort(1)  # the first are dropped first
    low = (~remaining(network)).sum().cpu().expand(TWINS).clone()  # what stays closed
    high = torch.full((TWINS,), order.shape[1])
    rank = order.argsort(1)
    while bool((high - low > 1).any()):
        middle = (low + high) // 2
        larger = count(network, rank >= middle[:, None]).params > params
        low, high = torch.where(larger, middle, low), torch.where(larger, high, middle)
    keep = torch.cat([rank >= dropped[:, None] for dropped in (low, high)])
    sizes = count(network, keep).params
    off = (sizes - params).abs()
    near = (off <= NEAR * params).nonzero().flatten()
    found = int(near[0]) if len(near) else int(off.argmin())
    if size := other_size(int(sizes[found]), params):
        note(f"note: the random baseline has {size} than the best; no draw comes nearer")
    return keep[found]


def other_size(params: int, best: int) -> str:
    """By how much a random baseline is not as large as the best candidate; "" within `NEAR`."""
    off = abs(params - best)
    if off <= NEAR * best:
        return ""
    return f"{percent(off / best)} {'more' if params > best else 'fewer'} parameters"
