"""Whoever listens hears notes and counts; nobody else does."""

from contextvars import Context

import pytest

import pgnas_cli
from pgnas_cli.progress import listen, listening, note, task, track
from pgnas_cli.run import Run

from .listeners import Heard


def some_work() -> list[str]:
    note("a remark")
    with task("pairs", 10) as shown:
        shown.update(4)
        shown.update(9, total=12, what="pairs: 3 left")
    return list(track("abc", "letters"))


def test_a_listener_receives_notes_and_counts() -> None:
    with listening(heard := Heard()):
        assert some_work() == ["a", "b", "c"]
    assert heard.notes == ["a remark"]
    assert heard.tasks == [("pairs", 10), ("letters", 3)]
    assert heard.counts == {"pairs": [4, 9], "letters": [1, 2, 3]}


def test_items_count_once_they_are_done_with() -> None:
    with listening(heard := Heard()):
        for letter in track("abc", "letters"):
            if letter == "b":
                break
    assert heard.counts == {"letters": [1]}


def test_the_inner_of_two_listeners_hears_and_after_it_the_outer_one_again() -> None:
    with listening(outer := Heard()):
        with pytest.raises(ValueError, match="in between"), listening(inner := Heard()):
            note("in")
            raise ValueError("in between")
        note("out")
    assert (outer.notes, inner.notes) == (["out"], ["in"])


def test_who_listens_from_now_on_hears_to_the_end_of_the_context() -> None:
    def work() -> Heard:
        listen(heard := Heard())
        some_work()
        return heard

    assert Context().run(work).notes == ["a remark"]


def test_the_commands_as_functions_are_silent_where_nobody_listens(
    fitted: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    def work(candidates: int = 5) -> None:
        some_work()
        pgnas_cli.sample(fitted, candidates, force=True)
        pgnas_cli.export(fitted.folder / "five.safetensors", fitted, force=True)

    capfd.readouterr()
    Context().run(work)
    assert capfd.readouterr() == ("", "")
    with listening(heard := Heard()):
        work(6)
    assert any("ranking the candidates first" in line for line in heard.notes)
