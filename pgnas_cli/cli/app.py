"""The command line: its commands, and errors as one line."""

import atexit
import contextlib
import contextvars
import inspect
import io
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ..distributed import LostProcess, launched, lost_process
from ..errors import Interrupted, PgnasError, command
from ..run import last_written
from ..signals import Stopped, received, stoppable
from .backbones import backbones
from .evaluate import evaluate
from .export import export
from .finetune import finetune
from .fit import fit
from .inflate import inflate
from .options import Command, typed
from .predict import predict
from .profile import profile
from .rank import rank
from .report import report
from .runs import runs
from .sample import sample
from .search import search
from .words import flagged

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _paragraphs(command: Callable[..., None]) -> str:
    """A command's docstring, one line per paragraph: typer would keep its line breaks."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


COMMANDS = (
    search, fit, sample, rank, export, evaluate, predict, report, finetune, inflate, profile,
    backbones, runs,
)  # fmt: skip
for one in COMMANDS:
    app.command(help=_paragraphs(one), cls=Command)(one)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        from .. import __version__

        packages = [f"{name} {version(name)}" for name in ("torch", "timm")]
        about = [*packages, f"Python {platform.python_version()}", *_devices()]
        typer.echo(f"pgnas {__version__} ({', '.join(about)})")
        raise typer.Exit


def _devices() -> list[str]:
    """Cores, and NVIDIA's GPUs as their driver lists them: torch takes seconds to say more."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    models = (re.search(r"^Model:\s*(.+)", file.read_text(), re.MULTILINE) for file in files)
    return [f"{os.cpu_count()} cores", *(model[1] for model in models if model)]


SHARED = ("fit", "rank")  # commands that several processes carry out together
# Seconds in which the first of several processes says what ends all of them: whichever ends first
# has torchrun end the others.
POLITENESS = 5.0


def _main(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_version,
            is_eager=True,
            help="Show versions and devices, and exit.",
        ),
    ] = False,
) -> None:
    """Turn an image data set and a CNN into a smaller network, ready to deploy.

    Train a gated super-network, sample candidates from its posterior, rank them on held-out images,
    export the best as it is.
    """
    processes, named = launched().world_size, context.invoked_subcommand
    if processes > 1 and named not in SHARED:
        raise PgnasError(
            f"{named} is the work of one process, and torchrun started {processes}; type"
            f" {command(named or '')} without it; possible: {', '.join(SHARED)}"
        )


app.callback(help=_paragraphs(_main))(_main)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a PgnasError becomes one line on stderr and exit status 1.

    SIGINT and SIGTERM become one line and 128 + their number, wherever they arrive. Of several
    processes the first one talks; the others say only what they alone found. Without arguments, as
    a program, those of the process, which ends at once.
    """
    status = [1]
    if arguments is None:
        atexit.register(_leave, status)  # the first to be registered is the last to run
    try:
        _answered(arguments)
    except SystemExit as end:
        status[0] = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise


def _leave(status: list[int]) -> None:
    """End the process: Python would take torch down piece by piece, for a second or two."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status[0])


def _answered(arguments: list[str] | None) -> None:
    if sys.stdout is None:  # closed: nobody wants it
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # names of classes and files may not fit its encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        Path.cwd()
    except FileNotFoundError:  # in which torch does not even load
        _fail("the working directory is no longer there; change to another one", 1)
    context = contextvars.copy_context()  # a listening terminal ends with the command
    context.run(typed.set, tuple(sys.argv[1:] if arguments is None else arguments))
    try:
        with stoppable(), _silence() if launched().rank else contextlib.nullcontext():
            _carried_out(context, arguments)
    except Stopped as stop:
        if lost := lost_process():  # torchrun ends those that are left
            _fail(str(lost), 1, at_once=True)
        text = f"interrupted; {standing(context.get(typed, ())[:1])}"
        _fail(text, 128 + stop.number, at_once=True)


def _carried_out(context: contextvars.Context, arguments: list[str] | None) -> None:
    try:
        try:
            context.run(app, arguments)
        finally:
            sys.stdout.flush()  # where a full disk shows
    except Interrupted as error:
        _fail(str(error), 128 + error.number)
    except PgnasError as error:
        _fail(str(error), 1, at_once=isinstance(error, LostProcess))
    except Exception as error:
        if received():  # what became of it on its way
            raise Stopped(received()) from None
        if isinstance(error, OSError):  # of the surroundings, where no room has words for it
            _fail(_unusable(error), 1)
        raise
    except SystemExit as end:
        if received():  # it was lost on its way
            raise Stopped(received()) from None
        if launched().rank and end.code:
            time.sleep(POLITENESS)
        raise


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Context of a process that is not the first of several."""
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def standing(words: tuple[str, ...]) -> str:
    """What an interrupted command left, and which line goes on."""
    run = last_written()
    if run is None or words != ("fit",):
        return "every file is whole, the same command goes on"
    if run.posterior.exists():
        return f"the fit is finished, next: {command('sample', '--run', run.folder)}"
    if run.checkpoint.exists():
        return f"the fit is saved, resume with {command('fit', '--resume', '--run', run.folder)}"
    return "nothing was trained yet, start with the same command"


def _unusable(error: OSError) -> str:
    """What the system refuses, in one line; a stdout that takes no more is left."""
    why = error.strerror or str(error)
    if error.filename is not None:
        return f"'{error.filename}' cannot be used: {why}"
    with contextlib.suppress(OSError):  # a stdout of Python's own has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return f"the output cannot be written: {why}; files that were written are there"


def _fail(text: str, status: int, *, at_once: bool = False) -> NoReturn:
    from .terminal import failure  # slow to import

    rank = launched().rank
    if rank:
        if not at_once:
            time.sleep(POLITENESS)
        if status > 128:  # a signal stops all, and the first one says so
            sys.exit(status)
        text = f"process {rank}: {text}"
    with (
        contextlib.suppress(OSError),  # nobody listens
        contextlib.redirect_stderr(sys.__stderr__) if rank else contextlib.nullcontext(),
    ):
        failure(flagged(text))
    sys.exit(status)
