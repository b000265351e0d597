"""Rows of the family: the norms that are built of batch norm's passes, each beside what it replaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import my_ops

# name, ours, native, shape of the input, tensors of its size that a step reads or writes at least: training, inference
Row = tuple[str, Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...], tuple[float, float]]


class _NativeFrozen(nn.Module):
    """The state of ``my_ops.FrozenBatchNorm2d`` in torch's one operator for it, which saves its input."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, fill in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), fill))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


def rows() -> Iterator[Row]:
    """A step reads x and writes y, reads dy and x again and writes dx; frozen, it does not read x again."""
    for shape in ((16, 64, 112, 112), (16, 256, 28, 28)):
        channels = shape[1]
        instance = [partial(kind, channels, affine=True) for kind in (my_ops.InstanceNorm2d, nn.InstanceNorm2d)]
        frozen = [partial(kind, channels) for kind in (my_ops.FrozenBatchNorm2d, _NativeFrozen)]
        yield "instance norm", instance[0], instance[1], shape, (5, 2)
        yield "frozen batch norm", frozen[0], frozen[1], shape, (4, 2)
