"""Fine-tuning: an ordinary loop on the fit's images, that can stop anywhere and resume."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

import pgnas_cli
from pgnas_cli.data import load_data, training_batches
from pgnas_cli.errors import Interrupted, PgnasError
from pgnas_cli.formats import read_network
from pgnas_cli.progress import listening
from pgnas_cli.run import Run, commands_of
from pgnas_cli.run.posterior import posterior_of
from pgnas_cli.seeds import derived_seed
from pgnas_cli.training.finetuning import unfinished_path

from ..conftest import run as command
from ..listeners import Heard


def best_of(run: Run) -> Path:
    return run.folder / "best.safetensors"


def test_a_random_twin_learns_and_keeps_its_shape(
    fitted: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin, path = tmp_path / "twin.safetensors", tmp_path / "better.safetensors"
    pgnas_cli.export(twin, fitted.folder, candidate="twin")
    before, about = read_network(twin)
    where = ["-q", "--run", str(fitted.folder)]
    capsys.readouterr()
    assert command("finetune", str(twin), "-o", str(path), "--epochs", "3", "--json", *where) == 0
    found = json.loads(capsys.readouterr().out)
    after, now = read_network(path)
    assert found["held_out_errors"] == now.held_out_errors < 0.5 * about.held_out_errors
    assert found["params"] == about.params
    shapes = [{k: v.shape for k, v in one.state_dict().items()} for one in (before, after)]
    assert shapes[0] == shapes[1]
    assert (about.finetuned_epochs, now.finetuned_epochs) == (0, 3)
    assert "finetune" in commands_of(fitted)[-1].line
    assert command("evaluate", str(path), *where) == 0
    assert command("report", *where) == 0
    assert "fine-tuned for 3 epochs" in fitted.report.read_text(encoding="utf-8")


def test_its_steps_are_those_of_a_plain_loop(fitted: Run, tmp_path: Path) -> None:
    path = tmp_path / "tuned.safetensors"
    pgnas_cli.finetune(best_of(fitted), path, epochs=1, lr=0.02)
    _, posterior = posterior_of(fitted)
    recipe, prior = posterior.recipe, posterior.objective.prior
    assert recipe.opt == "nesterov"
    data = load_data("digits", seed=0, preprocessing=posterior.supernet.preprocessing)
    network = pgnas_cli.load(best_of(fitted)).train()
    steps = len(data.fit) // recipe.batch_size
    decay = 2 * prior.l2 / prior.images
    groups = [
        {"params": [p for p in network.parameters() if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in network.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.02, momentum=recipe.momentum, nesterov=True)
    batches = training_batches(
        data, batch=recipe.batch_size, seed=derived_seed(0, "finetuning"), first_step=0,
        steps=steps, workers=0, cutout=recipe.cutout,
    )  # fmt: skip
    for step, (images, labels) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 + math.cos(math.pi * step / steps))
        loss = torch.nn.functional.cross_entropy(
            network(data.preprocessing.normalised(images)), labels
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in pgnas_cli.load(path).state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_interrupted_and_resumed_it_gives_the_same_bytes(fitted: Run, tmp_path: Path) -> None:
    straight, stopped = tmp_path / "straight.safetensors", tmp_path / "stopped.safetensors"
    pgnas_cli.finetune(best_of(fitted), straight, epochs=2)
    done = []
    for last in (3, 9, 50):  # in the first epoch, and in the second
        stop = Heard(lambda task, step, last=last: task == "fine-tuning" and step == last)
        with listening(stop), pytest.raises(Interrupted, match="resume with the same command"):
            pgnas_cli.finetune(best_of(fitted), stopped, epochs=2)
        done += stop.counts["fine-tuning"]
        assert not stopped.exists()
        assert unfinished_path(stopped).exists()
    with pytest.raises(PgnasError, match=r"started with other options \(`lr` 0\.01\d*, not 0\.5\)"):
        pgnas_cli.finetune(best_of(fitted), stopped, epochs=2, lr=0.5)
    stopped.write_text("in the way")
    with pytest.raises(PgnasError, match="exists; choose another name"):
        pgnas_cli.finetune(best_of(fitted), stopped, epochs=2)
    assert stopped.read_text() == "in the way"
    with listening(rest := Heard()):
        pgnas_cli.finetune(best_of(fitted), stopped, epochs=2, force=True)
    done += rest.counts["fine-tuning"]
    assert done == list(range(1, 2 * (1151 // 32) + 1))  # no step twice, though the file was forced
    assert stopped.read_bytes() == straight.read_bytes()
    assert not unfinished_path(stopped).exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "--epochs 0 is out of range"),
        (["--lr", "-1"], "--lr -1 is out of range"),
        (["--lr", "1000"], "lower --lr (now 1000)"),
        (["-o", "FOLDER/best.safetensors"], "is the network itself"),
        (["-o", "FOLDER/posterior.safetensors", "--force"], "is a file of the run itself"),
        (["-o", "FOLDER/candidates.safetensors", "--force"], "is a file of the run itself"),
        (["-o", "FOLDER/ranking.safetensors", "--force"], "is a file of the run itself"),
        (["-o", "x.onnx"], "'x.onnx' cannot be fine-tuned"),
        (["--run", "nowhere"], "'nowhere' is not the run"),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(
    fitted_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], options: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in fitted_once.iterdir()}
    given = [option.replace("FOLDER", str(fitted_once)) for option in options]
    assert command("finetune", str(fitted_once / "best.safetensors"), *given) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert {path: path.stat().st_mtime_ns for path in fitted_once.iterdir()} == before


def test_a_network_whose_run_is_not_here_is_refused(
    fitted_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    alone = shutil.copy(fitted_once / "best.safetensors", tmp_path / "alone.safetensors")
    with pytest.raises(PgnasError, match="came from none of the runs here; name it with `run`"):
        pgnas_cli.finetune(alone, tmp_path / "out.safetensors")
