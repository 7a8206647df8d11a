"""The one exception whose text is meant for the user."""


class PgnasError(Exception):
    """Something the user can put right: what was found, what is possible, what to do next.

    The command line prints the text as one line and ends with status 1; nothing else in the
    package is caught and reworded. What would be our own mistake is an `assert` instead.
    """


class Interrupted(PgnasError):
    """The user stopped long work, and its state is saved; status 128 + the signal's number."""

    def __init__(self, text: str, number: int = 2) -> None:
        super().__init__(text)
        self.number = number


def one_line(error: Exception) -> str:
    """What a library's exception says, short enough for a message."""
    return " ".join(str(error).split())[:200]
