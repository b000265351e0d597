"""Two traces side by side, as tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from profiling.comparison.recording import Recording
from profiling.measure.peers import NATIVE, OURS
from profiling.output.tables import Table, count, number, ratio, shape
from profiling.traces import analysis
from profiling.traces.analysis import BatchNormCall, Summary


def split(ours: Recording, native: Recording) -> Table:
    """The parts of a step, and what is in none."""
    summaries = (ours.summary, native.summary)
    sides = [{group.name: group for group in summary.groups} for summary in summaries]
    columns = {"self_ms": "host"} | _gpu(summaries)
    parts = {}
    for name in {**sides[1], **sides[0]}:
        parts[name] = [getattr(side[name], column) if name in side else 0.0 for column in columns for side in sides]
    rows = [_row(name, times) for name, times in sorted(parts.items(), key=lambda item: -item[1][-1])]
    rows.append(_row("between operators", [s.step_ms - s.covered_ms for s in summaries], len(columns)))
    rows.append(_row("profiled step", [s.step_ms for s in summaries], len(columns)))
    medians = [statistics.median(recording.step_seconds) * 1e3 for recording in (ours, native)]
    rows.append(_row("step without profiler", medians, len(columns)))
    return Table(
        title="(d) Where a training step of ResNet-50 spends its time",
        note="Milliseconds of the median profiled step. A part holds all that runs inside it, allocations and changes "
        "of memory format included; num_batches_tracked is counted as batch norm.",
        head=("part", *_both(columns), f"{NATIVE} / {OURS}"),
        rows=rows,
    )


def batch_norm_calls(ours: Summary, native: Summary) -> Table:
    summaries = (ours, native)
    sides = [_by_shape(summary) for summary in summaries]
    columns = {"calls": "calls", "total_ms": "host"} | _gpu(summaries)
    rows = []
    for key in {**sides[1], **sides[0]}:
        direction, sizes = key
        sums = [sum(getattr(call, column) for call in side.get(key, [])) for column in columns for side in sides]
        rows.append((shape(sizes), direction, *map(count, sums[:2]), *map(number, sums[2:]), _quotient(*sums[-2:])))
    operators = ", ".join(sorted({call.operator for summary in summaries for call in summary.batch_norms}))
    kernels = ", ".join(kernel for summary in summaries for kernel in summary.kernels)
    return Table(
        title="(d) Batch norm calls inside the training step, by shape",
        note=f"Milliseconds per step, of {operators}." + (f" GPU kernels: {kernels}." if kernels else ""),
        head=("shape", "direction", *_both(columns), f"{NATIVE} / {OURS}"),
        rows=rows,
        words=2,
    )


def operators(ours: Summary, native: Summary, most: int | None = None) -> Table:
    """The ``most`` operators with the largest self time, or all."""
    pairs = analysis.pair(ours, native)
    columns = {"calls": "calls", "self_ms": "self", "total_ms": "total"} | _gpu((ours, native))
    rows = []
    for pair in pairs[:most]:
        texts = [
            (count if column == "calls" else number)(getattr(side, column)) if side else ""
            for column in columns
            for side in (pair.ours, pair.native)
        ]
        rows.append((pair.name, pair.group, *texts))
    rest = f" The {most} of {len(pairs)} operators with the largest self time." if len(rows) < len(pairs) else ""
    return Table(
        title="(d) A training step, operator by operator",
        note="Milliseconds per step. Self: without the operators it calls; total: with them." + rest,
        head=("operator", "part", *_both(columns)),
        rows=rows,
        words=2,
    )


def _row(name: str, times: list[float], columns: int = 0) -> list[str]:
    """A name, its times (those of the host alone leave other columns empty), and how they compare."""
    empty = [""] * (2 * columns - len(times))
    return [name, *map(number, times), *empty, _quotient(*times[-2:])]


def _quotient(ours: float, native: float) -> str:
    return ratio(native / ours) if ours and native else ""


def _gpu(summaries: Iterable[Summary]) -> dict[str, str]:
    """The column of GPU time, where there was a GPU."""
    on_gpu = any(group.device_ms for summary in summaries for group in summary.groups)
    return {"device_ms": "GPU"} if on_gpu else {}


def _by_shape(summary: Summary) -> dict[tuple[str, tuple[int, ...]], list[BatchNormCall]]:
    calls: dict[tuple[str, tuple[int, ...]], list[BatchNormCall]] = {}
    for call in summary.batch_norms:
        calls.setdefault((call.direction, call.shape), []).append(call)
    return calls


def _both(columns: dict[str, str]) -> list[str]:
    """A column for each side of each."""
    return [f"{column}, {side}" for column in columns.values() for side in (OURS, NATIVE)]
