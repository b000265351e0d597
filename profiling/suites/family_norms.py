"""Rows of the family: the norms that are built of batch norm's passes, each beside what it replaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import my_ops

Pass = Callable[..., tuple[Tensor, ...]]

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


class _ByHand(nn.BatchNorm2d):
    """Forward and backward pass called one by one, as in programs that keep their own account of gradients."""

    def __init__(self, channels: int, forward: Pass, backward: Pass) -> None:
        super().__init__(channels)
        self.passes = forward, backward

    def forward(self, input: Tensor) -> Tensor:
        running = self.running_mean, self.running_var
        output: Tensor = _Passes.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, running, self.training, self.momentum, self.eps, *self.passes
        )
        return output


class _Passes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        running: tuple[Tensor, Tensor],
        training: bool,
        momentum: float,
        eps: float,
        forward: Pass,
        backward: Pass,
    ) -> Tensor:
        output, mean, invstd = forward(x, gamma, beta, *running, training, momentum, eps)
        ctx.save_for_backward(x, gamma, mean, invstd)
        ctx.gradients = partial(backward, running=running, training=training, eps=eps)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.gradients(grads[0], *ctx.saved_tensors), *[None] * 6


def _our_backward(
    dy: Tensor, x: Tensor, gamma: Tensor, mean: Tensor, invstd: Tensor, running: Any, training: bool, eps: float
) -> tuple[Tensor, ...]:
    return my_ops.functional.batch_norm_backward(dy, x, gamma, mean, invstd, training)


def _native_backward(
    dy: Tensor, x: Tensor, gamma: Tensor, mean: Tensor, invstd: Tensor, running: Any, training: bool, eps: float
) -> tuple[Tensor, ...]:
    grads: tuple[Tensor, ...] = torch.ops.aten.native_batch_norm_backward(
        dy, x, gamma, *running, mean, invstd, training, eps, [True, True, True]
    )
    return grads


def rows() -> Iterator[Row]:
    """A step reads x and writes y, reads dy and x again and writes dx; frozen, it does not read x again."""
    for shape in ((16, 64, 112, 112), (16, 256, 28, 28)):
        channels = shape[1]
        instance = [partial(kind, channels, affine=True) for kind in (my_ops.InstanceNorm2d, nn.InstanceNorm2d)]
        frozen = [partial(kind, channels) for kind in (my_ops.FrozenBatchNorm2d, _NativeFrozen)]
        yield "instance norm", instance[0], instance[1], shape, (5, 2)
        yield "frozen batch norm", frozen[0], frozen[1], shape, (4, 2)
    custom, native = (partial(kind, channels) for kind in (my_ops.BatchNormCustom, nn.BatchNorm2d))
    yield "hand-made batch norm", custom, native, shape, (5, 2)
    ours = partial(_ByHand, channels, torch.ops.my_ops.batchnorm_forward, _our_backward)
    yield "manual gradients", ours, partial(_ByHand, channels, torch.native_batch_norm, _native_backward), shape, (5, 2)
