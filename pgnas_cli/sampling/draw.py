"""Draw candidates of a fitted run and count them: posterior -> candidates.

A candidate is a row of bits, one per gate. What is derived inside a run is replaced when its stage
runs again.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import PgnasError
from ..gates import drop_probabilities, gates, hard_keep
from ..progress import Track, untracked
from ..run import Run
from ..run.posterior import posterior_of
from ..seeds import generator
from ..sizes import Sizes, Target, budgets_of, count, joined
from ..storage import checked, file_digest, from_json, read_tensors, to_json, write_tensors
from .baselines import baseline_probabilities
from .budget import check_reach, draw_within

CANDIDATES = "pgnas.candidates/2"


@dataclass(frozen=True)
class Drawn:
    """Candidates of a run, as stored."""

    keep: Tensor  # bool (candidates, gates)
    sizes: Sizes
    baseline: str  # "" for the posterior's own
    budgets: tuple[Target, ...] = ()  # each of as many candidates, one after the other

    def boards(self) -> list[tuple[Target | None, slice]]:
        """The ids that are ranked among each other, and the budget that they keep."""
        if not self.budgets:
            return [(None, slice(0, len(self.keep)))]
        each = len(self.keep) // len(self.budgets)
        return [(b, slice(i * each, (i + 1) * each)) for i, b in enumerate(self.budgets)]


def sample_stage(
    run: Run,
    candidates: int,  # for each budget
    *,
    baseline: str = "",
    seed: int | None = None,  # None: that of the fit
    max_params: str | None = None,
    max_macs: str | None = None,
    track: Track = untracked,
) -> Drawn:
    """Draw candidates from the posterior of a run, or from a baseline, and count them."""
    if candidates < 1:
        raise PgnasError(f"{candidates} candidates cannot be drawn; possible: 1 or more")
    network, posterior = posterior_of(run)
    chosen = posterior.seed if seed is None else seed
    probability = drop_probabilities(network)
    budgets = budgets_of(network, max_params, max_macs)
    if baseline and budgets:
        raise PgnasError(
            "--baseline has the size of the posterior's draws; leave out --max-params and"
            " --max-macs"
        )
    if baseline:
        probability = baseline_probabilities(
            network, probability, baseline, generator=generator(chosen, "baseline")
        )
    check_reach(network, probability, budgets, chosen)
    if budgets:
        parts = [
            draw_within(network, probability, budgets[board], candidates, chosen)
            for board in track(range(len(budgets)), "drawing within budgets")
        ]
        keep = torch.cat([part.keep for part in parts])
        sizes = joined([part.sizes for part in parts])
    else:
        keep = draw_candidates(probability, network, candidates, chosen)
        sizes = count(network, keep)
    tensors = {"keep": pack(keep), **to_json(sizes)}
    content = {
        "candidates": len(keep),
        "budgets": [to_json(budget) for budget in budgets],
        "gates": gates(network).count,
        "baseline": baseline,
        "seed": chosen,
        "made_from": file_digest(run.posterior),
    }
    write_tensors(run.candidates, CANDIDATES, tensors, content)
    for path in (run.ranking, run.ranking_table, run.evaluation, run.report):
        path.unlink(missing_ok=True)
    return Drawn(keep, sizes, baseline, budgets)


def read_candidates(run: Run, network: nn.Module) -> Drawn:
    """The candidates of a run; they must come from its present posterior."""
    if not run.candidates.exists():
        raise PgnasError(f"no candidates in '{run.folder}'; draw some with pgnas sample")
    tensors, content = read_tensors(run.candidates, CANDIDATES)
    rows, width = content.get("candidates"), gates(network).count
    if not isinstance(rows, int) or rows < 1 or content.get("gates") != width:
        raise PgnasError(f"'{run.candidates}' does not fit the posterior; draw again: pgnas sample")
    if content.get("made_from") != file_digest(run.posterior):
        raise PgnasError(
            f"'{run.candidates}' is older than the posterior; draw again: pgnas sample"
        )
    sizes = {field.name: ((rows,), torch.int64) for field in dataclasses.fields(Sizes)}
    checked(tensors, {"keep": ((rows, (width + 7) // 8), torch.uint8), **sizes}, run.candidates)
    keep = unpack(tensors.pop("keep"), width)
    stored = content.get("budgets", [])
    if not isinstance(stored, list) or (stored and rows % len(stored)):
        raise PgnasError(f"'{run.candidates}' is damaged; draw again: pgnas sample")
    budgets = tuple(from_json(Target, budget, run.candidates) for budget in stored)
    return Drawn(keep, Sizes(**tensors), str(content.get("baseline", "")), budgets)


def draw_candidates(drop_probability: Tensor, network: nn.Module, count: int, seed: int) -> Tensor:
    """Draw `count` candidates, bool (count, gates); the i-th is the same for every `count`."""
    per_gate = drop_probability.cpu()[gates(network).group.cpu()]
    rows = [
        hard_keep(per_gate, generator=generator(seed, "candidate", index)) for index in range(count)
    ]
    return torch.stack(rows)


def pack(keep: Tensor) -> Tensor:
    """Eight gates in a byte: bool (candidates, gates) -> uint8 (candidates, ceil(gates / 8))."""
    return torch.from_numpy(np.packbits(keep.cpu().numpy(), axis=1))


def unpack(packed: Tensor, count: int) -> Tensor:
    """The inverse of `pack`, for `count` gates."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=1, count=count)).bool()
