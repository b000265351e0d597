"""Batch norm as a custom operator: the classic exercise, solved. docs/custom_operator.md walks through it."""

import torch
from torch import Tensor, nn

from .functional import batchnorm_forward

__all__ = ["BatchNormCustom"]


class BatchNormCustom(nn.Module):
    """Batch norm for images, written out around the operator; equal to :class:`torch.nn.BatchNorm2d`.

    Args:
        num_features: channels ``C`` of the input ``[N, C, H, W]``.
        eps: added to the variance, more than 0.
        momentum: weight of a batch in the running statistics.

    In training it normalises with the mean and the biased variance of the batch, towards which (the variance unbiased)
    the running statistics move; in eval with the running statistics. The same parameters, buffers and ``state_dict`` as
    torch's module. For everyday use there is :class:`my_ops.BatchNorm2d`, which is a subclass of torch's.

    Raises:
        ValueError: an input of another rank than 4.
        RuntimeError: any other input that does not fit.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 4:
            raise ValueError(f"BatchNormCustom: expected input of rank 4, got shape {list(input.shape)}")
        output, _mean, _invstd = batchnorm_forward(
            input,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            self.training,
            self.momentum,
            self.eps,
            self.num_batches_tracked,
        )
        return output

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"
