"""Options as fields: what is out of range or unknown is named with what is possible."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from pgnas_cli.errors import PgnasError
from pgnas_cli.fields import check_choice, check_fields, parsed
from pgnas_cli.registry import Recipe
from pgnas_cli.run import FitSettings


def test_every_field_of_a_recipe_takes_both_ends_of_its_range_and_nothing_beyond() -> None:
    check_fields(FitSettings())
    check_fields(Recipe(l2=None, kl_images=None))
    ranged = [field for field in fields(Recipe) if field.metadata["least"] is not None]
    assert len(ranged) > 15
    for field in ranged:
        least, most = field.metadata["least"], field.metadata["most"]
        several = 2 if isinstance(field.default, tuple) else 0

        def having(value: float, name: str = field.name, several: int = several) -> Recipe:
            return replace(Recipe(), **{name: (value,) * several if several else value})

        for value in (least, most):
            check_fields(having(value))
        for beyond in (least - 1e-9 * max(1, least), 1.001 * most, float("nan")):
            with pytest.raises(PgnasError, match=f"^`{field.name}` .* is out of range; possible"):
                check_fields(having(beyond))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (Recipe(batch_size=1, sched="x"), "`batch_size` 1 is out of range; possible: 2 to 1e+06"),
        (Recipe(sched="cos"), "`sched` 'cos' is not known; possible: cosine, tanh, multistep"),
        (FitSettings(precision="half"), "`precision` 'half' is not known; possible: float32, bf"),
    ],
)  # fmt: skip
def test_the_first_field_that_is_wrong_is_named(record: object, message: str) -> None:
    with pytest.raises(PgnasError) as raised:
        check_fields(record)
    assert str(raised.value).startswith(message)


def test_of_many_choices_the_nearest_are_proposed() -> None:
    with pytest.raises(PgnasError, match=r"'adamv' is not known; possible: adam, adamw, adan$"):
        check_choice("opt", "adamv", [*"abcdefgh", "adam", "adamw", "adan", "sgd"])


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("epochs", 3, 3), ("lr", "0.1", 0.1), ("lr", 1, 1.0), ("l2", "auto", None),
        ("kl_images", None, None), ("groups", 8, "8"), ("probe", True, True),
        ("decay_milestones", "30,60", (30, 60)), ("decay_milestones", [30, 60], (30, 60)),
        ("scale", "0.08,1", (0.08, 1.0)),
    ],
)  # fmt: skip
def test_a_field_takes_text_paths_and_numbers(name: str, given: object, value: object) -> None:
    found = parsed(Recipe, name, given)
    assert (found, type(found)) == (value, type(value))


def test_paths_become_text() -> None:
    assert parsed(FitSettings, "data_root", Path("data")) == "data"


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("epochs", 1.0, "`epochs` '1.0' is not known; possible: a whole number"),
        ("epochs", "three", "possible: a whole number$"),
        ("epochs", True, "possible: a whole number$"),
        ("l2", "much", "`l2` 'much' is not known; possible: a number, or auto"),
        ("lr", "fast", "possible: a number$"),
        ("decay_milestones", "a,b", "possible: whole numbers, say 30,60"),
        ("scale", "0.35", "possible: 2 numbers$"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_named(name: str, given: object, message: str) -> None:
    with pytest.raises(PgnasError, match=message):
        parsed(Recipe, name, given)
