"""The pieces that a report is made of, as HTML: everything that comes in is escaped here."""

import html
import importlib.resources
from collections.abc import Iterable, Sequence

from .svg import Picture

Cell = str | tuple[str, str]  # with a small second line


def document(title: str, body: Sequence[str]) -> str:
    """A page that needs nothing else: no script, no request, no font of its own."""
    style = importlib.resources.files(__package__).joinpath("style.css").read_text("utf-8")
    return "\n".join([
        "<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<link rel="icon" href="data:,">',  # else some browsers ask for one
        f"<title>{text(title)}</title>", f"<style>\n{style}</style>", "</head>",
        "<body>", "<main>", *body, "</main>", "</body>", "</html>", "",
    ])  # fmt: skip


def text(plain: str) -> str:
    """Escaped; a number stays beside its per cent."""
    return html.escape(plain).replace(" %", "\u00a0%")


def figure(picture: Picture) -> str:
    """A picture with its title and text below."""
    caption = f"<b>{text(picture.title)}.</b> {text(picture.text)}"
    return f"<figure>\n{picture.svg}\n<figcaption>{caption}</figcaption>\n</figure>"


def folded(summary: str, content: str) -> str:
    """Content that a reader unfolds."""
    return f"<details>\n<summary>{text(summary)}</summary>\n{content}\n</details>"


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return text(cell)
    return f"{text(cell[0])}<br><small>{text(cell[1])}</small>"


def table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A table with a name; wide ones scroll inside a region that the keyboard reaches."""
    lines = [
        f'<div class="wide" tabindex="0" role="region" aria-label="{text(caption)}">',
        f"<table>\n<caption>{text(caption)}</caption>",
    ]
    if any(headings):
        cells = "".join(f'<th scope="col">{text(heading)}</th>' for heading in headings)
        lines.append(f"<thead><tr>{cells}</tr></thead>")
    lines.append("<tbody>")
    for first, *rest in rows:
        cells = "".join(f"<td>{_cell(cell)}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{_cell(first)}</th>{cells}</tr>')
    return "\n".join([*lines, "</tbody>\n</table>\n</div>"])
