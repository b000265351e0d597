"""Clocks for calls that are compared: interleaved rounds, medians, bytes, multiples of a copy."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor

from profiling.measure import gpu, intervals, peers
from profiling.measure.peers import NATIVE, OURS, Call, Implementation
from profiling.measure.workloads import Case

COPY = "copy"
FRESH_COPY = "copy, as called"

METHOD = (
    "Every figure is the median over rounds. A round times each peer once, in an order that rotates from round to "
    "round, so that a change in the machine's speed meets all peers alike. One sample is as many calls in a row as "
    "fill half a millisecond, after warm-up calls. On a CPU, calls are repeated on the same tensors: what fits into "
    "the last-level cache is read from there; calls under 10 ms begin with an untimed one, so that what the peer "
    "before left in the caches is not part of the sample. On a GPU, a graph walks through as many copies of the "
    "tensors as exceed the L2 cache twice, 64 at most, and is replayed between two CUDA events. The batch norm "
    "operators are timed as called: they allocate their outputs. The unit, one y.copy_(x) of the input, writes into "
    "an output that exists; a copy into a fresh output is given beside it. GB/s are the bytes that must move at least "
    "(inputs read once, outputs written once), divided by the time."
)

_SAMPLE = 5e-4  # seconds that one sample lasts at least
_CACHED = 1e-2  # seconds: a call that lasts longer has its tensors in no cache
_MIN_ROUNDS, _MAX_ROUNDS = 5, 100


class Direction(StrEnum):
    FORWARD = "forward"
    BACKWARD = "backward"
    INFERENCE = "inference"


@dataclass(frozen=True)
class Measurement:
    """One case in one direction. ``samples``: seconds per call, by peer, one value per round."""

    shape: tuple[int, ...]
    dtype: str
    layout: str
    direction: Direction
    layers: int  # of the network that have this shape; 0 where the shape is not a network's
    bytes: int  # that must move at least
    samples: dict[str, list[float]]
    tensors: int = 1  # copies of the case that were walked through
    kernels: dict[str, list[str]] = field(default_factory=dict)  # by peer, on a GPU

    def seconds(self, name: str) -> float:
        return statistics.median(self.samples[name])

    def copies(self, name: str) -> float:
        """Time as a multiple of the copy's."""
        return self.seconds(name) / self.seconds(COPY)

    def gigabytes_per_second(self, name: str) -> float:
        """1 GB = 10^9 bytes."""
        moved = copy_bytes(self.shape, self.dtype) if name in (COPY, FRESH_COPY) else self.bytes
        return moved / self.seconds(name) / 1e9


def measure(
    case: Case,
    layout: str,
    direction: Direction,
    implementations: Iterable[Implementation],
    seconds: float,
    layers: int = 0,
) -> Measurement:
    """Times ``implementations`` and both copies on ``case``, already arranged in ``layout``, for about ``seconds``."""
    on_gpu = case.input.device.type == "cuda"
    cases = gpu.copies(case) if on_gpu else [case]
    calls = _prepared(cases, direction, implementations)
    kernels = gpu.kernels({name: of_peer[0] for name, of_peer in calls.items()}) if on_gpu else {}
    timed = {name: gpu.graph(of_peer) if on_gpu else of_peer[0] for name, of_peer in calls.items()}
    samples = {
        name: [value / len(cases) for value in values]
        for name, values in interleave(timed, case.input.device, seconds).items()
    }
    dtype = str(case.input.dtype).removeprefix("torch.")
    facts = (case.shape, dtype, layout, direction, layers, minimum_bytes(case, direction))
    return Measurement(*facts, samples, len(cases), kernels)


def _prepared(
    cases: Sequence[Case], direction: Direction, implementations: Iterable[Implementation]
) -> dict[str, list[Call]]:
    """By peer, one call for each of ``cases``."""
    calls: dict[str, list[Call]] = {}
    for each in implementations:
        calls[each.name] = [prepare(each, case.private(), direction) for case in cases]
    return calls | {COPY: [peers.copy(case) for case in cases], FRESH_COPY: [peers.fresh_copy(case) for case in cases]}


def figures(measurement: Measurement) -> dict[str, object]:
    """A measurement for JSON: by peer median and quartiles, in seconds and as multiples of the copy of that round."""
    copies = measurement.samples[COPY]
    names = ("shape", "dtype", "layout", "direction", "layers", "bytes", "tensors")
    return {
        **{name: getattr(measurement, name) for name in names},
        "rounds": len(copies),
        "peers": {
            name: {
                "seconds": measurement.seconds(name),
                "seconds_quartiles": _quartiles(samples),
                "copies": measurement.copies(name),
                "copies_quartiles": _quartiles([mine / copy for mine, copy in zip(samples, copies, strict=True)]),
                "copies_interval": _interval(samples, copies),
                "gigabytes_per_second": measurement.gigabytes_per_second(name),
                "kernels": measurement.kernels.get(name, []),
            }
            for name, samples in measurement.samples.items()
        },
    }


def prepare(implementation: Implementation, case: Case, direction: Direction) -> Call:
    if direction is Direction.BACKWARD:
        return implementation.backward(case)
    return implementation.forward(case, training=direction is Direction.FORWARD)


def interleave(
    calls: Mapping[str, Callable[[], object]], device: torch.device, seconds: float
) -> dict[str, list[float]]:
    """Seconds per call of each, one value per round, rounds until ``seconds`` have passed (5 to 100 of them)."""
    clock = _cuda_clock if device.type == "cuda" else _cpu_clock
    repeats, warms_up = {}, {}
    for name, call in calls.items():
        clock(call, 1)
        lasts = max(clock(call, 2), 1e-7)
        repeats[name] = max(1, math.ceil(_SAMPLE / lasts))
        warms_up[name] = device.type == "cpu" and lasts < _CACHED
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    end = time.perf_counter() + seconds
    for number in range(_MAX_ROUNDS):
        if number >= _MIN_ROUNDS and time.perf_counter() > end:
            break
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            if warms_up[name]:
                calls[name]()
            samples[name].append(clock(calls[name], repeats[name]))
    return samples


def _cpu_clock(call: Callable[[], object], repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats


def _cuda_clock(call: Callable[[], object], repeats: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / repeats


def speedup(measurement: Measurement, over: str = NATIVE) -> float:
    """How many times faster ours is than another peer."""
    return measurement.seconds(over) / measurement.seconds(OURS)


def mean_speedup(measurements: Iterable[Measurement], over: str = NATIVE) -> float:
    """Geometric, over the measurements that have this peer; NaN if none has."""
    found = [speedup(m, over) for m in measurements if over in m.samples]
    return statistics.geometric_mean(found) if found else math.nan


def minimum_bytes(case: Case, direction: Direction) -> int:
    """Bytes of all tensors that a call must read or write, each once.

    With n values in the input, C channels: forward 2n values and 8C per-channel values (gamma, beta, both running
    statistics read and written, mean and invstd written), backward 3n and 5C (gamma, mean, invstd, two gradients),
    inference 2n and 4C.
    """
    vectors = case.gamma, case.beta, case.running_mean, case.running_var
    image, statistic = _bytes(case.input), 4 * case.shape[1] if case.input.dtype != torch.float64 else 8 * case.shape[1]
    match direction:
        case Direction.FORWARD:
            return 2 * image + sum(map(_bytes, vectors)) + sum(map(_bytes, vectors[2:])) + 2 * statistic
        case Direction.BACKWARD:
            return 3 * image + 3 * _bytes(case.gamma) + 2 * statistic
        case Direction.INFERENCE:
            return 2 * image + sum(map(_bytes, vectors))


def copy_bytes(shape: Iterable[int], dtype: str) -> int:
    """Bytes that a copy of such a tensor moves: read once, written once."""
    kind = getattr(torch, dtype)
    assert isinstance(kind, torch.dtype)
    return 2 * math.prod(shape) * kind.itemsize


def _quartiles(values: list[float]) -> tuple[float, float]:
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def _interval(samples: list[float], copies: list[float]) -> tuple[float, float]:
    """That holds the median of the pairs' ratios with 95 % confidence."""
    found = intervals.ratios(samples, copies)
    return found.low, found.high


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
