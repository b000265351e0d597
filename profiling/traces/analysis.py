"""What a trace says about a training step, operator by operator and part by part."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from profiling.traces.traces import Interval, Kind

BATCH_NORM = "batch norm"
OTHER = "other"

# An interval belongs to the group of its outermost ancestor that has one: a copy inside a convolution is convolution.
_GROUPS = [
    ("optimizer", re.compile(r"^Optimizer\.")),
    (BATCH_NORM, re.compile(r"batch_?norm", re.IGNORECASE)),
    ("convolution", re.compile(r"conv", re.IGNORECASE)),
    ("activation", re.compile(r"relu|threshold", re.IGNORECASE)),
    ("pooling", re.compile(r"pool", re.IGNORECASE)),
    ("linear", re.compile(r"linear|addmm", re.IGNORECASE)),
    ("loss", re.compile(r"cross_?entropy|nll_?loss|softmax", re.IGNORECASE)),
    ("gradient accumulation", re.compile(r"AccumulateGrad")),
]

_FORWARD = {"aten::native_batch_norm", "aten::cudnn_batch_norm", "aten::miopen_batch_norm", "my_ops::batchnorm_forward"}
_BACKWARD = {f"{name}_backward" for name in _FORWARD if name.startswith("aten")} | {"my_ops::batchnorm_backward"}


@dataclass(frozen=True)
class Operator:
    """One row of the table: milliseconds per step."""

    name: str
    group: str
    calls: float
    self_ms: float
    total_ms: float  # with the operators it calls
    device_ms: float  # of the GPU kernels it launches itself


@dataclass(frozen=True)
class Group:
    name: str
    self_ms: float
    device_ms: float


@dataclass(frozen=True)
class BatchNormCall:
    """A batch norm operator at one input shape: milliseconds per step over all its calls."""

    operator: str
    direction: str  # "forward" or "backward"
    shape: tuple[int, ...]
    calls: float
    total_ms: float
    device_ms: float


@dataclass(frozen=True)
class Summary:
    """A trace per training step. ``covered_ms`` is the part of ``step_ms`` in which an operator ran on the host."""

    steps: list[str]  # their names in the trace
    step_ms: float
    covered_ms: float
    groups: list[Group]
    operators: list[Operator]
    batch_norms: list[BatchNormCall]
    kernels: list[str]  # GPU kernels launched by batch norm: they name the backend that really ran


@dataclass(frozen=True)
class Pair:
    """The same operator in two traces; None where a trace lacks it."""

    name: str
    group: str
    ours: Operator | None
    native: Operator | None


def summarise(steps: Sequence[Interval]) -> Summary:
    """Means over ``steps``."""
    everything = [i for step in steps for i in step.walk() if i is not step and i.kind is not Kind.MODULE]
    operators = list(_operators(everything, len(steps)))
    return Summary(
        steps=[step.name for step in steps],
        step_ms=sum(step.duration for step in steps) / len(steps) / 1e3,
        covered_ms=sum(operator.self_ms for operator in operators),
        groups=list(_groups(operators)),
        operators=operators,
        batch_norms=list(_batch_norms(everything, len(steps))),
        kernels=sorted({kernel.name for i in everything if group_of(i) == BATCH_NORM for kernel in i.kernels}),
    )


def pair(ours: Summary, native: Summary) -> list[Pair]:
    """Operators of both traces side by side, those with the largest self time (host or GPU) first."""
    sides = [{(o.name, o.group): o for o in summary.operators} for summary in (ours, native)]
    pairs = [Pair(*key, *(side.get(key) for side in sides)) for key in sides[0].keys() | sides[1].keys()]

    def weight(pair: Pair) -> tuple[float, str]:
        times = [max(side.self_ms, side.device_ms) for side in (pair.ours, pair.native) if side]
        return (-max(times), pair.name)

    return sorted(pairs, key=weight)


def group_of(interval: Interval) -> str:
    """The group of the outermost interval around this one that has one, this one included."""
    found = OTHER
    for candidate in (interval, *interval.ancestors()):
        found = own_group(candidate) or found
    return found


def own_group(interval: Interval) -> str | None:
    """The group that an interval is the reason for; a layer's range only names what is in it."""
    if interval.kind is Kind.MODULE:
        return None
    return BATCH_NORM if _counts_batches(interval) else _group_named(interval.name)


@cache
def _group_named(name: str) -> str | None:
    return next((group for group, pattern in _GROUPS if pattern.search(name)), None)


def _counts_batches(interval: Interval) -> bool:
    """``num_batches_tracked.add_(1)``: the only addition to an integer scalar in a network."""
    return interval.name == "aten::add_" and interval.dims[:1] == [[]] and interval.types[:1] == ["long int"]


def _operators(intervals: Iterable[Interval], steps: int) -> Iterator[Operator]:
    rows: dict[tuple[str, str], list[Interval]] = defaultdict(list)
    for interval in intervals:
        rows[_short(interval.name), group_of(interval)].append(interval)
    for (name, group), calls in rows.items():
        outermost = [call for call in calls if not call.inside_itself]
        yield Operator(
            name,
            group,
            len(outermost) / steps,
            sum(call.self_time for call in calls) / steps / 1e3,
            sum(call.duration for call in outermost) / steps / 1e3,
            sum(kernel.duration for call in calls for kernel in call.kernels) / steps / 1e3,
        )


def _short(name: str) -> str:
    """Autograd wraps each node in an interval of its own, with a long name."""
    return name.replace("autograd::engine::evaluate_function: ", "engine: ")


def _groups(operators: Iterable[Operator]) -> Iterator[Group]:
    members = defaultdict(list)
    for operator in operators:
        members[operator.group].append(operator)
    for name in [*(name for name, _ in _GROUPS), OTHER]:
        group = members[name]
        if group:
            yield Group(name, sum(o.self_ms for o in group), sum(o.device_ms for o in group))


def _batch_norms(intervals: Iterable[Interval], steps: int) -> Iterator[BatchNormCall]:
    """In the order of falling time."""
    rows: dict[tuple[str, str, tuple[int, ...]], list[Interval]] = defaultdict(list)
    for interval in intervals:
        direction = "forward" if interval.name in _FORWARD else "backward" if interval.name in _BACKWARD else None
        if direction and not interval.inside_itself:
            dims = interval.dims or [[]]
            rows[interval.name, direction, tuple(dims[0])].append(interval)
    calls = [
        BatchNormCall(
            *key,
            len(found) / steps,
            sum(call.duration for call in found) / steps / 1e3,
            sum(kernel.duration for call in found for inner in call.walk() for kernel in inner.kernels) / steps / 1e3,
        )
        for key, found in rows.items()
    ]
    return iter(sorted(calls, key=lambda call: -max(call.total_ms, call.device_ms)))
