"""The command line: its commands, and errors as one line."""

import io
import sys
from typing import NoReturn

import typer

from ..errors import Interrupted, PgnasError
from .backbones import backbones
from .evaluate import evaluate
from .export import export
from .finetune import finetune
from .fit import fit
from .inflate import inflate
from .options import typed
from .rank import rank
from .report import report
from .sample import sample
from .search import search

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # panels cost more than everything else that --help does
    help="Smaller, better image networks: fit a gated super-network, draw candidates from its"
    " posterior, rank them on held-out images, export the best as it is.",
)

for command in (search, fit, sample, rank, export, evaluate, report, finetune, inflate, backbones):
    app.command()(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a PgnasError becomes one line on stderr and exit status 1."""
    for stream in (sys.stdout, sys.stderr):  # names of classes and files may not fit its encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    typed.set(tuple(sys.argv[1:] if arguments is None else arguments))
    try:
        app(arguments)
    except Interrupted as error:
        _fail(str(error), 130)
    except PgnasError as error:
        _fail(str(error), 1)
    except SystemExit as end:
        if end.code == 130:  # typer's own status for an interrupt
            _fail("interrupted; nothing was written", 130)
        raise


def _fail(text: str, status: int) -> NoReturn:
    from .terminal import failure  # --help must not pay for rich

    failure(text)
    sys.exit(status)
