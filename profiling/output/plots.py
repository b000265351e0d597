"""One look for all plots: as SVG for a page that may be light or dark, as PNG for everything else."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from profiling.output.names import NATIVE, OURS

INK = "#4d5561"  # of text and axes; in an SVG it becomes the text colour of the page
COLOURS = {OURS: "#1f8f7a", NATIVE: "#d9763a"}

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "svg.fonttype": "none",  # text stays text: the page's font, selectable
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def to_svg(figure: Figure, name: str) -> str:
    """Inline SVG as wide as its place, text and axes in the colour of the page's text; ``name`` keeps ids apart."""
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%"', svg, count=1)


def to_png(figure: Figure, path: Path) -> None:
    path.write_bytes(as_png(figure))


def as_png(figure: Figure) -> bytes:
    with matplotlib.rc_context(_STYLE):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, facecolor="white")
    return buffer.getvalue()


def drawn(width: float, height: float, draw: Callable[[Figure], None]) -> Figure:
    """A figure of so many inches."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        draw(figure)
    return figure
