"""On a GPU: the same numbers as on a CPU, the same bytes again, and no step that waits.

Skipped where there is none.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pgnas_cli import find_machine
from pgnas_cli.data import ImageData, training_batches
from pgnas_cli.errors import Interrupted
from pgnas_cli.gates import drop_probabilities, gates, masked, supernet
from pgnas_cli.machine import full_float32
from pgnas_cli.progress import listening
from pgnas_cli.ranking import finished, held_out_evaluator
from pgnas_cli.registry import Recipe
from pgnas_cli.run import FitSettings, Run
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.sizes import Target, count
from pgnas_cli.slimming import slim
from pgnas_cli.training import fit_events, fit_network
from pgnas_cli.training.loop import Loop

from ..listeners import Heard
from .conftest import CPU, loop_of, prepared

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")
SAMPLE = {"epochs": 2, "batch_size": 100, "drop_delay_epochs": 0.0}


def loop_on(device: torch.device, data: ImageData, *, bfloat16: bool = False) -> Loop:
    half = Target("params", 0.5)
    return loop_of(data, target=half, device=device, bfloat16=bfloat16, **SAMPLE)


def batches_of(loop: Loop, number: int) -> list[tuple[Tensor, Tensor]]:
    found = training_batches(
        loop.data, batch=loop.batch, seed=0, first_step=0, steps=number, workers=0,
        device=loop.device,
    )  # fmt: skip
    return list(found)


def test_images_of_a_batch_are_those_of_a_cpu(digits: ImageData) -> None:
    for device in (GPU, CPU):
        assert batches_of(loop_on(device, digits), 1)[0][0].device.type == device.type
    pairs = zip(*(batches_of(loop_on(d, digits), 5) for d in (CPU, GPU)), strict=True)
    for (images, labels), (others, their_labels) in pairs:
        assert torch.equal(images, others.cpu())
        assert torch.equal(labels, their_labels.cpu())


def test_steps_are_those_of_a_cpu(digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the same noise; each kind of device has a generator of its own."""
    real, draws = supernet.logistic_noise, {"number": 0}

    def noise(shape: tuple[int, ...], *, generator: torch.Generator) -> Tensor:
        draws["number"] += 1
        own = torch.Generator().manual_seed(draws["number"])
        return real(shape, generator=own).to(generator.device)

    monkeypatch.setattr(supernet, "logistic_noise", noise)
    found, losses = [], []
    for device in (CPU, GPU):
        draws["number"] = 0
        loop = loop_on(device, digits)
        loop.network.train()
        with full_float32():
            loop.advance(*batches_of(loop, 1)[0])
        found.append({k: v.detach().cpu() for k, v in loop.network.state_dict().items()})
        losses.append(loop.loss)
    assert draws["number"] == 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert (found[0].pop("gates.drop_logit") - found[1].pop("gates.drop_logit")).abs().mean() < 0.02
    for name, value in found[0].items():
        assert torch.allclose(value.double(), found[1][name].double(), rtol=1e-3, atol=1e-4), name


def test_the_graph_that_a_gpu_replays_gives_the_size_and_its_slope(digits: ImageData) -> None:
    controls = [loop_on(device, digits).drops.control for device in (GPU, CPU)]  # type: ignore[union-attr]
    noise = torch.randn(6, len(controls[1].size.group.unique()), dtype=torch.float64)  # type: ignore[union-attr]
    for logits in noise:
        found, wanted = (
            [value.cpu() for value in control.share_and_slope(logits.to(device))]  # type: ignore[union-attr]
            for control, device in zip(controls, (GPU, CPU), strict=True)
        )
        assert torch.allclose(found[0], wanted[0], rtol=1e-12)
        assert torch.allclose(found[1], wanted[1], rtol=1e-9, atol=1e-15)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("bfloat16", [False, True])
def test_no_step_waits_for_the_gpu(digits: ImageData, bfloat16: bool) -> None:
    """Neither while p learns nor behind the cut; the step that cuts may."""
    loop = loop_on(GPU, digits, bfloat16=bfloat16)
    assert loop.drops is not None
    loop.watch_every = 10**9
    loop.network.train()
    for number, batch in enumerate(batches_of(loop, loop.steps), 1):
        waits = number == 1 or number == loop.drops.phases.freeze
        torch.cuda.set_sync_debug_mode("default" if waits else "error")
        try:
            loop.advance(*batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        if number % loop.per_epoch == 0:
            loop.start_epoch()
    assert loop.left.network is not loop.whole
    assert loop.drops.phases.freeze > 5


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_fit_that_is_interrupted_ends_with_the_same_bytes(tmp_path: Path, precision: str) -> None:
    settings = FitSettings(target_params="50%", precision=precision, recipe={**SAMPLE, "epochs": 3})
    machine = find_machine("cuda", workers=0)
    runs = [Run(tmp_path / name) for name in ("one", "two", "three")]
    for run in runs[:2]:
        list(fit_events(run, settings, machine=machine))
    for stop_at in (9, 25):  # before the cut, and behind it
        stop = Heard(lambda task, done, at=stop_at: task == "fitting" and done == at)
        with listening(stop), pytest.raises(Interrupted):
            list(fit_events(runs[2], settings, resume=stop_at > 9, machine=machine))
    list(fit_events(runs[2], settings, resume=True, machine=machine))
    first, *others = (run.posterior.read_bytes() for run in runs)
    assert others == [first, first]


def test_candidates_are_ranked_as_on_a_cpu(digits: ImageData) -> None:
    network, recipe = prepared(**SAMPLE)
    machine = find_machine("cuda", workers=0)
    list(fit_network(network, digits, recipe, target=Target("params", 0.6), machine=machine))
    keep = draw_candidates(drop_probabilities(network).cpu(), network.cpu(), 40, 0)
    errors = []
    for device in (CPU, GPU):
        evaluator = held_out_evaluator(network, keep, digits, device)
        race = finished(evaluator, count(network, keep).params, None)
        errors.append(race.errors.cpu().double())
    assert errors[0].std() > 0
    assert (errors[0] - errors[1]).abs().max() <= 1


def test_a_network_on_a_gpu_is_cut_out_there(digits: ImageData) -> None:
    network = prepared()[0].to(GPU).eval()
    keep = draw_candidates(torch.full((len(gates(network).groups),), 0.5), network, 1, 0)[0]
    images = digits.preprocessing.normalised(batches_of(loop_on(GPU, digits), 1)[0][0])
    smaller = slim(network, keep)
    assert any(name.endswith("read") for name, _ in smaller.named_buffers())
    assert {tensor.device.type for tensor in smaller.state_dict().values()} == {GPU.type}
    with torch.no_grad(), full_float32(), masked(network, keep):
        assert torch.allclose(smaller(images), network(images), atol=1e-4)


def test_a_gpu_trains_as_well_as_a_cpu(digits: ImageData) -> None:
    for bfloat16 in (False, True):
        network, _ = prepared()
        *_, last = fit_network(
            network, digits, Recipe(epochs=8, batch_size=64, lr=0.05),
            target=Target("params", 0.5), bfloat16=bfloat16,
            machine=find_machine("cuda", workers=0),
        )  # fmt: skip
        assert last.hard_error < 0.15
