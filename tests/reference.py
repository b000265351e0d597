"""Batch normalization by definition, in float64: the one truth that the operators are compared with.

Plain torch arithmetic in two passes (mean first, then squared deviations), for any rank of 2 or more and any dtype;
arguments are upcast, never changed. Every result carries its scale: the sum of the absolute values of the terms it is
made of. Rounding errors are proportional to those terms, not to the result, so tolerances multiply the scale.

The mean is no such term: x - mean is exact or nearly so, hence |mean| >> std must cost no digits. Only what float64
input loses when the mean itself is rounded, here as in the operators, counts; narrower types leave room to avoid it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Result:
    value: Tensor
    scale: Tensor


@dataclass(frozen=True)
class Statistics:
    """Of the M values of each channel; `var` is biased. `mean.scale` is what x - mean is made of: mean(|x - mean|)."""

    mean: Result
    m2: Result
    var: Result
    count: int


@dataclass(frozen=True)
class Forward:
    output: Result
    mean: Result
    invstd: Result
    running_mean: Result | None
    running_var: Result | None
    num_batches_tracked: int | None


@dataclass(frozen=True)
class Backward:
    grad_input: Result
    grad_gamma: Result
    grad_beta: Result


def upcast(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


def given(tensor: Tensor | None) -> Result | None:
    """An argument, which is exact."""
    if tensor is None:
        return None
    value = upcast(tensor)
    return Result(value, torch.zeros_like(value))


def per_channel(vector: Tensor, like: Tensor) -> Tensor:
    """A [C] vector as [1, C, 1, ...], to broadcast against `like`."""
    return vector.reshape([1, -1] + [1] * (like.dim() - 2))


def channel_sum(tensor: Tensor) -> Tensor:
    """Over all dimensions but the second; side by side in memory, where torch sums in pairs and loses least."""
    return tensor.transpose(0, 1).flatten(1).sum(1)


def values_per_channel(tensor: Tensor) -> int:
    """M = N * S."""
    return math.prod(size for dim, size in enumerate(tensor.shape) if dim != 1)


def _statistics(mean: Tensor, m2: Tensor, deviation: Tensor, count: int, mean_is_rounded: bool) -> Statistics:
    """A mean that is off by d changes a term (x - mean)^2 by 2 * |x - mean| * d. The smallest numbers bound d, too."""
    off = mean.abs() + torch.finfo(mean.dtype).tiny if mean_is_rounded else torch.zeros_like(mean)
    var, var_scale = m2 / max(count, 1), m2 / max(count, 1) + 2.0 * deviation * off
    return Statistics(Result(mean, deviation + off), Result(m2, count * var_scale), Result(var, var_scale), count)


def statistics(input: Tensor) -> Statistics:
    """mean = sum(x) / M, M2 = sum((x - mean)^2), var = M2 / M; all zero when there are no values."""
    x = upcast(input)
    count = values_per_channel(x)
    divisor = max(count, 1)
    mean = channel_sum(x) / divisor
    mean = mean + channel_sum(x - per_channel(mean, x)) / divisor  # what the sum's rounding left
    centred = x - per_channel(mean, x)
    m2 = channel_sum(centred.square())
    deviation = channel_sum(centred.abs()) / divisor
    return _statistics(mean, m2, deviation, count, mean_is_rounded=input.dtype == torch.float64)


def gather(means: Tensor, m2s: Tensor, counts: Tensor) -> Statistics:
    """The statistics of R parts together, from those of each part: [R, C], [R, C], [R]."""
    weights, total = upcast(counts)[:, None], int(counts.sum())
    divisor = max(total, 1)
    mean = (weights * upcast(means)).sum(0) / divisor
    centred = upcast(means) - mean
    m2 = (upcast(m2s) + weights * centred.square()).sum(0)
    deviation = (weights * centred.abs()).sum(0) / divisor
    return _statistics(mean, m2, deviation, total, mean_is_rounded=means.dtype == torch.float64)


def inverse_std(var: Result, eps: float) -> Result:
    """1 / sqrt(var + eps): its relative error is half that of the root's argument, but no less than a rounding."""
    invstd = (var.value + eps).rsqrt()
    return Result(invstd, invstd * (1.0 + var.scale / (var.value + eps)))


def normalise(input: Tensor, gamma: Tensor | None, beta: Tensor | None, mean: Result, invstd: Tensor) -> Result:
    """y = (x - mean) * invstd * gamma + beta."""
    x = upcast(input)
    scale = per_channel(upcast(invstd) * (1.0 if gamma is None else upcast(gamma)), x)
    shift = 0.0 if beta is None else per_channel(upcast(beta), x)
    centred = x - per_channel(mean.value, x)
    terms = (centred.abs() + per_channel(mean.scale, x)) * scale.abs() + abs(shift)
    return Result(centred * scale + shift, terms)


def moving_average(running: Tensor | None, batch: Result, share: float) -> Result | None:
    """(1 - share) * running + share * batch."""
    if running is None:
        return None
    kept, added = (1.0 - share) * upcast(running), share * batch.value
    return Result(kept + added, kept.abs() + added.abs() + share * batch.scale)


def update_running(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batch: Statistics,
    momentum: float | None,
    num_batches_tracked: Tensor | None,
) -> tuple[Result | None, Result | None, int | None]:
    """Towards the batch's mean and unbiased variance; momentum None is the cumulative average, 1/k for the k-th batch.

    An empty batch changes nothing, nor does one without channels.
    """
    counter = None if num_batches_tracked is None else int(num_batches_tracked)
    if batch.count == 0 or batch.mean.value.numel() == 0:
        return given(running_mean), given(running_var), counter
    counter = None if counter is None else counter + 1
    share = momentum if momentum is not None else 1.0 / (counter or 1)
    unbiased = Result(batch.m2.value / (batch.count - 1), batch.m2.scale / (batch.count - 1))
    mean = moving_average(running_mean, batch.mean, share)
    return mean, moving_average(running_var, unbiased, share), counter


def forward(
    input: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    num_batches_tracked: Tensor | None = None,
) -> Forward:
    running = (given(running_mean), given(running_var), num_batches_tracked and int(num_batches_tracked))
    if training:
        batch = statistics(input)
        mean, var = batch.mean, batch.var
        running = update_running(running_mean, running_var, batch, momentum, num_batches_tracked)
    else:
        assert running[0] is not None and running[1] is not None
        mean, var = running[:2]
    invstd = inverse_std(var, eps)
    output = normalise(input, gamma, beta, mean, invstd.value)
    return Forward(output, mean, invstd, *running)


def differentiable(
    input: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    eps: float,
) -> Tensor:
    """The output in plain torch operations, whose derivatives torch knows: the truth for those of any order."""
    mean, var = running_mean, running_var
    if training:
        mean = channel_sum(input) / values_per_channel(input)
        var = channel_sum((input - per_channel(mean, input)).square()) / values_per_channel(input)
    output = (input - per_channel(mean, input)) * per_channel((var + eps).rsqrt(), input)
    if gamma is not None:
        output = output * per_channel(gamma, input)
    return output if beta is None else output + per_channel(beta, input)


def backward_reduce(grad_output: Tensor, input: Tensor, mean: Tensor, invstd: Tensor) -> tuple[Result, Result]:
    """sum(dy) and sum(dy * xhat), with xhat = (x - mean) * invstd."""
    dy, xhat = upcast(grad_output), normalise(input, None, None, given(mean), invstd).value
    terms = dy * xhat
    return Result(channel_sum(dy), channel_sum(dy.abs())), Result(channel_sum(terms), channel_sum(terms.abs()))


def backward_apply(
    grad_output: Tensor,
    input: Tensor,
    gamma: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    sum_dy: Result,
    sum_dy_xhat: Result,
    count: int,
) -> Result:
    """dx = gamma * invstd * (dy - sum_dy / M - xhat * sum_dy_xhat / M)."""
    dy, xhat = upcast(grad_output), normalise(input, None, None, given(mean), invstd).value
    scale = per_channel(upcast(invstd) * (1.0 if gamma is None else upcast(gamma)), dy)
    mean_dy, mean_dy_xhat = (per_channel(total.value / max(count, 1), dy) for total in (sum_dy, sum_dy_xhat))
    off_dy, off_dy_xhat = (per_channel(total.scale / max(count, 1), dy) for total in (sum_dy, sum_dy_xhat))
    terms = dy.abs() + mean_dy.abs() + off_dy + xhat.abs() * (mean_dy_xhat.abs() + off_dy_xhat)
    return Result((dy - mean_dy - xhat * mean_dy_xhat) * scale, terms * scale.abs())


def backward(
    grad_output: Tensor, input: Tensor, gamma: Tensor | None, mean: Tensor, invstd: Tensor, training: bool
) -> Backward:
    """dgamma = sum(dy * xhat), dbeta = sum(dy); dx as backward_apply, and in eval gamma * invstd * dy."""
    sum_dy, sum_dy_xhat = backward_reduce(grad_output, input, mean, invstd)
    constant = given(torch.zeros_like(sum_dy.value))  # in eval nothing flows through the statistics
    sums = (sum_dy, sum_dy_xhat) if training else (constant, constant)
    count = values_per_channel(grad_output)
    grad_input = backward_apply(grad_output, input, gamma, mean, invstd, *sums, count)
    return Backward(grad_input, sum_dy_xhat, sum_dy)
