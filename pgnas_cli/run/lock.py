"""One writer for each run: a lock that ends with its process, and what killed ones left."""

import contextlib
import os
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..distributed import rank
from ..errors import PgnasError
from ..progress import note
from ..storage import remove_leftovers
from .directory import Run

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_held: dict[tuple[int, Path], int] = {}  # (thread, run): file that is locked
_last: list[Run] = []  # that this process wrote into


@contextmanager
def writing(run: Run, *, new: bool = False) -> Iterator[None]:
    """Context in which no other process or thread writes into the run; `new` makes its folder.

    The lock is the kernel's (flock), on a file of its own that holds who has it. Raises PgnasError,
    in one line, where somebody else has it. What killed commands left is removed first. Of several
    processes that work as one, the first has it.
    """
    if rank() > 0 or (not new and not run.folder.is_dir()):
        yield  # nothing to protect: whoever reads it says so
        return
    key = threading.get_ident(), run.folder.resolve()
    if key in _held:
        yield
        return
    made = _make(run.folder)
    path = run.folder / ".lock"
    try:
        _held[key] = _locked(path, run)
        _last[:] = [run]
        try:
            remove_leftovers(run.folder)
            if run.posterior.exists():  # the fit was finished
                with contextlib.suppress(OSError):
                    run.checkpoint.unlink(missing_ok=True)
            yield
        finally:
            if key in _held:  # not so in a worker
                with contextlib.suppress(OSError):
                    path.unlink()
                os.close(_held.pop(key))
    finally:
        with contextlib.suppress(OSError):  # where nothing came of it
            for folder in made:
                folder.rmdir()


def last_written() -> Run | None:
    """The run that this process wrote into last, or writes into."""
    return _last[0] if _last else None


def _make(folder: Path) -> list[Path]:
    """Make a folder; it and its parents that were not there, innermost first."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise PgnasError(f"'{folder}' is a file; `run` is a folder, there or to be made") from None
    except OSError as error:
        raise PgnasError(f"'{folder}' cannot be written: {error}") from None
    return made


def _locked(path: Path, run: Run) -> int:
    """The lock file, open and locked: the very file that has this name."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise PgnasError(f"'{run.folder}' cannot be written: {error}") from None
        try:
            _lock(file, run)
        except BaseException:
            os.close(file)
            raise
        with contextlib.suppress(FileNotFoundError):  # its holder has just removed it
            if os.path.samestat(os.fstat(file), path.stat()):
                break
        os.close(file)
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    with contextlib.suppress(OSError):  # a full disk: it is locked all the same
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} ({command[:200]})".encode(errors="replace"), 0)
    return file


def _lock(file: int, run: Run) -> None:
    try:
        if fcntl is None:
            raise OSError("no flock")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        who = os.pread(file, 300, 0).decode(errors="replace").strip() or "another process"
        raise PgnasError(
            f"'{run.folder}' is being written by {who}; wait for its end, or choose another `run`"
        ) from None
    except OSError:
        note(
            f"note: there are no locks where '{run.folder}' lies; start only one command at a time"
            " that writes into it"
        )


def _leave_to_the_parent() -> None:
    """A worker that outlives its parent must not hold the lock."""
    for file in _held.values():
        os.close(file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)
