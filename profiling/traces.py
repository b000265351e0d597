"""Reads a chrome trace of torch.profiler into trees of intervals, one per training step.

A trace holds, per thread, intervals that nest: an operator, the operators and GPU launches it calls, and so on. The
*self* time of an interval is what its children leave; over a thread, self times add up to the covered wall time. GPU
kernels belong to the operator whose launch has their correlation id.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEP = "ProfilerStep#"  # as torch.profiler itself names steps

_HOST = {"cpu_op", "user_annotation", "cuda_runtime", "cuda_driver"}
_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}


@dataclass
class Interval:
    """An event on a host thread; times in microseconds."""

    name: str
    start: float
    duration: float
    arguments: dict[str, Any]
    parent: Interval | None = None
    children: list[Interval] = field(default_factory=list)
    kernels: list[tuple[str, float]] = field(default_factory=list)  # launched by this very interval

    @property
    def end(self) -> float:
        return self.start + self.duration

    @property
    def self_time(self) -> float:
        return self.duration - sum(child.duration for child in self.children)

    def walk(self) -> Iterator[Interval]:
        """This and everything below it."""
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


def load(path: Path) -> list[Interval]:
    """The training steps of a trace, each the root of a tree of all that began in it, on any thread.

    Raises ValueError, naming the file, if it is no chrome trace or has no training step.
    """
    try:
        events = json.loads(path.read_bytes())["traceEvents"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected a chrome trace of torch.profiler ({error})") from error
    steps = steps_of(events)
    if not steps:
        raise ValueError(f"{path}: expected an annotation {STEP}0 around a training step, found none")
    return steps


def steps_of(events: Sequence[dict[str, Any]]) -> list[Interval]:
    """Trees of intervals, one per training step, from the events of a chrome trace."""
    complete = [event for event in events if event.get("ph") == "X"]
    threads = defaultdict(list)
    for event in complete:
        if event.get("cat") in _HOST:
            threads[event["pid"], event["tid"]].append(_interval(event))
    roots = [root for intervals in threads.values() for root in _nest(intervals)]
    everything = [interval for root in roots for interval in root.walk()]
    _attach_kernels(complete, everything)
    steps = sorted((i for i in everything if i.name.startswith(STEP)), key=lambda i: i.start)
    for root in roots:
        home = next((step for step in steps if step.start <= root.start < step.end), root)
        if home is not root:  # it began on another thread: autograd's own, say
            root.parent = home
            home.children.append(root)
    return steps


def median_step(steps: Sequence[Interval]) -> Interval:
    """The step of median duration: a whole real step, and not the one in which the machine did something else."""
    return sorted(steps, key=lambda step: step.duration)[(len(steps) - 1) // 2]


def _interval(event: dict[str, Any]) -> Interval:
    return Interval(event["name"], float(event["ts"]), float(event.get("dur", 0)), event.get("args", {}))


def _nest(intervals: list[Interval]) -> list[Interval]:
    """Links every interval of one thread with the innermost one around it; returns those that nothing is around."""
    roots, open_intervals = [], list[Interval]()
    for interval in sorted(intervals, key=lambda i: (i.start, -i.duration)):
        while open_intervals and open_intervals[-1].end <= interval.start:
            open_intervals.pop()
        if open_intervals:
            interval.parent = open_intervals[-1]
            interval.parent.children.append(interval)
        else:
            roots.append(interval)
        open_intervals.append(interval)
    return roots


def _attach_kernels(events: Iterable[dict[str, Any]], intervals: Iterable[Interval]) -> None:
    """Gives every GPU kernel to the operator around the launch that has its correlation id."""
    launches = {}
    for interval in intervals:
        correlation = interval.arguments.get("correlation")
        if correlation is not None:
            launches[correlation] = interval.parent or interval
    for event in events:
        if event.get("cat") in _DEVICE:
            owner = launches.get(event.get("args", {}).get("correlation"))
            if owner is not None:
                owner.kernels.append((event["name"], float(event["dur"])))
