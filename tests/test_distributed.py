"""Several processes compute what one would: gradients, fits, held-out errors."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pgnas_cli import distributed
from pgnas_cli.data import load_data, training_batches
from pgnas_cli.distributed import Process, Rows, rows_of
from pgnas_cli.errors import PgnasError
from pgnas_cli.gates import gates, logistic_noise, make_concrete_
from pgnas_cli.machine import Machine, find_machine
from pgnas_cli.registry import Recipe
from pgnas_cli.run import FitSettings
from pgnas_cli.seeds import generator
from pgnas_cli.sizes import Target
from pgnas_cli.training import fit_network, prior_of
from pgnas_cli.training.loop import train
from pgnas_cli.training.preparing import prepared as prepared_fit

from .networks import Five, assert_exact, random_keep, tiny
from .processes import ends, together
from .training.conftest import loop_of, prepared

CPU = torch.device("cpu")
ONE_STEP = {"epochs": 1, "batch_size": 33, "drop_delay_epochs": 0.0, "l2": 7000.0}


class Plain(Five):
    """Without batch-norm, in float64; one layer is never called and has no gradient."""

    def __init__(self) -> None:
        super().__init__(
            lambda m, x: m.c(m.b(m.a(x).relu()).relu()).relu().mean((2, 3)),
            stem=nn.Conv2d(1, 16, 3, padding=1), head=nn.Linear(16, 10), bn=nn.Identity(),
            idle=nn.Linear(3, 3),
        )  # fmt: skip
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.double())


def twenty_steps() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What is left after 20 steps of 57 images, the network cut after the eighth; their record."""
    torch.manual_seed(0)
    network = make_concrete_(Plain(), (1, 8, 8), groups="channel").double()
    recipe = Recipe(epochs=1, batch_size=57, lr=0.02, certain=0.1, opt="adamw")
    data = load_data("digits")
    target = Target("params", 0.3)
    fit = fit_network(network, data, recipe, prior_of(recipe, len(data.fit)), target=target)
    (record,) = fit
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    return state, dataclasses.asdict(record)


def one_gradient() -> dict[str, Tensor]:
    """The gradients of the first step of multibranch-tiny, on 33 images."""
    loop = loop_of(load_data("digits"), **ONE_STEP)
    found: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        named = loop.network.named_parameters()
        found.update({n: p.grad.contiguous() for n, p in named if p.grad is not None})
        raise KeyboardInterrupt

    loop.weights.register_step_pre_hook(keep)
    with pytest.raises(KeyboardInterrupt):
        next(train(loop, workers=0, save=lambda _: None))
    return found


def work(folder: Path) -> None:
    """What each of two processes does."""
    torch.set_num_threads(1)
    with distributed.together(CPU):
        state, record = twenty_steps()
        own = nn.BatchNorm1d(2)
        own.num_batches_tracked.fill_(5 + distributed.rank())
        own.running_mean.fill_(distributed.rank())
        distributed.broadcast_(own)
        same = {name: value.tolist() for name, value in own.named_buffers()}
        with pytest.raises(PgnasError, match="the processes differ: look"):
            distributed.check_alike(str(distributed.rank()), "look")
        distributed.check_alike("alike", "look")
        with distributed.first_here(), (folder / "order").open("a") as file:
            file.write(str(distributed.rank()))
        most = distributed.largest(3 * distributed.rank())
        told = {"record": record, "buffers": same, "largest": most}
        (folder / f"{distributed.rank()}.json").write_text(json.dumps(told))
        save_file(state, folder / f"{distributed.rank()}.safetensors")
        save_file(one_gradient(), folder / f"gradient{distributed.rank()}.safetensors")
    assert distributed.world_size() == 1


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes left what they found."""
    folder = tmp_path_factory.mktemp("worked")
    code = f"import pathlib, tests.test_distributed as t; t.work(pathlib.Path({str(folder)!r}))"
    told = ends(together(2, "-c", code))
    assert [status for status, _, _ in told] == [0, 0], told
    return folder


def test_the_fit_of_two_processes_is_that_of_one_with_the_whole_batch(worked: Path) -> None:
    """28 and 29 images a step; in float64, through a cut; held-out images are shared too."""
    state, record = twenty_steps()
    assert record["trained_share"] < 0.95
    for rank in (0, 1):
        found = load_file(worked / f"{rank}.safetensors")
        assert set(found) == set(state)
        for name, value in state.items():
            assert torch.allclose(found[name], value, rtol=0, atol=1e-9, equal_nan=True), name
        told = json.loads((worked / f"{rank}.json").read_text())["record"]
        for name in ("soft_error", "hard_error", "drop_histogram", "expected_params"):
            assert told[name] == pytest.approx(record[name], rel=1e-9), name
        assert told["loss"] == pytest.approx(record["loss"], rel=1e-6)
        assert told["train_error"] == pytest.approx(record["train_error"], rel=1e-6)


def test_a_gradient_is_the_average_over_images_and_the_divergence_counts_once(worked: Path) -> None:
    """By hand: each part with batch-norm statistics of its own, 16 and 17 images."""
    network, recipe = prepared(**ONE_STEP)
    data, bank = load_data("digits"), gates(network.train())
    prior = prior_of(recipe, len(data.fit))
    prior.divergence(network).backward()
    images, labels = next(
        training_batches(data, batch=33, seed=0, first_step=0, steps=1, workers=0)
    )
    noise = logistic_noise((33, bank.count), generator=generator(0, "gates", 0, 0))
    modules = dict(network.named_modules())
    for part in (slice(0, 16), slice(16, 33)):
        z = torch.sigmoid((bank.drop_logit[bank.group] + noise[part]) / recipe.temperature)
        for layer, (first, last) in bank.spans.items():
            modules[layer].keep = 1 - z[:, first:last]
        logits = network(data.preprocessing.normalised(images[part]))
        (F.cross_entropy(logits, labels[part], reduction="sum") / 33).backward()
    expected = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    assert "gates.drop_logit" in expected
    for rank in (0, 1):
        found = load_file(worked / f"gradient{rank}.safetensors")
        assert set(found) == set(expected)
        for name, gradient in expected.items():
            assert torch.allclose(found[name], gradient, rtol=1e-6, atol=1e-6), name


def test_what_processes_tell_each_other(worked: Path) -> None:
    for rank in (0, 1):
        told = json.loads((worked / f"{rank}.json").read_text())
        assert told["buffers"] == {
            "running_mean": [0.0, 0.0], "running_var": [1.0, 1.0], "num_batches_tracked": 5,
        }  # fmt: skip
        assert told["largest"] == 3
    assert (worked / "order").read_text() == "01"


def test_a_network_with_common_batch_norm_statistics_is_cut_as_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = tiny()
    assert distributed.synchronised(network, CPU) is network  # one process has all statistics
    monkeypatch.setattr(distributed, "_now", Process(0, 2))
    with pytest.raises(PgnasError, match="`sync_bn` needs GPUs"):
        distributed.synchronised(network, CPU)
    names = list(network.state_dict())
    network = distributed.synchronised(network, torch.device("cuda"))
    found = {type(module).__name__ for module in network.modules()}
    assert {"SyncBatchNorm"} == {name for name in found if "BatchNorm" in name}
    assert list(network.state_dict()) == names
    assert_exact(network.eval(), random_keep(network, 0.5))


def test_a_batch_needs_two_images_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_now", Process(0, 20))
    monkeypatch.setattr(distributed, "_most", list)  # nobody has more
    settings = FitSettings(recipe={"epochs": 1, "batch_size": 39})
    with pytest.raises(PgnasError, match="39 images is too small for 20 processes, which need two"):
        prepared_fit(settings, None, Machine())
    settings.recipe["batch_size"] = 40
    told = prepared_fit(settings, None, Machine()).remarks
    assert told[-1] == "20 processes share each batch of 40"


@pytest.mark.parametrize("batch", [1, 2, 3, 32, 57])
def test_processes_share_the_rows_of_a_batch(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows_of(batch) == Rows(0, batch, batch)
    seen: list[int] = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "_now", Process(rank, 3))
        rows = rows_of(batch)
        seen += range(rows.start, rows.stop)
        assert rows.count in (batch // 3, batch // 3 + 1)
        read = torch.arange(batch)[rows.part]  # one even where none is counted
        assert len(read) == max(1, rows.count)
    assert seen == list(range(batch))


def test_torchruns_environment_says_which_process_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.launched() == Process()
    set_ = {"RANK": "5", "WORLD_SIZE": "16", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    for name, value in set_.items():
        assert distributed.launched() == Process()
        monkeypatch.setenv(name, value)
    assert distributed.launched() == Process(5, 16, 0, 1, 0)
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.setenv(name, "3")
    assert distributed.launched() == Process(5, 16, 3, 3, 3)


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    process = {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}
    for name, value in {**process, "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    chosen: list[int] = []
    there = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 3, set_device=chosen.append
    )
    monkeypatch.setattr("pgnas_cli.machine.torch.cuda", there)
    with pytest.raises(PgnasError, match=r"4 processes on a machine with 3 GPU\(s\)"):
        find_machine()
    with pytest.raises(PgnasError, match="cuda:1 is one GPU for several processes"):
        find_machine("cuda:1")
    there.device_count = lambda: 4
    with pytest.raises(PgnasError, match="no device 'auto' here"):  # none, in fact
        find_machine()
    assert chosen == [2]
