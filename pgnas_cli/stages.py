"""The stages of a search as functions from files to files; the commands call these.

    fit      data + backbone                       -> posterior
    sample   posterior                             -> candidates
    rank     posterior + candidates + data         -> ranking
    export   posterior + candidates + ranking      -> one slim network

What is derived inside a run is replaced when its stage runs again; a fitted posterior and files
that the user named are not, unless `force` says so.
"""

import dataclasses
import difflib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.optim import list_optimizers
from torch import Tensor, nn

from .candidates import (
    Sizes,
    count,
    draw_candidates,
    pack,
    parameter_count,
    permuted_probabilities,
    shifted_to_size,
    unpack,
    whole_macs,
)
from .data import ImageData, evaluation_images, open_data
from .data import digest as data_digest
from .errors import PgnasError
from .evaluation import Score, latencies, test_score
from .export import Slim, read_network, slim_record, write_network
from .files import (
    Cutting,
    Objective,
    Posterior,
    Run,
    Subject,
    checked,
    file_digest,
    read_checkpoint,
    read_posterior,
    read_tensors,
    to_json,
    write_checkpoint,
    write_posterior,
    write_tensors,
    write_text,
)
from .randomness import generator
from .ranking import Ranking, ordered, prepared, rank
from .registry import Recipe, load_backbone
from .supernet import drop_probabilities, gates, make_concrete_
from .training import EpochRecord, State, auto_l2, fit, objective_images

CANDIDATES, RANKING = "pgnas.candidates/1", "pgnas.ranking/1"
SCHEDULES = ("cosine", "tanh", "step", "multistep", "poly", "none")  # of timm; fixed in advance
Track = Callable[[Sequence[int], str], Iterable[int]]


@dataclass(frozen=True)
class FitSettings:
    """The options of a fit; None in a recipe field leaves it to the backbone's recipe."""

    backbone: str = "multibranch-tiny"
    data: str = "digits"
    data_root: str = "data"
    img_size: int | None = None
    held_out: float = 0.2
    skip_corrupt: bool = False
    layers: str = "all"
    groups: str = "layer"
    fixed_drop: float | None = None
    constant_l2: bool = False
    precision: str = "float32"
    seed: int = 0
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class FitSummary:
    """What a finished fit came to."""

    run: Path
    epochs: int
    seconds: float
    held_out_error: float
    params: int
    groups: int
    gates: int


@dataclass(frozen=True)
class Started:
    """What is known before the first step."""

    params: int
    gated_layers: int
    gates: int
    groups: int
    fit_images: int
    held_out_images: int
    l2: float
    kl_images: float
    weight_decay: float  # that the prior amounts to at the start
    epochs: int
    steps: int


def fit_stage(
    run: Run,
    settings: FitSettings,
    *,
    device: torch.device,
    workers: int,
    resume: bool,
    force: bool,
    save_seconds: float,
    stop: Callable[[], bool],
    track: Track,
    step: Callable[[int, int], None],
) -> Iterator[Started | EpochRecord | FitSummary]:
    """Fit a super-network; yields what was set up, a record per epoch, and a summary.

    An unfinished fit is saved every `save_seconds` and when `stop()` turns true, which ends it with
    KeyboardInterrupt.
    """
    state = _claim(run, settings, resume, force)
    began = time.perf_counter()
    data = open_data(
        settings.data,
        seed=settings.seed,
        held_out=settings.held_out,
        size=settings.img_size,
        root=Path(settings.data_root),
        skip_corrupt=settings.skip_corrupt,
        track=track,
    )
    data = _held_out_decoded(data, workers)
    shape = data.preprocessing.input_shape
    backbone = load_backbone(
        settings.backbone, classes=len(data.classes), input_shape=shape, seed=settings.seed
    )
    recipe = dataclasses.replace(backbone.recipe, **settings.recipe)
    _check_recipe(recipe, settings)
    network = make_concrete_(
        backbone.network,
        shape,
        layers=settings.layers,
        groups=settings.groups,
        initial_drop=recipe.initial_drop,
        ungated=backbone.ungated,
    )
    kl_images = objective_images(recipe, len(data.fit))
    l2 = auto_l2(recipe, kl_images) if recipe.l2 is None else recipe.l2
    posterior = Posterior(
        Subject(
            settings.backbone, backbone.options, settings.layers, settings.groups, data.classes,
            data.preprocessing, data.name,
        ),
        Cutting(
            settings.seed, settings.held_out, len(data.fit), len(data.held_out),
            data_digest(data.held_out),
        ),
        Objective(l2, kl_images, settings.fixed_drop, settings.constant_l2),
        recipe,
        settings.seed,
    )  # fmt: skip
    bank = gates(network)
    batch = min(recipe.batch_size, len(data.fit))
    yield Started(
        parameter_count(network), len(bank.spans), bank.count, len(bank.groups), len(data.fit),
        len(data.held_out), l2, kl_images, 2 * l2 * (1 - recipe.initial_drop) / kl_images,
        recipe.epochs, recipe.epochs * max(1, len(data.fit) // batch),
    )  # fmt: skip
    saver = _Saver(run, save_seconds, stop, step)
    record: EpochRecord | None = None
    saved = _metrics(run, state)
    for record in fit(
        network, data, recipe, seed=settings.seed, workers=workers, device=device,
        fixed_drop=settings.fixed_drop, constant_l2=settings.constant_l2,
        bfloat16=settings.precision == "bfloat16", state=state, between=saver,
    ):  # fmt: skip
        saved.append(json.dumps(to_json(record)))
        write_text(run.metrics, "".join(f"{line}\n" for line in saved))
        yield record
    write_posterior(run.posterior, network, posterior)
    run.checkpoint.unlink(missing_ok=True)
    error = json.loads(saved[-1])["hard_error"]
    yield FitSummary(
        run.folder, recipe.epochs, time.perf_counter() - began, error, parameter_count(network),
        len(bank.groups), bank.count,
    )  # fmt: skip


class _Saver:
    """Between two steps: show progress, save when it is time, stop when asked to."""

    def __init__(
        self,
        run: Run,
        seconds: float,
        stop: Callable[[], bool],
        step: Callable[[int, int], None],
    ) -> None:
        self.run, self.seconds, self.stop, self.step = run, seconds, stop, step
        self.last = time.monotonic()

    def __call__(self, done: int, steps: int, state: Callable[[], State]) -> None:
        self.step(done, steps)
        stopping = self.stop() and done < steps
        if stopping or time.monotonic() - self.last > self.seconds:
            write_checkpoint(self.run.checkpoint, state())
            self.last = time.monotonic()
        if stopping:
            raise KeyboardInterrupt


def _claim(run: Run, settings: FitSettings, resume: bool, force: bool) -> State | None:
    """Make the run directory ours, or say why not; the state to go on from, if any."""
    if run.posterior.exists() and not force:
        raise PgnasError(
            f"'{run.folder}' holds a fitted posterior; choose another --run, or add --force to fit"
            " again"
        )
    if run.checkpoint.exists() and not force:
        if not resume:
            raise PgnasError(
                f"'{run.folder}' holds an unfinished fit; add --resume to go on, or --force to"
                " start again"
            )
        return read_checkpoint(run.checkpoint)
    for path in (run.posterior, run.checkpoint, run.metrics, run.candidates, run.ranking,
                 run.ranking_table):  # fmt: skip
        path.unlink(missing_ok=True)
    write_text(run.settings, json.dumps(to_json(settings), indent=1, sort_keys=True) + "\n")
    return None


def read_settings(run: Run) -> FitSettings:
    """The options that a run was started with."""
    try:
        return FitSettings(**json.loads(run.settings.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise PgnasError(f"no run in '{run.folder}'; start one with pgnas fit") from None
    except (ValueError, TypeError):
        raise PgnasError(f"'{run.settings}' is damaged; fit again with --force") from None


def _metrics(run: Run, state: State | None) -> list[str]:
    """The lines of metrics.jsonl up to the state that the fit goes on from."""
    if state is None or not run.metrics.exists():
        return []
    epochs = int(state.numbers["epochs_done"])
    return run.metrics.read_text(encoding="utf-8").splitlines()[:epochs]


def _check_recipe(recipe: Recipe, settings: FitSettings) -> None:
    if recipe.optimizer not in list_optimizers():
        near = difflib.get_close_matches(recipe.optimizer, list_optimizers(), n=3)
        raise PgnasError(f"timm has no optimizer '{recipe.optimizer}'; near: {', '.join(near)}")
    if recipe.schedule not in SCHEDULES:
        raise PgnasError(f"no schedule '{recipe.schedule}'; possible: {', '.join(SCHEDULES)}")
    for name, value, low, high in (
        ("--epochs", recipe.epochs, 1, 10**6),
        ("--batch-size", recipe.batch_size, 2, 10**6),
        ("--temperature", recipe.temperature, 1e-3, 100),
        ("--initial-drop", recipe.initial_drop, 1e-6, 0.999),
        ("--l2", recipe.l2, 0, 1e12),
        ("--kl-images", recipe.kl_images, 1, 1e15),
        ("--fixed-drop", settings.fixed_drop, 0, 0.999),
        ("--lr", recipe.learning_rate, 0, 1e3),
        ("--warmup-epochs", recipe.warmup_epochs, 0, 10**6),
    ):
        if value is not None and not low <= value <= high:
            raise PgnasError(f"{name} {value:g} is out of range; possible: {low:g} to {high:g}")


def _held_out_decoded(data: ImageData, workers: int) -> ImageData:
    """Held-out images are read every epoch and by every candidate: decode them once."""
    if data.held_out.pixels is not None:
        return data
    images = evaluation_images(data.held_out, data.preprocessing, workers=workers)
    return dataclasses.replace(
        data, held_out=dataclasses.replace(data.held_out, pixels=torch.cat(list(images)))
    )


# --- after the fit -----------------------------------------------------------------------------


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
    if baseline == "permuted":
        probability = permuted_probabilities(
            network, probability, generator=generator(chosen, "permuted")
        )
    elif baseline:
        raise PgnasError(f"no baseline '{baseline}'; possible: permuted")
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
    return _held_out_decoded(data, workers)


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
    force: bool,
    device: torch.device,
    workers: int,
    track: Track,
    notice: Callable[[str], None],
) -> Slim:
    """Store one candidate as a slim network; samples and ranks first where that is missing."""
    if path.suffix != ".safetensors":
        raise PgnasError(f"'{path}' has no known ending; possible: .safetensors")
    if path.exists() and not force:
        raise PgnasError(f"'{path}' exists; choose another name, or add --force")
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
    sizes = count(network, keep[None])
    assert data.held_out.pixels is not None
    held_out = rank(
        network, keep[None], sizes, data.held_out.pixels, data.held_out.labels, data.preprocessing,
        device=device,
    )  # fmt: skip
    about = slim_record(
        posterior.subject, network, keep, label, sizes,
        (parameter_count(network), whole_macs(network)),
        (int(held_out.errors[0]), held_out.images), file_digest(run.posterior),
    )  # fmt: skip
    batches = prepared(data.held_out.pixels[:256], data.preprocessing, device)
    write_network(path, network, keep, batches, about)
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


@dataclass(frozen=True)
class Evaluation:
    """What an exported network is worth on the test split and on this machine."""

    path: Path
    about: Slim
    score: Score
    latency_ms: float  # one image
    batch_latency_ms: float  # a batch of `batch` images
    batch: int


def evaluate_stage(
    paths: Sequence[Path],
    data_name: str | None,
    *,
    data_root: Path,
    batch: int,
    device: torch.device,
    workers: int,
    track: Track,
) -> list[Evaluation]:
    """Test error and latency of exported networks; latencies alternate among them."""
    found = [read_network(path) for path in paths]
    scores = []
    for (network, about), path in zip(found, paths, strict=True):
        name = data_name or about.subject.data
        if data_name is None and name != "digits" and "/" not in name:
            raise PgnasError(
                f"'{path}' was fitted on a folder called '{name}'; say where it lies with --data"
            )
        data = open_data(
            name, seed=0, root=data_root, preprocessing=about.subject.preprocessing, fitting=False,
            track=track,
        )  # fmt: skip
        if data.classes != about.subject.classes:
            raise PgnasError(
                f"'{name}' has the classes {', '.join(data.classes[:5])}..., '{path}' was fitted on"
                f" {', '.join(about.subject.classes[:5])}..."
            )
        if data.test is None:
            raise PgnasError(f"'{name}' has no test images; expected {name}/test/ or {name}/val/")
        scores.append(
            test_score(
                network, data, about.subject.preprocessing, device=device, workers=workers,
                track=track,
            )
        )  # fmt: skip
    shape = found[0][1].subject.preprocessing.input_shape
    networks = [network for network, _ in found]
    one = latencies(networks, shape, batch=1, device=device)
    many = latencies(networks, shape, batch=batch, device=device)
    return [
        Evaluation(path, about, score, a, b, batch)
        for path, (_, about), score, a, b in zip(paths, found, scores, one, many, strict=True)
    ]
