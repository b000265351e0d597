"""Drop-ins for the batch norm modules of ``torch.nn``.

Each class derives from the class it replaces and overrides ``forward`` alone: constructor, ``state_dict``,
``extra_repr``, the check of the input's rank and ``isinstance`` are torch's own.
"""

from torch import Tensor, nn

from .functional import batchnorm_forward

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "LazyBatchNorm1d", "LazyBatchNorm2d", "LazyBatchNorm3d"]


class _Forward(nn.modules.batchnorm._BatchNorm):
    """The forward pass that all classes share: one call of the operator, which also counts the batch."""

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        if self.training and not self.track_running_stats:  # statistics that were set all the same stay as they are
            return batchnorm_forward(input, self.weight, self.bias, None, None, True, self.momentum, self.eps)[0]
        running_mean = self.running_mean  # each read of a buffer is a search in nn.Module.__getattr__
        running_var = self.running_var
        return batchnorm_forward(
            input,
            self.weight,
            self.bias,
            running_mean,
            running_var,
            self.training or (running_mean is None and running_var is None),
            self.momentum,
            self.eps,
            self.num_batches_tracked if self.training else None,
        )[0]


class BatchNorm1d(_Forward, nn.BatchNorm1d):
    """Drop-in for :class:`torch.nn.BatchNorm1d`: input ``[N, C]`` or ``[N, C, L]``, same arguments and state."""


class BatchNorm2d(_Forward, nn.BatchNorm2d):
    """Drop-in for :class:`torch.nn.BatchNorm2d`: input ``[N, C, H, W]``, same arguments and state."""


class BatchNorm3d(_Forward, nn.BatchNorm3d):
    """Drop-in for :class:`torch.nn.BatchNorm3d`: input ``[N, C, D, H, W]``, same arguments and state."""


class LazyBatchNorm1d(_Forward, nn.LazyBatchNorm1d):
    """Drop-in for :class:`torch.nn.LazyBatchNorm1d`: becomes :class:`BatchNorm1d` at the first input."""

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(_Forward, nn.LazyBatchNorm2d):
    """Drop-in for :class:`torch.nn.LazyBatchNorm2d`: becomes :class:`BatchNorm2d` at the first input."""

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(_Forward, nn.LazyBatchNorm3d):
    """Drop-in for :class:`torch.nn.LazyBatchNorm3d`: becomes :class:`BatchNorm3d` at the first input."""

    cls_to_become = BatchNorm3d
