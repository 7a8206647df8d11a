"""The command line: its commands, and errors as one line."""

import io
import sys

import typer

from .choosing import evaluate, export, rank, report, sample
from .errors import Interrupted, PgnasError
from .invocation import typed
from .making import backbones, finetune, fit, inflate
from .searching import search

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Smaller, better image networks: fit a gated super-network, draw candidates from its"
    " posterior, rank them on held-out images, export the best as it is.",
)
for command in (search, fit, sample, rank, export, evaluate, report, finetune, inflate, backbones):
    app.command()(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a PgnasError becomes one line on stderr and exit status 1."""
    from .console import failure

    for stream in (sys.stdout, sys.stderr):  # names of classes and files may not fit its encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    typed.set(tuple(sys.argv[1:] if arguments is None else arguments))
    try:
        app(arguments)
    except Interrupted as error:
        failure(str(error))
        sys.exit(130)
    except PgnasError as error:
        failure(str(error))
        sys.exit(1)
    except SystemExit as end:
        if end.code == 130:  # typer's own status for an interrupt
            failure("interrupted; nothing was written")
        raise
