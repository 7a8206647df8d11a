"""When unfinished work is saved, and what becomes of a save that fails."""

import time
from collections.abc import Callable

from ..errors import PgnasError
from ..progress import note


class Saving:
    """Saves on the way: as often as they are cheap, and a failed one is no end."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds  # between two; None: by what one takes
        self.warned = False
        self._wait(0.0)

    def due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() >= self.at

    def __call__(self, write: Callable[[], None]) -> None:
        """Write now; what fails, on a full disk say, is said once and tried again."""
        began = time.monotonic()
        try:
            write()
        except PgnasError as error:
            if not self.warned:
                note(f"warning: not saved, and tried again: {error}")
            self.warned = True
        else:
            self.warned = False
        self._wait(time.monotonic() - began)

    def _wait(self, took: float) -> None:
        self.at = time.monotonic() + (interval(took) if self.seconds is None else self.seconds)


def seconds_of(minutes: float | None) -> float | None:
    """The option of the user, for `Saving`."""
    return None if minutes is None else 60 * minutes


def interval(took: float) -> float:
    """Seconds until the next save, from those that one took: less than 2 % of the time is spent.

    A second at least; a minute at most, unless it takes longer than 2 % of that.
    """
    return max(1.0, min(60.0, 100 * took), 50 * took)
