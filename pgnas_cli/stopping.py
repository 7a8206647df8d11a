"""SIGINT and SIGTERM as a request that long work looks at between two steps."""

import signal
from types import TracebackType


class StopRequest:
    """Context in which SIGINT and SIGTERM set `asked`; a second one interrupts at once."""

    def __enter__(self) -> "StopRequest":
        self.asked = False
        self.before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        for number in self.before:
            signal.signal(number, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, old in self.before.items():
            signal.signal(number, old)

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
