"""The one exception whose text is meant for the user, and commands to type next."""

import shlex


class PgnasError(Exception):
    """Something the user can put right: what was found, what is possible, what to do next.

    The command line prints the text as one line and ends with status 1; nothing else in the
    package is caught and reworded. What would be our own mistake is an `assert` instead.
    """


class Interrupted(PgnasError):
    """The user stopped a fit, and its state is saved; the command ends with status 130."""


def one_line(error: Exception) -> str:
    """What a library's exception says, short enough for a message."""
    return " ".join(str(error).split())[:200]


def command(*words: object) -> str:
    """A command of pgnas as it can be typed, paths with spaces in quotes."""
    return shlex.join(["pgnas", *map(str, words)])
