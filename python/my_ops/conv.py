"""Convolution, batch norm and activation as one module, which keeps one tensor for the backward pass instead of two."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from . import fused, modules, sync

__all__ = ["ConvBatchNorm1d", "ConvBatchNorm2d", "ConvBatchNorm3d"]

conv_batchnorm_forward: Callable[..., tuple[Tensor, Tensor, Tensor]] = torch.ops.my_ops.conv_batchnorm_forward
sync_conv_batchnorm_forward: Callable[..., tuple[Tensor, ...]] = torch.ops.my_ops.sync_conv_batchnorm_forward


class _ConvBatchNorm(nn.Module):
    """``norm(conv(x))``, the operator of both. Hooks of the two children do not run: they are not called themselves."""

    _conv: ClassVar[type[_ConvNd]]
    _norm: ClassVar[type[_BatchNorm]]
    _act: ClassVar[type[fused._Act]]
    conv: _ConvNd
    norm: _BatchNorm

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: str = "zeros",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "identity",
        slope: float | None = None,
    ) -> None:
        super().__init__()
        shape = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        self.conv = self._conv(*shape, bias, padding_mode, device, dtype)  # type: ignore[arg-type]
        make: Callable[..., _BatchNorm] = self._norm
        if activation != "identity":
            make = partial(self._act, activation=activation, slope=slope)
        self.norm = make(out_channels, eps, momentum, affine, track_running_stats, device, dtype)

    @classmethod
    def of(cls, conv: _ConvNd, norm: _BatchNorm) -> Self:
        """A module of these two, which keep their parameters, buffers and modes; a batch norm of torch's or ours.

        A ``BatchNormAct`` brings its activation along; with a ``SyncBatchNorm`` (which ``convert_sync_batchnorm`` makes
        of ``norm``) the statistics are those of the batch of all ranks.

        Raises TypeError for other classes (subclasses included, whose behaviour may not be that of a convolution or of
        batch norm) and ValueError for channels that do not go together.
        """
        torchs = cls._norm.__mro__[2]
        synchronized = (sync.SyncBatchNorm, sync.SyncBatchNormAct)
        if type(conv) is not cls._conv or type(norm) not in (cls._norm, cls._act, torchs, *synchronized):
            wanted = f"{cls._conv.__name__} and {cls._norm.__name__}"
            raise TypeError(
                f"{cls.__name__}.of: expected {wanted}, got {type(conv).__name__} and {type(norm).__name__}"
            )
        if conv.out_channels != norm.num_features:
            raise ValueError(
                f"{cls.__name__}.of: expected norm of {conv.out_channels} features, got {norm.num_features}"
            )
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        module.conv, module.norm = conv, norm
        return module.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        conv, norm = self.conv, self.norm
        if not isinstance(norm, _BatchNorm):  # frozen: its backward pass keeps nothing
            return norm(conv(input))
        norm._check_input_dim(input)  # type: ignore[no-untyped-call]
        input, padding = _pad(conv, input)
        if isinstance(norm, sync.SyncBatchNorm) and (group := norm.share(input, conv.out_channels)) is not None:
            return self._synchronized(input, padding, norm, group)
        untracked = norm.training and not norm.track_running_stats  # as in the batch norm modules
        running_mean = None if untracked else norm.running_mean
        running_var = None if untracked else norm.running_var
        return conv_batchnorm_forward(
            input,
            conv.weight,
            conv.bias,
            norm.weight,
            norm.bias,
            running_mean,
            running_var,
            conv.stride,
            padding,
            conv.dilation,
            conv.groups,
            norm.training or (running_mean is None and running_var is None),
            norm.momentum,
            norm.eps,
            norm.num_batches_tracked if norm.training and not untracked else None,
            *_activation(norm),
        )[0]

    def _synchronized(
        self, input: Tensor, padding: Sequence[int], norm: sync.SyncBatchNorm, group: tuple[int, str]
    ) -> Tensor:
        conv = self.conv
        gamma, beta, running_mean, running_var, *factors = norm._parameters_and_statistics()
        return sync_conv_batchnorm_forward(
            *(input, conv.weight, conv.bias, gamma, beta, running_mean, running_var),
            *(conv.stride, padding, conv.dilation, conv.groups, *factors),
            *_activation(norm),
            *group,
        )[0]


def _activation(norm: _BatchNorm) -> tuple[str, float]:
    return getattr(norm, "activation", "identity"), getattr(norm, "slope", 0.0)


def _pad(conv: _ConvNd, input: Tensor) -> tuple[Tensor, Sequence[int]]:
    """Input and padding for the operator, which pads with zeros and both sides alike; all else is padded here."""
    none = [0] * len(conv.kernel_size)
    if conv.padding_mode != "zeros":
        return F.pad(input, conv._reversed_padding_repeated_twice, mode=conv.padding_mode), none
    if not isinstance(conv.padding, str):
        return input, conv.padding
    if conv.padding == "valid":
        return input, none
    both_sides = [dilation * (size - 1) for dilation, size in zip(conv.dilation, conv.kernel_size, strict=True)]
    if any(total % 2 for total in both_sides):
        return F.pad(input, conv._reversed_padding_repeated_twice), none
    return input, [total // 2 for total in both_sides]


class ConvBatchNorm1d(_ConvBatchNorm):
    """``BatchNorm1d(Conv1d(x))`` in training and inference: input ``[N, C_in, L]``, output ``[N, C_out, L_out]``.

    For the backward pass it keeps the convolution's input, and mean and invstd of each channel; not the convolution's
    output, which the backward pass computes anew: half of the memory, for the time of one convolution more. Gradients,
    running statistics and dtypes are those of the two modules one after the other, under autocast too.

    Arguments are those of :class:`torch.nn.Conv1d` (``bias`` off by default, as batch norm takes it away again), then
    those of :class:`torch.nn.BatchNorm1d`, then ``activation`` and ``slope`` as in
    :func:`my_ops.functional.batch_norm_act`: with an activation, nothing more is kept. The two are the children
    ``conv`` and ``norm``, so that ``state_dict`` has ``conv.weight``, ``norm.weight``, ``norm.running_mean`` and so on;
    hooks of these children do not run. With ``padding_mode`` other than zeros, or ``padding="same"`` that is uneven,
    what is kept is the padded input.
    """

    _conv, _norm, _act = nn.Conv1d, modules.BatchNorm1d, fused.BatchNormAct1d


class ConvBatchNorm2d(_ConvBatchNorm):
    """As :class:`ConvBatchNorm1d`, of ``Conv2d`` and ``BatchNorm2d``: ``[N, C_in, H, W]``, any memory layout."""

    _conv, _norm, _act = nn.Conv2d, modules.BatchNorm2d, fused.BatchNormAct2d


class ConvBatchNorm3d(_ConvBatchNorm):
    """As :class:`ConvBatchNorm1d`, of ``Conv3d`` and ``BatchNorm3d``: ``[N, C_in, D, H, W]``, any memory layout."""

    _conv, _norm, _act = nn.Conv3d, modules.BatchNorm3d, fused.BatchNormAct3d
