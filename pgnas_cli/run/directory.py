"""The files of a run, as described in storage.py; where the data lies is in run.json alone.

RUN/run.json                  the options of the fit
RUN/metrics.jsonl             one line per epoch
RUN/checkpoint.safetensors    an unfinished fit
RUN/posterior.safetensors     network.<key>, drop_logit
RUN/candidates.safetensors    keep, params, paper_params, macs
RUN/ranking.safetensors       how far each candidate came; RUN/ranking.csv for people
RUN/commands.jsonl            the command lines that wrote into it
RUN/evaluation.json           test errors and times of its networks
RUN/report.html               all of this as a page
"""

from dataclasses import dataclass
from pathlib import Path

from ..errors import PgnasError


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
    def candidates(self) -> Path:
        return self.folder / "candidates.safetensors"

    @property
    def ranking(self) -> Path:
        return self.folder / "ranking.safetensors"

    @property
    def ranking_table(self) -> Path:
        return self.folder / "ranking.csv"

    def files(self) -> tuple[Path, ...]:
        """All that commands read again: nothing else may be written over them."""
        return (self.settings, self.metrics, self.checkpoint, self.posterior, self.candidates,
                self.ranking, self.ranking_table, self.commands, self.evaluation)  # fmt: skip

    @property
    def commands(self) -> Path:
        return self.folder / "commands.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation.json"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"


def newest_run(root: Path = Path("runs"), *, fitted: bool = False) -> Run:
    """The run below `root` that was started last; `fitted` prefers those with a posterior."""
    found = sorted(root.glob("*/run.json"), key=lambda p: (p.stat().st_mtime_ns, str(p)))
    if fitted:
        found = [p for p in found if Run(p.parent).posterior.exists()] or found
    if not found:
        raise PgnasError(f"no run below '{root}'; start one with pgnas fit, or name one with --run")
    return Run(found[-1].parent)
