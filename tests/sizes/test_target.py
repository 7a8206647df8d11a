"""Sizes that text names, and what is said of text that names none."""

import pytest
import torch

from pgnas_cli.errors import PgnasError
from pgnas_cli.gates import gates
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.sizes import budgets_of, count, parameter_count, target_of
from pgnas_cli.units import parsed_size

from ..networks import tiny


@pytest.mark.parametrize(
    ("text", "number", "unit"),
    [("60%", 60, "%"), (" 7.5 % ", 7.5, "%"), ("250000", 250_000, ""), ("1e5", 1e5, ""),
     ("10M", 10, "M"), ("1.5k", 1.5, "K"), ("2 G", 2, "G")],
)  # fmt: skip
def test_a_size_is_a_number_and_a_unit(text: str, number: float, unit: str) -> None:
    assert parsed_size(text, "`size`") == (number, unit)


@pytest.mark.parametrize("text", ["", "%", "M", "sixty%", "10T", "10 %%", "1,5M", "60 percent"])
def test_what_is_no_size_is_named_with_its_option(text: str) -> None:
    with pytest.raises(PgnasError, match=r"^`max_macs` '.*' is not a size; possible: a share"):
        parsed_size(text, "`max_macs`")


def test_a_share_without_a_unit_is_asked_about() -> None:
    with pytest.raises(PgnasError, match=r"^`size` 0\.6 has no unit; did you mean 60%\?"):
        parsed_size("0.6", "`size`")


@pytest.mark.parametrize("text", ["60", "1", "99.5", "100"])
def test_a_count_that_must_be_a_percentage_is_asked_about(text: str) -> None:
    with pytest.raises(PgnasError, match=rf"^`size` {text} is {text} parameters.* mean {text}%\?"):
        parsed_size(text, "`size`")


def test_targets_are_shares_of_the_whole_network() -> None:
    network = tiny()
    whole = parameter_count(network)
    found = target_of(network, params="60%", macs=None)
    assert found is not None
    assert (found.kind, found.share) == ("params", pytest.approx(0.6))
    assert [str(found), found.label] == ["60 % of the parameters", "params-60"]
    assert found.option == "`max_params` 60%"
    for text in (f"{whole / 2}", f"{whole / 2e6}M"):
        half = target_of(network, params=text)
        assert half is not None
        assert (half.kind, half.share) == ("params", pytest.approx(0.5))
    assert target_of(network, params=None, macs=None) is None


def test_budgets_keep_their_order() -> None:
    network = tiny()
    found = budgets_of(network, macs="80%, 750400,60.25%", params=None)  # of 1,500,800
    assert [budget.label for budget in found] == ["macs-80", "macs-50", "macs-60.25"]
    assert budgets_of(network, params=None, macs=None) == ()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"params": "80%", "macs": "50%"}, "`max_params` and `max_macs` are mutually exclusive"),
        ({"params": "80%,x"}, "`max_params` 'x' is not a size"),
        ({"params": "80%,80%"}, "`max_params` names 80% twice"),
        ({"params": "80%,80.001%"}, "`max_params` names 80.001% twice"),  # in one file
        ({"params": "100%"}, "`max_params` 100% is out of range; the whole network has"),
        ({"macs": "-5%"}, "`max_macs` -5% is out of range"),
    ],
)
def test_wrong_budgets_are_named(wanted: dict[str, str], message: str) -> None:
    with pytest.raises(PgnasError, match=message):
        budgets_of(tiny(), **wanted)


def test_a_target_below_what_closing_the_gates_reaches_is_refused() -> None:
    network = tiny(layers="hidden")
    with pytest.raises(PgnasError, match=r"`target_params` 1% is out of reach; with 99 %"):
        target_of(network, params="1%")
    nearly = torch.full((len(gates(network).groups),), 0.99)
    drawn = count(network, draw_candidates(nearly, network, 40, 0)).params.double().mean()
    share = float(drawn) / parameter_count(network)
    assert target_of(network, params=f"{100 * share + 1}%") is not None
