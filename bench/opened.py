"""A fitted run with its data, as the studies of rankings need it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from pgnas_cli.cli.machine import tune_for_cpu
from torch import Tensor, nn

from pgnas_cli.data import ImageData
from pgnas_cli.gates import drop_probabilities
from pgnas_cli.run import Run, read_settings
from pgnas_cli.run.posterior import Posterior, held_out_of, posterior_of
from pgnas_cli.slimming import slim
from pgnas_cli.training import score as score_on_test

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Opened:
    """What a run holds."""

    network: nn.Module
    posterior: Posterior
    data: ImageData  # held-out part decoded
    probability: Tensor  # (groups,), learned

    def test_error(self, keep: Tensor) -> float:
        """Of one candidate, bool (gates,), on the test split."""
        assert self.data.test is not None
        return score_on_test(
            slim(self.network, keep), self.data.test, self.data.preprocessing, device=CPU, workers=0
        ).error


def opened(folder: Path) -> Opened:
    """The run in `folder`; denormal numbers are flushed from here on."""
    tune_for_cpu()
    run = Run(folder)
    network, posterior = posterior_of(run)
    data = held_out_of(run, posterior, read_settings(run), 0, lambda items, _: items)
    return Opened(network, posterior, data, drop_probabilities(network))
