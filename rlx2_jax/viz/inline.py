"""Figures of Matplotlib inside an HTML page: SVG that takes the page's colours and letters, and loads nothing.

Matplotlib writes SVG as a file of its own. An element of a page has neither that file's head nor its metadata, which
hold addresses; its width is the page's; ids that nothing refers to are gone, and the others are the picture's name and
a number. Letters stay letters, so they can be searched and read aloud. Text, axes and grid are drawn in two colours
that stand for variables of the page, `--ink` and `--line`, so that one picture does on light and on dark grounds.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, LINE = "#1b2431", "#c8d0d9"
"""What stands for the page's variables; no other mark of a figure has these colours."""

VARIABLES = {INK: "var(--ink)", LINE: "var(--line)", "#000000": "var(--ink)"}
"""What becomes of colours."""

INCH = 100
"""Pixels of a page that an inch of a figure takes, at most."""

LOOK: dict[Any, Any] = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": LINE,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 9.0,
}
"""Settings of Matplotlib, while a figure for a page is made."""


def look() -> Any:
    """A context to make figures for a page in."""
    return matplotlib.rc_context(LOOK)


def element(figure: Figure, name: str, told: str) -> str:
    """A figure as an element of a page.

    Args:
      figure: made in `look`.
      name: of the picture, which no other one of the page has.
      told: what it shows, in words, for those who do not see it.
    """
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # The browser has more letters.
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = text.replace("xlink:href=", "href=")
    text = _numbered(text, name)
    for color, variable in VARIABLES.items():
        text = text.replace(color, variable)
    (box,) = re.findall(r'<svg[^>]* viewBox="([^"]*)"', text)
    # A style sheet of Matplotlib's would hold for the whole page.
    body = re.sub(r"<svg[^>]*>|<style.*?</style>", "", text, count=0, flags=re.DOTALL)
    body = re.sub(r"\n\s*", "\n", body)
    width = round(INCH * figure.get_figwidth())  # Wider, its letters would be larger than the page's.
    return f'<svg viewBox="{box}" style="max-width:{width}px" role="img" aria-label="{html.escape(told)}">{body}'


def _numbered(text: str, name: str) -> str:
    """The same with other ids: those of Matplotlib's come from where things lie in memory, among others."""
    used = dict.fromkeys(re.findall(r'(?:url\(|href=")#([^")]+)', text))
    ids = {old: f"{name}-{number}" for number, old in enumerate(used)}
    text = re.sub(r' id="([^"]*)"', lambda found: f' id="{ids[found[1]]}"' if found[1] in ids else "", text)
    return re.sub(r'(url\(|href=")#([^")]+)', lambda found: f"{found[1]}#{ids[found[2]]}", text)
