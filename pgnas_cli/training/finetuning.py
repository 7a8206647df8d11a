"""Train an exported network further, on the images that its fit had: the paper's "w/ FT" (Table 3).

The held-out images of the run stay held out. An unfinished fine-tuning lies beside its output, and
the same call resumes it.
"""

import contextlib
import dataclasses
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..errors import PgnasError
from ..fields import check_range
from ..formats import NetworkInfo, origin, read_network, write_network
from ..machine import Machine
from ..progress import note
from ..run import Run, run_at, writing
from ..run.posterior import held_out_of, posterior_of
from ..seeds import derived_seed
from ..signals import StopRequest
from ..storage import differences, new_file, remove_leftovers, with_digest
from .checkpoint import State, fits, read_checkpoint, write_checkpoint
from .loop import Loop, train
from .saving import seconds_of
from .scoring import score

RATE = 0.1  # of the fit's learning rate, by default
EPOCHS = 5


@dataclass(frozen=True)
class FinetunePlan:
    """What a fine-tuning is of; one that is resumed must have the same."""

    source: str  # sha256 of the network's file
    epochs: int
    lr: float
    seed: int


@dataclass(frozen=True)
class FinetunedEpoch:
    """What one epoch of fine-tuning did."""

    epoch: int  # counted from 1; 0: before any training
    epochs: int
    loss: float  # nats per image
    train_error: float
    held_out_error: float
    seconds: float


def finetune_events(
    source: Path,
    output: Path,
    run: Run | None = None,  # that it came from; None: found
    *,
    epochs: int = EPOCHS,
    lr: float | None = None,  # None: a tenth of the fit's
    data: str | None = None,  # where the images of the fit lie now; None: as for the fit
    force: bool = False,
    save_minutes: float | None = None,  # between two; None: as often as they are cheap
    machine: Machine = Machine(),  # noqa: B008 - frozen
) -> Generator[FinetunedEpoch, None, NetworkInfo]:
    """Train the network in `source` on the fit's images and write it to `output`.

    Yields a record per epoch, the first one before any training (epoch 0); returns what the file
    says. Raises Interrupted, with everything saved, on SIGINT and SIGTERM.
    """
    _check(source, output, epochs, lr, force)
    (network, about), digest = with_digest(source, read_network)
    home = origin([source], {about.made_from}, run)
    if home is None:
        raise PgnasError(f"'{source}' came from none of the runs here; name it with `run`")
    home.check_foreign(output)
    with writing(home):
        remove_leftovers(output.parent)
        _, posterior = posterior_of(home)
        images = held_out_of(home, posterior, machine.workers, fitting=True, moved=data)
        for remark in images.remarks:
            note(f"note: {remark}")
        rate = RATE * posterior.recipe.lr if lr is None else lr
        plan = FinetunePlan(digest, epochs, rate, posterior.seed)
        unfinished = unfinished_path(output)
        state = _unfinished(unfinished, plan, network, force)
        recipe = dataclasses.replace(
            posterior.recipe, epochs=epochs, lr=rate, sched="cosine", decay_milestones=(),
            cycle_epochs=0, min_lr=0.0, warmup_epochs=0.0, model_ema=False,
        )  # fmt: skip
        loop = Loop(
            network, images, recipe, seed=derived_seed(plan.seed, "finetuning"),
            device=machine.device, weight_decay=posterior.objective.prior.weight_decay(),
        )  # fmt: skip
        if state is None:
            yield _record(loop, 0, 0.0, machine)
        else:
            loop.restore(state)
        with StopRequest():
            passes = train(
                loop, workers=machine.workers, save_seconds=seconds_of(save_minutes),
                save=lambda state: write_checkpoint(unfinished, state, plan),
                resume_with="the same command", what="fine-tuning",
            )  # fmt: skip
            with closing(passes):
                for done in passes:
                    yield _record(loop, done.epoch, done.seconds, machine)
            loop.refuse_what_is_not_finite()
            held_out = score(network, images.held_out, images.preprocessing, machine=machine)
            about = dataclasses.replace(
                about, held_out_errors=held_out.errors, held_out_images=held_out.images,
                finetuned_epochs=about.finetuned_epochs + epochs,
            )  # fmt: skip
            write_network(output, network.eval(), about)
            with contextlib.suppress(OSError):  # it is done
                unfinished.unlink(missing_ok=True)
        return about


def finetune(
    source: str | Path,
    output: str | Path | None = None,  # None: SOURCE-finetuned.safetensors
    run: Run | str | Path | None = None,  # that it came from; None: found
    *,
    epochs: int = EPOCHS,
    lr: float | None = None,  # None: a tenth of the fit's
    data: str | None = None,  # where the images of the fit lie now; None: as for the fit
    force: bool = False,
    save_minutes: float | None = None,  # between two; None: as often as they are cheap
    machine: Machine = Machine(),  # noqa: B008 - frozen
) -> NetworkInfo:
    """Train the network in `source` on the training images of its fit and write it to `output`."""
    source = Path(source)
    events = finetune_events(
        source, finetuned_path(source) if output is None else Path(output),
        None if run is None else run_at(run), epochs=epochs, lr=lr, data=data, force=force,
        save_minutes=save_minutes, machine=machine,
    )  # fmt: skip
    while True:
        try:
            next(events)
        except StopIteration as end:
            found: NetworkInfo = end.value
            return found


def finetuned_path(source: Path) -> Path:
    """Where a network is written that is fine-tuned, by default."""
    return source.with_name(f"{source.stem}-finetuned.safetensors")


def unfinished_path(output: Path) -> Path:
    """Where a fine-tuning towards `output` is kept until it is done."""
    return output.with_name(f"{output.stem}.unfinished.safetensors")


def _check(source: Path, output: Path, epochs: int, lr: float | None, force: bool) -> None:
    for path in (source, output):
        if path.suffix != ".safetensors":
            raise PgnasError(f"'{path}' cannot be fine-tuned; possible: FILE.safetensors")
    if output.resolve() == source.resolve():
        raise PgnasError(f"'{output}' is the network itself; choose another name with `output`")
    new_file(output, force)
    check_range("epochs", epochs, 1, 10**6)
    if lr is not None:
        check_range("lr", lr, 0, 1e3)


def _record(loop: Loop, epoch: int, seconds: float, machine: Machine) -> FinetunedEpoch:
    data = loop.data
    held_out = score(loop.network, data.held_out, data.preprocessing, machine=machine)
    return FinetunedEpoch(
        epoch, loop.recipe.epochs, loop.loss, loop.train_error, held_out.error, seconds
    )


def _unfinished(path: Path, plan: FinetunePlan, network: nn.Module, force: bool) -> State | None:
    """What an interrupted call of the same plan left; `force` forgets one of another plan."""
    if not path.exists():
        return None
    state, started = read_checkpoint(path, FinetunePlan)
    changed = differences(started, plan)
    if changed and force:
        return None
    if changed:
        raise PgnasError(
            f"'{path}' was started with other options ({'; '.join(changed)}); give those to"
            " resume it, or `force`"
        )
    if not fits(state, network, {"seen"}, path):
        raise PgnasError(f"'{path}' is damaged; start again with `force`")
    return state
