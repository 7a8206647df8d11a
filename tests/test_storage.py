"""Records as JSON, checked on reading; text files that a crash cannot halve."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from pgnas_cli.errors import PgnasError
from pgnas_cli.registry import Recipe
from pgnas_cli.storage import differences, from_json, to_json, write_text


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


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"share": True}, "outer.share"), ({"share": 2**60}, "outer.share"),
        ({"kind": "c"}, "outer.kind"), ({"maybe": 1.5}, "outer.maybe"),
        ({"inner": {"name": 1}}, "outer.inner.name"), ({"inner": {}}, "outer.inner"),
        ({"inner": {"name": "x", "shape": [1, "2"]}}, "outer.inner.shape"),
        ({"each": {"k": {"name": None}}}, "outer.each.k.name"), ({"extra": 1}, "outer"),
    ],
)  # fmt: skip
def test_a_field_of_another_type_is_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(PgnasError, match=rf"'x' is damaged: its field {field} is not what"):
        from_json(Outer, {**to_json(OUTER), **change}, Path("x"))


def test_differences_are_named_with_then_and_now() -> None:
    assert differences(OUTER, OUTER) == []
    now = replace(OUTER, share=0.25, inner=Inner("z", (1, 2)), each={"l": Inner("w", (3,))})
    assert differences(OUTER, now) == [
        "`name` x, not z", "`share` 0.5, not 0.25", "`name` y, not None", "`shape` (), not None",
        "`name` None, not w", "`shape` None, not (3,)",
    ]  # fmt: skip


def test_a_text_file_is_replaced_as_a_whole_and_as_readable_as_any(tmp_path: Path) -> None:
    path, plain = tmp_path / "new" / "a.txt", tmp_path / "plain"
    for text in ("one", "two, läng"):
        write_text(path, text)
    plain.touch()
    assert path.read_text(encoding="utf-8") == "two, läng"
    assert path.stat().st_mode == plain.stat().st_mode
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(PgnasError, match="cannot be written"):
        write_text(plain / "a.txt", "a folder that cannot be made")
