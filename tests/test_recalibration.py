"""Batch-norm statistics of candidates against torch's own training mode."""

import copy
import json
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from pgnas_cli.data import ImageData, open_data
from pgnas_cli.errors import PgnasError
from pgnas_cli.gates import gates, make_concrete_, masked
from pgnas_cli.ranking import Recalibration
from pgnas_cli.ranking.evaluator import Judge
from pgnas_cli.ranking.recalibration import norms, recalibration_images
from pgnas_cli.sampling import draw_candidates

from .conftest import run as command
from .conftest import tiny
from .randomised import randomised

CPU = torch.device("cpu")


def networks() -> list[tuple[nn.Module, tuple[int, int, int]]]:
    """One with torch's batch-norm, one with timm's, which has its activation inside."""
    timms = timm.create_model("efficientnet_lite0", num_classes=10)
    made = make_concrete_(timms, (3, 32, 32), layers="hidden", groups="channel")
    return [(tiny(), (1, 8, 8)), (randomised(made), (3, 32, 32))]


def relearned(network: nn.Module, keep: Tensor, batches: list[Tensor]) -> nn.Module:
    """A copy whose running statistics torch has averaged over the batches."""
    found = copy.deepcopy(network)
    for norm in norms(found):
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad(), masked(found, keep):
        for batch in batches:
            found(batch)
    return found.eval()


@pytest.mark.parametrize("which", [0, 1])
def test_statistics_are_those_of_training_mode_under_the_mask(which: int) -> None:
    network, shape = networks()[which]
    network.double()  # a deep network in float32 differs by rounding alone
    before = copy.deepcopy(network.state_dict())
    keep = draw_candidates(torch.full((len(gates(network).groups),), 0.3), network, 5, 0)
    g = torch.Generator().manual_seed(0)
    batches = [torch.randn(16, *shape, generator=g, dtype=torch.float64) for _ in range(2)]
    images = torch.randn(10, *shape, generator=g, dtype=torch.float64)
    recalibration = Recalibration(network, keep, batches)
    candidates = torch.tensor([0, 1, 2, 3, 4, 4, 2, 0, 1, 3])
    with torch.inference_mode(), recalibration.of(candidates), masked(network, keep[candidates]):
        together = network(images)
    for row, candidate in enumerate(candidates.tolist()):
        own = relearned(network, keep[candidate], batches)
        with torch.no_grad(), masked(own, keep[candidate]):
            expected = own(images[row : row + 1])[0]
        assert torch.allclose(together[row], expected, rtol=1e-6, atol=1e-6 * expected.abs().max())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    recalibration.apply_(3)
    own = relearned(network, keep[3], batches)
    for found, expected_norm in zip(norms(network), norms(own), strict=True):
        assert torch.allclose(found.running_mean, expected_norm.running_mean)
        assert torch.allclose(found.running_var, expected_norm.running_var)


def digits() -> ImageData:
    return open_data("digits", seed=0)


def test_outcomes_do_not_depend_on_what_shares_the_forward() -> None:
    data, network = digits(), tiny()
    keep = draw_candidates(torch.full((17,), 0.3), network, 12, 0)
    assert data.held_out.pixels is not None
    pixels, labels = data.held_out.pixels[:40], data.held_out.labels[:40]
    images = recalibration_images(data, 64, 0)

    def judge() -> Judge:
        return Judge(network, keep, pixels, labels, data.preprocessing, CPU, images)

    pairs = torch.arange(12 * 40)
    straight = judge()(pairs // 40, pairs % 40)
    mixed = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(1))]
    wrong, margin = judge()(mixed // 40, mixed % 40)
    assert torch.equal(wrong, straight[0][mixed])
    assert torch.equal(margin, straight[1][mixed])


def test_images_are_those_of_the_fit_and_as_many_as_asked_for() -> None:
    data = digits()
    batches = recalibration_images(data, 100, 0)
    assert [len(b) for b in batches] == [50, 50]
    assert data.fit.pixels is not None
    fitted = {bytes(image.numpy()) for image in data.preprocessing.normalised(data.fit.pixels)}
    assert all(bytes(image.numpy()) in fitted for image in torch.cat(batches))
    with pytest.raises(PgnasError, match=r"--recalibrate 1 is out of range; possible: 2 to 1151"):
        recalibration_images(data, 1, 0)


def test_the_exported_file_holds_what_was_ranked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = str(tmp_path / "run"), tmp_path / "best.safetensors"
    assert command("fit", "--epochs", "2", "--target-params", "40%", "--run", run, "-q") == 0
    assert command("sample", "-n", "30", "--run", run, "-q") == 0
    assert command("rank", "--run", run, "-q") == 0
    capsys.readouterr()
    assert command("rank", "--recalibrate", "128", "--run", run, "--json") == 0
    ranked = json.loads(capsys.readouterr().out)
    assert command("export", str(file), "--run", run, "--json") == 0
    written = json.loads(capsys.readouterr().out)
    first = ranked["top"][0]
    assert str(first["id"]) == written["candidate"]
    assert written["held_out_errors"] == first["errors"]
    assert command("evaluate", str(file), "--json") == 0
    assert json.loads(capsys.readouterr().out)["error"] < 0.9
