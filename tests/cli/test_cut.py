"""A run whose network is cut while training, from fit to export, stopped and resumed behind it."""

import json
import signal
from pathlib import Path

import pytest
import torch

import pgnas_cli
from pgnas_cli.gates import remaining
from pgnas_cli.run import Run
from pgnas_cli.run.posterior import posterior_of
from pgnas_cli.sampling import read_candidates
from pgnas_cli.sizes import count

from ..conftest import object_of, run

FIT = ["fit", "--epochs", "2", "--target-params", "50%", "--groups", "channel", "-q"]


class Request:
    """A request to stop once the network was cut and a few steps were taken."""

    taken = 0

    def __enter__(self) -> "Request":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def asked(self) -> int:
        Request.taken += 1
        return signal.SIGINT if Request.taken >= 30 else 0


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_that_was_cut_serves_every_later_command(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*FIT, "--run", "r") == 0
    one = Run(home / "r")
    shares = [json.loads(line)["trained_share"] for line in one.metrics.read_text().splitlines()]
    assert shares[-1] < 0.8
    assert run("sample", "-n", "30", "--run", "r", "-q") == 0
    network, posterior = posterior_of(one)
    left = remaining(network)
    drawn = read_candidates(one, network, posterior)
    assert not (drawn.keep & ~left).any()
    best = object_of("export", "best.safetensors", "--run", "r")
    whole = object_of("export", "whole.safetensors", "--candidate", "whole", "--run", "r")
    twin = object_of("export", "twin.safetensors", "--candidate", "twin", "--run", "r")
    assert whole["params"] == int(count(network, left[None]).params) < whole["whole_params"]
    assert best["params"] <= whole["params"] and twin["params"] <= whole["params"]
    exported = pgnas_cli.load("whole.safetensors")
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), pgnas_cli.masked(network, left):
        assert torch.allclose(exported(images), network(images), atol=1e-4)

    with monkeypatch.context() as stopped:
        stopped.setattr("pgnas_cli.training.loop.StopRequest", Request)
        assert run(*FIT, "--run", "again") == 130
    other = Run(home / "again")
    assert other.checkpoint.stat().st_size < 3 * one.posterior.stat().st_size
    assert run("fit", "--resume", "--run", "again", "-q") == 0
    assert other.posterior.read_bytes() == one.posterior.read_bytes()
