"""The fit as a stage: from options to a posterior file, saved on the way and resumable.

A fitted posterior is never overwritten unless `force` says so; what was derived from it goes with
it.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..data import (
    ImageData,
    Preprocessing,
    cut_data,
    find_data,
    held_out_decoded,
    steps_per_epoch,
)
from ..data import (
    digest as data_digest,
)
from ..errors import Interrupted, PgnasError
from ..gates import auto_l2, gates, kl, make_concrete_, objective_images
from ..progress import Track
from ..registry import Recipe
from ..registry.build import build_backbone
from ..run import FitSettings, Run, check_recipe
from ..run.posterior import Cutting, Objective, Posterior, Subject, write_posterior
from ..sizes import Target, parameter_count, target_of
from ..storage import checked, to_json, write_text
from .checkpoint import State, StopRequest, read_checkpoint, write_checkpoint
from .loop import EpochRecord, fit
from .probe import probe_


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
    divergence: float  # the KL's share of the loss at the start, nats per image
    classes: int
    target: Target | None
    recipe: Recipe
    remarks: tuple[str, ...]
    kept_whole: tuple[str, ...]  # steps of the forward that the analysis does not cut


def fit_stage(
    run: Run,
    settings: FitSettings,
    *,
    device: torch.device,
    workers: int,
    resume: bool,
    force: bool,
    save_seconds: float,
    track: Track,
    step: Callable[[int, int], None],
) -> Generator[Started | EpochRecord | FitSummary, None, None]:
    """Fit a super-network; yields what was set up, a record per epoch, and a summary.

    An unfinished fit is saved every `save_seconds`, and on SIGINT or SIGTERM at the next step,
    which ends it with `Interrupted`. `step(done, of)` is called after each step.
    """
    unfinished = _claim(run, resume, force)
    began = time.perf_counter()
    source = find_data(
        settings.data, root=Path(settings.data_root), skip_corrupt=settings.skip_corrupt,
        track=track,
    )  # fmt: skip
    backbone = build_backbone(
        settings.backbone, classes=len(source.classes), channels=source.channels,
        size=source.small if settings.img_size is None else settings.img_size,
        pretrained=settings.pretrained,
        weights=None if settings.weights is None else Path(settings.weights), seed=settings.seed,
    )  # fmt: skip
    shape = backbone.input_shape
    preprocessing = None
    if backbone.images is not None:
        preprocessing = Preprocessing(shape[0], shape[1], **to_json(backbone.images))
    data = cut_data(
        source, seed=settings.seed, held_out=settings.held_out, preprocessing=preprocessing,
        size=shape[1], track=track,
    )  # fmt: skip
    data = held_out_decoded(data, workers, track)
    if unfinished is not None:  # a recipe that has changed since is that of other fits
        backbone = dataclasses.replace(backbone, recipe=unfinished[1].recipe)
    recipe = settings.recipe_of(backbone)
    if not backbone.new_heads:
        recipe = dataclasses.replace(recipe, probe=False)
    check_recipe(recipe, settings)
    network = make_concrete_(
        backbone.network,
        shape,
        layers=recipe.gates,
        groups=recipe.groups,
        initial_drop=recipe.initial_drop,
        operation_cost=recipe.operation_cost,
        ungated=backbone.ungated,
    )
    target = target_of(network, settings.target_params, settings.target_macs)
    if target is not None and settings.fixed_drop is not None:
        raise PgnasError("--fixed-drop sets the size; leave --target-params and --target-macs out")
    remarks = [*backbone.remarks, *_idle(recipe, settings, data)]
    if recipe.probe and unfinished is None:
        remarks += [
            probe_(network, head, data, device=device, seed=settings.seed, workers=workers,
                   track=track)
            for head in backbone.new_heads
        ]  # fmt: skip
    kl_images = objective_images(recipe.kl_images, len(data.fit))
    auto = auto_l2(recipe.weight_decay, recipe.initial_drop, kl_images)
    l2 = auto if recipe.l2 is None else recipe.l2
    posterior = Posterior(
        Subject(
            backbone.name, backbone.options, recipe.gates, recipe.groups, data.classes,
            data.preprocessing, data.name,
        ),
        Cutting(
            settings.seed, settings.held_out, len(data.fit), len(data.held_out),
            data_digest(data.held_out), data_digest(data.fit),
        ),
        Objective(l2, kl_images, settings.fixed_drop, settings.constant_l2, target),
        recipe,
        settings.seed,
    )  # fmt: skip
    state = None
    if unfinished is None:
        _begin(run, settings)
    else:
        state = _same_fit(run, network, posterior, *unfinished)
    bank = gates(network)
    batch = min(recipe.batch_size, len(data.fit))
    with torch.no_grad():
        divergence = float(kl(network, l2=l2, images=kl_images, constant=settings.constant_l2))
    yield Started(
        parameter_count(network), len(bank.spans), bank.count, len(bank.groups), len(data.fit),
        len(data.held_out), l2, kl_images, 2 * l2 * (1 - recipe.initial_drop) / kl_images,
        recipe.epochs, recipe.epochs * steps_per_epoch(len(data.fit), batch), divergence,
        len(data.classes), target, recipe, tuple(remarks),
        tuple(bank.graph.opaque()),
    )  # fmt: skip
    request = StopRequest()
    saver = _Saver(run, posterior, save_seconds, step, request)
    saved = _metrics(run, state)
    records = fit(
        network, data, recipe, seed=settings.seed, workers=workers, device=device,
        fixed_drop=settings.fixed_drop, constant_l2=settings.constant_l2,
        target=target, bfloat16=settings.precision == "bfloat16", state=state, between=saver,
    )  # fmt: skip
    with request, closing(records):
        for record in records:
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
        posterior: Posterior,
        seconds: float,
        step: Callable[[int, int], None],
        request: StopRequest,
    ) -> None:
        self.run, self.posterior, self.seconds, self.step = run, posterior, seconds, step
        self.request = request
        self.last = time.monotonic()

    def __call__(self, done: int, steps: int, state: Callable[[], State]) -> None:
        self.step(done, steps)
        stopping = self.request.asked and done < steps
        if stopping or time.monotonic() - self.last > self.seconds:
            write_checkpoint(self.run.checkpoint, state(), self.posterior)
            self.last = time.monotonic()
        if stopping:
            raise Interrupted(
                f"interrupted; saved after step {done} of {steps}, go on with pgnas fit --resume"
                f" --run {self.run.folder}"
            )


def _idle(recipe: Recipe, settings: FitSettings, data: ImageData) -> list[str]:
    """Fields of the recipe that come to nothing here."""
    found = []
    if not (settings.target_params or settings.target_macs):
        of_target = ("size_ramp", "freeze", "sharpen")
        named = [f"--{field.replace('_', '-')}" for field in of_target if field in settings.recipe]
        if named:
            found.append(f"{' and '.join(named)}: left out, there is no target size")
    if settings.recipe.get("probe") and not recipe.probe:
        found.append("--probe: left out, there is no new head on trained weights")
    if recipe.cutout and data.fit.pixels is None:
        found.append("cutout is for small images; these are photos, it is left out")
    late = [epoch for epoch in recipe.milestones if epoch >= recipe.epochs]
    if late:
        found.append(f"milestones {late} lie behind the {recipe.epochs} epochs")
    return found


def _claim(run: Run, resume: bool, force: bool) -> tuple[State, Posterior] | None:
    """Whether the run directory can be ours, or why not; the state to go on from, if any."""
    if run.folder.exists() and not run.folder.is_dir():
        raise PgnasError(f"'{run.folder}' is a file; --run wants a folder, there or to be made")
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
    return None


def _same_fit(
    run: Run, network: nn.Module, posterior: Posterior, state: State, started: Posterior
) -> State:
    """The state to go on from, if it is one of this very fit."""
    if started.cutting != posterior.cutting or started.subject != posterior.subject:
        raise PgnasError(
            f"the images or classes are not those that '{run.folder}' was started with; bring them"
            " back, or start again with --force"
        )
    if started.recipe != posterior.recipe:
        now, then = to_json(posterior.recipe), to_json(started.recipe)
        changed = [f"{k} {then[k]}, not {now[k]}" for k in now if now[k] != then[k]]
        raise PgnasError(
            f"'{run.folder}' was started with {'; '.join(changed)}; leave the option out to go on,"
            " or start again with --force"
        )
    if started != posterior:
        raise PgnasError(
            f"'{run.folder}' was started with other options than the backbone's recipe has now;"
            " start again with --force"
        )
    prefix = "network."
    own = {k.removeprefix(prefix): v for k, v in state.tensors.items() if k.startswith(prefix)}
    checked(own, network.state_dict(), run.checkpoint)
    wanted = {"seen", "epochs_done", "full_rate_steps", "best_loss"}
    if not wanted <= set(state.numbers) or state.step < 1:
        raise PgnasError(f"'{run.checkpoint}' is damaged; start again with --force")
    return state


def _begin(run: Run, settings: FitSettings) -> None:
    """Clear what an earlier fit left, now that nothing stands in the way of this one."""
    for path in (run.posterior, run.checkpoint, run.metrics, run.candidates, run.ranking,
                 run.ranking_table, run.evaluation, run.report, run.commands):  # fmt: skip
        path.unlink(missing_ok=True)
    write_text(run.settings, json.dumps(to_json(settings), indent=1, sort_keys=True) + "\n")


def _metrics(run: Run, state: State | None) -> list[str]:
    """The lines of metrics.jsonl up to the state that the fit goes on from."""
    if state is None or not run.metrics.exists():
        return []
    epochs = int(state.numbers["epochs_done"])
    return run.metrics.read_text(encoding="utf-8").splitlines()[:epochs]
