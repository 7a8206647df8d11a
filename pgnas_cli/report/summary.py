"""What the files of a run say, gathered for its report. Only small sums are computed here."""

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import PgnasError
from ..evaluation import Evaluation, evaluations_of
from ..gates import drop_probabilities, gates, per_gate
from ..ranking import Leaderboard, leaderboard_of, read_ranking
from ..run import Command, FitSettings, Run, commands_of, read_settings
from ..run.posterior import Posterior, posterior_of
from ..sampling import Candidates, read_candidates
from ..sizes import parameter_count, whole_macs
from ..storage import with_digest
from ..training import EpochRecord, epochs_of
from .drawing import Block, blocks_of, kind_of


@dataclass(frozen=True)
class GatedLayer:
    """A layer with gates on its input, and what was learned about them."""

    name: str
    kind: str  # "conv 3x3", "linear", "pool or skip"
    drop: tuple[float, ...]  # of each gate
    kept: int | None  # gates that the winner keeps; None without a ranking


@dataclass(frozen=True)
class Winner:
    """The first candidate of a ranking."""

    id: int
    errors: int  # on the held-out images
    images: int
    expected_error: float  # share, corrected for its selection
    params: int
    macs: int

    @property
    def error(self) -> float:
        """Share of the held-out images that it errs on."""
        return self.errors / self.images


def winner_of(board: Leaderboard) -> Winner:
    """Return the first candidate of a board."""
    best, sizes = board.best, board.candidates.sizes
    return Winner(
        id=best,
        errors=int(board.errors[best]),
        images=board.images,
        expected_error=board.expected_error,
        params=int(sizes.params[best]),
        macs=int(sizes.macs[best]),
    )


@dataclass(frozen=True)
class RunSummary:
    """One run, as its report shows it."""

    folder: Path
    settings: FitSettings
    posterior: Posterior
    epochs: tuple[EpochRecord, ...]
    layers: tuple[GatedLayer, ...]  # in order of execution
    blocks: tuple[Block, ...]  # the same, of the winner; empty without a ranking
    params: int  # of the original network
    macs: int
    drawn: tuple[Candidates, ...]  # one per budget
    boards: tuple[Leaderboard, ...]  # empty without a ranking
    evaluated: tuple[Evaluation, ...]
    commands: tuple[Command, ...]
    digests: tuple[tuple[str, str], ...]  # (file, sha256)

    @property
    def waiting(self) -> int:
        """Budgets whose ranking has not begun."""
        return len(self.drawn) - len(self.boards) if self.boards else 0

    @property
    def undecided(self) -> int:
        """Candidates that might still be better than the first."""
        return sum(board.undecided for board in self.boards)

    @property
    def finished(self) -> bool:
        """Whether there is a ranking, and nothing of it is undecided."""
        return bool(self.boards) and not self.undecided and not self.waiting

    @property
    def winner(self) -> Winner | None:
        """The first candidate of the first board."""
        return winner_of(self.boards[0]) if self.boards else None

    @property
    def baseline(self) -> str:
        """Name of the baseline that the candidates were drawn from; empty for the posterior."""
        return self.drawn[0].baseline if self.drawn else ""

    def role(self, row: Evaluation) -> str:
        """Return what an evaluated network is to this run, a key of `text.ROLES`."""
        if row.finetuned_epochs:
            return "tuned"
        if row.fixed_drop is not None:
            return "whole" if row.fixed_drop == 0 else "fixed"
        if row.made_from != dict(self.digests).get("posterior.safetensors"):
            return "other"
        if row.candidate in ("whole", "twin"):
            return "open" if row.candidate == "whole" else "twin"
        winner = self.winner
        if winner is not None and row.candidate == str(winner.id) and not self.baseline:
            return "best"
        return "former" if row.chosen == "best" else "candidate"

    def evaluated_as(self, role: str, like: Evaluation | None = None) -> Evaluation | None:
        """Return the latest evaluation of a role; None if it was not made under the conditions of
        `like`.
        """
        rows = [row for row in self.evaluated if self.role(row) == role]
        found = max(rows, key=lambda row: row.at, default=None)
        if found is None or like is None or _conditions(found) == _conditions(like):
            return found
        return None

    def evaluated_alike(self) -> list[Evaluation]:
        """Return the evaluations made under the same conditions as the latest one."""
        latest = max(self.evaluated, key=lambda row: row.at, default=None)
        return [r for r in self.evaluated if latest and _conditions(r) == _conditions(latest)]


def _conditions(row: Evaluation) -> tuple[object, ...]:
    """What two networks must share for their errors and times to be compared."""
    return (
        row.data, row.images, row.images_digest, row.precision, row.device, row.processor,
        row.many.batch,
    )  # fmt: skip


def run_summary(run: Run) -> RunSummary:
    """Read the files of a run. What is missing stays empty; without a posterior, PgnasError."""
    settings = read_settings(run)
    network, posterior = posterior_of(run)
    drawn = [read_candidates(run, network, posterior, label) for label in run.budgets()]
    boards = []
    digests = [(run.posterior.name, posterior.digest)]  # of the very bytes that were read
    for one in drawn:
        digests.append((run.candidates(one.label).name, one.digest))
        if run.ranking(one.label).exists():
            path = run.ranking(one.label)
            race, digest = with_digest(path, lambda _, one=one: read_ranking(run, one))  # type: ignore[misc]
            digests.append((path.name, digest))
            if race is not None:
                boards.append(leaderboard_of(one, race, posterior.seed))
    keep = boards[0].candidates.keep[boards[0].best] if boards else None
    return RunSummary(
        folder=run.folder,
        settings=settings,
        posterior=posterior,
        epochs=tuple(_epochs(run)),
        layers=tuple(_layers(network, keep)),
        blocks=() if keep is None else blocks_of(network, keep),
        params=parameter_count(network),
        macs=whole_macs(network),
        drawn=tuple(drawn),
        boards=tuple(boards),
        evaluated=tuple(evaluations_of(run)),
        commands=tuple(commands_of(run)),
        digests=tuple(digests),
    )


def _epochs(run: Run) -> list[EpochRecord]:
    found: list[EpochRecord] | None = None
    with contextlib.suppress(PgnasError):
        found = epochs_of(run)
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
    probability = per_gate(network, drop_probabilities(network).cpu())
    rows, seen = [], set()
    for name, (first, last) in bank.spans.items():
        if (first, last) in seen:  # a squeeze with the gates of another layer
            continue
        seen.add((first, last))
        kept = None if keep is None else int(keep[first:last].sum())
        drop = tuple(probability[first:last].tolist())
        rows.append(GatedLayer(name, kind_of(modules[name]), drop, kept))
    return rows


def front(errors: Tensor, params: Tensor) -> Tensor:
    """Return the indices of the Pareto front of errors and parameters, smallest first."""
    order = sorted(range(len(errors)), key=lambda i: (int(params[i]), int(errors[i])))
    found: list[int] = []
    for index in order:
        if not found or int(errors[index]) < int(errors[found[-1]]):
            found.append(index)
    return torch.tensor(found, dtype=torch.int64)
