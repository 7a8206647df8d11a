"""Check every image file of a folder once: what was found is remembered by size and time.

The memory is a file in the user's cache (`$XDG_CACHE_HOME/pgnas`, by default ~/.cache/pgnas): the
folder of images may be read-only, and a run is one of several on the same images. Files that do not
decode are not remembered.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import PIL
import torch
from torch import Tensor

from ..errors import PgnasError
from ..machine import cores
from ..progress import note, task
from ..storage import cache_folder
from ..tensors import checked as checked_shapes
from ..tensors import read_header, read_values, write_tensors
from ..units import clock
from .listing import Listing
from .pictures import Facts, endings, facts_of, silenced

_SCHEMA = "pgnas.checked/3"
_AT_ONCE = 256  # files whose check an interrupt has to wait for, at most


@dataclass(frozen=True)
class Findings(Sequence["Facts | str"]):
    """What a check of many images found: their facts, column by column, or why one fails."""

    digest: Tensor  # int64 (images, 2)
    small: Tensor  # int16 (images,)
    turned: Tensor  # bool (images,)
    brightest: Tensor  # float64 (images,)
    reasons: dict[int, str]  # of images that do not decode

    @staticmethod
    def blank(images: int) -> "Findings":
        """To be filled."""
        columns = {n: torch.zeros(images, *s, dtype=d) for n, (s, d) in _COLUMNS.items()}
        return Findings(**columns, reasons={})

    @staticmethod
    def of(found: Sequence[Facts | str]) -> "Findings":
        """The same as columns."""
        columns = Findings.blank(len(found))
        for image, facts in enumerate(found):
            columns.put(image, facts)
        return columns

    def columns(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in _COLUMNS}

    def put(self, image: int, facts: Facts | str) -> None:
        """Fill in one image."""
        if isinstance(facts, str):
            self.reasons[image] = facts
            return
        self.digest[image] = torch.frombuffer(bytearray.fromhex(facts.digest), dtype=torch.int64)
        self.small[image], self.turned[image] = facts.small, facts.turned
        self.brightest[image] = facts.brightest

    def __len__(self) -> int:
        return len(self.small)

    def __getitem__(self, image):  # type: ignore[no-untyped-def]
        if image in self.reasons:
            return self.reasons[image]
        digest = self.digest[image].numpy().tobytes().hex()
        rest = (getattr(self, name)[image].item() for name in list(_COLUMNS)[1:])
        return Facts(digest, *rest)

    def good(self) -> Tensor:
        """Which images decode, bool (images,)."""
        found = torch.ones(len(self), dtype=torch.bool)
        found[list(self.reasons)] = False
        return found

    def take(self, images: Tensor) -> "Findings":
        """Of the images at int64 positions `images`, ascending."""
        kept = images.tolist() if self.reasons else []
        reasons = {new: self.reasons[old] for new, old in enumerate(kept) if old in self.reasons}
        return Findings(**{n: v[images] for n, v in self.columns().items()}, reasons=reasons)


_COLUMNS: dict[str, tuple[tuple[int, ...], torch.dtype]] = {  # of `Facts`, for one image
    "digest": ((2,), torch.int64), "small": ((), torch.int16), "turned": ((), torch.bool),
    "brightest": ((), torch.float64),
}  # fmt: skip


def checked(folder: Path, listing: Listing) -> Findings:
    """Facts of each image of a split of `folder`; decoded in parallel threads."""
    memory = _memory_of(folder)
    known, keys = _read(memory), _keys(folder, listing)
    found = Findings.blank(len(listing))
    # Where each image is in the memory, which is in the order of its keys.
    place = torch.searchsorted(known["key"], keys).clamp_(max=max(0, len(known["key"]) - 1))
    there = torch.zeros(len(keys), dtype=torch.bool)
    if len(known["key"]):
        same = (known["key"][place] == keys) & (known["stamp"][place] == listing.stamps).all(1)
        there = same & (listing.stamps[:, 0] >= 0)
        for name, column in found.columns().items():
            column[there] = known[name][place[there]]
    gone = listing.stamps[:, 0] < 0
    found.reasons.update(dict.fromkeys(gone.nonzero()[:, 0].numpy().tolist(), "no such file"))
    left = (~there & ~gone).nonzero()[:, 0].numpy().tolist()
    if not left:
        return found
    began, done = time.monotonic(), 0
    try:
        for image, facts in zip(left, in_threads(lambda i: facts_of(listing.path(i)), left),
                                strict=True):  # fmt: skip
            found.put(image, facts)
            done += 1
    finally:  # an interrupted check goes on where it stopped
        there[left[:done]] = True
        there[list(found.reasons)] = False
        if done:
            _write(memory, known, keys, listing.stamps, found.columns(), there)
    seconds = time.monotonic() - began
    if seconds >= 1:
        note(f"checked {len(left)} images in {clock(seconds)}")
    return found


def in_threads(
    decode: Callable[[int], Facts | str], images: Sequence[int]
) -> Iterator[Facts | str]:
    """`decode` of each; Pillow leaves Python's lock while it decodes, so threads will do."""
    endings()  # registers plug-ins
    workers = min(8, cores())
    with (
        silenced(),
        ThreadPoolExecutor(workers) as pool,
        task("checking images", len(images)) as bar,
    ):
        for first in range(0, len(images), _AT_ONCE):
            some = images[first : first + _AT_ONCE]
            yield from pool.map(decode, some)
            bar.update(first + len(some))


def _memory_of(folder: Path) -> Path:
    digest = hashlib.blake2b(os.fsencode(folder.resolve()), digest_size=16).hexdigest()
    return cache_folder() / f"checked-{digest}.safetensors"


def _keys(folder: Path, listing: Listing) -> Tensor:
    """A hash of the path of each image below `folder`, int64 (images,)."""
    start = hashlib.blake2b(os.fsencode(listing.folder.relative_to(folder)), digest_size=8)
    hashes = bytearray()
    for name in listing.names.as_bytes():
        one = start.copy()
        one.update(b"/" + name)
        hashes += one.digest()
    return torch.frombuffer(hashes, dtype=torch.int64) if hashes else _NOTHING["key"]


# The memory: a hash of each file's path, in ascending order; its stamp; and `Facts`.
_ROW = {"key": ((), torch.int64), "stamp": ((2,), torch.int64), **_COLUMNS}
_NOTHING = {name: torch.empty(0, *shape, dtype=kind) for name, (shape, kind) in _ROW.items()}


def _read(memory: Path) -> dict[str, Tensor]:
    """What is remembered; nothing of another Pillow, which may read other files."""
    with contextlib.suppress(PgnasError):
        header, content = read_header(memory, _SCHEMA)
        rows = len(header.get("key", ()))
        checked_shapes(header, {n: ((rows, *s), d) for n, (s, d) in _ROW.items()}, memory)
        if content.get("pillow") == PIL.__version__:
            found = read_values(memory, header)
            if bool((found["key"].diff() > 0).all()):
                return found
    return _NOTHING


def _write(
    memory: Path,
    known: Mapping[str, Tensor],
    keys: Tensor,
    stamps: Tensor,
    facts: Mapping[str, Tensor],
    there: Tensor,  # bool (images,): which of them are known now
) -> None:
    """Remember what was found; what else is known stays."""
    rest = ~torch.isin(known["key"], keys)
    new = {"key": keys, "stamp": stamps, **facts}
    rows = {name: torch.cat([known[name][rest], new[name][there]]) for name in _ROW}
    order = rows["key"].argsort()
    try:
        write_tensors(
            memory, _SCHEMA, {n: v[order] for n, v in rows.items()}, {"pillow": PIL.__version__}
        )
    except PgnasError as error:
        note(f"note: the check of the images is not remembered: {error}")
