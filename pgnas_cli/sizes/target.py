"""Target sizes and budgets, read from text such as "60%" or "10M"."""

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn

from ..errors import PgnasError
from ..gates import gates
from .exact import parameter_count, whole_macs
from .expected import ExpectedSize


@dataclass(frozen=True)
class Target:
    """A wanted mean size of the candidates."""

    kind: Literal["params", "macs"]  # params: the file's count
    share: float  # of the whole network, in (0, 1)

    def __str__(self) -> str:
        what = {"params": "parameters", "macs": "multiply-adds"}[self.kind]
        return f"{100 * self.share:.4g} % of the {what}"


def target_of(
    network: nn.Module, params: str | None = None, macs: str | None = None
) -> Target | None:
    """The target that "60%" or "10M" names, of parameters or of multiply-adds.

    Raises PgnasError where both are given, for what is no size below the whole network's, and for
    sizes that closing nearly every gate would not reach.
    """
    if params and macs:
        raise PgnasError("--target-params and --target-macs cannot both be met; give one")
    text, kind, whole = params, "params", parameter_count(network)
    if macs:
        text, kind, whole = macs, "macs", whole_macs(network)
    if not text:
        return None
    share = size_of(text, whole, f"--target-{kind}") / whole
    least = least_share(network, kind)
    if share < least:
        raise PgnasError(
            f"--target-{kind} {text} is out of reach; with 99 % of the gates closed {least:.0%} are"
            " left; aim higher, or add gates with --gates all"
        )
    return Target(cast(Any, kind), share)


def budgets_of(
    network: nn.Module, params: str | None = None, macs: str | None = None
) -> tuple[Target, ...]:
    """The sizes that candidates may have at most, from "60%" or "80%,60%,10M"; none: ()."""
    if params and macs:
        raise PgnasError("--max-params and --max-macs cannot both be kept; give one")
    text, kind, whole = params, "params", parameter_count(network)
    if macs:
        text, kind, whole = macs, "macs", whole_macs(network)
    found = []
    for one in (text or "").split(",") if text else ():
        budget = Target(cast(Any, kind), size_of(one, whole, f"--max-{kind}") / whole)
        if budget in found:
            raise PgnasError(f"--max-{kind} names {one.strip()} twice")
        found.append(budget)
    return tuple(found)


def least_share(network: nn.Module, kind: str) -> float:
    """What is left of the whole network's size where 99 % of the gates are closed."""
    nearly_closed = torch.full((len(gates(network).groups),), 0.99)
    return float(ExpectedSize(network).shares(nearly_closed)[kind])


UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}


def size_of(text: str, whole: int, option: str) -> float:
    """A size in numbers from "60%", "10M" or "250000"; `whole` is the whole network's.

    Raises PgnasError, naming `option`, where it is none or not below the whole.
    """
    given = text.strip()
    unit = given[-1:].upper() if given[-1:].isalpha() else ""
    try:
        if given.endswith("%"):
            size = float(given[:-1]) / 100 * whole
        else:
            size = float(given.removesuffix(given[-1:]) if unit else given) * UNITS[unit]
    except (ValueError, KeyError):
        raise PgnasError(
            f"{option} '{text}' is no size; possible: a share (60%) or a number (250000, 10M, 2G)"
        ) from None
    if not 0 < size < whole:
        raise PgnasError(
            f"{option} {text} is out of range; the whole network has {whole}: possible are sizes"
            " above 0 and below that"
        )
    return size
