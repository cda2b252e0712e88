"""Matplotlib figures as inline SVG that takes its colours and fonts from the page around it."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable

from .style import LIGHT, SENTINEL

_RC = {"svg.fonttype": "none", "font.size": 11, "axes.linewidth": 0.8, "xtick.labelsize": 10.5, "ytick.labelsize": 10.5}


def inline_svg(draw: Callable, name: str, size: tuple[float, float]) -> tuple[str, str]:
    """Draws with ``draw(ax)`` on a fresh figure; returns the ``viewBox`` of an ``<svg>`` element and what is in it.

    Text stays text, colours become CSS variables, ids are unique on a page that uses each ``name`` once, and the same
    data give the same bytes.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_RC, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # text stays text: the page's fonts draw it
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        layout = figure.get_layout_engine()
        for _ in range(2):  # ticks change with the size that the layout leaves: let it see the final ones
            layout.execute(figure)
        figure.set_layout_engine(None)  # with one, savefig draws twice
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _adapt(buffer.getvalue(), name)


_FONT = re.compile(r"(?:(italic|oblique) )?(?:small-caps )?(?:(bold|\d+) )?([\d.]+px) .*")


def presented(text: str) -> str:
    """The SVG with presentation attributes in the place of styles: a strict content policy drops styles, so that every
    line would be black."""
    text = re.sub(r"<style.*?</style>", "", text, flags=re.S).replace("<svg ", '<svg stroke-linejoin="round" ', 1)
    return re.sub(r'style="([^"]*)"', lambda m: _attributes(m[1]), text)


def _attributes(style: str) -> str:
    """``fill: none; opacity: 0`` as ``fill="none" opacity="0"``; the ``font`` shorthand is no attribute."""
    found = dict(part.strip().split(": ", 1) for part in style.split(";") if part.strip())
    if font := _FONT.fullmatch(found.pop("font", "")):
        names = ("font-style", "font-weight", "font-size")
        found |= {name: value for name, value in zip(names, font.groups(), strict=True) if value}
    return " ".join(f'{name}="{value}"' for name, value in found.items())


def _adapt(text: str, name: str) -> tuple[str, str]:
    box, text = re.search(r'<svg[^>]*viewBox="([^"]+)"[^>]*>(.*)</svg>', text, flags=re.S).groups()
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = presented(text).replace('xlink:href="', 'href="')
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    text = re.sub(r'\sid="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    for (colour, variable), light in zip(SENTINEL.variables().items(), LIGHT.variables(), strict=True):
        text = text.replace(colour, f"var(--{variable},{light})")  # its own where the page's sheet is not let in
    return box, text.strip()
