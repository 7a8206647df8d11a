"""When unfinished work is saved, and that a failed save is no end."""

import errno
import os
from pathlib import Path

import pytest
import torch

from pgnas_cli.data import ImageData
from pgnas_cli.errors import PgnasError
from pgnas_cli.progress import listening
from pgnas_cli.run import FitSettings, Run
from pgnas_cli.training import fit_events, saving
from pgnas_cli.training.saving import Saving, interval

from ..listeners import Heard
from .conftest import loop_of, steps


@pytest.mark.parametrize("took", [0.0, 0.01, 0.3, 1.0, 1.2, 5.0, 60.0])
def test_saves_take_less_than_2_percent_and_are_a_minute_apart_where_that_allows(
    took: float,
) -> None:
    assert took / interval(took) <= 0.02
    assert 1 <= interval(took) <= max(60, 50 * took)
    assert interval(0.0) <= 20  # the first one


def test_a_save_is_due_after_its_interval_and_a_named_one_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(saving.time, "monotonic", lambda: now)

    def slow() -> None:
        nonlocal now
        now += 0.3

    for seconds, first, then in ((None, 1.0, 30.0), (7.0, 7.0, 7.0)):
        one = Saving(seconds)
        for wait in (first, then):
            now += wait - 0.01
            assert not one.due()
            now += 0.02
            assert one.due()
            one(slow)


def test_a_full_disk_is_said_once_and_the_fit_ends_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints and history fail until the second epoch; then there is room again."""
    settings = FitSettings(recipe={"epochs": 3, "batch_size": 100})
    straight, full = Run(tmp_path / "straight"), Run(tmp_path / "full")
    list(fit_events(straight, settings))
    fsync, heard = os.fsync, Heard()

    def failing(file: int) -> None:
        if 1 <= len(heard.counts.get("fitting", [])) <= 15:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    monkeypatch.setattr(os, "fsync", failing)
    with listening(heard):
        list(fit_events(full, settings, save_minutes=0))
    said = [note for note in heard.notes if note.startswith("warning: not saved, and tried again")]
    assert len(said) == 2  # the checkpoint, the history
    assert all("No space left on device" in note for note in said)
    assert full.posterior.read_bytes() == straight.posterior.read_bytes()
    assert len(full.metrics.read_text().splitlines()) == 3
    assert {path.name for path in full.folder.iterdir()} == {
        "run.json", "metrics.jsonl", "posterior.safetensors",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda loop: next(loop.network.parameters()).data.fill_(1e30), r"lower `lr`"),
        (lambda loop: next(loop.network.parameters()).data.fill_(torch.nan), "lower `lr`"),
    ],
)
def test_a_state_that_is_not_finite_is_not_saved(
    digits: ImageData, spoil: object, message: str
) -> None:
    loop = loop_of(digits, epochs=1)
    next(iter(steps(loop)))
    loop.state()
    spoil(loop)  # type: ignore[operator]
    with pytest.raises(PgnasError, match=message):
        loop.state()


def test_the_cause_is_what_was_not_finite_first(digits: ImageData) -> None:
    loop = loop_of(digits, epochs=1)
    next(loop.network.parameters()).data.fill_(torch.nan)
    with pytest.raises(PgnasError, match=r"in epoch 1, step 1; the starting weights are not fin"):
        next(iter(steps(loop)))
    loop = loop_of(digits, epochs=1, l2=1e39)
    with pytest.raises(PgnasError, match=r"the divergence is inf.* in epoch 1, step 1; lower `l2`"):
        next(iter(steps(loop)))
