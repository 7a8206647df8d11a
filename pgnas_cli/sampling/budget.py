"""Candidates within a budget that is named after the fit.

The learned posterior p is tilted by what each group costs:

    logit q_g = logit p_g + price x cost_g,    cost_g = -d size / d p_g, per gate of the group

with the price at which the expected size is the wanted one. Among all posteriors that drop as much,
weighed by these costs, q is the one nearest to p (least Kullback-Leibler divergence). The costs are
those at p: recomputed at q they would fall on the layer that is about to close, and close it.

Draws are counted exactly; those above the budget are left out, and where it binds also those that
use less than 97 % of it.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..errors import PgnasError
from ..gates import gates, hard_keep, per_gate
from ..progress import note, task
from ..seeds import generator
from ..sizes import KINDS, ExpectedSize, Sizes, Target, count, joined
from ..units import percent

USED = 0.97  # least share of a budget that binds
TRIAL = 256  # draws by which the tilt is set
FEW = 32  # draws by which the smallest size is looked for
BLOCK = 64  # draws that are counted at a time
HALVINGS = 20  # of the price: a mean over `TRIAL` draws has coarser steps
DEAREST = 1e12  # price beyond which nothing changes any more
FUTILE = 200  # draws for one candidate within the budget, after which none is looked for


def bisected(
    falling: Callable[[float], float], goal: float, low: float, high: float, turns: int
) -> tuple[float, float]:
    """Halve [low, high] `turns` times towards where `falling` comes down to `goal`."""
    for _ in range(turns):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > goal else (low, middle)
    return low, high


def movable_logits(drop_probability: Tensor) -> Tensor:
    """Logits of p (groups,), float64: finite, so that they can be shifted, but where p is 1.

    What a p of exactly 1 closes was cut while training, and stays closed.
    """
    p = drop_probability.detach().double().cpu()
    return p.clamp(1e-9, 1 - 1e-9).logit().masked_fill(p == 1, torch.inf)


class Tilt:
    """The learned posterior of a network, tilted by what its groups cost in one unit."""

    def __init__(self, network: nn.Module, drop_probability: Tensor, kind: str, seed: int) -> None:
        bank = gates(network)
        self.network, self.kind = network, kind
        self.size = ExpectedSize(network)
        learned = drop_probability.detach().double().cpu().clamp(1e-9, 1 - 1e-9).requires_grad_()
        share = self.size.shares(learned)[kind]
        (slope,) = torch.autograd.grad(share, learned)
        self.logits = movable_logits(drop_probability)
        self.never = drop_probability.detach().cpu() == 0
        self.costs = -slope / bank.channels.double().cpu()
        self.group = bank.group.cpu()
        self.whole = KINDS[kind][1](network)
        self.noise = torch.rand(TRIAL, bank.count, generator=generator(seed, "tilt"))

    def at(self, price: float) -> Tensor:
        """Drop probabilities at a price, (groups,), float64."""
        tilted = torch.sigmoid(self.logits + price * self.costs)
        return tilted if price else tilted.masked_fill(self.never, 0.0)

    def counted(self, price: float, draws: int = TRIAL) -> Tensor:
        """Shares of the whole network's size of so many draws at a price, float64 (draws,)."""
        keep = self.noise[:draws] >= self.at(price).float()[self.group]
        return getattr(count(self.network, keep), self.kind).double() / self.whole  # type: ignore[no-any-return]

    def expected(self, price: float) -> float:
        """The expected share of the whole network's size at a price."""
        with torch.no_grad():
            return float(self.size.shares(self.at(price))[self.kind])

    def to(self, share: float, mean: Callable[[float], float]) -> float:
        """The price, 0 or more, at which `mean` of the price, falling, comes down to `share`."""
        if mean(0.0) <= share:
            return 0.0
        high = 1.0
        while mean(high) > share and high < DEAREST:
            high *= 2
        return bisected(mean, share, 0.0, high, HALVINGS)[1]

    def reach(self) -> float:
        """About the smallest share that draws have before layers close for all of them.

        Where a whole layer closes, everything before it is gone as well: sizes jump to nothing.
        """
        none = torch.zeros(1, len(self.group), dtype=torch.bool)
        dead = 1.2 * float(getattr(count(self.network, none), self.kind)) / self.whole

        def closed(price: float) -> bool:
            return float((self.counted(price, FEW) <= dead).double().mean()) > 0.1

        low, high = 0.0, 1.0
        with task("how small candidates can be"):
            while high < DEAREST and not closed(high):
                low, high = high, 4 * high
            for _ in range(6 if high < DEAREST else 0):
                middle = math.sqrt(max(low, high / 4**4) * high)
                low, high = (low, middle) if closed(middle) else (middle, high)
            found = self.counted(low)
        alive = found[found > dead]
        return float((alive if len(alive) else found).quantile(0.05))


def draw_within(
    network: nn.Module, drop_probability: Tensor, budget: Target, candidates: int, seed: int
) -> tuple[Tensor, Sizes]:  # keep, bool (candidates, gates), and what they cost
    """Draw `candidates` that have at most the budget, from the posterior tilted towards it.

    The i-th is the same for every number of candidates. Raises PgnasError for a budget that hardly
    any draw meets.
    """
    blocks = drawn_within(network, drop_probability, budget, candidates, seed)
    kept, parts = zip(*blocks, strict=True)
    return torch.cat(kept), joined(parts)


def drawn_within(
    network: nn.Module, drop_probability: Tensor, budget: Target, candidates: int, seed: int
) -> Iterator[tuple[Tensor, Sizes]]:
    """The same, some at a time."""
    tilt = Tilt(network, drop_probability, budget.kind, seed)
    most = int(budget.share * tilt.whole + 1e-6)
    wanted = most / tilt.whole
    binds = float(tilt.counted(0.0).mean()) > wanted
    price = 0.0
    if binds:
        price = tilt.to((1 + USED) / 2 * wanted, lambda p: float(tilt.counted(p).median()))
    probability = tilt.at(price)
    lowest = USED * most if binds else 0
    drop = per_gate(network, probability.float())
    found, drawn = 0, 0
    while found < candidates:
        rows = torch.stack([
            hard_keep(drop, generator=generator(seed, f"within {budget}", drawn + row))
            for row in range(BLOCK)
        ])  # fmt: skip
        drawn += BLOCK
        counted = count(network, rows)
        cost = getattr(counted, budget.kind)
        within = ((lowest <= cost) & (cost <= most)).nonzero()[: candidates - found, 0]
        yield rows[within], counted.part(within)
        found += len(within)
        if drawn > FUTILE * max(BLOCK, found):
            sizes = tilt.counted(price)
            raise PgnasError(
                f"no candidates of {budget.option}: the draws nearest to it have"
                f" {100 * float(sizes.min()):.3g} to {100 * float(sizes.max()):.3g} %; name another"
                " budget, or fit with a target of that size"
            )


def check_reach(
    network: nn.Module, drop_probability: Tensor, budgets: Sequence[Target], seed: int
) -> None:
    """Say what sizes draws can reach; raises PgnasError for budgets below that."""
    least = {}
    for kind in dict.fromkeys(budget.kind for budget in budgets):
        what = KINDS[kind][0]
        tilt = Tilt(network, drop_probability, kind, seed)
        least[kind] = tilt.reach()
        note(
            f"{what}: the posterior's own mean is {percent(tilt.expected(0.0))}, draws reach down"
            f" to about {percent(least[kind])}"
        )
    for budget in budgets:
        if budget.share < 0.9 * least[budget.kind]:
            raise PgnasError(
                f"{budget.option} is out of reach; draws of this posterior go down to about"
                f" {100 * least[budget.kind]:.3g} %; fit with a target of that size"
            )
