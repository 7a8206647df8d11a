"""The files of a run; where the data lies is in run.json alone.

    run.json                  the options of the fit
    metrics.jsonl             one line per epoch
    checkpoint.safetensors    an unfinished fit
    posterior.safetensors     network.<key>, drop_logit
    candidates.safetensors    keep, params, paper_params, macs
    ranking.safetensors       how far each candidate came; ranking.csv for people
    commands.jsonl            the command lines that wrote into it
    evaluation.json           test errors and times of its networks, and what they confuse;
                              confusion.csv and mistakes.csv for people
    report.html               all of this as a page

Candidates drawn within a budget, and their ranking, have files of their own that end in its label:
candidates-params-60.safetensors, ranking-params-60.safetensors.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import PgnasError, command
from ..fields import check_range
from ..naming import NETWORK_FILES, OPSETS, ROUND_TO
from ..storage import check_ending, new_file

RUNS = Path("runs")
MOST_CANDIDATES = 1_000_000  # in a run


@dataclass(frozen=True)
class Run:
    """A run directory."""

    folder: Path

    @property
    def settings(self) -> Path:
        return self.folder / "run.json"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def posterior(self) -> Path:
        return self.folder / "posterior.safetensors"

    @property
    def commands(self) -> Path:
        return self.folder / "commands.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation.json"

    @property
    def confusion(self) -> Path:
        return self.folder / "confusion.csv"

    @property
    def mistakes(self) -> Path:
        return self.folder / "mistakes.csv"

    def evaluation_files(self) -> tuple[Path, ...]:
        """What `evaluate` writes."""
        return self.evaluation, self.confusion, self.mistakes

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def candidates(self, budget: str = "") -> Path:
        """Candidates drawn within the budget of that label; "": without one."""
        return self.folder / f"candidates{_ending(budget)}.safetensors"

    def ranking(self, budget: str = "") -> Path:
        return self.folder / f"ranking{_ending(budget)}.safetensors"

    def ranking_table(self, budget: str = "") -> Path:
        return self.folder / f"ranking{_ending(budget)}.csv"

    def budgets(self) -> list[str]:
        """Labels of the budgets that candidates were drawn for, largest first; "" for none."""
        names = [path.name for path in self.folder.glob("candidates*.safetensors")]
        found = [match[1] or "" for name in names if (match := _CANDIDATES.fullmatch(name))]

        def place(label: str) -> tuple[str, float]:
            kind, _, share = label.partition("-")
            return kind, -float(share or 0)

        return sorted(found, key=place)

    def drawn_files(self) -> list[Path]:
        """What `sample` and `rank` wrote."""
        return [
            path
            for budget in self.budgets()
            for path in (self.candidates(budget), self.ranking(budget), self.ranking_table(budget))
            if path.exists()
        ]

    def check_there(self) -> None:
        """Raise PgnasError where there is no such folder."""
        if not self.folder.is_dir():
            raise PgnasError(f"'{self.folder}' is not the folder of a run")

    def check_fitted(self) -> None:
        """Raise PgnasError where there is no posterior, with the command that makes one."""
        if self.posterior.exists():
            return
        if self.checkpoint.exists():
            resume = command("fit", "--resume", "--run", self.folder)
            raise PgnasError(f"the fit in '{self.folder}' is not finished; resume it with {resume}")
        raise PgnasError(f"no posterior in '{self.folder}'; fit one with pgnas fit")

    def check_export(
        self, path: Path, *, round_to: int | None, opset: int, dynamic_size: bool, force: bool
    ) -> None:
        """Raise PgnasError for a file or bounds that `export` does not write."""
        check_ending(path, NETWORK_FILES)
        self.check_foreign(path)
        new_file(path, force)
        check_range("round_to", 1 if round_to is None else round_to, *ROUND_TO)
        check_range("opset", opset, *OPSETS)
        if dynamic_size and path.suffix != ".onnx":
            raise PgnasError("`dynamic_size` is for ONNX files; a safetensors file takes any size")

    def check_foreign(self, path: Path) -> None:
        """Raise PgnasError for what commands read again: nothing else is written over it."""
        files = [
            self.settings, self.metrics, self.checkpoint, self.posterior, self.candidates(),
            self.ranking(), self.ranking_table(), self.commands, *self.evaluation_files(),
            *self.drawn_files(),
        ]  # fmt: skip
        if path.resolve() in {file.resolve() for file in files}:
            raise PgnasError(f"'{path}' is a file of the run itself; choose another name")


_CANDIDATES = re.compile(r"candidates(?:-((?:params|macs|time)-\d+(?:\.\d+)?))?\.safetensors")


def _ending(budget: str) -> str:
    return f"-{budget}" if budget else ""


def run_at(run: Run | str | Path | None) -> Run:
    """The run in a folder; None: the newest in runs/."""
    if isinstance(run, Run):
        return run
    return newest_run(fitted=True) if run is None else Run(Path(run))


def newest_run(*, fitted: bool = False) -> Run:
    """The run in runs/ that was started last; `fitted` prefers those with a posterior."""
    found = sorted(RUNS.glob("*/run.json"), key=lambda p: (p.stat().st_mtime_ns, str(p)))
    if fitted:
        found = [p for p in found if Run(p.parent).posterior.exists()] or found
    if not found:
        raise PgnasError(f"no run below '{RUNS}'; start one with pgnas fit, or name one with `run`")
    return Run(found[-1].parent)
