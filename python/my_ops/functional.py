"""The operators as functions, with the signatures of ``torch.nn.functional``."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["batch_norm", "batch_norm_act", "batch_norm_backward", "instance_norm"]

# Bound once: `torch.ops.my_ops` looks its operators up by name.
batchnorm_forward: Callable[..., tuple[Tensor, Tensor, Tensor]] = torch.ops.my_ops.batchnorm_forward
batchnorm_backward: Callable[..., tuple[Tensor, Tensor, Tensor]] = torch.ops.my_ops.batchnorm_backward
instancenorm_forward: Callable[..., tuple[Tensor, Tensor, Tensor]] = torch.ops.my_ops.instancenorm_forward
batchnorm_act_forward: Callable[..., tuple[Tensor, ...]] = torch.ops.my_ops.batchnorm_act_forward

# The activations that can follow a batch normalization, with the default of their parameter.
SLOPES: Mapping[str, float] = {
    "identity": 0.0,
    "relu": 0.0,
    "leaky_relu": 0.01,
    "relu6": 0.0,
    "elu": 1.0,
    "silu": 0.0,
    "gelu_tanh": 0.0,
}


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    num_batches_tracked: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Batch normalization over all dimensions but the second, as :func:`torch.nn.functional.batch_norm`.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` with one mean and variance per channel: those of the batch if
    ``training``, else the running ones.

    Args:
        input: ``[N, C, ...]``, rank 2 or more; float64, float32, bfloat16 or float16.
        running_mean, running_var: ``[C]``, of the input's dtype or float32 (float64 for float64 input). Read if not
            ``training``; if ``training``, each one that is given moves towards the batch's mean or unbiased variance.
        weight, bias: ``[C]``, dtypes as above; 1 and 0 if left out.
        training: normalise with the statistics of the batch.
        momentum: weight of the batch in the running statistics; None: the cumulative average over all batches
            (``1 / num_batches_tracked``), which needs ``num_batches_tracked``.
        eps: added to the variance; more than 0 if ``training``, else 0 or more.
        num_batches_tracked: int64, one element; the operator itself adds 1 if ``training`` and the batch is not empty.

        out: where the result is written, without an autograd graph; the input's dtype and sizes, or no elements. May be
            ``input`` itself, else it shares no memory with the other arguments.

    Returns:
        A tensor of the input's dtype, sizes and memory layout; ``out`` if that is given.

    Raises:
        ValueError: ``training`` with one value per channel; an ``eps`` out of range.
        RuntimeError: any other argument that does not fit; the message names it, what was expected and what came.
    """
    if out is not None:
        statistics = torch.float64 if input.dtype == torch.float64 else torch.float32
        mean = input.new_empty(input.shape[1:2], dtype=statistics)
        invstd = torch.empty_like(mean)
        return batchnorm_forward(
            input,
            weight,
            bias,
            running_mean,
            running_var,
            training,
            momentum,
            eps,
            num_batches_tracked,
            output=out,
            save_mean=mean,
            save_invstd=invstd,
        )[0]
    return batchnorm_forward(
        input, weight, bias, running_mean, running_var, training, momentum, eps, num_batches_tracked
    )[0]


def batch_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    training: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of batch norm, for programs that run forward and backward themselves.

    A pure function, itself differentiable any number of times in all its tensors. With ``M`` values per channel and
    ``xhat = (x - mean) * invstd``::

        dbeta  = sum(dy)                 dx = weight * invstd * (dy - dbeta / M - xhat * dgamma / M)    if training
        dgamma = sum(dy * xhat)          dx = weight * invstd * dy                                      else

    Args:
        grad_output: ``dy``, of the input's shape and dtype.
        input: ``x``, ``[N, C, ...]``, what the forward pass was given; float64, float32, bfloat16 or float16.
        weight: ``[C]``, of the input's dtype or float32 (float64 for float64 input); None: 1.
        mean, invstd: ``[C]``, float32 (float64 for float64 input): what the forward pass normalised with, the second
            and third result of ``torch.ops.my_ops.batchnorm_forward``. If ``training`` they must be the statistics of
            the batch; gradients through them are then part of ``dx``.
        training: they depend on the input; else they are constants, as running statistics are. Never guessed.

    Returns:
        ``(dx, dgamma, dbeta)``: of the input's shape, dtype and layout, and twice ``[C]`` of the weight's dtype (that
        of ``mean`` without one).

    Raises:
        RuntimeError: an argument that does not fit; the message names it, what was expected and what came.
    """
    return batchnorm_backward(grad_output, input, weight, mean, invstd, training)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Instance normalization, as :func:`torch.nn.functional.instance_norm`: batch norm of every image by itself.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` with one mean and variance per image and channel, taken over
    the spatial dimensions; or with the running ones, per channel, if not ``use_input_stats``.

    Args:
        input: ``[N, C, ...]``, rank 3 or more (2 if not ``use_input_stats``); float64, float32, bfloat16 or float16.
        running_mean, running_var: ``[C]``, of the input's dtype or float32 (float64 for float64 input). Read if not
            ``use_input_stats``, else moved towards the means over N of the images' means and unbiased variances. Each
            may be given alone then.
        weight, bias: ``[C]``, dtypes as above; 1 and 0 if left out.
        use_input_stats: normalise with the statistics of each image.
        momentum: weight of the batch in the running statistics.
        eps: added to the variance; 0 or more.

    Returns:
        A tensor of the input's dtype, sizes and memory layout.

    Raises:
        ValueError: ``use_input_stats`` with one spatial value; an ``eps`` out of range.
        RuntimeError: any other argument that does not fit; the message names it, what was expected and what came.
    """
    if use_input_stats:
        return instancenorm_forward(input, weight, bias, running_mean, running_var, momentum, eps)[0]
    return batchnorm_forward(input, weight, bias, running_mean, running_var, False, momentum, eps)[0]


def batch_norm_act(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    activation: str = "relu",
    slope: float | None = None,
    residual: Tensor | None = None,
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    """``act(batch_norm(input) + residual)`` in the memory traffic of the batch normalization, forwards and backwards.

    For the backward pass it keeps ``input`` and vectors; with a residual also one bit per value (relu,
    leaky_relu and relu6) or the residual itself (elu, silu and gelu_tanh), never the output.

    Args:
        input, running_mean, running_var, weight, bias, training, momentum, eps, num_batches_tracked: as
            :func:`batch_norm`.
        activation: ``"identity"``, ``"relu"``, ``"leaky_relu"``, ``"relu6"``, ``"elu"``, ``"silu"`` or
            ``"gelu_tanh"`` (the tanh approximation).
        slope: of leaky_relu for negative values, 0.01 by default; alpha of elu, 1 by default. Others have none.
        residual: added before the activation; the input's sizes and dtype.

    Returns:
        A tensor of the input's dtype, sizes and memory layout.

    Raises:
        ValueError: an unknown ``activation``; ``training`` with one value per channel; an ``eps`` out of range.
        RuntimeError: any other argument that does not fit; the message names it, what was expected and what came.
    """
    if slope is None:
        slope = SLOPES.get(activation, 0.0)
    return batchnorm_act_forward(
        input,
        residual,
        weight,
        bias,
        running_mean,
        running_var,
        training,
        momentum,
        eps,
        activation,
        slope,
        num_batches_tracked,
    )[0]
