"""Plots of the comparison."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from profiling.comparison.recording import Recording, by_name
from profiling.comparison.training import Run, loss_difference
from profiling.measure.correctness import QUANTITIES, Finding
from profiling.measure.peers import NATIVE, OURS
from profiling.measure.timing import Direction, Measurement, mean_speedup
from profiling.output import tables
from profiling.output.plots import COLOURS, INK, drawn
from profiling.traces.analysis import BATCH_NORM, Summary

if TYPE_CHECKING:
    from profiling.comparison.compare import Comparison

_PART_COLOURS = {"convolution": "#6f7b88", "activation": "#8193ab", "optimizer": "#94899f", "rest": "#aab2bb"}

# In copies of x, each byte moved once: read x, write y | read x and dy, write dx. A copy also reads the lines it
# overwrites, so writing past the cache can do with less.
LIMITS = {Direction.FORWARD: 1.0, Direction.BACKWARD: 1.5, Direction.INFERENCE: 1.0}


def times(measurements: Sequence[Measurement]) -> Figure:
    """A panel per direction, a pair of bars per shape: multiples of a copy."""
    directions = list(dict.fromkeys(m.direction for m in measurements))
    rows = len(measurements) // len(directions)
    return drawn(12, 1.2 + 0.42 * rows, lambda figure: _draw_times(figure, measurements))


def errors(findings: Sequence[Finding]) -> Figure:
    return drawn(9, 3.6, lambda figure: _draw_errors(figure.subplots(), findings))


def losses(runs: Sequence[Run]) -> Figure:
    return drawn(9, 3.2, lambda figure: _draw_losses(figure.subplots(), runs))


def split(recordings: Sequence[Recording]) -> Figure:
    return drawn(12, 2.2, lambda figure: _draw_split(figure.subplots(), recordings))


def overview(comparison: Comparison) -> Figure:
    """The one picture: times of every shape above, loss curves and the split of a training step below."""

    def draw(figure: Figure) -> None:
        (upper,), (lower,) = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.75, 1), hspace=0.04)
        _draw_times(upper, comparison.measurements)
        left, right = lower.subplots(1, 2, width_ratios=(1, 1.5))
        _draw_losses(left, comparison.runs)
        _draw_split(right, comparison.recordings)
        machine, settings = comparison.machine, comparison.settings
        where = machine.gpu or f"{machine.cpu}, {tables.plural(machine.threads, 'thread')}"
        figure.suptitle(
            f"my_ops and native ({comparison.native}) batch norm in ResNet-50, batch {settings.batch}, "
            f"{settings.image}x{settings.image}, float32. {where}, torch {machine.torch}",
            fontsize=11,
            x=0.01,
            horizontalalignment="left",
        )

    return drawn(13, 9, draw)


def _draw_times(figure: Figure, measurements: Sequence[Measurement]) -> None:
    directions = list(dict.fromkeys(m.direction for m in measurements))
    panels = figure.subplots(1, len(directions), sharey=True, squeeze=False)[0]
    for panel, direction in zip(panels, directions, strict=True):
        _draw_direction(panel, direction, [m for m in measurements if m.direction is direction])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper right", ncols=len(labels))


def _draw_direction(axes: Axes, direction: Direction, measurements: Sequence[Measurement]) -> None:
    height = 0.38
    for offset, name in ((0.5, NATIVE), (-0.5, OURS)):
        places = [row + offset * height for row in range(len(measurements))]
        values = [m.copies(name) for m in measurements]
        bars = axes.barh(places, values, height, label=name, color=COLOURS[name])
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
    limit = LIMITS[direction]
    axes.axvline(limit, color=INK, linewidth=1, linestyle=(0, (4, 2)))
    axes.set_yticks(range(len(measurements)), ["×".join(map(str, m.shape[1:])) for m in measurements])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.1, y=0.01)
    axes.set_xlabel(f"time, in copies of the input (dashed: each byte moved once, {limit:g})")
    axes.set_title(f"{direction.value}: {mean_speedup(measurements):.2f}x native's speed")


def _draw_errors(axes: Axes, findings: Sequence[Finding]) -> None:
    quantities = list(QUANTITIES)
    markers = {"contiguous": "o", "channels_last": "D"}
    for name in (NATIVE, OURS):
        for layout, marker in markers.items():
            shares = [
                max(f.shares[name] for f in findings if f.quantity == quantity and f.layout == layout)
                for quantity in quantities
            ]
            places = [row + (0.14 if name == NATIVE else -0.14) for row in range(len(quantities))]
            label = f"{name}, {layout}"
            axes.scatter(shares, places, s=28, marker=marker, color=COLOURS[name], label=label, alpha=0.85)
    axes.axvline(1, color=INK, linewidth=1, linestyle=(0, (4, 2)))
    axes.set_xscale("log")
    axes.set_yticks(range(len(quantities)), list(QUANTITIES.values()))
    axes.invert_yaxis()
    axes.set_xlabel("largest error, as a share of what rounding explains (dashed: 1)")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_losses(axes: Axes, runs: Sequence[Run]) -> None:
    widths = {NATIVE: 4.5, OURS: 1.4}  # the thin curve lies on the thick one
    for run in sorted(runs, key=lambda run: run.name == OURS):
        label = f"{run.name}, {run.accuracy:.1%} of held-out digits right"
        steps = range(1, len(run.losses) + 1)
        axes.plot(steps, run.losses, color=COLOURS[run.name], label=label, linewidth=widths[run.name])
    axes.set_xlabel("training step")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.set_title(f"Small ResNet on digits: loss curves differ by at most {tables.exponent(loss_difference(runs))}")


def _draw_split(axes: Axes, recordings: Sequence[Recording]) -> None:
    """One stacked bar per way, batch norm first; of kernel times on a GPU, else of host times."""
    sides = by_name(recordings)
    on_gpu = any(group.device_ms for side in sides for group in side.summary.groups)
    for row, side in enumerate(sides):
        bar = _parts(side.summary, on_gpu)
        left = 0.0
        for number, (part, width) in enumerate(bar.items()):
            colour = _PART_COLOURS.get(part, "#8f9a90") if number else COLOURS[side.name]
            axes.barh(row, width, 0.5, left=left, color=colour, edgecolor="none")
            if number and width > 0.06 * sum(bar.values()):
                text = f"{part}\n{width:.0f} ms"
                axes.text(left + width / 2, row, text, ha="center", va="center", fontsize=7.5, color="white")
            left += width
        text = f"{BATCH_NORM} {bar[BATCH_NORM]:.0f} ms"
        axes.text(0, row - 0.29, text, va="bottom", color=COLOURS[side.name], weight="bold")
    axes.set_yticks(range(len(sides)), [side.name for side in sides])
    axes.set_ylim(1.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("milliseconds per profiled step, " + ("in GPU kernels" if on_gpu else "on the CPU"))
    steps = [statistics.median(side.step_seconds) * 1e3 for side in sides]
    axes.set_title(f"A training step of ResNet-50: {steps[0]:.0f} ms with my_ops, {steps[1]:.0f} ms natively")


def _parts(summary: Summary, on_gpu: bool) -> dict[str, float]:
    """Milliseconds of each part: batch norm, the larger ones, and the rest as one."""
    parts = {group.name: group.device_ms if on_gpu else group.self_ms for group in summary.groups}
    whole = sum(parts.values()) if on_gpu else summary.step_ms
    kept = {BATCH_NORM: parts.pop(BATCH_NORM, 0.0)}
    kept |= {name: value for name, value in sorted(parts.items(), key=lambda item: -item[1]) if value > 0.03 * whole}
    return kept | {"rest": max(0.0, whole - sum(kept.values()))}
