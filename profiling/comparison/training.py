"""A small network trained both ways from the same seed, on the same images in the same order."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import my_ops
from profiling.measure import workloads
from profiling.measure.peers import NATIVE, OURS

IMAGE = 32  # pixels each way
BATCH = 64
TRAIN_IMAGES = 1500  # the other 297 digits are held out
LEARNING_RATE, MOMENTUM = 0.05, 0.9


@dataclass
class Run:
    """One way of training. ``accuracy``: share of held-out digits recognised in inference mode, after the last step."""

    name: str
    losses: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    accuracy: float = 0.0


def train(steps: int, device: torch.device, advance: Callable[[], None]) -> list[Run]:
    """Trains natively and with my_ops, step by step in turns; ``advance`` is called after each of ``steps``."""
    images, labels = workloads.digits(TRAIN_IMAGES, IMAGE, device)
    ways = [_Way(name, device) for name in (OURS, NATIVE)]
    generator = torch.Generator().manual_seed(workloads.SEED)
    for number in range(steps):
        chosen = torch.randint(TRAIN_IMAGES, (BATCH,), generator=generator).to(device)
        for way in ways if number % 2 else reversed(ways):
            way.step(images[chosen], labels[chosen])
        advance()
    held_out = workloads.digits(297, IMAGE, device, first=TRAIN_IMAGES)
    for way in ways:
        way.run.accuracy = _accuracy(way.model, *held_out)
    return [way.run for way in ways]


def loss_difference(runs: Sequence[Run], steps: int | None = None) -> float:
    """The largest distance of two loss curves, over the first ``steps`` or all."""
    first, second = (run.losses[:steps] for run in runs)
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


class _Way:
    def __init__(self, name: str, device: torch.device) -> None:
        self.run = Run(name)
        self.model = workloads.small_resnet().to(device)
        if name == OURS:
            my_ops.convert_batchnorm(self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

    def step(self, images: Tensor, labels: Tensor) -> None:
        begin = time.perf_counter()
        loss = float(workloads.training_step(self.model, self.optimizer, images, labels))  # waits for the GPU
        self.run.step_seconds.append(time.perf_counter() - begin)
        self.run.losses.append(loss)


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    return float((model(images).logits.argmax(1) == labels).float().mean())
