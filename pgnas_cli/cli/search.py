"""`pgnas search`: from images to a smaller network in one command.

It calls the other commands' functions one after the other. The run directory follows from the
options, so that the same command resumes wherever it stopped.
"""

import dataclasses
import hashlib
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import PgnasError
from ..fields import check_range, one_given
from ..registry import Recipe
from ..run import (
    MOST_CANDIDATES,
    RUNS,
    FitSettings,
    Run,
    keep_skipping,
    read_settings,
    remember,
    run_name,
    settings_of,
    writing,
)
from ..storage import differences, to_json
from ..units import parsed_size
from . import options
from .evaluate import evaluation_json, show_evaluations
from .fit import fit_summary_lines, show_fit
from .options import takes, terminal_of, typed_line
from .rank import show_ranking

if TYPE_CHECKING:
    from ..evaluation import Evaluation
    from ..machine import Machine
    from .terminal import Terminal

AIM = 0.99  # of the size named: candidates spread around the target of the fit
TOP = 10
FROM_FIT = (
    "data", "backbone", "pretrained", "weights", "keep_original", "epochs", "batch_size",
    "img_size", "lr", "groups", "seed", "skip_corrupt", "time_batch", "time_table",
)  # fmt: skip


@takes(FitSettings, Recipe, only=FROM_FIT)
def search(
    given: dict[str, Any],
    max_params: Annotated[
        str | None, typer.Option(help="Parameters at most: 60%, or 10M. Default: 60%.")
    ] = None,
    max_macs: Annotated[str | None, typer.Option(help="The same in MACs.")] = None,
    max_time: Annotated[
        str | None, typer.Option(help="The same in time of a forward on this device: 60%, 4ms.")
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", help="Number of candidates.")] = 300,
    compare: Annotated[
        bool, typer.Option("--compare", help="Train the original network as long, to compare with.")
    ] = False,
    tensorboard: options.TensorBoard = None,
    run: options.NewRun = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Run the whole search, from images to a page.

    Fits, samples, ranks, exports, evaluates and reports. Repeating the command resumes it.
    """
    terminal = terminal_of(quiet)
    check_range("n", n, 1, MOST_CANDIDATES)
    named = one_given("max", {"params": max_params, "macs": max_macs, "time": max_time})
    kind, size = named or ("params", "60%")
    settings = settings_of(given)
    folder = run or _folder(settings, kind, size, n)
    from ..machine import find_machine
    from ..report import role_words, write_report

    steps = _Steps(terminal, settings, find_machine(device, workers), tensorboard)
    home = Run(folder)
    with writing(home, new=True):
        made = steps.candidates(home, kind, size, n)
        if compare:
            made["whole"] = steps.whole(home)
        files = {name: path for name, (path, _) in made.items()}
        remember(home, typed_line())
        found = steps.evaluated(home, files)
        terminal.note("writing the report")
        write_report([home], home.report)
    if as_json:
        paths = {name: str(path) for name, path in files.items()}
        rows = evaluation_json(list(files.values()), found) if found else {}
        networks = rows.get("networks", [rows] if rows else [])
        terminal.json({"run": str(folder), "files": paths, "networks": networks,
                       "report": str(home.report)})  # fmt: skip
        return
    if found:
        show_evaluations(terminal, found)
    for name, (path, params) in made.items():
        terminal.result(f"{name:9} {role_words(name, params, made['best'][1])}: {path}")
    terminal.result(f"report    all of this as a page: {home.report}")


@dataclasses.dataclass(frozen=True)
class _Steps:
    """The stages of a search, each skipped where its result is there."""

    terminal: "Terminal"
    settings: FitSettings
    machine: "Machine"
    tensorboard: Path | None

    def candidates(self, run: Run, kind: str, size: str, n: int) -> dict[str, tuple[Path, int]]:
        """Fit, sample, rank and export; the files and parameters, the best one first."""
        from ..ranking import rank
        from ..run.posterior import posterior_of
        from ..sampling import read_candidates, sample
        from ..sizes import budgets_of

        target: dict[str, Any] = {f"target_{kind}": _nearly(size, kind)}
        self.fitted(run, dataclasses.replace(self.settings, **target), self.tensorboard)
        network, posterior = posterior_of(run)
        budget: dict[str, Any] = {f"max_{kind}": size}
        (wanted,) = budgets_of(network, **{kind: size})
        try:
            drawn = run.budgets() == [wanted.label]
            drawn = drawn and len(read_candidates(run, network, posterior, wanted.label)) == n
        except PgnasError:
            drawn = False
        if not drawn:
            self.terminal.note(f"drawing {n} candidates")
            sample(run, n, **budget, force=True)
        began = time.perf_counter()
        boards = rank(run, top=TOP, machine=self.machine)
        seconds = time.perf_counter() - began
        show_ranking(self.terminal, boards, TOP, 0, seconds, result=False)
        return {name: self.exported(run, name, what) for name, what in _EXPORTED.items()}

    def whole(self, home: Run) -> tuple[Path, int]:
        """The network without gates, trained as long."""
        run = Run(home.folder / "whole")
        board = None if self.tensorboard is None else self.tensorboard / home.folder.name
        self.fitted(run, dataclasses.replace(self.settings, fixed_drop=0.0), board)
        return self.exported(run, "whole", "whole", into=home.folder)

    def fitted(self, run: Run, settings: FitSettings, tensorboard: Path | None) -> None:
        """Fit, unless it is done; raises PgnasError where it was done with other options."""
        from ..training import fit_events
        from .tensorboard import with_tensorboard

        if run.posterior.exists():
            stored = read_settings(run)
            same = dataclasses.replace(settings, skip_corrupt=stored.skip_corrupt)
            changed = differences(stored, same)
            if changed:
                raise PgnasError(
                    f"'{run.folder}' was fitted with {'; '.join(changed)}; name another folder with"
                    " `run`"
                )
            keep_skipping(run, settings)
            self.terminal.note(f"fitted already: {run.posterior}")
            return
        self.terminal.note(f"run: {run.folder}")
        events = fit_events(
            run, settings, resume=True, machine=self.machine, resume_with="the same command"
        )
        summary = show_fit(self.terminal, run, with_tensorboard(tensorboard, run, events))
        for line in fit_summary_lines(summary):
            self.terminal.note(line)

    def exported(
        self, run: Run, name: str, candidate: str, into: Path | None = None
    ) -> tuple[Path, int]:
        """Write one network; its file and parameters."""
        from ..exporting import export

        path = (into or run.folder) / f"{name}.safetensors"
        about = export(path, run, candidate=candidate, force=True, machine=self.machine)
        return path, about.params

    def evaluated(self, home: Run, files: dict[str, Path]) -> "list[Evaluation]":
        """Test errors of the networks, kept in the run; none where there are no test images."""
        from ..data import find_data
        from ..evaluation import evaluate, write_evaluations

        settings, root = self.settings, Path(self.settings.data_root)
        source = find_data(settings.data, root=root, reads=())
        if source.test is None:
            self.terminal.note("there are no val/ or test/ images: no test error")
            return []
        found = evaluate(
            list(files.values()), settings.data, data_root=root, machine=self.machine,
            skip_corrupt=settings.skip_corrupt, names=list(files),
        )  # fmt: skip
        write_evaluations(home, found)
        return found


_EXPORTED = {"best": "", "twin": "twin"}  # name of the file: candidate


def _nearly(size: str, kind: str) -> str:
    """A little less than "60%", "10M", "4ms": candidates of the mean size are within it."""
    option = f"`max_{kind}`"
    number, unit = parsed_size(size, option, kind)
    if not 0 < number < (100 if unit == "%" else math.inf):
        raise PgnasError(f"{option} {size} is out of range; possible: above 0, below 100%")
    return f"{AIM * number:g}{unit}"


def _folder(settings: FitSettings, kind: str, size: str, n: int) -> Path:
    """The run directory that follows from the options."""
    same = dataclasses.replace(settings, skip_corrupt=False)  # goes on in the same folder
    text = json.dumps([to_json(same), kind, size, n], sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=3).hexdigest()
    return RUNS / f"search-{run_name(settings.backbone)}-{digest}"
