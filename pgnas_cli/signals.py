"""SIGINT and SIGTERM: work that must be whole is finished first, and no request is ever lost."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal arrived while nothing was at stake; no library catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


_received = 0  # the signal that `stoppable` saw first


def received() -> int:
    """Number of the signal that arrived in `stoppable`, 0 for none."""
    return _received


@contextmanager
def stoppable() -> Iterator[None]:
    """Context in which a signal raises `Stopped`, for a command line as a whole.

    Where it is lost on the way, in a destructor say, the next `StopRequest` finds it.
    """
    global _received
    _received, owner = 0, os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        global _received
        if os.getpid() == owner:  # a worker that has just been forked leaves it to its parent
            _received = number
            raise Stopped(number)

    before = _install(stop)
    try:
        yield
    finally:
        _received = 0
        _restore(before)


class StopRequest:
    """Context in which SIGINT and SIGTERM set `asked`; a second one interrupts at once.

    A request that nobody has answered by an exception is passed on at the end. Within another one,
    it is the same request.
    """

    _outer: "StopRequest | None" = None

    def __init__(self) -> None:
        self.asked = 0  # number of the signal

    def __enter__(self) -> "StopRequest":
        if StopRequest._outer is not None or not _in_main_thread():
            self.before: dict[int, object] = {}
            return StopRequest._outer or self
        StopRequest._outer, self.asked = self, _received
        self.before = _install(self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if StopRequest._outer is not self:
            return
        StopRequest._outer = None
        _restore(self.before)
        if self.asked and kind is None:
            signal.raise_signal(self.asked)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked = number
            return
        again = self.before.get(number)
        if callable(again):
            again(number, frame)
        raise KeyboardInterrupt


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _install(handler: object) -> dict[int, object]:
    """Set the handler of both signals; returns the former ones, none outside the main thread."""
    if not _in_main_thread():
        return {}
    before: dict[int, object] = {number: signal.getsignal(number) for number in NUMBERS}
    for number in before:
        signal.signal(number, handler)  # type: ignore[arg-type]
    return before


def _restore(before: dict[int, object]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)  # type: ignore[arg-type]
