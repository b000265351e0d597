"""Training steps of whole networks: native, converted, and converted with fused activations, in turns.

All start from the same weights and see the same images. A step is zero_grad, forward, loss, backward and optimizer.
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
from profiling import memory, tables, workloads
from profiling.networks import MobileNetV2, ResNet
from profiling.peers import NATIVE, OURS
from profiling.tables import Table

FUSED = "my_ops, fused"
LEARNING_RATE, MOMENTUM = 0.001, 0.9
LOSS_TOLERANCE = 0.01  # of losses after a few steps, in which roundings have grown

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": ResNet,
    "mobilenetv2": MobileNetV2,
}


@dataclass(frozen=True)
class Settings:
    batch: int = 16
    size: int = 224  # pixels each way
    steps: int = 5


@dataclass
class Run:
    """One network one way: seconds and loss of every step, and the most memory that a step takes."""

    network: str
    name: str
    settings: Settings
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak: int = 0


def run(network: str, settings: Settings, device: torch.device, console: Console) -> list[Run]:
    """Steps of each way, in an order that turns; one more of each comes first and is not timed."""
    torch.manual_seed(workloads.SEED)
    native = NETWORKS[network]().to(device)
    models = {NATIVE: native, OURS: copy.deepcopy(native), FUSED: copy.deepcopy(native)}
    my_ops.convert_batchnorm(models[OURS])
    my_ops.convert_batchnorm(models[FUSED], fuse=True)
    ways = [_Way(Run(network, name, settings), model) for name, model in models.items()]
    for number in range(settings.steps + 1):
        console.print(f"{network}: step {number} of {settings.steps}", style="dim")
        images, labels = workloads.digits(settings.batch, settings.size, device, first=number * settings.batch)
        turn = number % len(ways)
        for way in ways[turn:] + ways[:turn]:
            way.step(images, labels)
    for way in ways:
        way.run.seconds.pop(0)
        way.measure_memory(images, labels, device)
    return [way.run for way in ways]


class _Way:
    def __init__(self, run: Run, model: nn.Module) -> None:
        self.run, self.model = run, model.train()
        self.optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

    def both_passes(self, images: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(self.model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def step(self, images: Tensor, labels: Tensor) -> None:
        begin = time.perf_counter()
        self.optimizer.zero_grad()
        loss = self.both_passes(images, labels)
        self.optimizer.step()
        self.run.losses.append(float(loss))  # waits for the GPU
        self.run.seconds.append(time.perf_counter() - begin)

    def measure_memory(self, images: Tensor, labels: Tensor, device: torch.device) -> None:
        self.run.peak = memory.of(lambda: self.both_passes(images, labels), device).peak


def losses_agree(runs: Sequence[Run]) -> bool:
    native = {run.network: run.losses for run in runs if run.name == NATIVE}
    pairs = ((a, b) for run in runs for a, b in zip(run.losses, native[run.network], strict=True))
    return all(abs(a - b) <= LOSS_TOLERANCE * max(1.0, abs(b)) for a, b in pairs)


def figures(run: Run) -> dict[str, object]:
    """For JSON."""
    names = ("network", "name", "settings", "seconds", "losses", "peak")
    return {"median": statistics.median(run.seconds), **{name: getattr(run, name) for name in names}}


def table(runs: Sequence[Run]) -> Table:
    head = ("network", "way", "step", "native / it", "peak, MB", "of native's", "losses")
    native = {run.network: run for run in runs if run.name == NATIVE}
    lines = []
    for run in runs:
        theirs, seconds = native[run.network], statistics.median(run.seconds)
        cells = [f"{seconds:.3f} s", tables.ratio(statistics.median(theirs.seconds) / seconds)]
        cells += [f"{run.peak / 1e6:.0f}", tables.fixed(run.peak / theirs.peak)]
        lines.append((run.network, run.name, *cells, " ".join(f"{loss:.4f}" for loss in run.losses[:4])))
    note = (
        "Medians of steps in turns, on the same images from the same weights. Peak: the most memory that tensors take "
        "at once in forward and backward, beyond the model, its gradients and the images."
    )
    return Table("Training steps", note, head, lines, words=2)
