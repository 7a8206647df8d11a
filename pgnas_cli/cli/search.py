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

from ..errors import PgnasError, command
from ..fields import check_range, one_given
from ..registry import SMALL_IMAGES, Recipe
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
    with_network,
    with_weights,
    writing,
)
from ..storage import differences, to_json
from ..units import clock, parsed_size, percent
from . import options
from .evaluate import evaluation_json, show_evaluations
from .fit import fit_summary_lines, show_fit
from .options import loading, takes, terminal_of, typed_line
from .rank import show_ranking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..evaluation import Evaluation
    from ..formats import NetworkInfo
    from ..machine import Machine
    from .terminal import Terminal

    Made = dict[str, tuple[Path, NetworkInfo]]  # networks by name

AIM = 0.99  # of the size named: candidates spread around the target of the fit
TOP = 10
FROM_FIT = (
    "data", "backbone", "pretrained", "weights", "keep_original", "epochs", "batch_size",
    "img_size", "lr", "groups", "seed", "skip_corrupt", "class_weights", "time_runtime",
    "time_batch", "time_threads", "time_precision", "time_table",
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
        bool, typer.Option(help="Train the original network as long, to compare with.")
    ] = True,
    photos: options.Photos = True,
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
    _nearly(size, kind)
    settings = settings_of(given)
    with loading(terminal):
        from ..machine import find_machine
        from ..report import write_report

    settings = _with_groups(with_network(settings, given), given)
    home = Run(run or _folder(settings, kind, size, n))
    settings = with_weights(settings, given, home)
    stages = _Stages(terminal, compare)
    steps = _Steps(terminal, settings, find_machine(device, workers), tensorboard, stages)
    with writing(home, new=True):
        made, onnx = steps.candidates(home, kind, size, n)
        if compare:
            made["whole"] = steps.whole(home)
        files = {name: path for name, (path, _) in made.items()}
        remember(home, typed_line())
        found, photo = steps.evaluated(home, files)
        stages.begin("report", "write the report")
        write_report([home], home.report, photos=photos)
    if as_json:
        terminal.json(search_json(home, files, onnx, found))
        return
    show_search(terminal, home, made, onnx, found)
    terminal.result(f"{clock(stages.seconds())} in all: {answer(made['best'][1], found)}")
    if photo is not None:
        terminal.note(f"next: {command('predict', files['best'], photo)}")


def search_json(
    home: Run, files: dict[str, Path], onnx: Path | None, found: "Sequence[Evaluation]"
) -> dict[str, Any]:
    """What `search --json` prints: where everything is, and the errors of the networks."""
    rows = evaluation_json(list(files.values()), found) if found else {}
    return {
        "run": str(home.folder),
        "files": {name: str(path) for name, path in files.items()},
        "onnx": onnx and str(onnx),
        "networks": rows.get("networks", [rows] if rows else []),
        "report": str(home.report),
    }


def show_search(
    terminal: "Terminal",
    home: Run,
    made: "Made",
    onnx: Path | None,
    found: "Sequence[Evaluation]",
) -> None:
    """Show the errors of the networks, and where their files are."""
    from ..report import role_words

    if found:
        show_evaluations(terminal, found)
    best = made["best"][1]
    written = [
        (f"{name}: {role_words(name, about.params, best.params)}", path)
        for name, (path, about) in made.items()
    ]
    if onnx:
        written.append(("onnx: the best, for ONNX Runtime", onnx))
    for what, path in (*written, ("report: all of this as a page", home.report)):
        terminal.result(what)
        terminal.result(f"  {path}")
    for line in time_lines(found):
        terminal.result(line)


def time_lines(found: "Sequence[Evaluation]") -> list[str]:
    """What the best takes for one image, in torch and ONNX Runtime, beside the original network."""
    times = [
        f"{time.slim:.3g} ms in {name} ({time.ratio:.2f} of the original network's time)"
        for row in found
        if row.name == "best"
        for name, time in (("ONNX Runtime", row.onnx_one), ("torch", row.one))
        if time
    ]
    return [f"best on one image: {'; '.join(times)}; {found[0].processor}"] if times else []


def answer(best: "NetworkInfo", found: "Sequence[Evaluation]") -> str:
    """What a search found, in one sentence."""
    from ..evaluation import paired_test

    share, macs = best.params / best.whole_params, best.macs / best.whole_macs
    text = (
        f"best has {percent(share)} of the parameters and {percent(macs)} of the MACs, and errs on"
    )
    rows = {row.name: row for row in found}
    if not rows:
        error = best.held_out_errors / best.held_out_images
        return f"{text} {percent(error)} of {best.held_out_images} held-out images"
    text += f" {percent(rows['best'].error)} of {rows['best'].images} test images"
    if "whole" not in rows:
        return text
    p = paired_test(rows["best"], rows["whole"])
    told = "" if p < 0.05 else ", which is no difference that can be told"
    return f"{text}, the original network on {percent(rows['whole'].error)}{told}"


# Of each stage a rough time, in that of the fit: of a search on 2,500 photos (docs/results.md).
SHARES = {
    "fit": 1.0, "sample": 0.01, "rank": 0.2, "export": 0.1, "original": 1.0, "evaluate": 0.15,
    "report": 0.01,
}  # fmt: skip
MEASURING = 30.0  # seconds that `evaluate` measures times, whatever the fit took


class _Stages:
    """Numbers the stages of a search, and says about how long all of it will take."""

    def __init__(self, terminal: "Terminal", compare: bool) -> None:
        self.terminal, self.began = terminal, time.monotonic()
        self.names = [name for name in SHARES if compare or name != "original"]
        self.fit_seconds: float | None = None  # of a fit that was done now

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def after(self, name: str) -> float:
        """Time of the stages after this one, in that of the fit."""
        return sum(SHARES[later] for later in self.names[self.names.index(name) + 1 :])

    def begin(self, name: str, what: str) -> None:
        """Say that a stage begins."""
        text = f"stage {self.names.index(name) + 1} of {len(self.names)}: {what}"
        if self.fit_seconds is not None:
            left = (SHARES[name] + self.after(name)) * self.fit_seconds
            left += MEASURING * (name != "report")
            text += f"; {clock(self.seconds())} so far, about {clock(left)} left"
        self.terminal.note(text)


@dataclasses.dataclass(frozen=True)
class _Steps:
    """The stages of a search, each skipped where its result is there."""

    terminal: "Terminal"
    settings: FitSettings
    machine: "Machine"
    tensorboard: Path | None
    stages: _Stages

    def candidates(self, run: Run, kind: str, size: str, n: int) -> tuple["Made", Path | None]:
        """Fit, sample, rank and export; the networks, the best one first, and the ONNX file."""
        from ..ranking import rank
        from ..run.posterior import posterior_of
        from ..sampling import read_candidates, sample
        from ..sizes import budgets_of

        target: dict[str, Any] = {f"target_{kind}": _nearly(size, kind)}
        self.stages.begin("fit", "fit the super-network")
        self.fitted(run, dataclasses.replace(self.settings, **target), self.tensorboard, "fit")
        network, posterior = posterior_of(run)
        budget: dict[str, Any] = {f"max_{kind}": size}
        (wanted,) = budgets_of(network, **{kind: size})
        try:
            drawn = run.budgets() == [wanted.label]
            drawn = drawn and len(read_candidates(run, network, posterior, wanted.label)) == n
        except PgnasError:
            drawn = False
        self.stages.begin("sample", f"sample {n} candidates")
        if not drawn:
            sample(run, n, **budget, force=True)
        self.stages.begin("rank", "rank them on held-out images")
        began = time.perf_counter()
        boards = rank(run, top=TOP, machine=self.machine)
        seconds = time.perf_counter() - began
        show_ranking(self.terminal, boards, TOP, 0, seconds, result=False)
        self.stages.begin("export", "export the best, and a random baseline of its size")
        return {name: self.exported(run, name) for name in _EXPORTED}, self.onnx(run)

    def onnx(self, run: Run) -> Path | None:
        """The best as an ONNX file, where the packages are there and it has the same logits."""
        from ..exporting import export

        path = run.folder / "best.onnx"
        try:
            export(path, run, force=True, machine=self.machine)
        except PgnasError as error:
            self.terminal.note(f"note: no ONNX file: {error}")
            return None
        return path

    def whole(self, home: Run) -> tuple[Path, "NetworkInfo"]:
        """The network without gates, trained as long."""
        self.stages.begin("original", "train the original network as long (not with --no-compare)")
        run = Run(home.folder / "whole")
        board = None if self.tensorboard is None else self.tensorboard / home.folder.name
        self.fitted(run, dataclasses.replace(self.settings, fixed_drop=0.0), board, "original")
        return self.exported(run, "whole", into=home.folder)

    def fitted(self, run: Run, settings: FitSettings, tensorboard: Path | None, stage: str) -> None:
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
        events, after = with_tensorboard(tensorboard, run, events), self.stages.after(stage)
        summary = show_fit(self.terminal, run, events, after=after)
        self.stages.fit_seconds = summary.seconds
        for line in fit_summary_lines(summary):
            self.terminal.note(line)

    def exported(self, run: Run, name: str, into: Path | None = None) -> tuple[Path, "NetworkInfo"]:
        """Write one network; its file, and what that says."""
        from ..exporting import export

        path = (into or run.folder) / f"{name}.safetensors"
        return path, export(path, run, candidate=name, force=True, machine=self.machine)

    def evaluated(
        self, home: Run, files: dict[str, Path]
    ) -> "tuple[list[Evaluation], Path | None]":
        """Test errors of the networks, kept in the run, and the file of a test image.

        No errors where there are no test images, no file where they lie in none.
        """
        from ..data import find_data
        from ..evaluation import evaluate, write_evaluations

        self.stages.begin("evaluate", "evaluate on the test images, and measure times")
        settings, root = self.settings, Path(self.settings.data_root)
        source = find_data(settings.data, root=root, reads=())
        if source.test is None:
            self.terminal.note("there are no val/ or test/ images: no test error")
            return [], None
        found = evaluate(
            list(files.values()), settings.data, data_root=root, machine=self.machine,
            skip_corrupt=settings.skip_corrupt, names=list(files),
        )  # fmt: skip
        write_evaluations(home, found)
        return found, source.test.file and source.test.file(0)


_EXPORTED = ("best", "twin")  # candidates, and names of their files


def _nearly(size: str, kind: str) -> str:
    """A little less than "60%", "10M", "4ms": candidates of the mean size are within it."""
    option = f"`max_{kind}`"
    number, unit = parsed_size(size, option, kind)
    if not 0 < number < (100 if unit == "%" else math.inf):
        raise PgnasError(f"{option} {size} is out of range; possible: above 0, below 100%")
    return f"{AIM * number:g}{unit}"


def _with_groups(settings: FitSettings, given: dict[str, Any]) -> FitSettings:
    """One p for each channel, where nothing is named: for the one size of a search it errs less.

    Of networks whose operations are searched, each operation keeps its own (docs/log.md).
    """
    plain = settings.backbone.startswith((SMALL_IMAGES, "timm/", "torchvision/"))
    if "groups" in given or not plain:
        return settings
    return dataclasses.replace(settings, recipe={**settings.recipe, "groups": "channel"})


def _folder(settings: FitSettings, kind: str, size: str, n: int) -> Path:
    """The run directory that follows from the options."""
    # What goes on in the same folder.
    same = dataclasses.replace(settings, skip_corrupt=False, pretrained=settings.pretrained is True)
    text = json.dumps([to_json(same), kind, size, n], sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=3).hexdigest()
    return RUNS / f"search-{run_name(settings.backbone)}-{digest}"
