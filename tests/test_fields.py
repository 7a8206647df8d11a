"""Options as fields: what is out of range or unknown is named with what is possible."""

from dataclasses import dataclass, fields, replace

import pytest

from pgnas_cli.errors import PgnasError
from pgnas_cli.fields import check_choice, check_fields, option
from pgnas_cli.registry import Recipe
from pgnas_cli.run import FitSettings


@dataclass(frozen=True)
class Record:
    """One field of each kind."""

    share: float | None = option(0.5, "A share.", least=0.1, most=1)
    unit: str = option("%", "A unit.", choices=("%", "K"))
    name: str = option("", "Any text.")
    plain: int = -1  # no option


@pytest.mark.parametrize(
    "record",
    [Record(), Record(share=0.1), Record(share=1), Record(None, "K", "?", -9), Recipe(),
     FitSettings()],
)  # fmt: skip
def test_fields_within_their_range_pass(record: object) -> None:
    check_fields(record)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (Record(share=0.09), "`share` 0.09 is out of range; possible: 0.1 to 1"),
        (Record(share=1.01), "`share` 1.01 is out of range; possible: 0.1 to 1"),
        (Record(share=float("nan")), "`share` nan is out of range; possible: 0.1 to 1"),
        (Record(unit="k"), "`unit` 'k' is not known; possible: %, K"),
        (Record(2.0, "k"), "`share` 2 is out of range"),  # the first of several
        (Recipe(batch_size=1), "`batch_size` 1 is out of range; possible: 2 to 1e+06"),
        (Recipe(sched="cos"), "`sched` 'cos' is not known; possible: cosine, tanh, multistep, po"),
        (FitSettings(precision="half"), "`precision` 'half' is not known; possible: float32, bfl"),
    ],
)
def test_the_first_field_out_of_range_is_named(record: object, message: str) -> None:
    with pytest.raises(PgnasError) as raised:
        check_fields(record)
    assert str(raised.value).startswith(message)


def test_of_many_choices_the_nearest_are_proposed() -> None:
    with pytest.raises(
        PgnasError, match=r"`opt` 'adamv' is not known; possible: adam, adamw, adan"
    ):
        check_choice("opt", "adamv", [*"abcdefgh", "adam", "adamw", "adan", "sgd"])


def test_every_range_of_a_recipe_holds_both_ends() -> None:
    ranged = [f for f in fields(Recipe) if f.metadata["least"] is not None]
    assert len(ranged) > 15
    for field in ranged:
        least, most = field.metadata["least"], field.metadata["most"]
        check_fields(replace(Recipe(), **{field.name: least}))
        check_fields(replace(Recipe(), **{field.name: most}))
        for beyond in (least - 1e-9 * max(1, abs(least)), 1.001 * most + 1):
            with pytest.raises(PgnasError, match=f"`{field.name}` "):
                check_fields(replace(Recipe(), **{field.name: beyond}))
