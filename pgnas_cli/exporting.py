"""Export one candidate of a run: posterior + candidates + ranking -> one slim network.

A file that the user named is not replaced, unless `force` says so.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import PgnasError
from .formats import OPSETS, Slim, checked_slim, slim_record, write_network, write_onnx
from .gates import gates
from .progress import Track
from .ranking import (
    Progress,
    Ranking,
    Recalibration,
    held_out_judge,
    judges_of,
    rank,
    rank_stage,
    read_ranking,
    smallest_within_noise,
)
from .run import Run, read_settings
from .run.posterior import Posterior, held_out_of, posterior_of
from .sampling import Drawn, named, random_twin, read_candidates, sample_stage
from .sizes import budgets_of, count, parameter_count, whole_macs
from .slimming import known_layout
from .storage import file_digest
from .training import Batches

TOP = 10  # of a ranking that export has to make first


def export_stage(
    run: Run,
    path: Path,
    *,
    candidate: str,  # "" for the winner, an id, "smallest" (within noise), "whole", or "twin"
    max_params: str | None = None,  # names the board where there are several
    max_macs: str | None = None,
    layout: str | None,  # of an ONNX file; None: small
    round_to: int | None,  # numbers of channels become multiples of it; None: what suits the file
    opset: int,  # of an ONNX file
    force: bool,
    device: torch.device,
    workers: int,
    track: Track,
    notice: Callable[[str], None],
    watch: Callable[[Progress], None] = lambda _: None,
) -> Slim:
    """Store one candidate as a slim network; samples and ranks first where that is missing."""
    if path.suffix not in (".safetensors", ".onnx"):
        raise PgnasError(f"'{path}' has no known ending; possible: .safetensors, .onnx")
    if path.resolve() in {file.resolve() for file in run.files()}:
        raise PgnasError(f"'{path}' is a file of the run itself; choose another name")
    if path.exists() and not force:
        raise PgnasError(f"'{path}' exists; choose another name, or add --force")
    if layout and path.suffix != ".onnx":
        raise PgnasError(
            "--layout is for .onnx files; a .safetensors file takes either when it is loaded:"
            " pgnas_cli.load(FILE, layout='fast')"
        )
    arrangement = known_layout(layout or "small")
    if round_to is None:  # ONNX Runtime's kernels want blocks of channels
        round_to = 8 if path.suffix == ".onnx" else 1
    if not 1 <= round_to <= 1024:
        raise PgnasError(f"--round-to {round_to} is out of range; possible: 1 to 1024")
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise PgnasError(f"--opset {opset} is out of range; possible: {OPSETS[0]} to {OPSETS[1]}")
    network, posterior = posterior_of(run)
    chosen = candidate or "best"
    chosen = "id" if chosen.isdecimal() else chosen
    drawn = stored = None
    board = 0
    if candidate == "whole" and (max_params or max_macs):
        raise PgnasError("the whole network keeps no budget; leave out --max-params, --max-macs")
    if candidate != "whole":
        if not run.candidates.exists():
            notice("nothing is drawn yet: drawing 1500 candidates first")
            sample_stage(run, 1500, max_params=max_params, max_macs=max_macs)
        drawn = read_candidates(run, network)
        stored = read_ranking(run, drawn)
        if drawn.baseline:
            notice(f"these candidates are a baseline ({drawn.baseline}), not the posterior's own")
        board = _board(network, drawn, candidate, max_params, max_macs)
        if stored is None and not candidate.isdecimal():
            notice("nothing is ranked yet: ranking the candidates first")
            rank_stage(run, top=TOP, device=device, workers=workers, track=track, watch=watch)
            stored = read_ranking(run, drawn)
    data = held_out_of(run, posterior, read_settings(run), workers, track)
    keep, label = torch.ones(gates(network).count, dtype=torch.bool), candidate
    if drawn is not None:
        ranking = None if stored is None else stored.ranking(drawn, board)
        if ranking is None and not candidate.isdecimal():
            raise PgnasError(
                f"that budget has not been ranked yet; go on with pgnas rank --run {run.folder}"
            )
        if ranking is not None and len(ranking.running):
            undecided = f"{len(ranking.running)} candidates might still be better"
            if candidate == "smallest":
                raise PgnasError(
                    f"the ranking is not finished, {undecided}; go on with pgnas rank --run"
                    f" {run.folder}"
                )
            notice(f"the ranking is not finished: {undecided}; pgnas rank goes on")
        recalibrate = 0 if stored is None else stored.recalibrate
        judges = judges_of(network, drawn, data, device, workers, recalibrate)
        if candidate == "smallest":
            candidate = str(smallest_within_noise(run, drawn, board, judges, watch))
            notice(f"candidate {candidate} is the smallest that cannot be told from the best")
        keep, label = _chosen(network, drawn, board, ranking, posterior, candidate)
        again = judges[board].recalibration
        if again is not None:
            own = Recalibration(network, keep[None], again.batches)
            own.apply_(0)
    sizes = count(network, keep[None], round_to=round_to)
    assert data.held_out.pixels is not None
    held_out = rank(held_out_judge(network, keep[None], data, device), sizes)
    about = slim_record(
        posterior.subject, network, keep, label, sizes,
        (parameter_count(network), whole_macs(network)),
        (int(held_out.errors[0]), held_out.images), file_digest(run.posterior),
        layout=arrangement, round_to=round_to, chosen=chosen,
        fixed_drop=posterior.objective.fixed_drop, held_out_digest=posterior.cutting.digest,
    )  # fmt: skip
    batches = list(Batches(data.held_out.pixels[:256], data.preprocessing, device))
    smaller = checked_slim(path, network, keep, batches, arrangement, round_to=round_to)
    if path.suffix == ".onnx":
        images = torch.cat(batches)[: data.held_out.pixels[:256].shape[0]]
        write_onnx(path, smaller, images, about, opset=opset)
    else:
        write_network(path, smaller, about)
    return about


def _board(
    network: nn.Module,
    drawn: Drawn,
    candidate: str,
    max_params: str | None,
    max_macs: str | None,
) -> int:
    """Which of the boards is meant."""
    budgets = [budget for budget, _ in drawn.boards()]
    wanted = budgets_of(network, max_params, max_macs)
    possible = ", ".join(named(b) for b in budgets if b)
    of_id = None
    if candidate.isdecimal() and int(candidate) < len(drawn.keep):
        of_id = int(candidate) * len(budgets) // len(drawn.keep)
    if wanted:
        for board, budget in enumerate(budgets):
            # As `rank` prints it: four digits.
            if len(wanted) == 1 and budget is not None and named(budget) == named(wanted[0]):
                if of_id not in (None, board):
                    raise PgnasError(f"candidate {candidate} was drawn for another budget")
                return board
        raise PgnasError(
            f"no candidates were drawn for that budget; possible: {possible or 'none was named'}"
        )
    if len(budgets) == 1:
        return 0
    if of_id is not None:
        return of_id
    raise PgnasError(f"candidates were drawn for several budgets; say which: {possible}")


def _chosen(
    network: nn.Module,
    drawn: Drawn,
    board: int,
    ranking: Ranking | None,
    posterior: Posterior,
    candidate: str,
) -> tuple[Tensor, str]:
    """The gates that `candidate` keeps, and what to call it."""
    if candidate.isdecimal() and int(candidate) < len(drawn.keep):
        return drawn.keep[int(candidate)], str(int(candidate))
    if candidate not in ("", "twin"):
        raise PgnasError(
            f"no candidate '{candidate}'; possible: 0 to {len(drawn.keep) - 1}, whole, twin, or"
            " smallest"
        )
    assert ranking is not None, "checked by the caller"
    winner = drawn.boards()[board][1].start + int(ranking.order[0])
    if candidate == "twin":
        return random_twin(network, int(drawn.sizes.params[winner]), posterior.seed), "twin"
    return drawn.keep[winner], str(winner)
