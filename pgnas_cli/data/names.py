"""Names of many files, in little memory."""

import os
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

_BLOCK = 2**14  # names whose bounds are Python's numbers at a time


def text_of(name: str) -> str:
    """A file name as text: composed Unicode, and escapes for bytes that are no UTF-8."""
    return name if name.isascii() else _text(os.fsencode(name))


def _text(name: bytes) -> str:
    decoded = name.decode("utf-8", "backslashreplace")
    return decoded if decoded.isascii() else unicodedata.normalize("NFC", decoded)


class Names(Sequence[str]):
    """File names in one run of bytes: 50 bytes or so for each, as text when they are read.

    A worker process shares the bytes, whether it is forked (no count of references is written to
    them) or spawned (tensors travel as shared memory).
    """

    def __init__(self, names: Iterable[str]) -> None:
        run, ends = bytearray(), array("q", [0])
        for name in names:
            run += os.fsencode(name)
            ends.append(len(run))
        self.run = torch.frombuffer(run or bytearray(1), dtype=torch.uint8)
        self.ends = torch.frombuffer(ends, dtype=torch.int64)
        self.places = torch.arange(len(ends) - 1)

    def take(self, places: Tensor) -> "Names":
        """The names at int64 positions `places`; the bytes are those of all."""
        taken = Names.__new__(Names)
        taken.run, taken.ends, taken.places = self.run, self.ends, self.places[places]
        return taken

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place):  # type: ignore[no-untyped-def]
        if isinstance(place, slice):
            return self.take(torch.arange(len(self))[place])
        return _text(self._bytes_at(place))

    def file(self, place: int) -> str:
        """A name as the file system has it."""
        return os.fsdecode(self._bytes_at(place))

    def _bytes_at(self, place: int) -> bytes:
        start, end = self.ends[self.places[place] :][:2].tolist()
        return self.run[start:end].numpy().tobytes()

    def __iter__(self) -> Iterator[str]:
        return map(_text, self.as_bytes())

    def as_bytes(self) -> Iterator[bytes]:
        """All names as the file system has them."""
        whole = memoryview(self.run.numpy())  # type: ignore[arg-type]
        for places in self.places.split(_BLOCK):
            bounds = (self.ends[places].numpy().tolist(), self.ends[places + 1].numpy().tolist())
            for start, end in zip(*bounds, strict=True):
                yield bytes(whole[start:end])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Names) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]
