"""From a posterior to one slim network: draw candidates, rank them, export one.

    sample   posterior                              -> candidates
    rank     posterior + candidates + data          -> ranking
    export   posterior + candidates + ranking       -> one slim network

What is derived inside a run is replaced when its stage runs again; a file that the user named is
not, unless `force` says so.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .candidates import (
    Sizes,
    baseline_probabilities,
    count,
    draw_candidates,
    pack,
    parameter_count,
    shifted_to_size,
    unpack,
    whole_macs,
)
from .data import ImageData, Track
from .data import digest as data_digest
from .deployment import OPSETS, write_onnx
from .errors import PgnasError
from .export import Slim, checked_slim, slim_record, write_network
from .files import (
    Posterior,
    Run,
    checked,
    file_digest,
    read_posterior,
    read_tensors,
    to_json,
    write_tensors,
    write_text,
)
from .fitting import held_out_decoded
from .randomness import generator
from .ranking import Batches, Ranking, ordered, rank
from .settings import FitSettings, read_settings
from .slimming import known_layout
from .sources import open_data
from .supernet import drop_probabilities, gates

CANDIDATES, RANKING = "pgnas.candidates/1", "pgnas.ranking/1"


@dataclass(frozen=True)
class Drawn:
    """Candidates of a run, as stored."""

    keep: Tensor  # bool (candidates, gates)
    sizes: Sizes
    baseline: str  # "" for the posterior's own


def posterior_of(run: Run) -> tuple[nn.Module, Posterior]:
    """The fitted super-network of a run."""
    if not run.posterior.exists():
        if run.checkpoint.exists():
            raise PgnasError(
                f"the fit in '{run.folder}' is not finished; go on with pgnas fit --resume --run"
                f" {run.folder}"
            )
        raise PgnasError(f"no posterior in '{run.folder}'; fit one with pgnas fit")
    return read_posterior(run.posterior)


def sample_stage(run: Run, candidates: int, baseline: str, seed: int | None) -> Drawn:
    """Draw candidates from the posterior of a run, or from a baseline, and count them."""
    if candidates < 1:
        raise PgnasError(f"{candidates} candidates cannot be drawn; possible: 1 or more")
    network, posterior = posterior_of(run)
    chosen = posterior.seed if seed is None else seed
    probability = drop_probabilities(network)
    if baseline:
        probability = baseline_probabilities(
            network, probability, baseline, generator=generator(chosen, "baseline")
        )
    keep = draw_candidates(probability, network, candidates, chosen)
    sizes = count(network, keep)
    tensors = {"keep": pack(keep), **to_json(sizes)}
    content = {
        "candidates": candidates,
        "gates": gates(network).count,
        "baseline": baseline,
        "seed": chosen,
        "made_from": file_digest(run.posterior),
    }
    write_tensors(run.candidates, CANDIDATES, tensors, content)
    for path in (run.ranking, run.ranking_table):
        path.unlink(missing_ok=True)
    return Drawn(keep, sizes, baseline)


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
    return Drawn(keep, Sizes(**tensors), str(content.get("baseline", "")))


def held_out_of(
    run: Run, posterior: Posterior, settings: FitSettings, workers: int, track: Track
) -> ImageData:
    """The data of a run with its held-out part decoded, cut as for the fit."""
    data = open_data(
        settings.data,
        seed=posterior.cutting.seed,
        held_out=posterior.cutting.held_out,
        root=Path(settings.data_root),
        skip_corrupt=settings.skip_corrupt,
        preprocessing=posterior.subject.preprocessing,
        fitting=False,
        track=track,
    )
    if data_digest(data.held_out) != posterior.cutting.digest:
        raise PgnasError(
            f"the images of '{settings.data}' are not those of the fit: the held-out part has"
            f" changed; bring back the data or fit again"
        )
    return held_out_decoded(data, workers, track)


def rank_stage(
    run: Run, *, device: torch.device, workers: int, track: Track
) -> tuple[Ranking, float]:
    """Evaluate the candidates of a run on its held-out images; the ranking, and seconds taken."""
    network, posterior = posterior_of(run)
    drawn = read_candidates(run, network)
    data = held_out_of(run, posterior, read_settings(run), workers, track)
    assert data.held_out.pixels is not None
    start = time.perf_counter()
    ranking = rank(
        network, drawn.keep, drawn.sizes, data.held_out.pixels, data.held_out.labels,
        data.preprocessing, device=device, track=track,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    write_tensors(
        run.ranking,
        RANKING,
        {"order": ranking.order, "errors": ranking.errors, **to_json(ranking.sizes)},
        {"images": ranking.images, "made_from": file_digest(run.candidates)},
    )
    lines = ["rank,id,errors,images,error,params,paper_params,macs"]
    for place, index in enumerate(ranking.order.tolist()):
        errors = int(ranking.errors[index])
        sizes = [int(s[index]) for s in dataclasses.astuple(ranking.sizes)]
        row = [place + 1, index, errors, ranking.images, f"{errors / ranking.images:.6f}", *sizes]
        lines.append(",".join(map(str, row)))
    write_text(run.ranking_table, "\n".join(lines) + "\n")
    return ranking, seconds


def read_ranking(run: Run, drawn: Drawn) -> Ranking | None:
    """The ranking of a run, or None where its candidates have not been ranked."""
    if not run.ranking.exists():
        return None
    tensors, content = read_tensors(run.ranking, RANKING)
    if content.get("made_from") != file_digest(run.candidates):
        return None
    rows = ((len(drawn.keep),), torch.int64)
    names = ["order", "errors", *(field.name for field in dataclasses.fields(Sizes))]
    checked(tensors, dict.fromkeys(names, rows), run.ranking)
    images, errors = content.get("images"), tensors["errors"]
    if not isinstance(images, int) or not torch.equal(
        tensors["order"], ordered(errors, drawn.sizes.params)
    ):
        raise PgnasError(f"'{run.ranking}' is damaged; rank again: pgnas rank")
    return Ranking(tensors["order"], errors, images, drawn.sizes)


def export_stage(
    run: Run,
    path: Path,
    *,
    candidate: str,  # "" for the winner, an id, "whole", or "twin"
    layout: str | None,  # of an ONNX file; None: small
    round_to: int | None,  # numbers of channels become multiples of it; None: what suits the file
    opset: int,  # of an ONNX file
    force: bool,
    device: torch.device,
    workers: int,
    track: Track,
    notice: Callable[[str], None],
) -> Slim:
    """Store one candidate as a slim network; samples and ranks first where that is missing."""
    if path.suffix not in (".safetensors", ".onnx"):
        raise PgnasError(f"'{path}' has no known ending; possible: .safetensors, .onnx")
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
    if candidate != "whole":
        if not run.candidates.exists():
            notice("nothing is drawn yet: drawing 1500 candidates first")
            sample_stage(run, 1500, "", None)
        if read_ranking(run, read_candidates(run, network)) is None:
            notice("nothing is ranked yet: ranking the candidates first")
            rank_stage(run, device=device, workers=workers, track=track)
    data = held_out_of(run, posterior, read_settings(run), workers, track)
    keep, label = _chosen(run, network, posterior, candidate)
    sizes = count(network, keep[None], round_to=round_to)
    assert data.held_out.pixels is not None
    held_out = rank(
        network, keep[None], sizes, data.held_out.pixels, data.held_out.labels, data.preprocessing,
        device=device,
    )  # fmt: skip
    about = slim_record(
        posterior.subject, network, keep, label, sizes,
        (parameter_count(network), whole_macs(network)),
        (int(held_out.errors[0]), held_out.images), file_digest(run.posterior),
        layout=arrangement, round_to=round_to,
    )  # fmt: skip
    batches = list(Batches(data.held_out.pixels[:256], data.preprocessing, device))
    smaller = checked_slim(path, network, keep, batches, arrangement, round_to=round_to)
    if path.suffix == ".onnx":
        images = torch.cat(batches)[: data.held_out.pixels[:256].shape[0]]
        write_onnx(path, smaller, images, about, opset=opset)
    else:
        write_network(path, smaller, about)
    return about


def _chosen(
    run: Run, network: nn.Module, posterior: Posterior, candidate: str
) -> tuple[Tensor, str]:
    """The gates that `candidate` keeps, and what to call it."""
    if candidate == "whole":
        return torch.ones(gates(network).count, dtype=torch.bool), "whole"
    drawn = read_candidates(run, network)
    ranking = read_ranking(run, drawn)
    assert ranking is not None
    winner = int(ranking.order[0])
    if not candidate:
        return drawn.keep[winner], str(winner)
    if candidate == "twin":
        return _twin(network, int(drawn.sizes.params[winner]), posterior.seed), "twin"
    if candidate.isdecimal() and int(candidate) < len(drawn.keep):
        return drawn.keep[int(candidate)], str(int(candidate))
    raise PgnasError(
        f"no candidate '{candidate}'; possible: 0 to {len(drawn.keep) - 1}, whole, or twin"
    )


def _twin(network: nn.Module, params: int, seed: int) -> Tensor:
    """A random candidate of `params` parameters: the learned probabilities dealt out by chance.

    Of 100 draws the one nearest in size; errors are not looked at.
    """
    randomness = generator(seed, "twin")
    learned = drop_probabilities(network).cpu()
    noise = torch.rand(100, gates(network).count, generator=randomness)
    dealt = learned[torch.randperm(len(learned), generator=randomness)]
    probability = shifted_to_size(network, dealt, params, noise)
    keep = noise >= probability[gates(network).group.cpu()]
    return keep[(count(network, keep).params - params).abs().argmin()]
