"""A chrome trace of torch.profiler as trees of intervals, one per step.

A trace holds, per thread, intervals that nest: an operator, the operators and GPU launches it calls, and so on. The
*self* time of an interval is what its children leave; over a thread, self times add up to the covered wall time. GPU
kernels belong to the operator whose launch has their correlation id.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any, NamedTuple

from profiling.traces import trace_file
from profiling.traces.trace_file import Arguments, Event, Record

STEP = "ProfilerStep#"  # as torch.profiler itself names steps
MODULE = "my_ops.module: "  # how capture marks a layer: this and its name
TORCH_MODULE = "nn.Module: "  # how torch.profiler does, with_stack=True
COPY = "my_ops.copy"  # how capture marks the copies that it compares with

_NOTHING, _NO_RECORD = Arguments(), Record()
_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}


class Kind(Enum):
    OPERATOR = auto()
    ANNOTATION = auto()  # a range that someone named
    MODULE = auto()  # the range of a layer: it names its operators, and does nothing itself
    RUNTIME = auto()  # a call of the GPU's runtime


_HOST = {
    "cpu_op": Kind.OPERATOR,
    "user_annotation": Kind.ANNOTATION,
    "cuda_runtime": Kind.RUNTIME,
    "cuda_driver": Kind.RUNTIME,
}


class Kernel(NamedTuple):
    """Something that ran on a GPU; times in microseconds. ``launched``: when the call that launched it returned."""

    name: str
    start: float
    duration: float
    stream: Any
    launched: float

    @property
    def end(self) -> float:
        return self.start + self.duration


class Allocation(NamedTuple):
    """Memory that was taken (``bytes`` > 0) or returned, and how much of its device's is taken after it."""

    start: float
    thread: Any
    bytes: int
    total: int
    device: int  # 0 is the CPU


@dataclass(slots=True, eq=False)
class Interval:
    """An event on a host thread; times in microseconds."""

    name: str
    start: float
    duration: float
    kind: Kind
    thread: Any
    arguments: Arguments
    parent: Interval | None = None
    children: list[Interval] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)  # launched by this very interval

    @property
    def end(self) -> float:
        return self.start + self.duration

    @property
    def self_time(self) -> float:
        return self.duration - sum(child.duration for child in self.children)

    @property
    def dims(self) -> list[list[int]]:
        """The shape of each argument; empty for what is no tensor."""
        return trace_file.decoded(self.arguments.dims)

    @property
    def types(self) -> list[str]:
        """The type of each argument as the profiler writes it: "float", "c10::Half", "" for None."""
        return trace_file.decoded(self.arguments.types)

    @property
    def values(self) -> list[str]:
        """The value of each argument that is no tensor, as text."""
        return trace_file.decoded(self.arguments.values)

    def walk(self) -> Iterator[Interval]:
        """This and everything below it, every interval after its parent."""
        pending = [self]
        while pending:
            interval = pending.pop()
            yield interval
            pending.extend(interval.children)

    def ancestors(self) -> Iterator[Interval]:
        """From the parent outwards."""
        interval = self.parent
        while interval is not None:
            yield interval
            interval = interval.parent

    @property
    def inside_itself(self) -> bool:
        """An operator that calls itself on another dispatch key: one call to its user, two intervals in the trace."""
        return any(ancestor.name == self.name for ancestor in self.ancestors())


@dataclass(frozen=True)
class Trace:
    """``steps``: one if the trace marks none, of all there is. ``record``: what ``capture`` says about its run."""

    steps: list[Interval]
    marked: bool
    copies: list[Interval]
    allocations: list[Allocation]  # in the order of time
    record: Record


def read(path: Path) -> Trace:
    """Raises Failure if there is no such file, or no chrome trace in it."""
    file = trace_file.read(path)
    return of(file.events, file.my_ops)


def load(path: Path) -> list[Interval]:
    """The marked steps of a trace, each the root of a tree of all that began in it, on any thread.

    Raises ValueError, naming the file, if it is no chrome trace or has no training step.
    """
    trace = read(path)
    if not trace.marked:
        raise ValueError(f"{path}: expected an annotation {STEP}0 around a training step, found none")
    return trace.steps


def of(events: Sequence[Event], record: Record = _NO_RECORD) -> Trace:
    """The trace that these events make."""
    threads = defaultdict(list)
    for event in events:
        kind = _kind(event)
        if kind is not None:
            threads[event.pid, event.tid].append(_interval(event, kind))
    roots = [root for intervals in threads.values() for root in _nest(intervals)]
    _attach_kernels(events, threads.values())
    named = [interval for intervals in threads.values() for interval in intervals if interval.kind is Kind.ANNOTATION]
    steps = sorted((i for i in named if i.name.startswith(STEP)), key=lambda i: i.start)
    starts = [step.start for step in steps]
    for root in roots:
        place = bisect_right(starts, root.start) - 1
        if place >= 0 and root is not steps[place] and root.start < steps[place].end:
            root.parent = steps[place]  # it began on another thread: autograd's own, say
            steps[place].children.append(root)
    copies = [interval for interval in named if interval.name.startswith(COPY)]
    return Trace(
        steps or _whole(roots), bool(steps), copies, sorted(_allocations(events), key=lambda a: a.start), record
    )


def median_step(steps: Sequence[Interval]) -> Interval:
    """The step of median duration: a whole real step, and not the one in which the machine did something else."""
    return sorted(steps, key=lambda step: step.duration)[(len(steps) - 1) // 2]


def during(allocations: Sequence[Allocation], interval: Interval) -> Sequence[Allocation]:
    """Those of all threads, of allocations in the order of time."""
    first = bisect_left(allocations, interval.start, key=lambda each: each.start)
    return allocations[first : bisect_right(allocations, interval.end, key=lambda each: each.start)]


def _kind(event: Event) -> Kind | None:
    if event.ph != "X":
        return None
    if event.cat == "python_function":
        return Kind.MODULE if event.name.startswith(TORCH_MODULE) else None
    kind = _HOST.get(event.cat)
    return Kind.MODULE if kind is Kind.ANNOTATION and event.name.startswith(MODULE) else kind


def _interval(event: Event, kind: Kind) -> Interval:
    start, duration = float(event.ts), float(event.dur)
    return Interval(event.name, start, duration, kind, event.tid, event.args or _NOTHING)


def _nest(intervals: list[Interval]) -> list[Interval]:
    """Links every interval of one thread with the innermost one around it; returns those that nothing is around."""
    roots, open_intervals = [], list[Interval]()
    intervals.sort(key=lambda i: (i.start, -i.duration))
    for interval in intervals:
        while open_intervals and open_intervals[-1].end <= interval.start:
            open_intervals.pop()
        if open_intervals:
            interval.parent = open_intervals[-1]
            interval.parent.children.append(interval)
        else:
            roots.append(interval)
        open_intervals.append(interval)
    return roots


def _attach_kernels(events: Iterable[Event], threads: Iterable[list[Interval]]) -> None:
    """Gives every GPU kernel to the operator around the launch that has its correlation id."""
    launches = {
        interval.arguments.correlation: interval
        for intervals in threads
        for interval in intervals
        if interval.kind is Kind.RUNTIME and interval.arguments.correlation is not None
    }
    for event in events:
        if event.cat in _DEVICE and event.args is not None:
            launch = launches.get(event.args.correlation)
            if launch is not None:
                start, duration = float(event.ts), float(event.dur)
                kernel = Kernel(event.name, start, duration, event.args.stream, launch.end)
                (launch.parent or launch).kernels.append(kernel)


def _allocations(events: Iterable[Event]) -> Iterator[Allocation]:
    for event in events:
        arguments = event.args
        if event.name == "[memory]" and arguments is not None and isinstance(arguments.bytes, int):
            total, device = arguments.total_allocated or 0, arguments.device_type
            yield Allocation(float(event.ts), event.tid, arguments.bytes, total, device)


def _whole(roots: list[Interval]) -> list[Interval]:
    """A trace without steps, as one."""
    if not roots:
        return []
    start = min(root.start for root in roots)
    whole = Interval("whole trace", start, max(r.end for r in roots) - start, Kind.ANNOTATION, None, _NOTHING)
    for root in roots:
        root.parent = whole
    whole.children = sorted(roots, key=lambda root: root.start)
    return [whole]
