"""A whole trace in figures: its batch norm calls, the split of its steps, the copies in it, its memory."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from profiling.output.exits import Exit, Failure
from profiling.traces import analysis, calls, operators, traces
from profiling.traces.analysis import BATCH_NORM, OTHER
from profiling.traces.calls import GIGA, Site, length, union
from profiling.traces.trace_file import Record
from profiling.traces.traces import Interval, Kernel, Kind, Trace

_MOST_POINTS = 1500  # of the memory curve


class Span(NamedTuple):
    """A stretch of one kind of work; microseconds from the beginning of the step."""

    part: str
    start: float
    duration: float


@dataclass(frozen=True)
class Split:
    """One step in microseconds. On the host: its wall time, and the part of it in which operators ran on any thread.

    With GPU kernels: from the first of the step to its last, and what ran there.
    """

    step: str
    on_gpu: bool
    whole: float
    batch_norm: float
    rest: float
    idle: float


@dataclass(frozen=True)
class Copy:
    """Copies of one tensor in the trace. ``bytes``: read and written together; ``times`` in microseconds."""

    shape: tuple[int, ...]
    dtype: str
    bytes: int
    times: tuple[float, ...]

    @property
    def gigabytes_per_second(self) -> float:
        return self.bytes / statistics.median(self.times) * 1e6 / GIGA


@dataclass(frozen=True)
class Memory:
    """Bytes taken over one step since the profiler began, as (microseconds, bytes); ``peak`` of all steps."""

    device: str
    curve: tuple[tuple[float, int], ...]
    peak: int


@dataclass(frozen=True)
class Breakdown:
    name: str
    path: str
    record: Record
    marked: bool  # whether the trace marks its steps
    splits: tuple[Split, ...]
    median: int  # which of them is of the step of median duration on the host
    sites: tuple[Site, ...]
    copies: tuple[Copy, ...]
    backends: dict[str, int]  # calls per step
    spans: tuple[Span, ...]  # of the median step, on the host
    kernels: tuple[Span, ...]  # of the same step, on the GPU
    memory: Memory | None

    @property
    def step(self) -> Split:
        """Of median duration."""
        return self.splits[self.median]

    def copy_of(self, site: Site) -> Copy | None:
        """Of a tensor like the site's input, in this very trace."""
        return next((c for c in self.copies if (c.shape, c.dtype) == (site.shape, site.dtype)), None)

    def share(self, site: Site) -> float | None:
        """The site's GB/s as a share of that copy's."""
        copy, speed = self.copy_of(site), site.gigabytes_per_second
        return speed / copy.gigabytes_per_second if copy and speed else None


def read(path: Path) -> Breakdown:
    """Raises Failure if the file cannot be read, or no batch norm is in it."""
    return of(traces.read(path), path)


def of(trace: Trace, path: Path) -> Breakdown:
    steps = calls.of_trace(trace)
    if not any(steps):
        raise Failure(Exit.NO_BATCH_NORM, f"{path}: expected batch norm operators in the trace, found none")
    median = traces.median_step(trace.steps)
    backends = Counter(call.backend for step in steps for call in step)
    return Breakdown(
        name=trace.record.name or _stem(path),
        path=str(path),
        record=trace.record,
        marked=trace.marked,
        splits=tuple(_split(step) for step in trace.steps),
        median=trace.steps.index(median),
        sites=tuple(calls.sites(steps)),
        copies=tuple(_copies(trace.copies)),
        backends={name: round(count / len(steps)) for name, count in backends.most_common()},
        spans=tuple(_spans(median)),
        kernels=tuple(_kernel_spans(median)),
        memory=_memory(trace, median),
    )


def parts(step: Interval) -> Iterator[tuple[str, Interval]]:
    """The operators that no operator of the same part is around, each with its part; they may lie in one another."""
    pending = [(child, OTHER, False) for child in step.children]
    while pending:
        interval, around, inside = pending.pop()
        part = around if around != OTHER else analysis.own_group(interval) or OTHER
        works = interval.kind in (Kind.OPERATOR, Kind.RUNTIME)
        if works and (not inside or part != around):
            yield part, interval
        pending.extend((child, part, inside or works) for child in interval.children)


def _split(step: Interval) -> Split:
    found = [(part, kernel.start, kernel.end) for part, kernel in _kernels(step)]
    on_gpu = bool(found)
    if not on_gpu:
        found = [(part, interval.start, interval.end) for part, interval in parts(step)]
    busy = length(union((start, end) for _, start, end in found))
    batch_norm = length(union((start, end) for part, start, end in found if part == BATCH_NORM))
    whole = max(end for *_, end in found) - min(start for _, start, _ in found) if on_gpu else step.duration
    return Split(step.name, on_gpu, whole, batch_norm, busy - batch_norm, whole - busy)


def _kernels(step: Interval) -> Iterator[tuple[str, Kernel]]:
    for interval in step.walk():
        for kernel in interval.kernels:
            yield analysis.group_of(interval), kernel


def _spans(step: Interval) -> Iterator[Span]:
    for part, interval in sorted(parts(step), key=lambda item: item[1].start):
        yield Span(part, interval.start - step.start, interval.duration)


def _kernel_spans(step: Interval) -> Iterator[Span]:
    for part, kernel in sorted(_kernels(step), key=lambda item: item[1].start):
        yield Span(part, kernel.start - step.start, kernel.duration)


def _copies(ranges: Sequence[Interval]) -> Iterator[Copy]:
    times: dict[tuple[tuple[int, ...], str], list[float]] = {}
    sizes = {}
    for operator in (each for marked in ranges for each in marked.walk() if each.name == "aten::copy_"):
        facts = operators.tensor(operator.dims[0], operator.types[0])
        on_gpu = [kernel.duration for each in operator.walk() for kernel in each.kernels]
        times.setdefault((facts.shape, facts.dtype), []).append(sum(on_gpu) or operator.duration)
        sizes[facts.shape, facts.dtype] = 2 * facts.bytes
    for key, found in times.items():
        yield Copy(*key, sizes[key], tuple(found))


def _memory(trace: Trace, step: Interval) -> Memory | None:
    devices = {allocation.device for allocation in trace.allocations}
    if not devices:
        return None
    chosen = max(devices)  # the GPU's, where there is one
    of_device = [each for each in trace.allocations if each.device == chosen]
    inside = traces.during(of_device, step)
    every = max(1, math.ceil(len(inside) / _MOST_POINTS))
    highest = [max(inside[i : i + every], key=lambda a: a.total) for i in range(0, len(inside), every)]
    of_steps = (each.total for any_step in trace.steps for each in traces.during(of_device, any_step))
    return Memory(
        device="CPU" if chosen == 0 else "GPU",
        curve=tuple((each.start - step.start, each.total) for each in highest),
        peak=max(of_steps, default=0),
    )


def _stem(path: Path) -> str:
    name = path.name
    for ending in (".gz", ".json", ".trace", ".pt"):
        name = name.removesuffix(ending)
    return name
