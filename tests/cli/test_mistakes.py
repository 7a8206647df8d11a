"""What users get wrong: one line that names the option, what is possible, and what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pgnas_cli
from pgnas_cli.run import Run

from ..conftest import refused, run, said
from .conftest import HERE

# One of each kind: ranges and choices of single options are tested in tests/test_fields.py.
MISTAKES = [
    (["fit", "--data", "nowhere"], "no data set 'nowhere'; possible: digits, a folder"),
    (["fit", "--backbone", "multibranch-tinny"], "did you mean multibranch-tiny?"),
    (["fit", "--epochs", "0"], "--epochs 0 is out of range; possible: 1 to"),
    (["fit", "--fixed-drop", "1"], "--fixed-drop 1 is out of range"),
    (["fit", "--fixed-drop", "none"], "--fixed-drop 'none' is neither a number nor a fitted run"),
    (["fit", "--target-macs", "9G"],
     "--target-macs 9G is out of range; the whole network has 1500800"),
    (["fit", "--target-macs", "50%", "--target-params", "50%"],
     "--target-params and --target-macs are mutually exclusive; give one"),
    (["fit", "--target-params", "50%", "--fixed-drop", "0.1"], "--fixed-drop sets the size; leave"),
    (["fit", "--gates", "some"], "--gates 'some' is not known; possible: all, hidden"),
    (["fit", "--groups", "0"], "--groups '0' is not known; possible: layer, channel"),
    (["fit", "--opt", "adamm"], "--opt 'adamm' is not known; possible: adam"),
    (["fit", "--device", "gpu"], "no device 'gpu' here; possible: cpu, or auto"),
    (["fit", "--img-size", "16"], "'digits' has images of 8x8 pixels"),
    (["fit", "--run", "text.safetensors"],
     "'text.safetensors' is a file; --run is a folder, there or to be made"),
    (["fit", "--resume"], "no run below 'runs'; start one with pgnas fit"),
    (["sample"], "no run below 'runs'; start one with pgnas fit, or name one with --run"),
    (["sample", "--run", "none"], "no posterior in 'none'; fit one with pgnas fit"),
    (["rank", "--run", "none"], "no posterior in 'none'"),
    (["export", "a.safetensors", "--run", "none"], "no posterior in 'none'"),
    (["export", "a.pt", "--run", "none"],
     "'a.pt' has no known ending; possible: .safetensors, .onnx"),
    (["export", "a.onnx", "--opset", "13", "--run", "none"],
     "--opset 13 is out of range; possible: 18 to 23"),
    (["export", "a.safetensors", "--dynamic-size", "--run", "none"],
     "--dynamic-size is for ONNX files; a safetensors file takes any size"),
    (["evaluate", "none.safetensors"], "no file 'none.safetensors'"),
    (["evaluate", "folder"], "'folder' is not a whole safetensors file"),
    (["evaluate", "x", "-b", "0"], "--batch-size 0 is out of range"),
    (["report", "folder"], "no run in"),
    (["report", "text.safetensors"], "is not the folder of a run"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES]
)
def test_a_mistake_ends_in_one_line(arguments: list[str], message: str) -> None:
    Path("folder").mkdir()
    Path("text.safetensors").write_text("hello")
    status, out, err = said(*arguments)
    assert (status, out) == (1, "")
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert "`" not in line
    assert "Traceback" not in err


def test_a_network_that_no_later_stage_would_open_is_refused_before_it_is_trained(
    photo_folder: Callable[..., Path],
) -> None:
    """Files are bounded when they are read; what is written keeps within the same bounds."""
    line = refused("fit", "--backbone", "multibranch-tiny", "--data", str(photo_folder()),
                   "--img-size", "4096", "--run", "r")  # fmt: skip
    assert "the fit names images of 4096 pixels, on which multibranch-tiny would take" in line
    assert not Path("r").exists()


@pytest.mark.parametrize(
    ("call", "arguments", "message"),
    [
        (lambda: pgnas_cli.rank("r", top=0), ["rank", "--top", "0"],
         "{top} 0 is out of range; possible: 1 or more"),
        (lambda: pgnas_cli.sample("r", 0), ["sample", "--n", "0"],
         "{n} 0 is out of range; possible: 1 to 1e+06"),
        (lambda: pgnas_cli.export("a.onnx", "r", round_to=0),
         ["export", "a.onnx", "--round-to", "0"],
         "{round_to} 0 is out of range; possible: 1 to 1024"),
        (lambda: pgnas_cli.fit("r", target_params="50%", size_ramp=0.6, freeze=0.2),
         ["fit", "--target-params", "50%", "--size-ramp", "0.6", "--freeze", "0.2"],
         "{freeze} 0.2 comes before the size is met, {size_ramp} 0.6; possible: 0.6 or more for"
         " {freeze}"),
    ],
    ids=["rank", "sample", "export", "fit"],
)  # fmt: skip
def test_an_option_is_named_as_it_is_typed(
    call: Callable[[], Any], arguments: list[str], message: str
) -> None:
    """In backticks from Python, as a flag on the command line."""
    names = ("top", "n", "round_to", "freeze", "size_ramp")
    with pytest.raises(pgnas_cli.PgnasError) as raised:
        call()
    assert str(raised.value) == message.format(**{name: f"`{name}`" for name in names})
    _, _, err = said(*arguments, "--run", "r")
    flags = {name: "--" + name.replace("_", "-") for name in names}
    assert err.splitlines()[-1] == f"error: {message.format(**flags)}"


def test_a_fitted_run_says_what_it_lacks_and_what_is_in_the_way(fitted: Run) -> None:
    for path in fitted.drawn_files():
        path.unlink()
    Path("there.safetensors").write_text("precious")
    for arguments, message in (
        (["rank"], "no candidates in 'run'; draw some with pgnas sample"),
        (["fit", "--resume", "--epochs", "9"],
         "was started with --epochs 3, not 9; leave the option out to resume"),
        (["sample", "--baseline", "other"], "no baseline 'other'; possible: permuted, fixed"),
        (["sample", "--max-params", "60%", "--max-macs", "60%"],
         "--max-params and --max-macs are mutually exclusive; give one"),
        (["export", "there.safetensors"], "'there.safetensors' exists; choose another name, or add"
         " --force"),
    ):  # fmt: skip
        assert message in refused(*arguments, *HERE)
    assert Path("there.safetensors").read_text() == "precious"
    assert run("sample", "-n", "2", *HERE, "-q") == 0
    assert run("export", "there.safetensors", *HERE, "--force", "-q") == 0
