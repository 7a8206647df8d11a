"""Draw candidates of a fitted run and count them: posterior -> candidates.

A candidate is a row of bits, one per gate. Candidates within a budget have a file of their own, one
per budget. What is derived inside a run is replaced when it is drawn again.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import PgnasError
from ..fields import check_range
from ..gates import drop_probabilities, gates, hard_keep, per_gate
from ..progress import track
from ..run import MOST_CANDIDATES, Run, run_at, writing
from ..run.posterior import Posterior, posterior_of
from ..seeds import generator
from ..sizes import ROWS, Sizes, Target, budgets_of, count, joined, whole_sizes
from ..storage import from_json, remove, to_json, with_digest, write_bytes
from ..tensors import checked, read_header, read_values, tensor_bytes
from .baselines import baseline_probabilities
from .budget import check_reach, drawn_within

CANDIDATES = "pgnas.candidates/1"


@dataclass(frozen=True)
class Candidates:
    """Candidates that are ranked against each other, as stored; ids count from 0."""

    packed: Tensor  # uint8 (candidates, ceil(gates / 8)), as `pack` makes it
    gates: int
    sizes: Sizes
    whole: dict[str, int]  # the whole network's size, in each kind of `Target`
    baseline: str = ""  # "" for the posterior's own, else "permuted" or "fixed"
    budget: Target | None = None  # that all of them keep within
    digest: str = ""  # sha256 of the file that they were read from

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def keep(self) -> Tensor:
        """What each keeps, bool (candidates, gates), made anew at every call."""
        return unpack(self.packed, self.gates)

    @property
    def costs(self) -> dict[str, Tensor]:
        """Those sizes that are known, by name: time with a time table alone."""
        known = vars(self.sizes).items()
        return {name: cost for name, cost in known if name != "time" or name in self.whole}

    @property
    def label(self) -> str:
        """Of the budget, in names of files; "" without one."""
        return "" if self.budget is None else self.budget.label


def sample(
    run: Run | str | Path | None = None,  # None: the newest in runs/
    n: int = 1500,  # candidates, for each budget
    *,
    baseline: str = "",  # "permuted" or "fixed": not from the posterior, but as large
    seed: int | None = None,  # None: that of the fit
    max_params: str | None = None,  # "60%", "10M", or several: "80%,60%,40%"
    max_macs: str | None = None,
    max_time: str | None = None,  # "60%", "4ms"; of a fit with a target time
    force: bool = False,  # delete a ranking of other candidates
) -> list[Candidates]:
    """Draw candidates from the posterior of a run, or from a baseline, and count them.

    Returns one record per budget, or one in all. The same ones again change nothing. Raises
    PgnasError for a budget that draws cannot keep within, and where other candidates are ranked.
    """
    run = run_at(run)
    check_range("n", n, 1, MOST_CANDIDATES)
    with writing(run):
        wanted = {"params": max_params, "macs": max_macs, "time": max_time}
        drawn, posterior = _drawn(run, n, baseline, seed, wanted)
        _write(run, drawn, posterior, posterior.seed if seed is None else seed, force)
    return drawn


def _drawn(
    run: Run, n: int, baseline: str, seed: int | None, wanted: dict[str, str | None]
) -> tuple[list[Candidates], Posterior]:
    network, posterior = posterior_of(run)
    chosen = posterior.seed if seed is None else seed
    learned = drop_probabilities(network)
    budgets = budgets_of(network, **wanted)
    whole = whole_sizes(network)
    if baseline and budgets:
        raise PgnasError(
            "`baseline` has the size of the posterior's draws; leave out `max_params`, `max_macs`"
            " and `max_time`"
        )
    if budgets:
        check_reach(network, learned, budgets, chosen)
        drawn = [
            _packed(drawn_within(network, learned, budget, n, chosen), whole, budget=budget)
            for budget in track(budgets, "drawing within budgets")
        ]
    else:
        probability = learned
        if baseline:
            randomness = generator(chosen, "baseline")
            probability = baseline_probabilities(network, learned, baseline, generator=randomness)
        blocks = (_rows(probability, network, some, chosen) for some in torch.arange(n).split(ROWS))
        counted = ((keep, count(network, keep)) for keep in blocks)
        drawn = [_packed(counted, whole, baseline=baseline)]
    return drawn, posterior


def _packed(
    blocks: Iterable[tuple[Tensor, Sizes]], whole: dict[str, int], **about: Any
) -> Candidates:
    """Candidates of blocks of what is kept, bool (some, gates), and what that costs."""
    packed, sizes, gates = [], [], 0
    for keep, cost in blocks:
        packed.append(pack(keep))
        sizes.append(cost)
        gates = keep.shape[1]
    return Candidates(torch.cat(packed), gates, joined(sizes), whole, **about)


def _write(
    run: Run, drawn: Sequence[Candidates], posterior: Posterior, seed: int, force: bool
) -> None:
    """Replace the candidates of a run, and remove what was derived from other ones."""
    contents = {}
    for one in drawn:
        content = {
            "candidates": len(one),
            "budget": None if one.budget is None else to_json(one.budget),
            "gates": one.gates,
            "baseline": one.baseline,
            "seed": seed,
            "made_from": posterior.digest,
        }
        tensors = {"keep": one.packed, **one.costs}
        contents[one.label] = tensor_bytes(CANDIDATES, tensors, content)
    labels = set(run.budgets())
    same = {
        label for label in labels & contents.keys()
        if run.candidates(label).read_bytes() == contents[label]
    }  # fmt: skip
    if same == labels == contents.keys():
        return
    others = labels - same
    ranked = [run.ranking(label) for label in others if run.ranking(label).exists()]
    if ranked and not force:
        raise PgnasError(
            f"'{ranked[0]}' is a ranking of other candidates, which would be lost; add `force` to"
            " delete it"
        )
    for path in (*run.evaluation_files(), run.report, *map(run.ranking, others),
                 *map(run.ranking_table, others)):  # fmt: skip
        remove(path)
    for label in contents.keys() - same:
        write_bytes(run.candidates(label), contents[label])
    for label in labels - contents.keys():
        remove(run.candidates(label))


def read_candidates(
    run: Run, network: nn.Module, posterior: Posterior, budget: str = ""
) -> Candidates:
    """The candidates of a run, of the budget of that label; they must come from its posterior."""
    path = run.candidates(budget)
    if not path.exists():
        raise PgnasError(f"no candidates in '{run.folder}'; draw some with pgnas sample")
    found, digest = with_digest(path, lambda path: _candidates_in(path, network, posterior))
    if found.label != budget:
        raise PgnasError(f"'{path}' holds candidates of another budget; draw again: pgnas sample")
    return dataclasses.replace(found, digest=digest)


def _candidates_in(path: Path, network: nn.Module, posterior: Posterior) -> Candidates:
    header, content = read_header(path, CANDIDATES)
    rows, width = content.get("candidates"), gates(network).count
    if type(rows) is not int or rows < 1 or content.get("gates") != width:
        raise PgnasError(f"'{path}' does not fit the posterior; draw again: pgnas sample")
    if content.get("made_from") != posterior.digest:
        raise PgnasError(f"'{path}' is older than the posterior; draw again: pgnas sample")
    whole = whole_sizes(network)
    names = [field.name for field in dataclasses.fields(Sizes)]
    there = [name for name in names if name != "time" or name in whole]
    sizes = dict.fromkeys(there, ((rows,), torch.int64))
    checked(header, {"keep": ((rows, (width + 7) // 8), torch.uint8), **sizes}, path)
    tensors = read_values(path, header)
    tensors.setdefault("time", torch.zeros(rows, dtype=torch.int64))
    if not all(_possible(tensors[kind], most) for kind, most in whole.items()):
        raise PgnasError(f"'{path}' is damaged: sizes beyond the whole network's; draw again")
    stored, packed = content.get("budget"), tensors.pop("keep")
    return Candidates(
        packed,
        width,
        Sizes(**tensors),
        whole,
        str(content.get("baseline", "")),
        None if stored is None else from_json(Target, stored, path),
    )


def _possible(sizes: Tensor, whole: int) -> bool:
    """Whether candidates may have these sizes: planes of ones and folded biases add some."""
    return int(sizes.min()) >= 0 and int(sizes.max()) <= 2 * whole + 2**16


def draw_candidates(drop_probability: Tensor, network: nn.Module, count: int, seed: int) -> Tensor:
    """Draw `count` candidates, bool (count, gates); the i-th is the same for every `count`."""
    return _rows(drop_probability, network, torch.arange(count), seed)


def _rows(drop_probability: Tensor, network: nn.Module, ids: Tensor, seed: int) -> Tensor:
    """The candidates of these ids, bool (ids, gates)."""
    drop = per_gate(network, drop_probability.cpu())
    draws = (generator(seed, "candidate", index) for index in ids.tolist())
    return torch.stack([hard_keep(drop, generator=draw) for draw in draws])


def pack(keep: Tensor) -> Tensor:
    """Eight gates in a byte: bool (candidates, gates) -> uint8 (candidates, ceil(gates / 8))."""
    return torch.from_numpy(np.packbits(keep.cpu().numpy(), axis=1))


def unpack(packed: Tensor, count: int) -> Tensor:
    """The inverse of `pack`, for `count` gates."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=1, count=count)).bool()
