"""Training steps of a ResNet-50 among processes: with batch norm that each process has for itself, synchronized by this
library, and synchronized naively, by an ``all_reduce`` of sums and sums of squares.

The naive layer is what most programs write, and what Detectron2 has (``NaiveSyncBatchNorm``): the moments of all ranks
from one ``all_reduce`` that has a gradient, then ``x * scale + shift``. One float32 number more per layer counts the
values, so that parts may differ in size.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

import my_ops
from profiling.measure import networks

Way = Literal["alone", "ours", "naive"]
IMAGES = (4, 3, 64, 64)  # of each rank


class _AllReduce(torch.autograd.Function):
    """The sum over all ranks: every rank reads what this one gives, so that gradients add up as well; but that of the
    count, the last number, which nobody needs."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total[:-1])
        return total


class NaiveSyncBatchNorm(nn.BatchNorm2d):
    """Training alone; in one process it is ``nn.BatchNorm2d``, as far as float32 lets it."""

    def forward(self, input: Tensor) -> Tensor:
        channels = input.shape[1]
        count = input.new_full((1,), input.numel() / channels)
        part = torch.cat([input.sum((0, 2, 3)), input.square().sum((0, 2, 3)), count])
        total: Tensor = _AllReduce.apply(part)  # type: ignore[no-untyped-call]
        values = total[-1].detach()
        mean, square = total[:channels] / values, total[channels:-1] / values
        var = square - mean * mean
        with torch.no_grad():
            momentum = 0.0 if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)  # type: ignore[union-attr]
            self.running_var.lerp_(var * values / (values - 1), momentum)  # type: ignore[union-attr]
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        return input * scale[None, :, None, None] + shift[None, :, None, None]


def naive(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = NaiveSyncBatchNorm
    return model


WAYS: dict[Way, Callable[[nn.Module], nn.Module]] = {
    "alone": my_ops.convert_batchnorm,
    "ours": my_ops.convert_sync_batchnorm,
    "naive": naive,
}


def training_steps(repeats: int) -> dict[Way, float]:
    """Seconds of both passes, the median of ``repeats``; the ranks start together, the ways take turns."""
    torch.manual_seed(dist.get_rank())
    images = torch.randn(IMAGES)
    models = {way: convert(networks.ResNet()) for way, convert in WAYS.items()}
    seconds: dict[Way, list[float]] = {way: [] for way in WAYS}
    for _ in range(repeats + 1):
        for way, model in models.items():
            dist.barrier()
            begin = time.perf_counter()
            model(images).sum().backward()
            seconds[way].append(time.perf_counter() - begin)
    return {way: statistics.median(each[1:]) for way, each in seconds.items()}
