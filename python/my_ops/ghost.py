"""Ghost batch norm: statistics of small parts of a large batch (Hoffer, Hubara, Soudry, 2017)."""

from typing import Any

import torch
from torch import Tensor, nn

from .modules import BatchNorm1d, BatchNorm2d, BatchNorm3d

__all__ = ["GhostBatchNorm1d", "GhostBatchNorm2d", "GhostBatchNorm3d"]


class _Ghost(nn.modules.batchnorm._BatchNorm):
    def __init__(self, num_features: int, ghost_size: int, *args: Any, **kwargs: Any) -> None:
        if ghost_size < 1:
            raise ValueError(f"{type(self).__name__}: expected ghost_size of 1 or more, got {ghost_size}")
        super().__init__(num_features, *args, **kwargs)
        self.ghost_size = ghost_size

    def forward(self, input: Tensor) -> Tensor:
        parts = input.shape[0] // self.ghost_size if self.training and input.dim() > 0 else 1
        if parts <= 1:
            return super().forward(input)
        forward = super().forward
        size, larger = divmod(input.shape[0], parts)
        sizes = [size + 1] * larger + [size] * (parts - larger)
        # Not tensor_split, whose gradient is a sum of parts that are padded with zeros to the size of the input.
        return torch.cat([forward(part) for part in input.split_with_sizes(sizes)])

    def extra_repr(self) -> str:
        plain: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{plain}, ghost_size={self.ghost_size}"


class GhostBatchNorm1d(_Ghost, BatchNorm1d):
    """Ghost batch norm of ``[N, C]`` or ``[N, C, L]``.

    ``GhostBatchNorm1d(num_features, ghost_size, ...)``, further arguments and ``state_dict`` as
    :class:`torch.nn.BatchNorm1d`. In training the batch is cut into ``max(1, N // ghost_size)`` ghost batches of
    adjacent samples, whose sizes differ by one at most: a remainder makes some of them larger, and none is smaller than
    ``ghost_size`` unless N is. They are treated as batches that come one after the other: each is normalised with its
    own statistics, moves the running ones by ``momentum``, and counts in ``num_batches_tracked``. In eval it is plain
    batch norm.

    Raises:
        ValueError: ``ghost_size`` below 1; one value per channel in a ghost batch.
    """


class GhostBatchNorm2d(_Ghost, BatchNorm2d):
    """Ghost batch norm of ``[N, C, H, W]``: see :class:`GhostBatchNorm1d`."""


class GhostBatchNorm3d(_Ghost, BatchNorm3d):
    """Ghost batch norm of ``[N, C, D, H, W]``: see :class:`GhostBatchNorm1d`."""
