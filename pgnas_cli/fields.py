"""Options as fields of records: default, help, range and flags in one place.

A field made by `option` is an option of every command that takes its record (`cli.options.takes`),
is checked by `check_fields`, and enters the files of a run as it stands.
"""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

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


def check_range(name: str, value: float, least: float, most: float) -> None:
    """Raise PgnasError unless `least` <= `value` <= `most`."""
    if not least <= value <= most:
        raise PgnasError(f"`{name}` {value:g} is out of range; possible: {least:g} to {most:g}")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise PgnasError, with the nearest choices, unless `value` is one of them."""
    known = list(choices)
    if value not in known:
        near = difflib.get_close_matches(value, known, n=3) if len(known) > 8 else known
        raise PgnasError(
            f"`{name}` '{value}' is not known; possible: {', '.join(near) or known[0]}"
        )
