"""Numbers as people read and write them."""

import string

from .errors import PgnasError
from .fields import one_given

_COUNTS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}
# Of a size that text names, by its kind; time in nanoseconds.
UNITS = {"params": _COUNTS, "macs": _COUNTS, "time": {"ms": 1e6, "us": 1e3}}


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def p_text(p: float) -> str:
    """A p-value in three digits."""
    return f"p = {p:.3f}" if p >= 0.0005 else "p < 0.001"


def duration(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e6:.3g} ms"


def large(number: float) -> str:
    """Three or four digits with K, M or G."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if number >= limit:
            return f"{number / limit:.4g} {unit}"
    return f"{number:.4g}"


def pace(number: float) -> str:
    """Images a second: three digits, or all of a whole number, 1,012."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def named_sizes(**wanted: str | None) -> tuple[str, list[str]]:
    """Kind and texts of the sizes at most: params="80%,60%" gives "params", ["80%", "60%"].

    No texts where none is wanted. Raises PgnasError for sizes of two kinds, and for a text that is
    not a size.
    """
    kind, text = one_given("max", wanted) or ("params", "")
    texts = text.split(",") if text else []
    for one in texts:
        parsed_size(one, f"`max_{kind}`", kind)
    return kind, texts


_COUNTED = {"params": "parameters", "macs": "MACs"}


def parsed_size(text: str, option: str, kind: str = "params") -> tuple[float, str]:
    """Number and unit of a size, "%" or one of the kind's `UNITS`.

    Raises PgnasError, naming `option`, where `text` is not a size, and for 60 and 0.6, where 60%
    was meant.
    """
    given, units = text.strip(), UNITS[kind]
    number = given.rstrip("%" + string.ascii_letters)
    unit = given[len(number) :]
    unit = unit.lower() if kind == "time" else unit.upper()
    try:
        found = float(number)
        if not unit and 0 < found < 1:
            raise PgnasError(f"{option} {given} has no unit; did you mean {100 * found:g}%?")
        if unit != "%" and unit not in units:
            raise ValueError(unit)
        if not unit and 1 <= found <= 100:
            raise PgnasError(
                f"{option} {given} is {given} {_COUNTED[kind]}, smaller than any network; did you"
                f" mean {given}%?"
            )
    except ValueError:
        example = "a time (4ms)" if kind == "time" else "a number (250000, 10M)"
        raise PgnasError(
            f"{option} '{text}' is not a size; possible: a share (60%) or {example}"
        ) from None
    return found, unit
