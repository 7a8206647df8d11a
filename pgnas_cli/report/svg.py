"""How the pictures of a report are drawn: matplotlib draws, `colours.css` gives the colours.

A picture is an SVG document with a style sheet of its own, so that one document serves light and
dark. Its text is text, and it runs no script.
"""

import base64
import importlib.resources
import io
from dataclasses import dataclass
from typing import Any

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.text import Text

from ..errors import visible

# Stand-ins for the variables of colours.css: matplotlib writes them, `themed` replaces them.
INK, MUTED = "#010203", "#040506"

SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")

VARIABLES = {INK: "--ink", MUTED: "--muted", **{c: f"--c{i}" for i, c in enumerate(SERIES)}}

MARKERS = "os^Dv*"

WIDTH = 4.8  # inches
WIDE = 10.0  # of a picture as wide as the page

STYLE = {
    "svg.fonttype": "none",  # text, not outlines
    "svg.hashsalt": "pgnas",
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

# Decorates what draws; the reader's own configuration of matplotlib changes nothing.
styled = style.context(STYLE, after_reset=True)

# The paper is painted too: without support for the media query, a picture is a light card.
SHEET = """
svg { background: var(--paper); }
text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif !important; }
"""


@dataclass(frozen=True)
class Picture:
    """A picture for a page, and what it shows in words."""

    svg: str
    title: str
    text: str
    wider: str = ""  # the same for a wide page, as SVG

    @property
    def address(self) -> str:
        """The picture as a data URI."""
        return _address(self.svg)

    @property
    def wide(self) -> str:
        """The same for a wide page; empty where there is none."""
        return _address(self.wider) if self.wider else ""


def _address(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def figure_of(height: float, x: str, y: str) -> tuple[Figure, Any]:
    """Return a figure `height` inches high, and its axes, `x` and `y` their labels."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.set(xlabel=x, ylabel=y)
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y", color=MUTED, alpha=0.2, linewidth=0.6)
    return figure, axes


def picture_of(figure: Figure, title: str, text: str, *, wide: bool = False) -> Picture:
    """Render a figure, its legend below the axes; `wide`, for a wide page too."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=2, handlelength=1.6)
    for label in figure.findobj(Text):
        label.set_text(visible(label.get_text()))
    narrow = _rendered(figure)
    if not wide:
        return Picture(narrow, title, text)
    figure.set_size_inches(WIDE, figure.get_figheight())
    for legend in figure.legends:
        legend.remove()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=6, handlelength=1.6)
    return Picture(narrow, title, text, _rendered(figure))


def _rendered(figure: Figure) -> str:
    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(out, format="svg", metadata=nothing)
    return themed(out.getvalue())


def themed(svg: str) -> str:
    """Replace the stand-ins of matplotlib's SVG by variables, and define these in it."""
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    colours = importlib.resources.files(__package__).joinpath("colours.css").read_text("utf-8")
    return svg[svg.index("<svg") :].replace("<defs>", f"<style>{colours}{SHEET}</style>\n<defs>", 1)
