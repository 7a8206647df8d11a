"""Options: fields of records with default, help, range and flags in one place; arguments.

A field made by `option` is an option of every command that takes its record (`cli.options.takes`),
is checked by `check_fields`, and enters the files of a run as it stands. A type hint says what a
field takes, and what an argument of a public function takes (`checked_call`).
"""

import contextlib
import dataclasses
import difflib
import functools
import inspect
import math
import operator
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

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
    """Raise PgnasError for the first field of `record` out of range, of another type or choice."""
    told = [(f.metadata, f.name, getattr(record, f.name)) for f in dataclasses.fields(record)]
    for about, name, value in told:
        if about and about["least"] is not None:
            for number in value if isinstance(value, tuple) else (value,):
                if _is_a(float, number):
                    check_range(name, number, about["least"], about["most"])
    check_types(record)
    for about, name, value in told:
        if about and about["choices"]:
            check_choice(name, value, about["choices"])


def check_types(record: Any) -> None:
    """Raise PgnasError for the first field of `record` that its type hint does not allow."""
    for name, hint in get_type_hints(type(record)).items():
        if not _is_a(hint, getattr(record, name)):
            raise _not_known(name, hint, getattr(record, name))


def one_given(prefix: str, wanted: Mapping[str, str | None]) -> tuple[str, str] | None:
    """The one of `wanted` that has a text, and the text; None where none has.

    Raises PgnasError for two, whose names are `prefix`_key.
    """
    found = [(key, text) for key, text in wanted.items() if text]
    if len(found) > 1:
        names = " and ".join(f"`{prefix}_{key}`" for key, _ in found)
        raise PgnasError(f"{names} are mutually exclusive; give one")
    return found[0] if found else None


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
        shown = near or [*known[:5], "..."]
        raise PgnasError(f"`{name}` '{value}' is not known; possible: {', '.join(shown)}")


# --- types -----------------------------------------------------------------------------------


def parsed(record: type, name: str, value: Any) -> Any:
    """The value of a field from what a user gives: text, a path, a number; see `taken`."""
    return taken(name, get_type_hints(record)[name], value)


def taken(name: str, hint: Any, value: Any) -> Any:
    """`value` as the type hint has it.

    Paths and numbers become text, text a path or number, "auto" None where a number may be None,
    "30,60" a tuple of whole numbers. Raises PgnasError for what has no such meaning.
    """
    kinds = kinds_of(hint)
    if _is_a(hint, value) and not (type(value) is int and float in kinds):  # 1 becomes 1.0
        return value
    found = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(found, str) and found == "auto" and {float, type(None)} <= set(kinds):
        return None
    with contextlib.suppress(ValueError, TypeError):
        if get_origin(hint) is tuple:
            parts = found.split(",") if isinstance(found, str) else found
            one = get_args(hint)[0]
            found = tuple(one(part) if isinstance(part, str) else part for part in parts)
        elif isinstance(found, str):
            found = Path(found) if Path in kinds else float(found) if float in kinds else found
        elif not isinstance(found, bool) and {int, float} & set(kinds):  # of numpy, say
            found = operator.index(found) if int in kinds else float(found)
        elif str in kinds and type(found) in (int, float):
            found = str(found)
    if _is_a(hint, found):
        return found
    raise _not_known(name, hint, value)


def checked_call(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, its arguments `taken` as its type hints say: a wrong one is a PgnasError."""
    signature, hints = inspect.signature(function), get_type_hints(function)

    @functools.wraps(function)
    def called(*given: Any, **named: Any) -> Any:
        try:
            bound = signature.bind(*given, **named)
        except TypeError as error:
            possible = ", ".join(f"`{name}`" for name in signature.parameters)
            raise PgnasError(f"{function.__name__}: {error}; possible: {possible}") from None
        for name, value in bound.arguments.items():
            bound.arguments[name] = taken(name, hints.get(name, Any), value)
            if dataclasses.is_dataclass(value):
                check_types(value)
        return function(*bound.args, **bound.kwargs)

    return called


def kinds_of(hint: Any) -> tuple[Any, ...]:
    """The types that a union allows; the type alone where it is none."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is_a(hint: Any, value: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if len(kinds := kinds_of(hint)) > 1:
        return any(_is_a(kind, value) for kind in kinds)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        if type(value) is not tuple:
            return False
        inner = arguments[:1] * len(value) if ... in arguments else arguments
        return len(value) == len(inner) and all(map(_is_a, inner, value))
    if origin is Sequence:
        listed = isinstance(value, list | tuple) and len(value) > 0
        return listed and all(_is_a(arguments[0], one) for one in value)
    if hint is float:
        return type(value) in (int, float)
    if hint in (int, str, bool):
        return type(value) is hint
    return hint is Any or isinstance(value, origin or hint)


_WORDS = {
    int: "a whole number", float: "a number", str: "text", bool: "True or False", Path: "a path",
    Sequence: "a list of at least one", dict: "a dict",
}  # fmt: skip


def _not_known(name: str, hint: Any, value: Any) -> PgnasError:
    words: list[str] = []
    for kind in kinds_of(hint):
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is Literal:
            words += arguments
        elif origin is tuple:
            numbers = "numbers" if float in arguments else "whole numbers"
            several = f"{numbers}, say 30,60"
            words.append(several if ... in arguments else f"{len(arguments)} {numbers}")
        elif kind is type(None):
            words.append("auto" if float in kinds_of(hint) else "None")
        else:
            words.append(_WORDS.get(origin or kind) or kind.__name__)
    possible = ", or ".join([", ".join(words[:-1])] * (len(words) > 1) + words[-1:])
    text = " ".join(str(value).split())
    shown = text if len(text) <= 60 else type(value).__name__
    return PgnasError(f"`{name}` '{shown}' is not known; possible: {possible}")
