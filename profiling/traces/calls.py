"""Every batch norm call of a trace: where it was made, what it did, how long it took, and what it moved."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from profiling.traces import operators, traces
from profiling.traces.operators import BACKWARD
from profiling.traces.traces import MODULE, TORCH_MODULE, Allocation, Interval, Kernel, Kind, Trace

GIGA = 1e9


@dataclass(frozen=True)
class Call:
    """One call in one step. Times in microseconds, ``start`` from the beginning of the step."""

    step: str
    phase: str  # "forward", "backward" or "inference"
    operator: str  # the innermost one, that does the work
    backend: str
    module: str  # where the trace names none, the number of the forward call in its step
    named: bool
    shape: tuple[int, ...]  # of the input; () where the trace does not say
    dtype: str
    parameters: str  # dtype of gamma
    start: float
    cpu: float  # the outermost operator on the host, launches included
    gpu: float  # in kernels, overlaps counted once
    launch_delay: float  # from the launch of its first kernel to its start
    kernel_gaps: float  # between its kernels
    kernels: tuple[str, ...]
    bytes: int | None  # that must move at least
    allocated: int | None  # bytes taken during the call; None where memory was not profiled

    @property
    def time(self) -> float:
        """On the GPU where it ran there, else on the host."""
        return self.gpu or self.cpu


@dataclass(frozen=True)
class Site:
    """One place in the network: the calls that it makes, one per step."""

    phase: str
    module: str
    shape: tuple[int, ...]
    dtype: str
    parameters: str
    occurrence: int  # how many like it came before in the step
    calls: tuple[Call, ...]

    @property
    def label(self) -> str:
        """The layer, and which of its calls if it has several."""
        return f"{self.module} #{self.occurrence + 1}" if self.occurrence else self.module

    @property
    def named(self) -> bool:
        return self.calls[0].named

    @property
    def times(self) -> list[float]:
        return [call.time for call in self.calls]

    @property
    def time(self) -> float:
        """Median over the steps, microseconds."""
        return statistics.median(self.times)

    def median(self, name: str) -> float:
        """Of one of the times of its calls, by name."""
        return float(statistics.median(getattr(call, name) for call in self.calls))

    @property
    def bytes(self) -> int | None:
        return self.calls[0].bytes

    @property
    def gigabytes_per_second(self) -> float | None:
        """Of the bytes at least needed; 1 GB = 10^9 bytes."""
        return self.bytes / self.time * 1e6 / GIGA if self.bytes and self.time else None


def of_trace(trace: Trace) -> list[list[Call]]:
    """The calls of each step, in the order of time. A backward call has the layer of its forward call."""
    return [_of_step(step, trace.allocations) for step in trace.steps]


def sites(steps: Sequence[Sequence[Call]]) -> list[Site]:
    """In the order in which they are first called."""
    found: dict[tuple[str, str, tuple[int, ...], str, str, int], list[Call]] = defaultdict(list)
    for step in steps:
        seen: Counter[tuple[str, str, tuple[int, ...], str, str]] = Counter()
        for call in step:
            key = (call.phase, call.module, call.shape, call.dtype, call.parameters)
            found[*key, seen[key]].append(call)
            seen[key] += 1
    return [Site(*key, tuple(made)) for key, made in found.items()]


def _of_step(step: Interval, memory: Sequence[Allocation]) -> list[Call]:
    found, layers = list[Call](), dict[object, tuple[str, bool]]()
    for interval in sorted(_outermost(step), key=lambda i: i.start):
        call, number = _call(interval, step, memory), _sequence(interval)
        if call.phase == BACKWARD and not call.named and number in layers:
            module, named = layers[number]
            call = replace(call, module=module, named=named)
        elif not call.named:
            call = replace(call, module=f"{call.phase} call {1 + sum(c.phase == call.phase for c in found)}")
        if call.phase != BACKWARD and number is not None:
            layers[number] = call.module, call.named
        found.append(call)
    return found


def _outermost(step: Interval) -> Iterator[Interval]:
    """The batch norm operators that no other is around."""
    pending = [step]
    while pending:
        interval = pending.pop()
        if operators.is_batch_norm(interval):
            yield interval
        else:
            pending.extend(interval.children)


def _call(interval: Interval, step: Interval, memory: Sequence[Allocation]) -> Call:
    facts = operators.facts(interval)
    *_, inner = operators.batch_norms(interval)
    kernels = sorted((kernel for each in interval.walk() for kernel in each.kernels), key=lambda kernel: kernel.start)
    busy = union((kernel.start, kernel.end) for kernel in kernels)
    return Call(
        step=step.name,
        phase=facts.phase,
        operator=inner.name,
        backend=operators.backend(inner.name, kernels),
        module=_module(interval),
        named=bool(_module(interval)),
        shape=facts.shape,
        dtype=facts.dtype,
        parameters=facts.parameters,
        start=interval.start - step.start,
        cpu=interval.duration,
        gpu=length(busy),
        launch_delay=max(0.0, kernels[0].start - kernels[0].launched) if kernels else 0.0,
        kernel_gaps=busy[-1][1] - busy[0][0] - length(busy) if busy else 0.0,
        kernels=tuple(_names(kernels)),
        bytes=facts.bytes,
        allocated=_allocated(interval, memory) if memory else None,
    )


def _names(kernels: Iterable[Kernel]) -> Iterable[str]:
    return dict.fromkeys(kernel.name for kernel in kernels)


def _module(interval: Interval) -> str:
    """The name that capture gave the layer, else torch's name of it."""
    for prefix in (MODULE, TORCH_MODULE):
        for ancestor in interval.ancestors():
            if ancestor.kind is Kind.MODULE and ancestor.name.startswith(prefix):
                return ancestor.name.removeprefix(prefix)
    return ""


def _sequence(backward: Interval) -> object:
    """The number that autograd gave the forward call; the node around the operator carries it."""
    found = (each.arguments.sequence for each in (backward, *backward.ancestors()))
    return next((number for number in found if number is not None), None)


def _allocated(interval: Interval, memory: Sequence[Allocation]) -> int:
    """Bytes that its thread took while it ran, those that it gave back again included."""
    during = traces.during(memory, interval)
    return sum(max(0, each.bytes) for each in during if each.thread == interval.thread)


def union(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same points in spans that do not touch, in order."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def length(spans: Iterable[tuple[float, float]]) -> float:
    """Of spans that do not overlap."""
    return sum(end - start for start, end in spans)
