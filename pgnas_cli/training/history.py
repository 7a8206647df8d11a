"""The epochs of a fit on disk: `metrics.jsonl`, a record per line."""

import json
from collections.abc import Iterable

from ..errors import PgnasError
from ..run import Run
from ..storage import MOST_BYTES, from_json, parse_json, read_bytes, to_json, write_text
from .epoch import EpochRecord
from .saving import Saving

Row = tuple[str, EpochRecord]  # a line as it was written, and what it says


def rows_of(run: Run) -> list[Row]:
    """The epochs so far, none where there is no file; raises PgnasError for a damaged one."""
    if not run.metrics.exists():
        return []
    try:
        lines = read_bytes(run.metrics, MOST_BYTES).decode().splitlines()
        return [(line, from_json(EpochRecord, parse_json(line), run.metrics)) for line in lines]
    except (ValueError, OSError):
        raise PgnasError(f"'{run.metrics}' is damaged") from None


def epochs_of(run: Run) -> list[EpochRecord]:
    """The records of the epochs so far, as `rows_of` has them."""
    return [record for _, record in rows_of(run)]


class History:
    """The epochs of a fit under way, written as a whole; a write that fails is tried again."""

    def __init__(self, run: Run, rows: Iterable[Row] = ()) -> None:
        self.path, self.rows, self.written = run.metrics, list(rows), True
        self.saving = Saving()

    def add(self, record: EpochRecord, *, write: bool = True) -> None:
        self.rows.append((json.dumps(to_json(record)), record))
        self.written = False
        if write:
            self.saving(self.write)

    def write(self) -> None:
        if not self.written:
            write_text(self.path, "".join(f"{line}\n" for line, _ in self.rows))
        self.written = True
