"""How the pictures of a report are drawn: matplotlib draws, the page gives the colours.

A picture is an SVG element for the inside of a page. Its text is text, its colours are the page's
CSS variables, so that it follows light and dark and prints, and it runs no script.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from html import escape
from typing import Any, ParamSpec

import matplotlib
from matplotlib.figure import Figure

# Stand-ins for the page's variables; matplotlib writes them, `themed` replaces them.
INK, MUTED = "#010203", "#040506"
SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")
VARIABLES = {INK: "--ink", MUTED: "--muted", **{c: f"--c{i}" for i, c in enumerate(SERIES)}}
MARKERS = "os^Dv*"
WIDTH = 4.8  # inches; on a page they are 72 points each


@dataclass(frozen=True)
class Picture:
    """A picture for a page, and what it shows in words."""

    svg: str
    title: str
    text: str


STYLE = {
    "svg.fonttype": "none",  # text, not outlines
    "svg.hashsalt": "pgnas",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "lines.linewidth": 1.6,
    "text.parse_math": False,  # names may hold dollars
}

Parameters = ParamSpec("Parameters")


def styled(draw: Callable[Parameters, Picture]) -> Callable[Parameters, Picture]:
    """Draw in our style, whatever the reader's own configuration of matplotlib says."""

    @wraps(draw)
    def drawn(*given: Parameters.args, **named: Parameters.kwargs) -> Picture:
        with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
            return draw(*given, **named)

    return drawn


def figure_of(height: float) -> tuple[Figure, Any]:
    """A figure `height` inches high, and its axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.grid(axis="y", color=MUTED, alpha=0.2, linewidth=0.6)
    return figure, axes


def legend_below(axes: Any, figure: Figure) -> None:
    """The legend under the picture, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=2, handlelength=1.6)


def picture_of(figure: Figure, name: str, title: str, text: str) -> Picture:
    """The figure as an SVG element, its ids beginning with `name`."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(themed(out.getvalue(), name, title, text), title, text)


def themed(svg: str, name: str, title: str, text: str) -> str:
    """matplotlib's SVG document as an element of a page."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([\w-]+)', body))
    body = re.sub(
        r' id="([\w.-]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body
    )
    body = re.sub(r'(url\(#|href="#)([\w-]+)', lambda m: f"{m[1]}{name}-{m[2]}", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    size = re.search(r'viewBox="[^"]*"', body)
    assert size is not None, "matplotlib says how large it drew"
    opening = (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {size[0]}'
        f' xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="{name}-title"'
        f' aria-describedby="{name}-text">\n<title id="{name}-title">{escape(title, quote=False)}'
        f'</title>\n<desc id="{name}-text">{escape(text, quote=False)}</desc>'
    )
    return opening + body[body.index(">") + 1 :].strip()
