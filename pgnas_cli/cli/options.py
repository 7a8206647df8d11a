"""Options of the commands: those they share, and those that are fields of records."""

import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer
from typer.core import TyperCommand

from ..errors import command
from ..fields import kinds_of
from ..naming import check_device_name
from ..registry import Recipe, admit
from ..run import Run, newest_run

if TYPE_CHECKING:
    from .terminal import Terminal


def _admitted(value: str | None) -> str | None:
    """Let a function that the user typed be built."""
    return value and admit(value)


def _device(value: str) -> str:
    check_device_name(value)
    return value


RunFolder = Annotated[
    Path | None, typer.Option("--run", help="Run directory; default: the newest in runs/.")
]
NewRun = Annotated[
    Path | None,
    typer.Option("--run", help="Run directory; default: runs/<backbone>-<date>-<time>."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.", callback=_device)]
Function = Annotated[
    str | None,
    typer.Option(
        "--backbone", help="module:function, where the fit was given one.", callback=_admitted
    ),
]
Workers = Annotated[
    int | None, typer.Option("--workers", "-j", help="Processes that decode photos.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Skip = Annotated[bool, typer.Option("--skip-corrupt", help="Leave out images that do not decode.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Name the layers that are not prunable.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only results and errors.")]
Moved = Annotated[
    str | None, typer.Option("--data", help="Where the images of the fit lie now, if moved.")
]
DataRoot = Annotated[Path, typer.Option(help="Where named data sets live.")]
SaveMinutes = Annotated[
    float | None,
    typer.Option(help="Checkpoint interval; default: up to one, less than 2 % of the time."),
]
TensorBoard = Annotated[
    Path | None, typer.Option("--tensorboard", help="Folder; writes every epoch for TensorBoard.")
]
Precision = Annotated[str, typer.Option(help="float32 or bfloat16; results differ slightly.")]
Photos = Annotated[
    bool, typer.Option("--photos/--no-photos", help="Thumbnails of test images in the report.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume an unfinished fit.")]

_AUTO = ["--pretrained", "auto"]
RECIPE, ADVANCED = "Recipe (defaults: the backbone's; fit prints them)", "Advanced"
typed: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())  # after the word pgnas


def typed_line() -> str:
    """The command line as it can be typed again."""
    return command(*typed.get())


def run_of(
    folder: Path | None, terminal: "Terminal", check: Callable[[Run], object] = lambda run: None
) -> Run:
    """The named run or the newest; it passes `check`, and is fitted."""
    run = newest(terminal) if folder is None else Run(folder)
    check(run)
    run.check_fitted()
    return run


def newest(terminal: "Terminal") -> Run:
    """The newest run, which is said."""
    run = newest_run(fitted=True)
    terminal.note(f"run: {run.folder} (the newest; --run names another)")
    return run


def terminal_of(quiet: bool) -> "Terminal":
    """The terminal, which hears of all progress from now on."""
    from ..progress import listen
    from .terminal import Terminal

    terminal = Terminal(quiet=quiet)
    listen(terminal)
    return terminal


@contextmanager
def loading(terminal: "Terminal") -> Iterator[None]:
    """Context of imports of torch. They take seconds, and a terminal says so at once."""
    with nullcontext() if "torch" in sys.modules else terminal.task("loading torch", None):
        yield


class Command(TyperCommand):
    """A command. Its flag `--pretrained`, where the data decide the default, also takes auto."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        by_data = any(one.name == "pretrained" and one.default is None for one in self.params)
        words = [part for word in args for part in (_AUTO if word == "=".join(_AUTO) else [word])]
        at = [place for place in range(len(words)) if words[place : place + 2] == _AUTO]
        if by_data and at:
            del words[at[-1] : at[-1] + 2]
        rest = super().parse_args(ctx, words)
        if by_data and at:
            ctx.params["pretrained"] = "auto"
        return rest


# --- options from records --------------------------------------------------------------------


def takes(*records: type, only: Sequence[str] = ()) -> Callable[[Callable[..., None]], Any]:
    """Give a command an option for each field of `records`, or for those in `only`.

    Those that were typed reach it as `given`, a dict; a parameter of the command's own hides the
    field of its name.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = dict(inspect.signature(command).parameters)
        own.pop("given")
        fields = {
            field.name: _annotation(field, get_type_hints(record)[field.name], record)
            for record in records
            for field in dataclasses.fields(record)
            if field.metadata and field.name not in own and (not only or field.name in only)
        }

        def called(**values: Any) -> None:
            taken = {name: values.pop(name) for name in fields}
            given = {name: value for name, value in taken.items() if value is not None}
            command(**values, given=given)

        parameters = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
            )
            for name, annotation in fields.items()
        ]
        plain = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.values()]
        called.__signature__ = inspect.Signature([*parameters, *plain])  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in (*parameters, *plain)}
        called.__name__, called.__doc__ = command.__name__, command.__doc__
        return called

    return decorate


def _annotation(field: "dataclasses.Field[Any]", hint: Any, record: type) -> Any:
    """What Typer needs to know of a field.

    One that is not typed is None. Its default is shown all the same, but for a recipe's: the
    backbone has its own.
    """
    about, of_recipe = field.metadata, record is Recipe
    flag, said = bool in kinds_of(hint), "default:" in about["help"]
    told = of_recipe or said or field.default is None or flag
    option = typer.Option(
        *about["flags"], help=about["help"],
        callback=_admitted if field.name == "backbone" else None,
        show_default=False if told else str(field.default),
        rich_help_panel=ADVANCED if about["advanced"] else RECIPE if of_recipe else None,
    )  # fmt: skip
    return Annotated[_simple(hint) | None, option]


def _simple(hint: Any) -> Any:
    """The type of a field on the command line; str for what is parsed here."""
    kinds = [kind for kind in kinds_of(hint) if kind is not type(None)]
    word = float in kinds and hint is not float  # auto
    return str if word or get_args(kinds[0]) else kinds[0]
