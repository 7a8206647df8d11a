"""What may stand in a text that people see."""

import sys
import unicodedata

import pytest

from pgnas_cli.errors import MOST, PgnasError, brief, visible


def test_no_character_that_acts_is_left_and_all_that_is_read_stays() -> None:
    """Against Unicode's own categories: controls, line breaks, halves, and format characters but
    those that join letters and emoji."""
    kept = {"\u00ad", "\u200c", "\u200d", "\u180e"}  # soft hyphen, joiners, a Mongolian vowel
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        kind, shown = unicodedata.category(char), visible(char)
        if kind in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(char) in _TURNING:
            assert shown.isascii() and shown.isprintable() and shown.startswith("\\"), hex(code)
        elif kind != "Cf" or char in kept:
            assert shown == char or 0xE0000 <= code <= 0xE007F or 0x2060 <= code <= 0x206F, hex(
                code
            )


_TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def test_a_text_that_was_made_visible_stays_as_it_is() -> None:
    text = "a\x1b]0;title\x07\n\u202egnp.exe é 猫 👩\u200d👧"
    once = visible(text)
    assert once == r"a\x1b]0;title\x07\n\u202egnp.exe é 猫 " + "👩\u200d👧"
    assert visible(once) == once


@pytest.mark.parametrize("value", ["x" * 10**6, "x " * 10**6, "\x1b" * 10**6, "'a', " * 10**5])
def test_a_message_is_never_above_a_few_hundred_characters_and_keeps_its_ends(value: str) -> None:
    said = str(PgnasError(f"no layer '{value}'; give another"))
    assert len(said) <= MOST
    assert said.startswith("no layer '") and said.endswith("'; give another")
    assert " more ... " in said


def test_the_characters_left_out_are_counted() -> None:
    said = brief("a" + "b" * 5000 + "c")
    left, right = said.split(" ... ")[0], said.split(" ... ")[-1]
    assert f" ... {5002 - len(left) - len(right)} more ... " in said
    assert brief("a" * 300) == "a" * 300
