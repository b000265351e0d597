"""Training steps of whole networks: native, converted, with fused activations, and in less memory, in turns.

All start from the same weights and see the same images. A step is zero_grad, forward, loss, backward and optimizer.
Before they are timed, they train in float64, where losses must be equal: in float32 every way, native included, drifts
away from float64 within a few steps, because roundings grow.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import my_ops
from profiling.measure import memory, workloads
from profiling.measure.networks import MobileNetV2, ResNet
from profiling.measure.peers import NATIVE, OURS
from profiling.output import tables
from profiling.output.tables import Table
from profiling.suites import lean

FUSED = "my_ops, fused"
LEAN = "my_ops, lean"
LEARNING_RATE, MOMENTUM = 0.001, 0.9
LOSS_TOLERANCE = 1e-6  # relative, in float64

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": ResNet,
    "resnet50-leaky": lean.leaky_resnet,
    "mobilenetv2": MobileNetV2,
}


@dataclass(frozen=True)
class Settings:
    batch: int = 16
    size: int = 224  # pixels each way
    steps: int = 5


EXACT = Settings(batch=4, size=64, steps=3)  # of the steps in float64


@dataclass
class Run:
    """One network one way: seconds and loss of every step, and the most memory that a step takes.

    ``loss_error``: of the losses in float64, the largest relative difference from native's.
    """

    network: str
    name: str
    settings: Settings
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak: int = 0
    loss_error: float = 0.0


def run(network: str, settings: Settings, device: torch.device, console: Console) -> list[Run]:
    """Steps of each way, in an order that turns; one more of each comes first and is not timed."""
    errors = _loss_errors(network, device)
    ways = _ways(network, settings, device, torch.float32)
    for number in range(settings.steps + 1):
        console.print(f"{network}: step {number} of {settings.steps}", style="dim")
        turn = number % len(ways)
        for way in ways[turn:] + ways[:turn]:
            way.step(number)
    for way in ways:
        way.run.seconds.pop(0)
        way.measure_memory()
        way.run.loss_error = errors[way.run.name]
    return [way.run for way in ways]


def _loss_errors(network: str, device: torch.device) -> dict[str, float]:
    """What ``Run.loss_error`` is, by way."""
    ways = _ways(network, EXACT, device, torch.float64)
    for way in ways:
        for number in range(EXACT.steps):
            way.step(number)
    native = ways[0].run.losses
    return {
        way.run.name: max(abs(loss / exact - 1) for loss, exact in zip(way.run.losses, native, strict=True))
        for way in ways
    }


def _ways(network: str, settings: Settings, device: torch.device, dtype: torch.dtype) -> list[_Way]:
    """Native first."""
    torch.manual_seed(workloads.SEED)
    native = NETWORKS[network]().to(device, dtype)
    models = {NATIVE: native, OURS: copy.deepcopy(native), FUSED: copy.deepcopy(native)}
    my_ops.convert_batchnorm(models[OURS])
    my_ops.convert_batchnorm(models[FUSED], fuse=True)
    if isinstance(native, ResNet) and isinstance(native.relu, nn.LeakyReLU):
        models[LEAN] = lean.lean(copy.deepcopy(native))
    return [_Way(Run(network, name, settings), model, device, dtype) for name, model in models.items()]


class _Way:
    def __init__(self, run: Run, model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self.run, self.model = run, model.train()
        self.device, self.dtype = device, dtype
        self.optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

    def both_passes(self, images: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(self.model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def images(self, number: int) -> tuple[Tensor, Tensor]:
        """Images and labels of a step."""
        settings = self.run.settings
        images, labels = workloads.digits(settings.batch, settings.size, self.device, first=number * settings.batch)
        return images.to(self.dtype), labels

    def step(self, number: int) -> None:
        images, labels = self.images(number)
        begin = time.perf_counter()
        self.optimizer.zero_grad()
        loss = self.both_passes(images, labels)
        self.optimizer.step()
        self.run.losses.append(float(loss))  # waits for the GPU
        self.run.seconds.append(time.perf_counter() - begin)

    def measure_memory(self) -> None:
        images, labels = self.images(0)
        self.run.peak = memory.of(lambda: self.both_passes(images, labels), self.device).peak


def losses_agree(runs: Sequence[Run]) -> bool:
    return all(run.loss_error <= LOSS_TOLERANCE for run in runs)


def figures(run: Run) -> dict[str, object]:
    """For JSON."""
    names = ("network", "name", "settings", "seconds", "losses", "peak", "loss_error")
    return {"median": statistics.median(run.seconds), **{name: getattr(run, name) for name in names}}


def table(runs: Sequence[Run]) -> Table:
    head = ("network", "way", "step", "native / it", "peak, MB", "of native's", "losses", "off in float64")
    native = {run.network: run for run in runs if run.name == NATIVE}
    lines = []
    for run in runs:
        theirs, seconds = native[run.network], statistics.median(run.seconds)
        cells = [f"{seconds:.3f} s", tables.ratio(statistics.median(theirs.seconds) / seconds)]
        cells += [f"{run.peak / 1e6:.0f}", tables.fixed(run.peak / theirs.peak)]
        lines.append((run.network, run.name, *cells, " ".join(f"{loss:.4f}" for loss in run.losses[:4])))
        lines[-1] += (f"{run.loss_error:.0e}",)
    note = (
        "Medians of steps in turns, on the same images from the same weights. Peak: the most memory that tensors take "
        "at once in forward and backward, beyond the model, its gradients and the images. Off in float64: the largest "
        "relative difference from native's losses when all ways train in float64."
    )
    return Table("Training steps", note, head, lines, words=2)
