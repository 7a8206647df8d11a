"""Progress of long work."""

from collections.abc import Callable, Iterable, Sequence

# Wraps a loop that takes long, with a word on what it does, to show progress.
Track = Callable[[Sequence[int], str], Iterable[int]]


def untracked(items: Sequence[int], what: str) -> Iterable[int]:
    """No progress to be shown."""
    return items
