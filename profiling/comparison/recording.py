"""torch.profiler traces of a whole training step, both ways."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

import my_ops
from profiling.measure import workloads
from profiling.measure.peers import NATIVE, OURS
from profiling.traces import analysis, traces

LEARNING_RATE = 0.01


@dataclass(frozen=True)
class Recording:
    """One way of training ResNet-50. ``trace`` is relative to the report's folder."""

    name: str
    trace: str
    step_seconds: list[float]  # unprofiled, the two ways in turns
    summary: analysis.Summary  # of the median step


def record(
    folder: Path, batch: int, size: int, steps: int, device: torch.device, advance: Callable[[], None]
) -> list[Recording]:
    """Times ``steps`` training steps of ResNet-50 each way, then profiles as many, one trace file per way.

    The files are ``folder``/traces/NAME/resnet50.pt.trace.json, where Perfetto and TensorBoard's profiler find them.
    ``advance`` is called after every step, 2 * (1 + 2 * steps) times.
    """
    images, labels = workloads.digits(batch, size, device)
    ways = {name: _stepper(name, images, labels, device) for name in (OURS, NATIVE)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(steps + 1):
        for name in ways if number % 2 else reversed(ways):
            begin = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - begin)
            advance()
    recordings = []
    for name, step in ways.items():
        trace = Path("traces", name, "resnet50.pt.trace.json")
        _profile(step, steps, device, folder / trace, advance)
        summary = analysis.summarise([traces.median_step(traces.load(folder / trace))])
        recordings.append(Recording(name, str(trace), seconds[name][1:], summary))  # the first step warms up
    return recordings


def by_name(recordings: Sequence[Recording]) -> tuple[Recording, Recording]:
    """Ours and native's."""
    named = {recording.name: recording for recording in recordings}
    return named[OURS], named[NATIVE]


def _stepper(name: str, images: torch.Tensor, labels: torch.Tensor, device: torch.device) -> Callable[[], None]:
    """A training step of a network of its own, the same for every name, that returns when the device is done."""
    model = workloads.resnet50().to(device)
    if name == OURS:
        my_ops.convert_batchnorm(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)

    def step() -> None:
        workloads.training_step(model, optimizer, images, labels)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def _profile(
    step: Callable[[], None], steps: int, device: torch.device, path: Path, advance: Callable[[], None]
) -> None:
    path.parent.mkdir(parents=True)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities, record_shapes=True) as profiler:
        for number in range(steps):
            with record_function(f"{traces.STEP}{number}"):
                step()
            advance()
    profiler.export_chrome_trace(str(path))
