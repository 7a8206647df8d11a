"""Studies, each a script; their figures go to docs/results.md and docs/log.md."""

import platform

import torch
from torch import Tensor, nn

from pgnas_cli import count, find_machine, slim
from pgnas_cli.data import ImageData
from pgnas_cli.ranking import Race, finished, held_out_evaluator
from pgnas_cli.training import score

CPU = find_machine("cpu", workers=0)  # and this process is set up for it


def machine_line() -> str:
    """What the figures were taken on."""
    return f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads"


def ranked(network: nn.Module, keep: Tensor, data: ImageData, top: int | None = None) -> Race:
    """The first `top` of the candidates, bool (candidates, gates); None: all, on every image."""
    evaluator = held_out_evaluator(network, keep, data, CPU.device)
    return finished(evaluator, count(network, keep).params, top)


def test_error(network: nn.Module, keep: Tensor, data: ImageData) -> float:
    """Of one candidate, bool (gates,), cut out, on the test split."""
    assert data.test is not None
    return score(slim(network, keep), data.test, data.preprocessing).error
