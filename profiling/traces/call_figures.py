"""Plots of the batch norm calls of one trace, or of two side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from profiling.output.plots import COLOURS, INK, drawn
from profiling.traces import differences
from profiling.traces.analysis import BATCH_NORM
from profiling.traces.breakdown import Breakdown, Span
from profiling.traces.calls import Site
from profiling.traces.differences import Difference
from profiling.traces.operators import BACKWARD, FORWARD, INFERENCE

_OTHERS = ("#5577aa", "#aa6699", "#88803c")  # of traces that are called neither ours nor native
_MARKERS = {FORWARD: "o", BACKWARD: "s", INFERENCE: "^"}
_PHASE_COLOURS = {FORWARD: "#1f8f7a", BACKWARD: "#5577aa", INFERENCE: "#88803c"}
_PARTS = {
    "convolution": "#6f7b88",
    "activation": "#8193ab",
    "optimizer": "#94899f",
    "pooling": "#7f9a94",
    "gradient accumulation": "#a39a86",
}
_REST = "#aab2bb"
_LEAST = 0.0004  # of the step: what is narrower is not drawn, but joined with its neighbours


def colours(found: Sequence[Breakdown]) -> dict[str, str]:
    """By the names of the traces."""
    spare = iter(_OTHERS * len(found))
    return {each.name: COLOURS.get(each.name) or next(spare) for each in found}


def layers(found: Sequence[Breakdown], difference: Difference | None) -> Figure:
    """The speed-up of every matched call; of one trace, or more than two, the time of every call."""
    if difference and difference.matches:
        labels = _layer_labels(match.first for match in difference.matches)
        return _rows(len(labels), lambda axes: _draw_speedups(axes, difference, labels))
    labels = _layer_labels(site for each in found for site in each.sites)
    return _rows(len(labels), lambda axes: _draw_times(axes, found, labels))


def roofline(found: Sequence[Breakdown]) -> Figure:
    return drawn(9, 5, lambda figure: _draw_roofline(figure.subplots(), found))


def timeline(found: Sequence[Breakdown]) -> Figure:
    return drawn(12, 1.6 + 0.7 * len(found), lambda figure: _draw_timeline(figure, found))


def memory(found: Sequence[Breakdown]) -> Figure:
    return drawn(9, 3.4, lambda figure: _draw_memory(figure.subplots(), found))


def overview(found: Sequence[Breakdown], difference: Difference | None, title: str) -> Figure:
    """The one picture: time line above, speed-up and roofline side by side below."""
    rows = len(_layer_labels(m.first for m in difference.matches)) if difference else 20

    def draw(figure: Figure) -> None:
        (upper,), (lower,) = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 2.2 + 0.08 * rows))
        _draw_timeline(upper, found)
        left, right = lower.subplots(1, 2)
        if difference and difference.matches:
            _draw_speedups(left, difference, _layer_labels(match.first for match in difference.matches))
        else:
            _draw_times(left, found, _layer_labels(site for each in found for site in each.sites))
        _draw_roofline(right, found)
        figure.suptitle(title.replace("$", r"\$"), fontsize=11, x=0.01, horizontalalignment="left")

    return drawn(13, 6 + 0.08 * rows, draw)


def plain(text: str) -> str:
    """As it stands: in a name from a trace, $ begins no formula. Long names keep their end."""
    return (text if len(text) <= 48 else f"…{text[-47:]}").replace("$", r"\$")


def _rows(count: int, draw: Callable[[Axes], None]) -> Figure:
    return drawn(9, 1.5 + 0.2 * count, lambda figure: draw(figure.subplots()))


def _layer_labels(sites: Iterable[Site]) -> list[str]:
    """In the order of the network."""
    return list(dict.fromkeys(site.label for site in sites))


def _draw_speedups(axes: Axes, difference: Difference, labels: Sequence[str]) -> None:
    for phase, marker in _MARKERS.items():
        chosen = [match for match in difference.matches if match.first.phase == phase]
        if not chosen:
            continue
        estimates = [match.speedup for match in chosen]
        below = [each.value - each.low for each in estimates]
        above = [each.high - each.value for each in estimates]
        axes.errorbar(
            [each.value for each in estimates],
            [labels.index(match.first.label) + (0.15 if phase == BACKWARD else -0.15) for match in chosen],
            xerr=(below, above),
            fmt=marker,
            markersize=4,
            linewidth=0.8,
            color=_PHASE_COLOURS[phase],
            label=phase,
        )
    axes.axvline(1, color=INK, linewidth=1, linestyle=(0, (4, 2)))
    _logarithmic(axes.xaxis)
    _label(axes, labels)
    first, second = plain(difference.first.name), plain(difference.second.name)
    axes.set_xlabel(f"times faster: {first} / {second} (bars: interval over the steps)")
    axes.legend(loc="best")
    whole = differences.totals(difference.matches, lambda site: "all")[0]
    axes.set_title(f"Speed-up per layer; all calls together {whole.speedup:.2f}x")


def _draw_times(axes: Axes, found: Sequence[Breakdown], labels: Sequence[str]) -> None:
    shades = colours(found)
    for each in found:
        for phase, marker in _MARKERS.items():
            chosen = [site for site in each.sites if site.phase == phase]
            places = [labels.index(site.label) for site in chosen]
            label = f"{plain(each.name)}, {phase}" if chosen else "_"
            axes.plot([s.time for s in chosen], places, marker, markersize=4, color=shades[each.name], label=label)
    _logarithmic(axes.xaxis)
    _label(axes, labels)
    axes.set_xlabel("microseconds")
    axes.legend(loc="best")
    axes.set_title("Time of every call")


def _logarithmic(axis: Axis) -> None:
    """With numbers that people read: 0.5, 1, 2, 5, 10k."""
    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")  # type: ignore[attr-defined]
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, place: _short(value))
    axis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:g}"


def _label(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), [plain(label) for label in labels], fontsize=7)
    axes.set_ylim(len(labels) - 0.4, -0.6)


def _draw_roofline(axes: Axes, found: Sequence[Breakdown]) -> None:
    shades = colours(found)
    for each in found:
        roof = sorted((copy.bytes, copy.gigabytes_per_second) for copy in each.copies)
        if roof:
            axes.plot(*zip(*roof, strict=True), color=shades[each.name], linewidth=1, linestyle=(0, (4, 2)), marker="_")
        for phase, marker in _MARKERS.items():
            known = [(s.bytes, s.gigabytes_per_second) for s in each.sites if s.phase == phase and s.bytes and s.time]
            if known:
                label = f"{plain(each.name)}, {phase}"
                axes.plot(
                    *zip(*known, strict=True), marker, markersize=4, color=shades[each.name], label=label, alpha=0.8
                )
    _logarithmic(axes.xaxis)
    _logarithmic(axes.yaxis)
    axes.set_xlabel("bytes that must move at least")
    axes.set_ylabel("GB/s of these bytes")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize=7)
    axes.set_title("Roofline: dashed, copies of the same tensors in the same run")


def _draw_timeline(figure: FigureBase, found: Sequence[Breakdown]) -> None:
    """A row per trace, and a second one for its GPU."""
    axes = figure.subplots()
    shades, rows, used = colours(found), list[str](), dict[str, str]()
    for each in found:
        for spans, where in ((each.spans, ""), (each.kernels, ", GPU")):
            if not spans and where:
                continue
            for part, pieces in _joined(spans, each.step.whole).items():
                shade = shades[each.name] if part == BATCH_NORM else _PARTS.get(part, _REST)
                used |= {part if part in _PARTS else "rest": shade} if part != BATCH_NORM else {}
                axes.broken_barh(pieces, (len(rows) - 0.35, 0.7), facecolors=shade, edgecolor="none")
            rows.append(plain(each.name) + where)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("milliseconds of the median step (white: nothing ran)")
    handles = [Patch(color=shades[each.name], label=f"{BATCH_NORM}, {plain(each.name)}") for each in found]
    handles += [Patch(color=shade, label=part) for part, shade in used.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=7)
    axes.set_title("One step, side by side")


def _joined(spans: Sequence[Span], whole: float) -> dict[str, list[tuple[float, float]]]:
    """By part, (start, duration) in milliseconds; spans that nobody could tell apart are one. Batch norm comes last."""
    least = _LEAST * whole
    found: dict[str, list[list[float]]] = {}
    for part, start, duration in spans:
        pieces = found.setdefault(part, [])
        if pieces and start - pieces[-1][1] < least:
            pieces[-1][1] = max(pieces[-1][1], start + duration)
        else:
            pieces.append([start, start + duration])
    order = sorted(found, key=lambda part: (part == BATCH_NORM, part in _PARTS))
    return {part: [(start / 1e3, (end - start) / 1e3) for start, end in found[part]] for part in order}


def _draw_memory(axes: Axes, found: Sequence[Breakdown]) -> None:
    shades = colours(found)
    for each in found:
        if each.memory and each.memory.curve:
            times, totals = zip(*each.memory.curve, strict=True)
            label = f"{plain(each.name)}, peak {each.memory.peak / 2**20:.0f} MiB"
            axes.step(
                [time / 1e3 for time in times],
                [total / 2**20 for total in totals],
                where="post",
                color=shades[each.name],
                linewidth=1.2,
                label=label,
            )
    axes.set_xlabel("milliseconds of the median step")
    axes.set_ylabel("MiB taken since the profiler began")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")
    devices = sorted({each.memory.device for each in found if each.memory})
    axes.set_title("Memory of the " + " and ".join(devices) if devices else "Memory: not in these traces")
