"""Batch norm modules that end in an activation, with an optional residual before it."""

from typing import Any

from torch import Tensor, nn

from . import modules
from .functional import SLOPES, batchnorm_act_forward

__all__ = ["BatchNormAct1d", "BatchNormAct2d", "BatchNormAct3d"]


class _Act(nn.modules.batchnorm._BatchNorm):
    """Constructor and forward pass that all classes share."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str = "relu",
        slope: float | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if activation not in SLOPES:
            known = list(SLOPES)
            names = f"{', '.join(known[:-1])} or {known[-1]}"
            raise ValueError(f"{type(self).__name__}: expected activation {names}, got {activation}")
        self.activation = activation
        self.slope = SLOPES[activation] if slope is None else slope

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        tracks = self.track_running_stats or not self.training  # statistics that were set all the same stay as they are
        running_mean = self.running_mean if tracks else None
        running_var = self.running_var if tracks else None
        return batchnorm_act_forward(
            input,
            residual,
            self.weight,
            self.bias,
            running_mean,
            running_var,
            self.training or (running_mean is None and running_var is None),
            self.momentum,
            self.eps,
            self.activation,
            self.slope,
            self.num_batches_tracked if self.training and tracks else None,
        )[0]

    def extra_repr(self) -> str:
        slope = f", slope={self.slope}" if self.activation in ("leaky_relu", "elu") else ""
        return f"{super().extra_repr()}, activation={self.activation}{slope}"


class BatchNormAct1d(_Act, modules.BatchNorm1d):
    """``act(batch_norm(input) + residual)``; input ``[N, C]`` or ``[N, C, L]``.

    Arguments, parameters, buffers and ``state_dict`` of :class:`torch.nn.BatchNorm1d`, and besides ``activation`` and
    ``slope`` as in :func:`my_ops.functional.batch_norm_act`. ``forward(input, residual=None)``.
    """


class BatchNormAct2d(_Act, modules.BatchNorm2d):
    """:class:`BatchNormAct1d` for input ``[N, C, H, W]``."""


class BatchNormAct3d(_Act, modules.BatchNorm3d):
    """:class:`BatchNormAct1d` for input ``[N, C, D, H, W]``."""
