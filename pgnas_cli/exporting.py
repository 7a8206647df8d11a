"""Export one candidate of a run: choose it, cut it out, verify it, write it.

A file that the user named is not replaced, unless `force` says so.
"""

import contextlib
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .data import ImageData
from .errors import PgnasError
from .formats import (
    NetworkInfo,
    checked_slim,
    onnx_content,
    size_fields,
    write_network,
)
from .gates import remaining
from .machine import Machine, full_float32
from .progress import note
from .ranking import Race, finished, held_out_evaluator, rank, rank_again, read_ranking
from .run import Run, run_at
from .run.posterior import Posterior, held_out_of, posterior_of
from .sampling import Candidates, random_baseline, read_candidates, sample
from .sizes import budgets_of, count
from .storage import MOST_BYTES, parse_json, read_bytes, remove_leftovers, write_bytes
from .training import Batches
from .units import clock

CANDIDATES = 1500  # that `export` draws where there are none
LEAST_MINUTES = 1.0  # of the race that `export` runs, where the fit took less
MINUTES = 10.0  # the same, where it is not known how long the fit took
VERIFIED = 256  # held-out images on which slim and masked logits are compared


@dataclass(frozen=True)
class _Choice:
    keep: Tensor  # bool (gates,)
    candidate: str  # id, "whole" or "twin"
    chosen: str  # "best", "id", "whole" or "twin"


@full_float32()
def export(  # noqa: PLR0913 - public; each is an option of its own
    path: str | Path,
    run: Run | str | Path | None = None,  # None: the newest in runs/
    *,
    candidate: str = "best",  # or an id, "whole", or "twin" (random, as large)
    max_params: str | None = None,  # names the budget, where there are several
    max_macs: str | None = None,
    max_time: str | None = None,
    round_to: int | None = None,  # channel counts become multiples; None: 8 for ONNX, else 1
    opset: int = 18,  # of an ONNX file
    dynamic_size: bool = False,  # an ONNX file for images of any height and width
    data: str | None = None,  # where the images of the fit lie now; None: as for the fit
    force: bool = False,
    machine: Machine = Machine(),  # noqa: B008 - frozen
) -> NetworkInfo:
    """Store one candidate as a slim network; samples and ranks first where that is missing.

    That ranking looks for the winner alone, for as long as the fit took. Where it does not come to
    an end, the candidate that leads is stored; `rank` resumes it.

    Raises PgnasError, and writes nothing, where the slim network's logits differ from those of the
    masked one.
    """
    path, run = Path(path), run_at(run)
    onnx = path.suffix == ".onnx"
    run.check_export(path, round_to=round_to, opset=opset, dynamic_size=dynamic_size, force=force)
    round_to = (8 if onnx else 1) if round_to is None else round_to
    remove_leftovers(path.parent)
    network, posterior = posterior_of(run)
    wanted = {"params": max_params, "macs": max_macs, "time": max_time}
    if candidate == "whole":
        if any(wanted.values()):
            raise PgnasError(
                "the whole network is within no budget; leave out `max_params`, `max_macs` and"
                " `max_time`"
            )
        choice = _Choice(remaining(network), "whole", "whole")  # all that is still trained
    else:
        drawn = _candidates(run, network, posterior, candidate, wanted)
        choice = _chosen(run, network, posterior, drawn, candidate, machine, data)
    split = held_out_of(run, posterior, machine.workers, moved=data)
    about = _info(run, network, posterior, split, choice, round_to, machine)
    assert split.held_out.pixels is not None
    some = split.held_out.pixels[:VERIFIED]
    batches = list(Batches(some, split.preprocessing, machine.device))
    if onnx:
        images = torch.cat(batches)[: len(some)]
        smaller = checked_slim(path, network, choice.keep, batches, "onnx", round_to=round_to)
        about = dataclasses.replace(about, layout="onnx")
        content = onnx_content(path, smaller, images, about, opset=opset, dynamic_size=dynamic_size)
        write_bytes(path, content)
        return about
    write_network(path, checked_slim(path, network, choice.keep, batches, round_to=round_to), about)
    return about


def _candidates(
    run: Run,
    network: nn.Module,
    posterior: Posterior,
    candidate: str,
    sizes: dict[str, str | None],
) -> Candidates:
    """The candidates that are meant, drawn first where there are none."""
    labels = run.budgets()
    if not labels:
        note(f"nothing is drawn yet: drawing {CANDIDATES} candidates first")
        named: dict[str, Any] = {f"max_{kind}": size for kind, size in sizes.items()}
        sample(run, CANDIDATES, **named)
        labels = run.budgets()
    wanted = budgets_of(network, **sizes)
    if not wanted and len(labels) == 1:
        found = read_candidates(run, network, posterior, labels[0])
    elif len(wanted) == 1 and wanted[0].label in labels:
        found = read_candidates(run, network, posterior, wanted[0].label)
    else:
        stored = (read_candidates(run, network, posterior, label).budget for label in labels)
        possible = ", ".join(b.option for b in stored if b) or "none was named"
        if wanted:
            raise PgnasError(f"no candidates were drawn for that budget; possible: {possible}")
        raise PgnasError(f"candidates were drawn for several budgets; name one: {possible}")
    if found.baseline:
        note(f"these candidates are a baseline ({found.baseline}), not the posterior's own")
    known = candidate in ("best", "twin")
    if not known and not (candidate.isdecimal() and int(candidate) < len(found)):
        raise PgnasError(
            f"no candidate '{candidate}'; possible: 0 to {len(found) - 1}, best, whole, or twin"
        )
    return found


def _chosen(
    run: Run,
    network: nn.Module,
    posterior: Posterior,
    drawn: Candidates,
    candidate: str,
    machine: Machine,
    data: str | None,
) -> _Choice:
    """One of the candidates `drawn`, ranked first where that is needed and missing."""
    if candidate.isdecimal():
        return _Choice(drawn.keep[int(candidate)], str(int(candidate)), "id")
    race = read_ranking(run, drawn) or _raced(run, drawn, machine, data)
    winner = int(race.best()[0])
    rivals = len(dataclasses.replace(race, top=1).walking())
    if rivals:
        note(
            f"the ranking is not finished: {rivals} of {len(drawn)} candidates cannot be told"
            f" from the leader, {winner}, and might be better;"
            f" {rank_again(run, data=data)} resumes it"
        )
    if candidate == "twin":
        params = int(drawn.sizes.params[winner])
        return _Choice(random_baseline(network, params, posterior.seed), "twin", "twin")
    return _Choice(drawn.keep[winner], str(winner), "best")


def _raced(run: Run, drawn: Candidates, machine: Machine, data: str | None) -> Race:
    """The race for the first place, for as long as the fit took."""
    minutes = max(LEAST_MINUTES, _fit_minutes(run))
    note(
        "nothing is ranked yet: ranking the candidates first, to find the best one, for"
        f" {clock(60 * minutes)} at most"
    )
    (board,) = rank(run, top=1, time_limit=minutes, budget=drawn.label, data=data, machine=machine)
    if board.candidates.digest != drawn.digest:
        raise PgnasError(f"other candidates were drawn in '{run.folder}' meanwhile; export again")
    return board.race


def _fit_minutes(run: Run) -> float:
    """How long the fit took, by its epochs; `MINUTES` where its record is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, OverflowError):
        lines = read_bytes(run.metrics, MOST_BYTES).splitlines()
        minutes = sum(float(parse_json(line)["seconds"]) for line in lines) / 60
        if 0 < minutes < math.inf:
            return minutes
    return MINUTES


def _info(
    run: Run,
    network: nn.Module,
    posterior: Posterior,
    data: ImageData,
    choice: _Choice,
    round_to: int,
    machine: Machine,
) -> NetworkInfo:
    """What the file will say about its network."""
    params = count(network, choice.keep[None], round_to=round_to).params
    evaluator = held_out_evaluator(network, choice.keep[None], data, machine.device)
    held_out = finished(evaluator, params)
    return NetworkInfo(
        supernet=posterior.supernet,
        candidate=choice.candidate,
        chosen=choice.chosen,
        held_out_errors=int(held_out.errors[0]),
        held_out_images=len(held_out.order),
        made_from=posterior.digest,
        fixed_drop=posterior.objective.fixed_drop,
        held_out_digest=posterior.split.digest,
        **size_fields(network, choice.keep, round_to),
    )
