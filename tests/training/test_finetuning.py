"""Fine-tuning: an ordinary loop on the fit's images, that can stop anywhere and go on."""

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import pgnas_cli
from pgnas_cli.data import load_data, training_batches
from pgnas_cli.formats import read_network
from pgnas_cli.run import Run, commands_of
from pgnas_cli.run.posterior import posterior_of
from pgnas_cli.seeds import derived_seed
from pgnas_cli.training import finetuning
from pgnas_cli.training.finetuning import soft_loss, unfinished_path

from ..conftest import run as command


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits with its winner and the random twin, which has much to gain."""
    folder = tmp_path_factory.mktemp("made") / "run"
    line = ["search", "--epochs", "3", "-n", "20", "-q", "--run", str(folder)]
    assert command(*line) == 0
    return folder


def tuned(capsys: pytest.CaptureFixture[str], file: Path, *more: str) -> dict[str, Any]:
    capsys.readouterr()
    assert command("finetune", str(file), "--json", "-q", *more) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_random_twin_learns_and_keeps_its_shape(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, about = read_network(made / "twin.safetensors")
    path = tmp_path / "better.safetensors"
    found = tuned(capsys, made / "twin.safetensors", "-o", str(path), "--epochs", "3")
    assert found["held_out_errors"] < 0.5 * about.held_out_errors
    assert found["params"] == about.params
    after, now = read_network(path)
    assert {k: v.shape for k, v in after.state_dict().items()} == {
        k: v.shape for k, v in before.state_dict().items()
    }
    assert (now.finetuned_epochs, about.finetuned_epochs) == (3, 0)
    assert now.held_out_errors == found["held_out_errors"]
    assert "finetune" in commands_of(Run(made))[-1].line
    assert command("evaluate", str(path), "-q", "--run", str(made)) == 0
    assert command("report", "--run", str(made), "-q") == 0
    assert "fine-tuned for 3 epochs" in Run(made).report.read_text(encoding="utf-8")


def test_its_steps_are_those_of_a_plain_loop(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tuned.safetensors"
    tuned(capsys, made / "best.safetensors", "-o", str(path), "--epochs", "1", "--lr", "0.02")
    _, posterior = posterior_of(Run(made))
    recipe, objective = posterior.recipe, posterior.objective
    assert recipe.opt == "nesterov"
    data = load_data("digits", seed=0, preprocessing=posterior.subject.preprocessing)
    network = pgnas_cli.load(made / "best.safetensors").train()
    steps = len(data.fit) // recipe.batch_size
    decay = 2 * objective.l2 / objective.kl_images
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


def test_the_soft_loss_is_the_divergence_in_float64() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, wanted = (3 * torch.randn(5, 7, generator=draw, dtype=torch.float64) for _ in range(2))
    total = 0.0
    for row in range(5):
        p, q = (torch.softmax(x[row] / 2, 0) for x in (logits, wanted))
        total += 4 * sum(float(q[c] * (q[c] / p[c]).log()) for c in range(7)) / 5
    assert float(soft_loss(logits, wanted)) == pytest.approx(total, rel=1e-12)


def test_a_teacher_is_imitated(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best, twin = made / "best.safetensors", made / "twin.safetensors"
    data = load_data("digits", seed=0)
    images = read_network(best)[1].subject.preprocessing.normalised(data.held_out.pixels)
    apart = []
    with torch.no_grad():
        wanted = pgnas_cli.load(best)(images)
    for more in ([], ["--teacher", str(best), "--teacher-weight", "1"]):
        path = tmp_path / f"{len(more)}.safetensors"
        tuned(capsys, twin, "-o", str(path), "--epochs", "3", *more)
        with torch.no_grad():
            apart.append(float(soft_loss(pgnas_cli.load(path)(images), wanted)))
    assert apart[1] < 0.8 * apart[0]


def test_a_teacher_that_saw_the_held_out_images_is_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    line = ["--epochs", "1", "--seed", "1", "--fixed-drop", "0", "-q", "--run", str(other)]
    assert command("fit", *line) == 0
    teacher = str(tmp_path / "teacher.safetensors")
    assert command("export", teacher, "--candidate", "whole", "-q", "--run", str(other)) == 0
    output = ["-o", str(tmp_path / "out.safetensors")]
    assert command("finetune", str(made / "best.safetensors"), "--teacher", teacher, *output) == 1
    assert "was fitted on images that are held out here" in capsys.readouterr().err


def test_a_loss_that_is_no_number_writes_nothing(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.safetensors"
    line = ["--lr", "1000", "--epochs", "2", "-o", str(path)]
    assert command("finetune", str(made / "best.safetensors"), *line) == 1
    assert "lower --lr (now 1000)" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize("name", ["posterior", "candidates", "ranking"])
def test_files_of_the_run_are_not_written_over_even_by_force(
    made: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = made / f"{name}.safetensors"
    before = path.read_bytes()
    best = str(made / "best.safetensors")
    assert command("finetune", best, "--force", "-o", str(path)) == 1
    assert "is a file of the run itself" in capsys.readouterr().err
    assert path.read_bytes() == before
    twin = str(made / "twin.safetensors")
    assert command("finetune", best, "--force", "--teacher", twin, "-o", twin) == 1


def test_interrupted_and_gone_on_with_it_gives_the_same_bytes(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, stopped = tmp_path / "straight.safetensors", tmp_path / "stopped.safetensors"
    line = ["finetune", str(made / "best.safetensors"), "--epochs", "2", "-q", "-o"]
    assert command(*line, str(straight)) == 0
    advance, calls = finetuning._Tuning.advance, 0

    def counted(self: Any, *batch: Any) -> None:
        nonlocal calls
        calls += 1
        if calls in (3, 9, 14):  # in the first epoch, and in the second
            os.kill(os.getpid(), signal.SIGTERM)
        advance(self, *batch)

    monkeypatch.setattr(finetuning._Tuning, "advance", counted)
    for _ in range(3):
        assert command(*line, str(stopped)) == 130
        assert not stopped.exists()
        assert unfinished_path(stopped).exists()
    capsys.readouterr()
    assert command(*line, str(stopped), "--lr", "0.5") == 1
    assert "begun with other options (learning_rate" in capsys.readouterr().err
    stopped.write_text("in the way")
    assert command(*line, str(stopped)) == 1
    assert command(*line, str(stopped), "--force") == 0  # about the output, not about what is done
    assert calls == 2 * (1151 // 32)  # no step was done twice
    assert stopped.read_bytes() == straight.read_bytes()
    assert not unfinished_path(stopped).exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "--epochs 0 is out of range"),
        (["--lr", "-1"], "--lr -1 is out of range"),
        (["--teacher-weight", "2"], "--teacher-weight 2 is out of range"),
        (["-o", "FILE"], "is the network itself"),
        (["-o", "x.onnx"], "'x.onnx' cannot be fine-tuned"),
        (["--run", "nowhere"], "'nowhere' is not the run"),
        (["--teacher", "nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_wrong_options_are_one_line(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], options: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    best = str(made / "best.safetensors")
    given = [best if option == "FILE" else option for option in options]
    assert command("finetune", best, *given) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_network_whose_run_is_not_here_is_refused_and_files_are_not_overwritten(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(made / "best.safetensors", "alone.safetensors")
    assert command("finetune", "alone.safetensors") == 1
    assert "name its run with --run" in capsys.readouterr().err
    Path("alone-finetuned.safetensors").write_text("mine")
    assert command("finetune", "alone.safetensors", "--run", str(made)) == 1
    assert "exists; choose another name" in capsys.readouterr().err
    assert Path("alone-finetuned.safetensors").read_text() == "mine"
