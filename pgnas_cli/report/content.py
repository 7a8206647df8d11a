"""What the files of a run say, gathered for its report: nothing is computed anew but small sums."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PgnasError
from ..evaluation import Evaluated, evaluations_of
from ..gates import drop_probabilities, gates
from ..graph import OperationGate
from ..ranking import Board, board_of, read_ranking
from ..run import Command, FitSettings, Run, commands_of, read_settings
from ..run.posterior import Posterior, posterior_of
from ..sampling import Drawn, read_candidates
from ..sizes import parameter_count, whole_macs
from ..storage import file_digest, from_json
from ..training import EpochRecord


@dataclass(frozen=True)
class GatedLayer:
    """A layer with gates on its input, and what was learned of them."""

    name: str
    kind: str  # "conv 3x3", "linear", "pool or skip"
    drop: tuple[float, ...]  # of each gate
    kept: int | None  # gates that the winner keeps; None without a ranking


@dataclass(frozen=True)
class Findings:
    """One run, as its report shows it."""

    folder: Path
    settings: FitSettings
    posterior: Posterior
    epochs: tuple[EpochRecord, ...]
    layers: tuple[GatedLayer, ...]  # in order of execution
    params: int  # of the whole network
    macs: int
    drawn: Drawn | None
    boards: tuple[Board, ...]  # none where nothing has been ranked
    waiting: int  # budgets whose ranking has not begun
    recalibrate: int  # images for each candidate's batch-norm statistics in the ranking
    evaluated: tuple[Evaluated, ...]
    commands: tuple[Command, ...]
    digests: tuple[tuple[str, str], ...]  # (file, sha256)

    @property
    def exact(self) -> bool:
        """Whether the ranking was finished."""
        running = any(len(board.ranking.running) for board in self.boards)
        return bool(self.boards) and not running and not self.waiting

    @property
    def baseline(self) -> str:
        """What the candidates were drawn from, if not from the posterior."""
        return self.drawn.baseline if self.drawn is not None else ""

    def evaluated_as(self, role: str) -> Evaluated | None:
        """The network that was last evaluated in a role."""
        rows = [row for row in self.evaluated if self.role(row) == role]
        return max(rows, key=lambda row: row.at) if rows else None

    def role(self, row: Evaluated) -> str:
        """What an evaluated network is to this run, from what its file said."""
        if row.finetuned_epochs:
            return "tuned"
        if row.fixed_drop is not None:
            return "whole" if row.fixed_drop == 0 else "fixed"
        if row.made_from != dict(self.digests).get("posterior.safetensors"):
            return "other"
        if row.candidate in ("whole", "twin"):
            return "open" if row.candidate == "whole" else "twin"
        if row.candidate == str(self.winner) and not self.baseline:
            return "best"
        return {"best": "former", "smallest": "smallest"}.get(row.chosen, "candidate")

    @property
    def winner(self) -> int | None:
        """Id of the first candidate of the first board."""
        if not self.boards:
            return None
        return self.boards[0].first + self.boards[0].best


def findings_of(run: Run) -> Findings:
    """Read a run. What it has not come to is left empty; without a posterior, PgnasError."""
    settings = read_settings(run)
    network, posterior = posterior_of(run)
    drawn = read_candidates(run, network) if run.candidates.exists() else None
    stored = read_ranking(run, drawn) if drawn is not None else None
    boards: list[Board] = []
    waiting = 0
    if drawn is not None and stored is not None:
        for index, (budget, rows) in enumerate(drawn.boards()):
            ranking = stored.ranking(drawn, index)
            if ranking is None:
                waiting += 1
                continue
            boards.append(board_of(budget, rows, ranking, posterior.seed))
    keep = None
    if boards and drawn is not None:
        keep = drawn.keep[boards[0].first + boards[0].best]
    return Findings(
        folder=run.folder,
        settings=settings,
        posterior=posterior,
        epochs=tuple(_epochs(run)),
        layers=tuple(_layers(network, keep)),
        params=parameter_count(network),
        macs=whole_macs(network),
        drawn=drawn,
        boards=tuple(boards),
        waiting=waiting,
        recalibrate=stored.recalibrate if stored else 0,
        evaluated=tuple(evaluations_of(run)),
        commands=tuple(commands_of(run)),
        digests=tuple(
            (path.name, file_digest(path))
            for path in (run.posterior, run.candidates, run.ranking)
            if path.exists()
        ),
    )


def _epochs(run: Run) -> list[EpochRecord]:
    if not run.metrics.exists():
        return []
    try:
        lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
        found = [from_json(EpochRecord, line, run.metrics) for line in lines]
    except (ValueError, RecursionError, OSError, PgnasError):
        found = None
    if found is None or any(len(e.drop_histogram) != 10 or not _finite(e) for e in found):
        raise PgnasError(
            f"'{run.metrics}' is damaged; move it away to have a report without the fit's curves"
        )
    return found


def _finite(record: EpochRecord) -> bool:
    numbers = [value for value in vars(record).values() if isinstance(value, int | float)]
    counts = record.drop_histogram
    return all(map(math.isfinite, numbers)) and sum(counts) > 0 and min(counts) >= 0


def _layers(network: nn.Module, keep: Tensor | None) -> list[GatedLayer]:
    bank, modules = gates(network), dict(network.named_modules())
    probability = drop_probabilities(network).detach().cpu()[bank.group.cpu()]
    rows, seen = [], set()
    for name, (first, last) in bank.spans.items():
        if (first, last) in seen:  # a squeeze with the gates of another layer
            continue
        seen.add((first, last))
        kept = None if keep is None else int(keep[first:last].sum())
        drop = tuple(probability[first:last].tolist())
        rows.append(GatedLayer(name, _kind(modules[name]), drop, kept))
    return rows


def _kind(module: Any) -> str:
    if isinstance(module, OperationGate):
        return "pool or skip"
    size = getattr(module, "kernel_size", None)
    if size is None:
        return "linear"
    return f"conv {'x'.join(map(str, size))}"


def front(errors: Tensor, params: Tensor) -> Tensor:
    """Indices of the points that no other beats in errors and parameters at once, by size."""
    order = sorted(range(len(errors)), key=lambda i: (int(params[i]), int(errors[i])))
    found: list[int] = []
    for index in order:
        if not found or int(errors[index]) < int(errors[found[-1]]):
            found.append(index)
    return torch.tensor(found, dtype=torch.int64)
