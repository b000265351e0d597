"""The benchmark as one picture: multiples of a copy, a line per shape, a panel per dtype and direction."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from profiling.comparison.figures import LIMITS
from profiling.measure.timing import COPY, FRESH_COPY, Measurement
from profiling.output import tables
from profiling.output.names import NATIVE, OURS
from profiling.output.plots import COLOURS, INK, drawn
from profiling.suites.benchmark import Suite

_MARKERS = {"contiguous": "o", "channels_last": "D"}
_OTHERS = ("#6f7b88", "#a98bb5", "#8193ab", "#b59f78")  # compiled native, oneDNN and both floors


def of(suite: Suite) -> Figure:
    measurements = [row.measurement for row in suite.rows]
    shapes = list(dict.fromkeys(m.shape for m in measurements))
    dtypes = list(dict.fromkeys(m.dtype for m in measurements))
    directions = list(dict.fromkeys(m.direction for m in measurements))
    names = dict.fromkeys(name for m in measurements for name in m.samples if name not in (COPY, FRESH_COPY))
    others = [name for name in names if name not in (OURS, NATIVE)]
    colours = {**dict(zip(others, _OTHERS, strict=False)), NATIVE: COLOURS[NATIVE], OURS: COLOURS[OURS]}

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(dtypes), len(directions), sharey=True, sharex="col", squeeze=False)
        for dtype, line in zip(dtypes, panels, strict=True):
            for direction, axes in zip(directions, line, strict=True):
                found = [m for m in measurements if (m.dtype, m.direction) == (dtype, direction)]
                axes.axvline(LIMITS[direction], color=INK, linewidth=0.8, linestyle=":")
                axes.set_title(f"{direction.value}, {dtype}")
                _draw(axes, found, [tables.shape(shape) for shape in shapes], colours)
        for axes in panels[-1]:
            axes.set_xlabel("copies of x; dotted: what must move at least")
        panels[0][0].invert_yaxis()
        layouts = dict.fromkeys(m.layout for m in measurements)
        handles = [Line2D([], [], color=colour, marker="s", linestyle="", label=n) for n, colour in colours.items()]
        handles += [Line2D([], [], color=INK, marker=_MARKERS[n], linestyle="", label=n) for n in layouts]
        figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))

    return drawn(3.2 + 3.6 * len(directions), 1.2 + len(dtypes) * (0.6 + 0.2 * len(shapes)), draw)


def _draw(axes: Axes, found: Sequence[Measurement], shapes: Sequence[str], colours: dict[str, str]) -> None:
    for m in found:
        line = shapes.index(tables.shape(m.shape))
        for name, colour in colours.items():
            if name in m.samples:
                axes.plot(m.copies(name), line, _MARKERS[m.layout], color=colour, markersize=4, alpha=0.85)
    axes.set_yticks(range(len(shapes)), shapes, fontsize=7)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
