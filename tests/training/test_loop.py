"""One step of training is the objective written out; with and without gates the loop is one."""

import dataclasses
from collections import Counter
from functools import partial
from typing import Any, cast

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from pgnas_cli.data import ImageData, Preprocessing, training_batches
from pgnas_cli.gates import gates, logistic_noise, make_concrete_
from pgnas_cli.gates.prior import squared_norms
from pgnas_cli.registry import Recipe
from pgnas_cli.registry.build import build_backbone
from pgnas_cli.seeds import generator
from pgnas_cli.sizes import Target
from pgnas_cli.training import fit_network, prior_of
from pgnas_cli.training.fitting import supernet_loop
from pgnas_cli.training.loop import Loop
from pgnas_cli.training.memory import activation_bytes

from ..networks import Five
from .conftest import CPU, loop_of, prepared, steps


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_one_step_equals_the_objective_written_out(digits: ImageData, smoothing: float) -> None:
    """SGD without momentum moves each weight by minus rate times the gradient of Eq. 14-15.

    Smoothed targets are a mixture of the one-hot and the uniform ones.
    """
    changes = {"epochs": 1, "batch_size": len(digits.fit), "momentum": 0.0, "opt": "momentum",
               "sched": "none", "drop_delay_epochs": 0.0, "l2": 7000.0,
               "label_smoothing": smoothing}  # fmt: skip
    network, recipe = prepared(**changes)
    network.train()
    images, labels = next(
        training_batches(digits, batch=recipe.batch_size, seed=0, first_step=0, steps=1, workers=0)
    )
    bank = gates(network)
    noise = logistic_noise((len(images), bank.count), generator=generator(0, "gates", 0, 0))
    z = torch.sigmoid((bank.drop_logit[bank.group] + noise) / recipe.temperature)
    modules = dict(network.named_modules())
    for layer, (first, last) in bank.spans.items():
        modules[layer].keep = 1 - z[:, first:last]
    wanted = (1 - smoothing) * F.one_hot(labels, 10) + smoothing / 10
    told = network(digits.preprocessing.normalised(images)).log_softmax(1)
    loss = -(wanted * told).sum(1).mean()
    p = torch.sigmoid(bank.drop_logit)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    cost = (7000.0 * (1 - p[bank.group]) * squared_norms(network)).sum()
    (loss + (cost - (cast(Tensor, bank.channels) * entropy).sum()) / 500_000).backward()

    loop = loop_of(digits, **changes)
    assert list(steps(loop)) == [1]
    assert loop.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    found = dict(loop.network.named_parameters())
    assert "stem.0.weight" in found
    for name, weight in network.named_parameters():
        if name == "gates.drop_logit":
            continue
        matrix_without_gates = weight.dim() > 1 and name.rpartition(".")[0] not in bank.spans
        decay = 2 * 7000.0 / 500_000 if matrix_without_gates else 0.0
        expected = weight.detach() - recipe.lr * (weight.grad + decay * weight.detach())
        assert torch.allclose(found[name], expected, atol=2e-5), name


def test_with_every_gate_open_and_no_prior_the_loop_is_that_of_a_network_without_gates(
    digits: ImageData,
) -> None:
    gated = loop_of(digits, fixed_drop=0.0, l2=0.0)
    bare = build_backbone("multibranch-tiny", classes=10, channels=1, size=8).network
    plain = Loop(bare, digits, gated.recipe, seed=0, device=CPU, weight_decay=0.0)
    assert list(steps(gated)) == list(steps(plain))
    assert gated.loss == plain.loss
    found = gated.network.state_dict()
    for name, value in bare.state_dict().items():
        assert torch.equal(value, found[name]), name


class Operations(TorchDispatchMode):
    """Counts the operations that wait for a device, or copy numbers of this process to one."""

    def __init__(self, aside: set[int]) -> None:
        super().__init__()
        self.aside, self.waiting, self.total = aside, Counter[str](), 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = str(function.overloadpacket).removeprefix("aten.")
        self.total += 1
        if name in ("_local_scalar_dense", "nonzero", "lift_fresh") and not (
            isinstance(args[0], Tensor) and args[0].data_ptr() in self.aside
        ):
            self.waiting[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("target", [None, Target("params", 0.5)])
def test_a_step_waits_for_nothing(digits: ImageData, target: Target | None) -> None:
    """Not when p learns, is brought to its size, nor on hard gates behind the cut.

    Adam counts its steps on the CPU, wherever it works. Learning ends with the freeze, which looks.
    """
    loop = loop_of(digits, target=target, epochs=2, drop_delay_epochs=0.0)
    loop.watch_every = 10**9
    loop.network.train()
    freeze = loop.drops.phases.freeze if loop.drops and target else None
    counted = {}
    for batch in training_batches(
        digits, batch=loop.batch, seed=0, first_step=0, steps=loop.steps, workers=0
    ):
        assert loop.drops is not None
        aside = {
            slots["step"].data_ptr()
            for slots in loop.drops.optimizer.state.values()
            if isinstance(slots.get("step"), Tensor)
        }
        with Operations(aside) as operations:
            loop.advance(*batch)
        counted[loop.step] = operations
        if loop.step == loop.per_epoch:
            loop.start_epoch()
    first, *others = (counted[step].waiting for step in counted if step not in (1, freeze))
    assert not first
    assert not any(others)
    assert len(others) > 15
    if freeze:
        assert counted[freeze].waiting  # the mode sees what waits
        assert counted[freeze + 1].total < counted[freeze - 1].total / 2


def test_a_compiled_network_takes_the_same_steps_in_two_graphs(
    digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One before the cut and one behind it; a backend that only traces compares bit by bit."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: real(network, backend="aot_eager"))
    counters = torch._dynamo.utils.counters
    counters.clear()
    losses = []
    for compiled in (False, True):
        network, recipe = prepared(epochs=1, drop_delay_epochs=0.0)
        loop = supernet_loop(
            network, digits, recipe, prior_of(recipe, len(digits.fit)), seed=0, device=CPU,
            target=Target("params", 0.5), compiled=compiled,
        )  # fmt: skip
        losses.append([float(loop.loss_sum) for _ in steps(loop)])
        assert loop.left.network is not loop.whole
    assert losses[0] == losses[1]
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


def test_a_networks_own_dropout_has_no_hidden_state(digits: ImageData) -> None:
    weights = []
    for foreign_draws in (0, 3):
        torch.manual_seed(0)
        plain = Five(
            lambda m, x: m.drop(m.b(x).relu().mean((2, 3))), stem=nn.Conv2d(1, 16, 3, padding=1),
            drop=nn.Dropout(0.5), head=nn.Linear(16, 10),
        )  # fmt: skip
        network = make_concrete_(plain, (1, 8, 8))
        torch.rand(foreign_draws)
        list(fit_network(network, digits, Recipe(epochs=1, batch_size=256)))
        weights.append(network.head.weight.detach().clone())
    assert torch.equal(*weights)


class Doubles(Preprocessing):
    """Images in float64, so that rounding does not hide a difference."""

    def normalised(self, images: Tensor) -> Tensor:
        return super().normalised(images).double()


@pytest.mark.parametrize("target", [None, Target("params", 0.6)])
def test_a_step_in_parts_is_the_step_of_the_whole_batch(
    digits: ImageData, target: Target | None
) -> None:
    """Same images and gates, relaxed and, once p is frozen, hard; parts of unequal size, too."""
    about = digits.preprocessing
    data = dataclasses.replace(digits, preprocessing=Doubles(**vars(about)))
    recipe = Recipe(epochs=2, batch_size=250, drop_delay_epochs=0.0, lr=0.05)
    found = []
    for parts in (1, 4, 250):
        torch.manual_seed(0)
        plain = Five(
            lambda m, x: m.b(m.a(x).relu()).relu().mean((2, 3)),
            stem=nn.Conv2d(1, 8, 3), a=nn.Conv2d(8, 12, 3), b=nn.Conv2d(12, 8, 1),
            head=nn.Linear(8, 10),
        )  # fmt: skip
        network = make_concrete_(plain, (1, 8, 8)).double()
        one = dataclasses.replace(recipe, accumulate=parts)
        loop = supernet_loop(
            network, data, one, prior_of(one, len(data.fit)), seed=0, device=CPU, target=target
        )
        assert list(steps(loop))[-1] == 8
        found.append((loop.loss, loop.train_error, loop.network.state_dict()))
    for loss, error, state in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-12)
        assert error == found[0][1]
        for name, value in found[0][2].items():
            assert torch.allclose(state[name], value, rtol=0, atol=1e-9), name


@pytest.mark.parametrize("kind", ["compiled", "checkpointed"])
def test_parts_of_a_batch_go_with_compiled_and_checkpointed_networks(
    digits: ImageData, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both look at the gates, or their graph, again in the backward pass."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: real(network, backend="aot_eager"))
    torch._dynamo.reset()
    losses = []
    for parts in (1, 4):
        torch.manual_seed(0)

        def body(m: Any, x: Tensor) -> Tensor:
            return m.b(m.a(x).relu()).relu()

        def forward(m: Any, x: Tensor) -> Tensor:
            again = kind == "checkpointed" and m.training
            x = checkpoint(partial(body, m), x, use_reentrant=False) if again else body(m, x)
            return x.mean((2, 3))

        plain = Five(forward, stem=nn.Conv2d(1, 8, 3), a=nn.Conv2d(8, 12, 3),
                     b=nn.Conv2d(12, 8, 1), head=nn.Linear(8, 10))  # fmt: skip
        network = make_concrete_(plain, (1, 8, 8))
        recipe = Recipe(epochs=1, batch_size=250, drop_delay_epochs=0.0, accumulate=parts)
        loop = supernet_loop(
            network, digits, recipe, prior_of(recipe, len(digits.fit)), seed=0, device=CPU,
            compiled=kind == "compiled",
        )  # fmt: skip
        losses.append([float(loop.loss_sum) for _ in steps(loop)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_memory_of_an_image_is_counted_as_a_step_keeps_it(digits: ImageData) -> None:
    """Of a chain of convolutions: inputs of layers, and what comes out of each ReLU, once."""
    plain = Five(
        lambda m, x: m.a(x).relu().mean((2, 3)), stem=nn.Conv2d(1, 8, 3), a=nn.Conv2d(8, 12, 3),
        head=nn.Linear(12, 10),
    )  # fmt: skip
    network = make_concrete_(plain, (1, 8, 8)).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    numbers = 8 * 8 + 8 * 6 * 6 + 12 * 4 * 4 + 12  # image, two ReLUs, the input of the head
    assert activation_bytes(network, (1, 8, 8)) == 4 * numbers
    assert not network.training and not network.head.training
    assert all(torch.equal(value, before[n]) for n, value in network.state_dict().items())
    looks = Five(lambda m, x: x.mean((2, 3)) * float(x.mean()), stem=nn.Conv2d(1, 16, 3))
    assert activation_bytes(looks, (1, 8, 8)) is None
