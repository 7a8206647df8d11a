"""Posteriors tilted to a size against a solver, and draws within a budget by counting."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from pgnas_cli.errors import PgnasError
from pgnas_cli.gates import drop_probabilities, gates
from pgnas_cli.run import Run
from pgnas_cli.run.posterior import posterior_of
from pgnas_cli.sampling import Tilt, budget, draw_candidates
from pgnas_cli.sampling.budget import check_reach, draw_within
from pgnas_cli.sizes import ExpectedSize, Target, count, parameter_count, whole_macs

from ..conftest import run as command
from ..networks import seeded, settled, tiny


def learned(network: nn.Module) -> torch.Tensor:
    """Drop probabilities from 0.05 to 0.6, (groups,)."""
    return 0.05 + 0.55 * torch.rand(len(gates(network).groups), generator=seeded())


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Every row that is drawn within budgets, whether it is kept or not."""
    made = []
    real = budget.hard_keep

    def noted(*arguments: Any, **options: Any) -> torch.Tensor:
        made.append(real(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(budget, "hard_keep", noted)
    return made


def test_no_budget_opens_what_is_closed_and_without_a_price_nothing_open_closes() -> None:
    network = tiny(groups="channel")
    closed = settled(network)
    p = drop_probabilities(network)
    tilt = Tilt(network, p, "params", 0)
    assert torch.equal(tilt.at(0.0)[p == 0], p[p == 0].double())
    assert bool((tilt.at(0.0)[p == 1] == 1).all() and (tilt.at(1e6)[p == 1] == 1).all())
    assert bool((tilt.at(1e6)[p == 0] > 0).any())  # smaller budgets can be met
    keep, sizes = draw_within(network, p, Target("params", 0.3), 20, 0)
    assert not keep[:, closed].any()
    assert float(sizes.params.max()) <= 0.3 * parameter_count(network)


@pytest.mark.parametrize("kind", ["params", "macs"])
def test_the_tilt_is_the_least_change_that_drops_as_much(kind: str) -> None:
    """Against a solver: least divergence at the same total of what is dropped, in costs at p."""
    network = tiny()
    size, channels, p = ExpectedSize(network), gates(network).channels, learned(network)
    tilt = Tilt(network, p, kind, 0)
    assert tilt.to(0.999, tilt.expected) == 0.0  # it is smaller already
    assert torch.allclose(tilt.at(0.0).float(), p)
    aim = 0.7 * float(size.shares(p)[kind])
    q = tilt.at(tilt.to(aim, tilt.expected))
    assert float(size.shares(q)[kind]) == pytest.approx(aim, rel=1e-6)
    slope = []
    for step in 1e-4 * torch.eye(len(p), dtype=torch.float64):
        ahead, behind = (float(size.shares(p.double() + s)[kind]) for s in (step, -step))
        slope.append((behind - ahead) / 2e-4)
    start, weight, saved = p.double().numpy(), channels.double().numpy(), np.array(slope)

    def divergence(q: np.ndarray) -> float:
        each = q * np.log(q / start) + (1 - q) * np.log((1 - q) / (1 - start))
        return float((weight * each).sum())

    solved = minimize(
        divergence, start + 0.1, method="SLSQP", bounds=[(1e-4, 1 - 1e-4)] * len(start),
        constraints={"type": "eq", "fun": lambda other: float(saved @ (other - q.numpy()))},
        options={"maxiter": 500, "ftol": 1e-12},
    )  # fmt: skip
    assert solved.success
    assert np.abs(q.numpy() - solved.x).max() < 0.005


@pytest.mark.parametrize("groups", ["layer", "channel"])
@pytest.mark.parametrize("kind", ["params", "macs"])
def test_every_candidate_is_within_its_budget_and_uses_it(
    kind: str, groups: str, draws: list[torch.Tensor]
) -> None:
    network = tiny(groups=groups)
    p = learned(network)
    whole = parameter_count(network) if kind == "params" else whole_macs(network)
    own = float(getattr(count(network, draw_candidates(p, network, 64, 0)), kind).double().mean())
    for share in (0.8 * own / whole, 0.5 * own / whole):
        draws.clear()
        keep, sizes = draw_within(network, p, Target(kind, share), 60, 0)
        found = getattr(sizes, kind)
        assert torch.equal(found, getattr(count(network, keep), kind))
        assert int(found.max()) <= share * whole
        assert float(found.double().mean()) >= 0.98 * share * whole
        assert 60 / len(draws) > 0.08
    fewer, _ = draw_within(network, p, Target(kind, share), 20, 0)
    assert torch.equal(fewer, keep[:20])


def test_a_budget_above_the_posterior_only_leaves_out_what_is_larger(
    draws: list[torch.Tensor],
) -> None:
    network = tiny()
    p = learned(network)
    own = count(network, draw_candidates(p, network, 64, 0)).params.double()
    wanted = Target("params", float(own.quantile(0.8)) / parameter_count(network))
    _, sizes = draw_within(network, p, wanted, 100, 0)
    assert 1.0 <= len(draws) / 100 < 2.5
    assert float(sizes.params.double().mean()) == pytest.approx(float(own.mean()), rel=0.1)


def test_budgets_can_be_met_down_to_what_is_announced_and_not_below() -> None:
    network = tiny()
    p = learned(network)
    least = Tilt(network, p, "params", 0).reach()
    _, sizes = draw_within(network, p, Target("params", 1.1 * least), 20, 0)
    assert int(sizes.params.max()) <= 1.1 * least * parameter_count(network)
    check_reach(network, p, [Target("params", least)], 0)
    with pytest.raises(PgnasError, match="is out of reach; draws of this posterior go down to"):
        check_reach(network, p, [Target("params", 0.8), Target("params", 0.5 * least)], 0)


def test_one_fit_gives_a_front_of_several_budgets(
    fitted: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--run", str(fitted.folder)]
    file = str(fitted.folder / "middle.safetensors")
    whole = parameter_count(posterior_of(fitted)[0])
    assert command("sample", "-n", "30", "--max-params", "80%,50%,30%", "--force", *run) == 0
    text = capsys.readouterr()
    assert "candidates within 50 % of the parameters" in text.out
    assert "parameters: the posterior's own mean is" in text.err
    assert command("rank", "--top", "3", *run, "--json") == 0
    boards = json.loads(capsys.readouterr().out)["boards"]
    assert [board["budget"]["share"] for board in boards] == pytest.approx([0.8, 0.5, 0.3], 1e-3)
    for board in boards:
        assert all(0 <= row["id"] < 30 for row in board["top"])
        assert all(row["params"] <= board["budget"]["share"] * whole for row in board["top"])
    assert command("export", file, *run) == 1
    assert "several budgets; name one: --max-params 80%, --max-params 50%" in (
        capsys.readouterr().err
    )
    assert command("export", file, "--max-params", "50%", *run, "--json") == 0
    written = json.loads(capsys.readouterr().out)
    assert written["candidate"] == str(boards[1]["top"][0]["id"])
    assert written["held_out_errors"] == boards[1]["top"][0]["errors"]
    for wrong, message in (
        (["--candidate", "30", "--max-params", "30%"], "no candidate '30'; possible: 0 to 29"),
        (["--candidate", "whole", "--max-params", "30%"], "the whole network is within no budget"),
        (["--max-params", "70%"], "no candidates were drawn for that budget; possible: --max-par"),
    ):
        assert command("export", str(fitted.folder / "no.safetensors"), *wrong, *run) == 1
        assert message in capsys.readouterr().err
    assert command("rank", "--top", "25", "--time-limit", "1e-9", *run) == 0
    early = capsys.readouterr()
    assert "have not been ranked" not in early.err  # all three have been, with fewer to find
    assert "within 30 % of the parameters" in early.out
    assert f"next: pgnas rank {' '.join(run)} --top 25   to resume" in early.err
    assert command("rank", "--top", "2", *run) == 0
    assert "within 30 % of the parameters" in capsys.readouterr().out
    for label in ("params-80", "params-50", "params-30"):
        assert len(fitted.ranking_table(label).read_text().splitlines()) == 1 + 2
