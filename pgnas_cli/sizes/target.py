"""Target sizes and budgets, read from text such as "60%", "10M" or "4ms"."""

from dataclasses import dataclass

import torch
from torch import nn

from ..errors import PgnasError
from ..fields import check_choice, check_range, check_types, one_given
from ..gates import gates
from ..progress import note
from ..units import UNITS, named_sizes, parsed_size, percent
from .exact import KINDS
from .expected import ExpectedSize


@dataclass(frozen=True)
class Target:
    """A wanted size of the candidates: their mean in a fit, a limit when they are drawn."""

    kind: str  # a key of `KINDS`
    share: float  # of the whole network, in (0, 1)

    def __post_init__(self) -> None:
        check_types(self)
        check_choice("kind", self.kind, KINDS)
        check_range("share", self.share, 0, 1, open=True)

    def __str__(self) -> str:
        return f"{100 * self.share:.4g} % of the {KINDS[self.kind][0]}"

    @property
    def label(self) -> str:
        """As names of files have it: params-60."""
        return f"{self.kind}-{100 * self.share:.4g}"

    @property
    def option(self) -> str:
        """The option of `sample` and `export` that names it."""
        return f"`max_{self.kind}` {100 * self.share:.4g}%"


def target_of(network: nn.Module, **wanted: str | None) -> Target | None:
    """The target that one of `wanted` names: params="60%", or macs="2G".

    Raises PgnasError where two are given, for text that is not a size below the whole network's,
    and for sizes that closing nearly every gate would not reach.
    """
    given = one_given("target", wanted)
    if given is None:
        return None
    kind, text = given
    target = Target(kind, _share_of(text, network, kind, f"`target_{kind}`"))
    nearly_closed = torch.full((len(gates(network).groups),), 0.99)
    least = float(ExpectedSize(network).shares(nearly_closed)[kind])
    if kind == "time":
        note(f"time: with 99 % of the gates closed {percent(least)} of it would be left")
    if target.share < least:
        raise PgnasError(
            f"`target_{kind}` {text} is out of reach; with 99 % of the gates closed {least:.0%} are"
            " left; choose a larger size, or more gates with `gates` all"
        )
    return target


def budgets_of(network: nn.Module, **wanted: str | None) -> tuple[Target, ...]:
    """The sizes that candidates may have at most: params="60%", or macs="80%,60%,2G"; none: ()."""
    kind, texts = named_sizes(**wanted)
    found: list[Target] = []
    for one in texts:
        budget = Target(kind, _share_of(one, network, kind, f"`max_{kind}`"))
        if any(budget.label == other.label for other in found):  # they would share a file
            raise PgnasError(f"`max_{kind}` names {one.strip()} twice")
        found.append(budget)
    return tuple(found)


def _share_of(text: str, network: nn.Module, kind: str, option: str) -> float:
    """Share of the whole network's size that "60%", "10M", "250000" or "4ms" names."""
    whole = KINDS[kind][1](network)
    number, unit = parsed_size(text, option, kind)
    if not whole:
        raise PgnasError(f"{option} {text}: nothing is known of time here; fit with `target_time`")
    size = number / 100 * whole if unit == "%" else number * UNITS[kind][unit]
    if not 0 < size < whole:
        has = f"takes {whole / 1e6:.3g} ms" if kind == "time" else f"has {whole}"
        raise PgnasError(
            f"{option} {text} is out of range; the whole network {has}: possible are sizes"
            " above 0 and below that"
        )
    return size / whole
