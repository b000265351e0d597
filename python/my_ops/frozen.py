"""Batch norm with constant parameters and statistics, for networks that are fine-tuned in small batches."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import fused, modules
from .functional import batch_norm
from .sync import SyncBatchNorm

__all__ = ["FrozenBatchNorm", "FrozenBatchNorm1d", "FrozenBatchNorm2d", "FrozenBatchNorm3d", "freeze_batchnorm"]

_Model = TypeVar("_Model", bound=nn.Module)


class FrozenBatchNorm(nn.Module):
    """``y = (x - running_mean) / sqrt(running_var + eps) * weight + bias`` with four constant buffers ``[C]``.

    Nothing is learned and no statistics are kept, in training as in eval. One pass over the input, one multiply-add per
    value; the gradient is ``dx = weight / sqrt(running_var + eps) * dy``, for which the input is not saved.

    Args:
        num_features: channels ``C``.
        eps: added to the variance, 0 or more.
        device, dtype: of the buffers; float32 goes with all inputs but float64.

    Input: ``[N, C, ...]`` of rank 2 or more; the classes with a dimension in their name take that of
    ``torch.nn.BatchNorm1d/2d/3d``. ``load_state_dict`` also takes what these saved.

    Raises:
        ValueError: an input of another rank.
        RuntimeError: any other input that does not fit.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    _ranks: tuple[int, ...] = ()

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        for name, fill in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((num_features,), fill, device=device, dtype=dtype))

    def forward(self, input: Tensor) -> Tensor:
        if self._ranks and input.dim() not in self._ranks:
            ranks = " or ".join(map(str, self._ranks))
            raise ValueError(f"{type(self).__name__}: expected input of rank {ranks}, got shape {list(input.shape)}")
        return batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """The state of a batch norm that learns also has a counter."""
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)


class FrozenBatchNorm1d(FrozenBatchNorm):
    """:class:`FrozenBatchNorm` in the place of ``nn.BatchNorm1d``: input ``[N, C]`` or ``[N, C, L]``."""

    _ranks = (2, 3)


class FrozenBatchNorm2d(FrozenBatchNorm):
    """:class:`FrozenBatchNorm` in the place of ``nn.BatchNorm2d``: input ``[N, C, H, W]``."""

    _ranks = (4,)


class FrozenBatchNorm3d(FrozenBatchNorm):
    """:class:`FrozenBatchNorm` in the place of ``nn.BatchNorm3d``: input ``[N, C, D, H, W]``."""

    _ranks = (5,)


_FROZEN: Mapping[type[nn.Module], type[FrozenBatchNorm]] = {
    nn.BatchNorm1d: FrozenBatchNorm1d,
    nn.BatchNorm2d: FrozenBatchNorm2d,
    nn.BatchNorm3d: FrozenBatchNorm3d,
    nn.SyncBatchNorm: FrozenBatchNorm,
    SyncBatchNorm: FrozenBatchNorm,
    modules.BatchNorm1d: FrozenBatchNorm1d,
    modules.BatchNorm2d: FrozenBatchNorm2d,
    modules.BatchNorm3d: FrozenBatchNorm3d,
}


def freeze_batchnorm(model: _Model) -> _Model:
    """Makes every ``BatchNorm1d/2d/3d`` and ``SyncBatchNorm`` of ``torch.nn`` or ``my_ops`` a frozen one.

    In place: each module stays the same object with the same tensors, of which the parameters become buffers. Call it
    before the optimizer is made, whose parameters they no longer are. Other subclasses are left alone. A
    ``ConvBatchNorm`` then runs its convolution and the frozen batch norm one after the other.

    Returns:
        ``model`` itself, also when it is a batch norm module itself.

    Raises:
        ValueError: a batch norm without running statistics, which has nothing to be frozen to, or with an activation
            (``revert_batchnorm`` takes apart what ``convert_batchnorm`` fused); nothing is changed then.
    """
    for name, module in model.named_modules():
        if isinstance(module, fused._Act):
            raise ValueError(
                f"freeze_batchnorm: expected batch norms without an activation, got {type(module).__name__} in "
                f"{name or 'the model'}"
            )
    found = {name: module for name, module in model.named_modules() if type(module) in _FROZEN}
    for name, module in found.items():
        if module.running_mean is None or module.running_var is None:
            raise ValueError(
                f"freeze_batchnorm: expected running statistics in every batch norm, got none in {name or 'the model'}"
            )
    for module in found.values():
        _freeze(module)
    return model


def _freeze(module: nn.Module) -> None:
    running_mean = module.running_mean
    assert isinstance(running_mean, Tensor)
    for name, absent in (("weight", torch.ones_like), ("bias", torch.zeros_like)):
        parameter = getattr(module, name)
        delattr(module, name)
        module.register_buffer(name, absent(running_mean) if parameter is None else parameter.detach())
    del module.num_batches_tracked
    module.__class__ = _FROZEN[type(module)]
