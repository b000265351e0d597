"""Batch norm modules that end in an activation, with an optional residual before it."""

from typing import Any

import torch
from torch import Tensor, nn

from . import modules
from .functional import SLOPES, batchnorm_act_forward

__all__ = [
    "BatchNormAct1d",
    "BatchNormAct2d",
    "BatchNormAct3d",
    "InPlaceBatchNormAct1d",
    "InPlaceBatchNormAct2d",
    "InPlaceBatchNormAct3d",
]


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
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        if activation not in SLOPES:
            known = list(SLOPES)
            names = f"{', '.join(known[:-1])} or {known[-1]}"
            raise ValueError(f"{type(self).__name__}: expected activation {names}, got {activation}")
        self.activation = activation
        self.slope = SLOPES[activation] if slope is None else slope

    def _arguments(self) -> tuple[Any, ...]:
        """What the operators take between the images and the end."""
        tracks = self.track_running_stats or not self.training  # statistics that were set all the same stay as they are
        running_mean = self.running_mean if tracks else None
        running_var = self.running_var if tracks else None
        return (
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
        )

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        return batchnorm_act_forward(input, residual, *self._arguments())[0]

    def extra_repr(self) -> str:
        slope = f", slope={self.slope}" if self.activation in ("leaky_relu", "elu") else ""
        inherited: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{inherited}, activation={self.activation}{slope}"


class BatchNormAct1d(_Act, modules.BatchNorm1d):
    """``act(batch_norm(input) + residual)``; input ``[N, C]`` or ``[N, C, L]``.

    Arguments, parameters, buffers and ``state_dict`` of :class:`torch.nn.BatchNorm1d`, and besides ``activation`` and
    ``slope`` as in :func:`my_ops.functional.batch_norm_act`. ``forward(input, residual=None)``.
    """


class BatchNormAct2d(_Act, modules.BatchNorm2d):
    """:class:`BatchNormAct1d` for input ``[N, C, H, W]``."""


class BatchNormAct3d(_Act, modules.BatchNorm3d):
    """:class:`BatchNormAct1d` for input ``[N, C, D, H, W]``."""


class _InPlace(_Act):
    def __init__(
        self, *arguments: Any, activation: str = "leaky_relu", slope: float | None = None, **options: Any
    ) -> None:
        super().__init__(*arguments, activation=activation, slope=slope, **options)
        if activation != "identity" and not (activation in ("leaky_relu", "elu") and self.slope > 0):
            raise ValueError(
                f"{type(self).__name__}: expected an activation with an inverse (identity, leaky_relu or elu with "
                f"slope > 0), got {activation} with slope {self.slope}"
            )

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        if torch.compiler.is_compiling():  # a compiler plans memory itself
            return batchnorm_act_forward(input, None, *self._arguments())[0]
        torch.ops.my_ops.batchnorm_act_forward_(input, *self._arguments())
        return input


class InPlaceBatchNormAct1d(_InPlace, modules.BatchNorm1d):
    """``act(batch_norm(input))`` written over ``input``; input ``[N, C]`` or ``[N, C, L]``.

    Between forward and backward pass only the output is kept, which the next layer keeps as well: the backward pass
    computes the input back from it. So ``input`` must be no leaf that requires grad, and nobody else may need its
    values (a convolution in front does not). Channels whose output says too little about the input (``weight`` near 0,
    see ``cpp/src/plan/invertible.h``) are found in the forward pass, and their input is kept besides: with elu in
    16-bit types nearly all.

    Arguments, parameters, buffers and ``state_dict`` of :class:`torch.nn.BatchNorm1d`, and ``activation``:
    ``"identity"``, ``"leaky_relu"`` (default) or ``"elu"``, with ``slope`` > 0 as in
    :func:`my_ops.functional.batch_norm_act`. First derivatives in reverse mode only. Under ``torch.compile`` the input
    is left alone.

    Raises:
        ValueError: an activation without an inverse.
    """


class InPlaceBatchNormAct2d(_InPlace, modules.BatchNorm2d):
    """:class:`InPlaceBatchNormAct1d` for input ``[N, C, H, W]``."""


class InPlaceBatchNormAct3d(_InPlace, modules.BatchNorm3d):
    """:class:`InPlaceBatchNormAct1d` for input ``[N, C, D, H, W]``."""
