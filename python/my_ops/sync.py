"""Batch norm over the batch of all processes of a ``torch.distributed`` group.

Every rank has a part of the batch, of any size. A training step costs two collectives per layer: one forward, in which
each rank tells the others (mean, M2, count) of its part, and one backward, for the two sums that the gradient needs.
All ranks merge what they are told in rank order, so that they hold the same bits.
"""

import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import modules

__all__ = ["SyncBatchNorm", "convert_sync_batchnorm"]

_Model = TypeVar("_Model", bound=nn.Module)

# Bound once: `torch.ops.my_ops` looks its operators up by name.
_sync_batchnorm_forward: Callable[..., tuple[Tensor, Tensor, Tensor]] = torch.ops.my_ops.sync_batchnorm_forward
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
        group = _group(self.process_group) if self.training else None
        if group is None:
            return super().forward(input)
        self._check_input_dim(input)
        self._agree(input, group.size(), group.group_name)
        tracks = self.track_running_stats  # else statistics that were set all the same stay as they are
        return _sync_batchnorm_forward(
            input,
            self.weight,
            self.bias,
            self.running_mean if tracks else None,
            self.running_var if tracks else None,
            self.momentum,
            self.eps,
            self.num_batches_tracked if tracks else None,
            group.size(),
            group.group_name,
        )[0]

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"SyncBatchNorm: expected input of rank 2 or more, got shape {list(input.shape)}")

    def _agree(self, input: Tensor, size: int, name: str) -> None:
        """Messages of different lengths would be garbage, or end the process: the first time all ranks compare."""
        channels = input.shape[1]
        wide = torch.float64 if input.dtype == torch.float64 else torch.float32
        if self._agreed != (name, wide) and not torch.compiler.is_compiling():
            own = torch.tensor([channels, wide.itemsize], device=input.device)
            theirs = _all_gather(own, size, name).tolist()
            if any(each != theirs[0] for each in theirs):
                got = ", ".join(f"{c} in float{8 * itemsize}" for c, itemsize in theirs)
                raise RuntimeError(
                    f"SyncBatchNorm: expected channels and statistics dtype of all ranks alike, got {got}"
                )
            self._agreed = (name, wide)
        if channels != self.num_features:
            raise RuntimeError(
                f"SyncBatchNorm: expected input of {self.num_features} channels, got shape {list(input.shape)}"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Copies find out for themselves."""
        return {name: value for name, value in self.__dict__.items() if name != "_agreed"}


def _group(group: Any | None) -> Any | None:
    """The process group to communicate in; None: there is nobody to talk to."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    # Registers what torch.compile must know of collectives; only here, so that `import my_ops` stays light.
    from torch.distributed import _functional_collectives  # noqa: F401

    group = dist.group.WORLD if group is None else group
    return group if dist.get_world_size(group) > 1 else None


_CONVERTIBLE = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(modules.BatchNorm1d, modules.BatchNorm2d, modules.BatchNorm3d, SyncBatchNorm),
)


def convert_sync_batchnorm(model: _Model, process_group: Any | None = None) -> _Model:
    """Makes every batch norm module of ``model``, torch's or ours, a :class:`SyncBatchNorm`, in place.

    As in :func:`my_ops.convert_batchnorm` a module stays the same object and only changes its class: parameters
    (frozen or not), buffers, hooks, training flag, device, dtype and name stay. ``nn.SyncBatchNorm`` is converted too,
    and keeps its process group unless one is given.

    Args:
        process_group: whose ranks share a batch; None: the default group. All ranks must create it, as
            ``torch.distributed.new_group`` demands.

    Returns:
        ``model`` itself, also when it is a batch norm module itself.

    Raises:
        ValueError: a lazy batch norm, whose number of channels is not known yet.

    Warns:
        of subclasses of torch's modules, which are left alone: their behaviour may not be that of batch norm.
    """
    for module in model.modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if isinstance(module, nn.modules.lazy.LazyModuleMixin):
            raise ValueError(f"convert_sync_batchnorm: expected modules that know their channels, got {module}")
        if type(module) not in _CONVERTIBLE:
            warnings.warn(f"convert_sync_batchnorm: left {type(module).__qualname__} alone", stacklevel=2)
            continue
        own_group = getattr(module, "process_group", None)
        module.__class__ = SyncBatchNorm
        cast(SyncBatchNorm, module).process_group = own_group if process_group is None else process_group
    return model
