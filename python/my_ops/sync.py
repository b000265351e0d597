"""Batch norm over the batch of all processes of a ``torch.distributed`` group.

Every rank has a part of the batch, of any size. A training step costs two collectives per layer: one forward, in which
each rank tells the others (mean, M2, count) of its part, and one backward, for the two sums that the gradient needs.
All ranks merge what they are told in rank order, so that they hold the same bits.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import fused, modules

__all__ = ["SyncBatchNorm", "SyncBatchNormAct", "SyncInPlaceBatchNormAct"]

# Bound once: `torch.ops.my_ops` looks its operators up by name.
_sync_batchnorm_forward: Callable[..., tuple[Tensor, Tensor, Tensor]] = torch.ops.my_ops.sync_batchnorm_forward
_sync_batchnorm_act_forward_: Callable[..., tuple[Tensor, ...]] = torch.ops.my_ops.sync_batchnorm_act_forward_
_all_gather: Callable[[Tensor, int, str], Tensor] = torch.ops.my_ops.all_gather


class SyncBatchNorm(modules._Forward):
    """Drop-in for :class:`torch.nn.SyncBatchNorm`, on every device: statistics of the batch of all ranks.

    Input ``[N, C, ...]`` of rank 2 or more, any dtype and layout of :class:`BatchNorm2d`; ``N`` may differ between
    ranks, and be 0. In eval mode, in a group of one, and where ``torch.distributed`` is not initialized, it is plain
    batch norm without communication. All ranks of the group must run the layer, forward and backward, equally often
    and in the same order.

    Gradients of the input are those of one large batch. Gradients of ``weight`` and ``bias`` are those of this rank's
    part: DistributedDataParallel averages them over the ranks.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype: as :class:`torch.nn.BatchNorm2d`.
        process_group: whose ranks share a batch; None: the default group. To a rank outside of it this is plain batch
            norm.
        options: ``bias=False``, where torch's own modules have it (2.13 and later).

    Raises:
        ValueError: in ``forward``: input of rank less than 2; one value per channel on all ranks together.
        RuntimeError: in ``forward``: an argument that does not fit; a first input whose number of channels or
            statistics dtype differs between ranks, on all of them; another rank that fails or does not answer within
            the time-out of the group
            (``torch.distributed.DistBackendError``).
    """

    # What all ranks have been found to agree on; not part of the state.
    _agreed: tuple[str, torch.dtype] | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any | None = None,
        device: Any | None = None,
        dtype: torch.dtype | None = None,
        **options: bool,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **options)
        self.process_group = process_group

    def forward(self, input: Tensor) -> Tensor:
        group = self.share(input)
        if group is None:
            return super().forward(input)
        return _sync_batchnorm_forward(input, *self._parameters_and_statistics(), *group)[0]

    def share(self, input: Tensor, channels: int | None = None) -> tuple[int, str] | None:
        """Size and name of the group whose ranks share the batch of which ``input`` is a part; None: there is nobody.

        Communicates the first time, and raises what ``forward`` does. ``channels``: of what is normalised, if that is
        made of ``input`` and has other channels.
        """
        group = _group(self.process_group) if self.training else None
        if group is None:
            return None
        self._check_input_dim(input)
        self._agree(input, input.shape[1] if channels is None else channels, group.size(), group.group_name)
        return group.size(), group.group_name

    def _parameters_and_statistics(self) -> tuple[Any, ...]:
        """What the operators take between the image and the group."""
        tracks = self.track_running_stats  # else statistics that were set all the same stay as they are
        return (
            self.weight,
            self.bias,
            self.running_mean if tracks else None,
            self.running_var if tracks else None,
            self.momentum,
            self.eps,
            self.num_batches_tracked if tracks else None,
        )

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"{type(self).__name__}: expected input of rank 2 or more, got shape {list(input.shape)}")

    def _agree(self, input: Tensor, channels: int, size: int, name: str) -> None:
        """Messages of different lengths would be garbage, or end the process: the first time all ranks compare."""
        wide = torch.float64 if input.dtype == torch.float64 else torch.float32
        if self._agreed != (name, wide) and not torch.compiler.is_compiling():
            own = torch.tensor([channels, wide.itemsize], device=input.device)
            theirs = _all_gather(own, size, name).tolist()
            if any(each != theirs[0] for each in theirs):
                got = ", ".join(f"{c} in float{8 * itemsize}" for c, itemsize in theirs)
                raise RuntimeError(
                    f"{type(self).__name__}: expected channels and statistics dtype of all ranks alike, got {got}"
                )
            self._agreed = (name, wide)
        if channels != self.num_features:
            raise RuntimeError(f"{type(self).__name__}: expected input of {self.num_features} channels, got {channels}")

    def __getstate__(self) -> dict[str, Any]:
        """Copies find out for themselves."""
        return {name: value for name, value in self.__dict__.items() if name != "_agreed"}


class SyncBatchNormAct(fused._Act, SyncBatchNorm):
    """``act(batch_norm(input) + residual)`` with the statistics of the batch of all ranks.

    To :class:`BatchNormAct2d` what :class:`SyncBatchNorm` is to :class:`BatchNorm2d`, with no more communication than
    this; input of any rank. ``forward(input, residual=None)``.

    Args:
        activation, slope: as in :func:`my_ops.functional.batch_norm_act`. The others are those of
            :class:`SyncBatchNorm`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any | None = None,
        device: Any | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "relu",
        slope: float | None = None,
    ) -> None:
        arguments = (num_features, eps, momentum, affine, track_running_stats, device, dtype)
        super().__init__(*arguments, activation=activation, slope=slope)
        self.process_group = process_group

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        group = self.share(input)
        if group is None:
            return super().forward(input, residual)
        behind = (residual, self.activation, self.slope)
        return _sync_batchnorm_forward(input, *self._parameters_and_statistics(), *group, *behind)[0]


class SyncInPlaceBatchNormAct(fused._InPlace, SyncBatchNormAct):
    """``act(batch_norm(input))`` written over ``input``, with the statistics of the batch of all ranks.

    To :class:`InPlaceBatchNormAct2d` what :class:`SyncBatchNorm` is to :class:`BatchNorm2d`, with no more communication
    than this; input of any rank. Arguments are those of :class:`SyncBatchNormAct`, ``activation`` one of
    :class:`InPlaceBatchNormAct2d`.
    """

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        group = self.share(input)
        if group is None:
            return super().forward(input)
        if torch.compiler.is_compiling():  # a compiler plans memory itself
            return SyncBatchNormAct.forward(self, input)
        *arguments, counter = self._parameters_and_statistics()
        _sync_batchnorm_act_forward_(input, *arguments, self.activation, self.slope, counter, *group)
        return input


def _group(group: Any | None) -> Any | None:
    """The process group to communicate in; None: there is nobody to talk to."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    # Registers what torch.compile must know of collectives; only here, so that `import my_ops` stays light.
    from torch.distributed import _functional_collectives  # noqa: F401

    group = dist.group.WORLD if group is None else group
    return group if dist.get_world_size(group) > 1 else None
