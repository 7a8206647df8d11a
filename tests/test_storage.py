"""Files that a crash cannot halve; records as JSON, checked on reading."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from pgnas_cli.errors import PgnasError
from pgnas_cli.registry import Recipe
from pgnas_cli.storage import differences, file_digest, from_json, to_json, write_text


@dataclass(frozen=True)
class Inner:
    name: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner
    share: float
    kind: Literal["a", "b"]
    maybe: int | None
    each: dict[str, Inner]
    anything: Any = None


OUTER = Outer(Inner("x", (1, 2)), 0.5, "a", None, {"k": Inner("y")}, {"free": [1, None]})


@pytest.mark.parametrize("record", [OUTER, replace(OUTER, maybe=3), Recipe(l2=3.0), Recipe()])
def test_records_survive_json(record: Any) -> None:
    text = json.dumps(to_json(record))
    assert from_json(type(record), json.loads(text), Path("x")) == record


def test_what_an_older_file_lacks_has_its_default() -> None:
    assert from_json(Inner, {"name": "x"}, Path("x")) == Inner("x")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"share": "much"}, "outer.share"),
        ({"share": True}, "outer.share"),
        ({"share": 2**60}, "outer.share"),
        ({"kind": "c"}, "outer.kind"),
        ({"maybe": 1.5}, "outer.maybe"),
        ({"inner": {"name": 1}}, "outer.inner.name"),
        ({"inner": {"shape": []}}, "outer.inner"),
        ({"inner": []}, "outer.inner"),
        ({"inner": {"name": "x", "shape": [1, "2"]}}, "outer.inner.shape"),
        ({"each": {"k": {"name": None}}}, "outer.each.k.name"),
        ({"extra": 1}, "outer"),
    ],
)
def test_a_field_of_another_type_is_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(PgnasError, match=rf"'x' is damaged: its field {field} is not what"):
        from_json(Outer, {**to_json(OUTER), **change}, Path("x"))


def test_differences_are_named_with_then_and_now() -> None:
    assert differences(OUTER, OUTER) == []
    now = replace(OUTER, share=0.25, inner=Inner("z", (1, 2)), each={"l": Inner("w", (3,))})
    assert differences(OUTER, now) == [
        "inner.name x, not z", "share 0.5, not 0.25", "each.k.name y, not None",
        "each.k.shape (), not None", "each.l.name None, not w", "each.l.shape None, not (3,)",
    ]  # fmt: skip
    assert differences(Recipe(epochs=3), Recipe()) == ["epochs 3, not 30"]


def test_a_text_file_is_replaced_as_a_whole_and_readable_by_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "one")
    first = file_digest(path)
    write_text(path, "two, läng")
    assert path.read_text(encoding="utf-8") == "two, läng"
    assert file_digest(path) != first
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PgnasError, match="cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "")
