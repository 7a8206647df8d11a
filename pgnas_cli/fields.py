"""Options as fields of records: default, help, range and flags in one place.

A field made by `option` is an option of every command that takes its record (`cli.options.takes`),
is checked by `check_fields`, and enters the files of a run as it stands.
"""

import contextlib
import dataclasses
import difflib
import math
import os
from collections.abc import Iterable
from typing import Any, get_args, get_origin, get_type_hints

from .errors import PgnasError


def option(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: Iterable[str] = (),
    flags: tuple[str, ...] = (),  # on the command line; (): --its-name
    advanced: bool = False,  # in a help panel of its own
) -> Any:
    """A field with what the command line and the checks need to know of it."""
    about = {
        "help": help, "least": least, "most": most, "choices": tuple(choices), "flags": flags,
        "advanced": advanced,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=about)


def check_fields(record: Any) -> None:
    """Raise PgnasError for the first field of `record` that is out of its range or choices."""
    for field in dataclasses.fields(record):
        about, value = field.metadata, getattr(record, field.name)
        if value is None or not about:
            continue
        if about["choices"]:
            check_choice(field.name, value, about["choices"])
        elif about["least"] is not None:
            check_range(field.name, value, about["least"], about["most"])


def parsed(record: type, name: str, value: Any) -> Any:
    """The value of a field from what a user gives: text, a path, a number.

    "auto" is None where a field may be None, "30,60" a tuple of whole numbers. Raises PgnasError
    for a value of another type.
    """
    hint = get_type_hints(record)[name]
    kinds = get_args(hint) or (hint,)
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if value is None or (value == "auto" and float in kinds):
        return None
    with contextlib.suppress(ValueError, TypeError):
        if get_origin(hint) is tuple:
            parts = value.split(",") if isinstance(value, str) else value
            return tuple(kinds[0](part) for part in parts)
        if float in kinds:
            return float(value)
        if str in kinds and type(value) in (int, float):
            return str(value)
    if type(value) in kinds:
        return value
    wanted = {tuple: "whole numbers, say 30,60", float: "a number"}
    kind = get_origin(hint) if get_origin(hint) is tuple else kinds[0]
    auto = ", or auto" if float in kinds and type(None) in kinds else ""
    possible = wanted.get(kind, kind.__name__) + auto
    raise PgnasError(f"`{name}` '{value}' is not known; possible: {possible}")


def check_range(
    name: str, value: float, least: float, most: float = math.inf, *, open: bool = False
) -> None:
    """Raise PgnasError unless `least` <= `value` <= `most`; `open` leaves out the ends."""
    if not (least < value < most if open else least <= value <= most):
        possible = f"{least:g} to {most:g}" if most < math.inf else f"{least:g} or more"
        if open:
            possible = f"above {least:g}" + (f" and below {most:g}" if most < math.inf else "")
        raise PgnasError(f"`{name}` {value:g} is out of range; possible: {possible}")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise PgnasError, with the nearest choices, unless `value` is one of them."""
    known = list(choices)
    if value not in known:
        near = difflib.get_close_matches(value, known, n=3) if len(known) > 8 else known
        raise PgnasError(
            f"`{name}` '{value}' is not known; possible: {', '.join(near) or known[0]}"
        )
