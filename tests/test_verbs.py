"""The functions of the package: a wrong call is one PgnasError, what is meant is understood."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pgnas_cli import (
    Inflation,
    PgnasError,
    Recipe,
    Target,
    count,
    create_supernet,
    draw,
    evaluate,
    export,
    exporting,
    find_machine,
    finetune,
    fit,
    fit_network,
    inflate,
    listening,
    load,
    load_data,
    masked,
    rank,
    relaxed,
    sample,
    slim,
)
from pgnas_cli.data import ImageData
from pgnas_cli.fields import checked_call
from pgnas_cli.run import Run

from .networks import everything, seeded, tiny

NOBODY = "none.safetensors"


def trained(**options: Any) -> list[Any]:
    """Fit a small network on digits."""
    recipe = options.pop("recipe", Recipe(epochs=1))
    return list(fit_network(tiny(), load_data("digits"), recipe, **options))


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: fit("r", recipe={"epochs": 1}), "a fit has no option `recipe`; possible: "),
    (lambda: fit("r", epoch=1), "a fit has no option `epoch`; possible: epochs"),
    (lambda: fit("r", data=None), "`data` 'None' is not known; possible: text"),
    (lambda: fit("r", backbone=tiny()),
     "`backbone` 'MultiBranch' is not known; possible: text"),
    (lambda: fit("r", epochs=1.5), "`epochs` '1.5' is not known; possible: a whole"),
    (lambda: fit("r", lr=True), "`lr` 'True' is not known; possible: a number"),
    (lambda: fit("r", pretrained=1), "`pretrained` '1' is not known; possible: True or"),
    (lambda: fit("r", target_params=["60%"]),
     "`target_params` '['60%']' is not known; possible: text, or None"),
    (lambda: fit("r", fixed_drop=[0.1]),
     "`fixed_drop` '[0.1]' is not known; possible: a number, or auto"),
    (lambda: fit("r", decay_milestones=30),
     "`decay_milestones` '30' is not known; possible: whole numbers, say 30,60"),
    (lambda: fit("r", machine="cpu"), "`machine` 'cpu' is not known; possible: Machine"),
    (lambda: fit("r", save_minutes="often"), "`save_minutes` 'often' is not known; poss"),
    (lambda: sample("r", "many"), "`n` 'many' is not known; possible: a whole number"),
    (lambda: sample("r", 5, baseline=None), "`baseline` 'None' is not known; possible: t"),
    (lambda: sample("r", 5, seed="a"), "`seed` 'a' is not known; possible: a whole numbe"),
    (lambda: sample("r", 5, max_macs=Target("macs", 0.5)),
     "`max_macs` '50 % of the MACs' is not known; possible: text, or None"),
    (lambda: sample("r", number=5),
     "sample: got an unexpected keyword argument 'number'; possible: `run`, `n`, `baseline`"),
    (lambda: rank("r", top="5"), "`top` '5' is not known; possible: a whole number"),
    (lambda: rank([1]), "`run` '[1]' is not known; possible: Run, text, a path, or None"),
    (lambda: rank("r", time_limit="long"), "`time_limit` 'long' is not known; possible: "),
    (lambda: export(None), "`path` 'None' is not known; possible: text, or a path"),
    (lambda: export(NOBODY, "r", candidate=None), "`candidate` 'None' is not known; poss"),
    (lambda: export(NOBODY, "r", round_to="8"), "`round_to` '8' is not known; possible: "),
    (lambda: export(), "export: missing a required argument: 'path'; possible: `path`, "),
    (lambda: evaluate([]), "`files` '[]' is not known; possible: text, a path, or a list"),
    (lambda: evaluate([3]), "`files` '[3]' is not known; possible: text, a path, or a li"),
    (lambda: evaluate(NOBODY, batch_size=2.5), "`batch_size` '2.5' is not known; possibl"),
    (lambda: finetune(NOBODY, epochs="all"), "`epochs` 'all' is not known; possible: a w"),
    (lambda: finetune(NOBODY, epoch=1),
     "finetune: got an unexpected keyword argument 'epoch'; possible: `source`, `output`, `run`"),
    (lambda: load(None), "`path` 'None' is not known; possible: text, or a path"),
    (lambda: load(NOBODY, "quick"), "`layout` 'quick' is not known; possible: small, fast, or "),
    (lambda: load_data(None), "`name` 'None' is not known; possible: text"),
    (lambda: load_data("digits", held_out="half"), "`held_out` 'half' is not known; poss"),
    (lambda: create_supernet(None, 10), "`name` 'None' is not known; possible: text"),
    (lambda: create_supernet("multibranch-tiny", 10, input_shape=32),
     "`input_shape` '32' is not known; possible: 3 whole numbers, or None"),
    (lambda: create_supernet("multibranch-tiny", 10, initial_drop=2),
     "`initial_drop` 2 is out of range; possible: above 0 and below 1"),
    (lambda: inflate("timm/resnet18", NOBODY, Inflation("3,5")),
     "`kernels` '3,5' is not known; possible: whole numbers, say 30,60"),
    (lambda: find_machine(None), "`device` 'None' is not known; possible: text, or device"),
    (lambda: find_machine("cpu", 1.5), "`workers` '1.5' is not known; possible: a whole"),
    (lambda: trained(recipe={"epochs": 1}), "`recipe` '{'epochs': 1}' is not known; possible: Re"),
    (lambda: trained(recipe=Recipe(epochs=0)), "`epochs` 0 is out of range; possible: 1 to 1e+06"),
    (lambda: trained(recipe=Recipe(lr=None)), "`lr` 'None' is not known; possible: a number"),
    (lambda: trained(recipe=Recipe(opt="adamm")), "`opt` 'adamm' is not known; possible: adam"),
    (lambda: trained(recipe=Recipe(sched="x")), "`sched` 'x' is not known; possible: cosine"),
    (lambda: trained(fixed_drop=1), "`fixed_drop` 1 is out of range; possible: 0 to 0.999"),
    (lambda: trained(target="60%"), "`target` '60%' is not known; possible: Target, or None"),
    (lambda: trained(target=Target("params", 0.6), fixed_drop=0.3), "`fixed_drop` sets the size"),
    (lambda: Target("latency", 0.5), "`kind` 'latency' is not known; possible: params, macs"),
    (lambda: Target("params", 60), "`share` 60 is out of range; possible: above 0 and below 1"),
    (lambda: Target("params", "60%"), "`share` '60%' is not known; possible: a number"),
    (lambda: draw(tiny(), generator=3), "`generator` '3' is not known; possible: Generat"),
    (lambda: masked(tiny(), [True]), "`keep` '[True]' is not known; possible: Tensor"),
    (lambda: relaxed(tiny(), batch=1, generator=seeded(), temperature=0),
     "`temperature` 0 is out of range; possible: above 0"),
    (lambda: count(tiny(), everything(tiny())),
     "`keep` is torch.bool (512,); possible: a bool tensor (candidates, 512)"),
    (lambda: slim(tiny(), everything(tiny()), round_to=0),
     "`round_to` 0 is out of range; possible: 1 to 1024"),
    (lambda: listening(print), "is not known; possible: Listener"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_call_is_refused_by_name_and_writes_nothing(
    call: Callable[[], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PgnasError) as raised:
        call()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def taker(
    text: str = "",
    number: float = 0.0,
    whole: int | None = None,
    path: Path = Path(),
    shape: tuple[int, int, int] = (0, 0, 0),
) -> list[Any]:
    return [text, number, whole, path, shape]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"text": Path("a/b")}, "a/b"), ({"text": 3}, "3"), ({"text": 0.6}, "0.6"),
        ({"number": 1}, 1.0), ({"number": "0.5"}, 0.5), ({"number": np.float32(0.5)}, 0.5),
        ({"number": torch.tensor(0.5)}, 0.5), ({"whole": np.int64(3)}, 3), ({"whole": None}, None),
        ({"path": "a/b"}, Path("a/b")), ({"shape": [1, 8, 8]}, (1, 8, 8)),
    ],
)  # fmt: skip
def test_what_has_an_obvious_meaning_is_taken_as_it(given: dict[str, Any], meant: object) -> None:
    names = list(inspect.signature(taker).parameters)
    (name,) = given
    found = checked_call(taker)(**given)[names.index(name)]
    assert (found, type(found)) == (meant, type(meant))


def test_a_candidate_and_a_size_may_be_numbers(fitted: Run, tmp_path: Path) -> None:
    by_number, by_text = tmp_path / "number.safetensors", tmp_path / "text.safetensors"
    export(by_number, fitted, candidate=3)  # type: ignore[arg-type]
    exporting.export(by_text, fitted, candidate="3")
    assert by_number.read_bytes() == by_text.read_bytes()
    (drawn,) = sample(fitted, 2, max_params=100_000, force=True)  # type: ignore[arg-type]
    (named,) = sample(fitted, 2, max_params="100K")
    assert drawn.budget == named.budget


def test_a_data_set_may_be_a_path(photo_folder: Callable[..., Path]) -> None:
    found = load_data(photo_folder())  # type: ignore[arg-type]
    assert isinstance(found, ImageData)
    assert found.classes == ("blue", "green", "red")
