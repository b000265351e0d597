"""The main job: our batch norm and native's on real images through a real network, in one folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from profiling.comparison import recording, report, training
from profiling.comparison.recording import Recording
from profiling.comparison.training import Run
from profiling.measure import correctness, machine, timing, workloads
from profiling.measure.correctness import Finding
from profiling.measure.machine import Machine
from profiling.measure.peers import Native, Ours
from profiling.measure.timing import Direction, Measurement
from profiling.measure.workloads import Case
from profiling.output.progress import bar, bars

LEARNING_RATE = 0.01


@dataclass(frozen=True)
class Settings:
    """How much work the main job does. Images are ``image`` pixels each way."""

    batch: int = 32  # of ResNet-50 in (a) and (b)
    image: int = 224
    steps_before: int = 2  # that ResNet-50 trains before its tensors are taken
    seconds: float = 1.0  # that each shape is timed in each direction
    training_steps: int = 60  # of the small network in (c)
    trace_batch: int = 16  # of ResNet-50 in (d)
    trace_steps: int = 3


QUICK = Settings(batch=4, image=64, seconds=0.02, training_steps=4, trace_batch=2, trace_steps=1)


@dataclass(frozen=True)
class Comparison:
    """All that the main job found out."""

    settings: Settings
    machine: Machine
    native: str  # the library behind native batch norm here
    findings: list[Finding]
    measurements: list[Measurement]
    runs: list[Run]
    recordings: list[Recording]

    @property
    def correct(self) -> bool:
        return all(finding.passes(Ours.name) for finding in self.findings)


def run(settings: Settings, device: torch.device, folder: Path, console: Console) -> Comparison:
    """Does the main job and leaves its report and traces in ``folder``, which appears when all is done."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        unfinished = Path(name) / folder.name
        unfinished.mkdir()
        with bars(console) as progress:
            comparison = _run(settings, device, unfinished, progress)
        report.write(comparison, unfinished)
        unfinished.rename(folder)
    return comparison


def _run(settings: Settings, device: torch.device, folder: Path, progress: Progress) -> Comparison:
    ours, native = Ours(), Native()
    cases = _real_cases(settings, device, bar(progress, "ResNet-50 on real images", settings.steps_before + 1))
    advance = bar(progress, "(a) results against float64", len(cases) * len(workloads.LAYOUTS))
    findings = []
    for case in cases:
        for layout in workloads.LAYOUTS:
            findings += correctness.check(case, (ours, native), layout)
            advance()

    chosen = workloads.distinct_shapes(cases)
    uses_cudnn = {native.uses_cudnn(case, True) for case in cases}
    del cases  # gigabytes that the rest does not need
    advance = bar(progress, "(b) time of each layer shape", len(chosen) * len(Direction))
    measurements = []
    for case, layers in chosen:
        for direction in Direction:
            measurements.append(timing.measure(case, "contiguous", direction, (ours, native), settings.seconds, layers))
            advance()
    del case, chosen

    advance = bar(progress, "(c) training both ways", settings.training_steps)
    runs = training.train(settings.training_steps, device, advance)

    advance = bar(progress, "(d) traces of a training step", 2 * (1 + 2 * settings.trace_steps))
    recordings = recording.record(folder, settings.trace_batch, settings.image, settings.trace_steps, device, advance)
    backend = " and ".join(sorted("cuDNN" if cudnn else "ATen" for cudnn in uses_cudnn))
    return Comparison(settings, machine.describe(device), backend, findings, measurements, runs, recordings)


def _real_cases(settings: Settings, device: torch.device, advance: Callable[[], None]) -> list[Case]:
    """Every batch norm call of a ResNet-50 that has trained a little, so that no parameter is still 0 or 1."""
    images, labels = workloads.digits(settings.batch, settings.image, device)
    model = workloads.resnet50().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for _ in range(settings.steps_before):
        workloads.training_step(model, optimizer, images, labels)
        advance()
    cases = workloads.capture(model, images, labels)
    advance()
    return cases
