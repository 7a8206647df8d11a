"""fit --tensorboard: the same figures for TensorBoard."""

import json
import sys
from pathlib import Path

import pytest

from pgnas_cli.cli.tensorboard import SCALARS

from ..conftest import refused, run

FIT = ["fit", "--epochs", "2", "-q", "--run", "run", "--tensorboard", "board"]


def test_tensorboard_holds_what_the_metrics_file_holds() -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run(*FIT) == 0
    lines = Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    wanted = [json.loads(text) for text in lines]
    found = EventAccumulator("board/run", {"histograms": 0, "scalars": 0})
    found.Reload()
    for tag, field in SCALARS.items():
        assert tag in found.Tags()["scalars"]
        values = [(event.step, event.value) for event in found.Scalars(tag)]
        assert values == [(m["epoch"], pytest.approx(m[field], rel=1e-5)) for m in wanted]
    for event, record in zip(found.Histograms("p"), wanted, strict=True):
        assert event.histogram_value.bucket == record["drop_histogram"]


def test_tensorboard_that_is_not_installed_is_said_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard.writer", raising=False)
    assert "pip install 'pgnas[tensorboard]'" in refused(*FIT)
    assert not Path("run").exists()
