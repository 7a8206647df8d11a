"""The one exception whose text is meant for the user, what may stand in such a text, and
commands to type next."""

import re
import shlex

MOST = 700  # characters of a message
_WORD = 300  # characters of a word, a path for one
# Control characters (ESC begins the sequences of a terminal), what reverses the direction of text,
# line breaks of Unicode, tags that are not seen, and halves of characters that nothing can write.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """`text` with the escape, \\x1b for one, of each character that acts on a terminal or page.

    Names of classes and files may hold any. Letters, accents, emoji and spaces stay.
    """
    return _UNSEEN.sub(lambda m: m[0].encode("unicode_escape", "surrogatepass").decode(), text)


def brief(text: str, most: int = MOST) -> str:
    """`visible` text of at most `most` characters: of long words, and of all, the middle is cut out
    and counted."""
    return _cut(visible(re.sub(rf"\S{{{_WORD + 1},}}", lambda m: _cut(m[0], _WORD), text)), most)


def _cut(text: str, most: int) -> str:
    """The beginning and the end of `text`, and how many characters are left out between."""
    if len(text) <= most:
        return text
    head, tail = 2 * most // 3, most // 3 - 30
    return f"{text[:head]} ... {len(text) - head - tail} more ... {text[-tail:]}"


class PgnasError(Exception):
    """Something the user can put right: what was found, what is possible, what to do next.

    The command line prints the text as one line and ends with status 1; nothing else in the
    package is caught and reworded. What would be our own mistake is an `assert` instead. The text
    may quote names and files: it is shown as `brief` has it.
    """

    def __str__(self) -> str:
        return brief(super().__str__())


class Interrupted(PgnasError):
    """The user stopped long work, and its state is saved; status 128 + the signal's number."""

    def __init__(self, text: str, number: int = 2) -> None:
        super().__init__(text)
        self.number = number


def one_line(error: Exception) -> str:
    """What a library's exception says, short enough for a message."""
    return " ".join(str(error).split())[:200]


def command(*words: object) -> str:
    """A command of pgnas as it can be typed, paths with spaces in quotes."""
    return shlex.join(["pgnas", *map(str, words)])
