"""The one command from a folder of images to a smaller network: search.

It calls the stages one after the other and shows what each comes to. The run directory follows from
the options, so that the same line goes on where it stopped, at whatever stage that was.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import PgnasError
from . import options
from .options import terminal_of, typed_line

if TYPE_CHECKING:
    import torch

    from ..run import FitSettings, Run
    from .terminal import Terminal

AIM = 0.99  # of the size named: candidates spread around the target of the fit


def search(
    data: options.Data = None,
    backbone: options.Backbone = None,
    pretrained: options.Pretrained = False,
    weights: options.Weights = None,
    max_params: Annotated[
        str | None, typer.Option(help="Parameters at most: 60%, or 10M. Default: 60%.")
    ] = None,
    max_macs: Annotated[str | None, typer.Option(help="The same in multiply-adds.")] = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    img_size: options.ImgSize = None,
    lr: options.LearningRate = None,
    groups: options.Groups = None,
    n: Annotated[int, typer.Option("--n", "-n", help="Number of candidates.")] = 300,
    compare: Annotated[
        bool, typer.Option("--compare", help="Train the whole network as long, to compare with.")
    ] = False,
    tensorboard: options.TensorBoard = None,
    run: options.NewRun = None,
    seed: options.Seed = None,
    skip_corrupt: options.Skip = False,
    device: options.Device = "auto",
    workers: options.Workers = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """All of it in one go, from images to a page.

    Fits, samples, ranks, exports, evaluates and reports. The same line goes on where it stopped.
    """
    from ..evaluation import evaluate_stage, evaluated, write_evaluations
    from ..registry import admit
    from ..report import ROLES, report_stage
    from ..run import FitSettings, Run, placed_paths, remember
    from .evaluate import evaluation_json, evaluation_table
    from .machine import device_of, worker_count

    terminal = terminal_of(quiet)
    if max_params and max_macs:
        raise PgnasError("--max-params and --max-macs cannot both be kept; give one")
    size = max_macs or max_params or "60%"
    given: dict[str, Any] = {
        "backbone": admit(backbone) if backbone else None, "pretrained": pretrained or None,
        "weights": None if weights is None else str(weights), "data": data, "img_size": img_size,
        "seed": seed, "skip_corrupt": skip_corrupt or None,
    }  # fmt: skip
    recipe = {"epochs": epochs, "batch_size": batch_size, "learning_rate": lr, "groups": groups}
    given = placed_paths({k: v for k, v in given.items() if v is not None})
    given["recipe"] = {k: v for k, v in recipe.items() if v is not None}
    settings = FitSettings(**given)
    where = _folder(run, settings, "macs" if max_macs else "params", size, n)
    steps = _Steps(
        terminal, settings, "macs" if max_macs else "params", size, n, device_of(device),
        worker_count(workers), tensorboard,
    )  # fmt: skip
    files = steps.candidates(where)
    if compare:
        files["whole"] = steps.whole(where)
    done = Run(where)
    remember(done, typed_line())
    data_name = settings.data
    found = None
    if steps.has_test(data_name):
        found = evaluate_stage(
            list(files.values()), data_name, data_root=Path(settings.data_root),
            skip_corrupt=skip_corrupt, batch=64, device=steps.device, workers=steps.workers,
            track=terminal.track,
        )  # fmt: skip
        rows = zip(files, found, strict=True)
        write_evaluations(done, [evaluated(row, name, steps.device) for name, row in rows])
    else:
        terminal.notice("no val/ or test/ images, so nothing is said of the test error")
    terminal.notice("writing the report")
    report_stage([done], done.report)
    if as_json:
        paths = {name: str(path) for name, path in files.items()}
        networks = evaluation_json(found)["networks"] if found else []
        terminal.json({"run": str(where), "files": paths, "networks": networks,
                       "report": str(done.report)})  # fmt: skip
        return
    if found:
        terminal.out.print(evaluation_table(found))
    for name, path in files.items():
        terminal.result(f"{name:9} {ROLES[name]}: {path}")
    terminal.result(f"report    all of this as a page: {done.report}")


class _Steps:
    """The stages of a search, each skipped where its result is there."""

    def __init__(
        self,
        terminal: "Terminal",
        settings: "FitSettings",
        kind: str,
        size: str,
        number: int,
        device: "torch.device",
        workers: int,
        tensorboard: Path | None,
    ) -> None:
        self.terminal, self.settings, self.kind, self.size = terminal, settings, kind, size
        self.number, self.device, self.workers = number, device, workers
        self.tensorboard = tensorboard

    def candidates(self, where: Path) -> dict[str, Path]:
        """Fit, sample, rank and export; the files, the best one first."""
        import dataclasses

        from ..ranking import rank_stage
        from ..run import Run
        from ..run.posterior import posterior_of
        from ..sampling import read_candidates, sample_stage
        from ..sizes import budgets_of
        from .rank import show_ranking, watching

        run = Run(where)
        target: dict[str, Any] = {f"target_{self.kind}": _nearly(self.size, f"--max-{self.kind}")}
        self.fitted(run, dataclasses.replace(self.settings, **target))
        network, _ = posterior_of(run)
        budget: dict[str, Any] = {f"max_{self.kind}": self.size}
        try:
            drawn = read_candidates(run, network)
            wanted = budgets_of(network, **{self.kind: self.size})
            as_asked = (drawn.budgets, len(drawn.keep)) == (wanted, self.number)
        except PgnasError:
            as_asked = False
        if not as_asked:
            self.terminal.notice(f"drawing {self.number} candidates")
            sample_stage(run, self.number, track=self.terminal.track, **budget)
        with watching(self.terminal) as watch:
            ranked = rank_stage(
                run, top=10, device=self.device, workers=self.workers, track=self.terminal.track,
                watch=watch,
            )  # fmt: skip
        show_ranking(self.terminal, ranked, 10, result=False)
        names = {"best": "", "smallest": "smallest", "twin": "twin"}
        return {name: self.exported(run, name, what) for name, what in names.items()}

    def whole(self, where: Path) -> Path:
        """The network without gates, trained as long."""
        import dataclasses

        from ..run import Run

        run = Run(where / "whole")
        if self.tensorboard is not None:
            self.tensorboard = self.tensorboard / where.name
        self.fitted(run, dataclasses.replace(self.settings, fixed_drop=0.0))
        return self.exported(run, "whole", "whole", into=where)

    def fitted(self, run: "Run", settings: "FitSettings") -> None:
        from ..training import fit_stage
        from .fit import fit_summary_lines, show_fit
        from .tensorboard import with_tensorboard

        if run.posterior.exists():
            _same(run, settings)
            self.terminal.notice(f"fitted already: {run.posterior}")
            return
        self.terminal.notice(f"run: {run.folder}")
        summary = show_fit(
            self.terminal,
            lambda step: with_tensorboard(self.tensorboard, run, fit_stage(
                run, settings, device=self.device, workers=self.workers, resume=True, force=False,
                save_seconds=300, track=self.terminal.track, step=step,
            )),
        )  # fmt: skip
        for line in fit_summary_lines(summary):
            self.terminal.notice(line)

    def exported(self, run: "Run", name: str, candidate: str, into: Path | None = None) -> Path:
        from ..exporting import export_stage
        from .rank import watching

        path = (into or run.folder) / f"{name}.safetensors"
        with watching(self.terminal) as watch:
            export_stage(
                run, path, candidate=candidate, layout=None, round_to=None, opset=18, force=True,
                device=self.device, workers=self.workers, track=self.terminal.track,
                notice=self.terminal.notice, watch=watch,
            )  # fmt: skip
        return path

    def has_test(self, data: str) -> bool:
        from ..data import find_data

        settings = self.settings
        source = find_data(data, root=Path(settings.data_root), skip_corrupt=settings.skip_corrupt)
        return source.test is not None


def _same(run: "Run", settings: "FitSettings") -> None:
    """Raises PgnasError where a fitted run was fitted with other options."""
    from ..run import read_settings
    from ..storage import to_json

    then, now = to_json(read_settings(run)), to_json(settings)
    changed = [f"{key} {then[key]}, not {now[key]}" for key in now if then[key] != now[key]]
    if changed:
        raise PgnasError(
            f"'{run.folder}' was fitted with {'; '.join(changed)}; name another folder with --run"
        )


def _nearly(size: str, option: str) -> str:
    """A little less than "60%" or "10M", so that candidates of the mean size are within it."""
    text = size.strip()
    ending = text[-1:] if not text[-1:].isdigit() else ""
    try:
        number = float(text.removesuffix(ending))
    except ValueError:
        raise PgnasError(
            f"{option} '{size}' is no size; possible: a share (60%) or a number (250000, 10M, 2G)"
        ) from None
    if not 0 < number < (100 if ending == "%" else math.inf):
        raise PgnasError(f"{option} {size} is out of range; possible: above 0, below 100%")
    return f"{AIM * number:g}{ending}"


def _folder(run: Path | None, settings: "FitSettings", kind: str, size: str, n: int) -> Path:
    """The named folder, or one that follows from the options."""
    from ..run import run_name
    from ..storage import to_json

    if run is not None:
        return run
    text = json.dumps([to_json(settings), kind, size, n], sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=3).hexdigest()
    return Path("runs") / f"search-{run_name(settings.backbone)}-{digest}"
