"""The fit: which sizes it ends at, what it remembers, and that it resumes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pgnas_cli.data import ImageData
from pgnas_cli.errors import Interrupted, PgnasError
from pgnas_cli.gates import drop_probabilities
from pgnas_cli.progress import listening
from pgnas_cli.registry import Backbone
from pgnas_cli.registry.build import build_backbone
from pgnas_cli.run import FitSettings, Run
from pgnas_cli.run.posterior import posterior_of
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.sizes import Target, count, parameter_count, whole_macs
from pgnas_cli.training import fit_events
from pgnas_cli.training.fitting import options_changed

from ..conftest import run as command
from ..listeners import Heard
from .conftest import small_fit


@pytest.mark.parametrize(("kind", "share"), [("params", 0.6), ("params", 0.3), ("macs", 0.5)])
def test_candidates_are_as_large_as_the_target(digits: ImageData, kind: str, share: float) -> None:
    """Counted draws, not the estimate that steers the fit."""
    network, (*_, last) = small_fit(digits, target=Target(kind, share), epochs=12, drop_lr=0.15)
    sizes = count(network, draw_candidates(drop_probabilities(network), network, 50, 0))
    whole = {"params": parameter_count, "macs": whole_macs}[kind](network)
    assert float(getattr(sizes, kind).double().mean()) / whole == pytest.approx(share, rel=0.15)
    assert last.price > 0
    assert last.hard_error < 0.3


@pytest.mark.parametrize("epochs", [1, 2, 4])
@pytest.mark.parametrize("groups", ["layer", "channel"])
def test_short_fits_meet_their_target_too(digits: ImageData, epochs: int, groups: str) -> None:
    half = Target("params", 0.5)
    network, (*_, last) = small_fit(digits, target=half, epochs=epochs, groups=groups)
    assert last.expected_share == pytest.approx(0.5, abs=0.006)
    keep = draw_candidates(drop_probabilities(network), network, 100, 0)
    counted = float(count(network, keep).params.double().mean()) / parameter_count(network)
    assert counted == pytest.approx(0.5, abs=0.03)


def test_a_stronger_prior_gives_a_smaller_network(digits: ImageData) -> None:
    """The direction of Table 4."""
    weak, strong = (
        small_fit(digits, epochs=8, l2=l2, batch_size=64)[1][-1].expected_share
        for l2 in (50.0, 2000.0)
    )
    assert strong < weak - 0.1


def test_what_differs_is_named_as_the_option_it_is(fitted_once: Path) -> None:
    _, posterior = posterior_of(Run(fitted_once))
    images = replace(posterior.supernet.preprocessing, size=128)
    other = replace(posterior, supernet=replace(posterior.supernet, preprocessing=images))
    assert options_changed(posterior, posterior) == []
    assert options_changed(posterior, other) == ["`img_size` 8, not 128"]
    other = replace(posterior, recipe=replace(posterior.recipe, lr=7.0))
    assert options_changed(posterior, other) == [f"`lr` {posterior.recipe.lr}, not 7.0"]


def test_label_smoothing_has_a_short_name(tmp_path: Path) -> None:
    brief = ["--epochs", "1", "-b", "512", "-q", "--run", str(tmp_path)]
    assert command("fit", "--smoothing", "0.2", *brief) == 0
    assert posterior_of(Run(tmp_path))[1].recipe.label_smoothing == 0.2


# --- interrupted and resumed -----------------------------------------------------------------


@pytest.fixture(scope="module", params=[None, "50%"], ids=["plain", "target"])
def straight(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, FitSettings]:
    """An uninterrupted fit with a target, or without."""
    recipe = {"epochs": 3, "batch_size": 100, "freeze": 0.7}
    settings = FitSettings(target_params=request.param, recipe=recipe)
    run = Run(tmp_path_factory.mktemp("straight") / "run")
    list(fit_events(run, settings))
    return run, settings


def timeless(run: Run) -> list[dict[str, Any]]:
    """The records of a run, but for times."""
    records = map(json.loads, run.metrics.read_text().splitlines())
    times = ("seconds", "_second", "waited_share")
    return [{k: v for k, v in r.items() if not k.endswith(times)} for r in records]


@pytest.mark.parametrize("stop_at", [1, 11, 12, 20])
def test_an_interrupted_fit_resumes_to_the_same_bytes_and_records(
    straight: tuple[Run, FitSettings], tmp_path: Path, stop_at: int
) -> None:
    """In the middle of an epoch, at its end, and just after it."""
    run, (wanted, settings) = Run(tmp_path / "run"), straight
    stop = Heard(lambda task, done: task == "fitting" and done == stop_at)
    with listening(stop), pytest.raises(Interrupted, match=f"saved after step {stop_at} of 33"):
        list(fit_events(run, settings))
    assert not run.posterior.exists()
    with listening(rest := Heard()):
        list(fit_events(run, settings, resume=True))
    assert rest.counts["fitting"] == list(range(stop_at + 1, 34))
    assert run.posterior.read_bytes() == wanted.posterior.read_bytes()
    assert timeless(run) == timeless(wanted)
    assert not run.checkpoint.exists()


def test_an_inflated_network_resumes_too(tmp_path: Path) -> None:
    """Its options hold a tuple, which a file gives back as a list."""
    run, recipe = Run(tmp_path / "run"), {"epochs": 1, "batch_size": 300}
    settings = FitSettings(backbone="resnet50", fixed_drop=0.0, recipe=recipe)
    for resume, end in ((False, 1), (True, 2)):
        stop = Heard(lambda task, done, end=end: task == "fitting" and done == end)
        with listening(stop), pytest.raises(Interrupted, match=f"saved after step {end} of"):
            list(fit_events(run, settings, resume=resume))


def test_each_part_of_a_batch_has_two_images(tmp_path: Path) -> None:
    settings = FitSettings(recipe={"batch_size": 4, "accumulate": 3})
    with pytest.raises(PgnasError, match=r"too small for `accumulate` 3: .* possible: up to 2"):
        list(fit_events(Run(tmp_path / "run"), settings))


def test_options_that_a_file_cannot_keep_are_named_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def typed(*names: Any, **more: Any) -> Backbone:
        return replace(build_backbone(*names, **more), options={"dtype": torch.float32})

    monkeypatch.setattr("pgnas_cli.training.preparing.build_backbone", typed)
    with pytest.raises(PgnasError, match="multibranch-tiny has `options` that a file cannot keep"):
        list(fit_events(Run(tmp_path / "run"), FitSettings()))
