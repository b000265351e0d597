"""Swaps the batch norm modules of a model, there and back."""

from collections.abc import Mapping
from typing import TypeVar

from torch import nn

from . import modules

__all__ = ["convert_batchnorm", "revert_batchnorm"]

_Model = TypeVar("_Model", bound=nn.Module)

_OURS: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: modules.BatchNorm1d,
    nn.BatchNorm2d: modules.BatchNorm2d,
    nn.BatchNorm3d: modules.BatchNorm3d,
    nn.LazyBatchNorm1d: modules.LazyBatchNorm1d,
    nn.LazyBatchNorm2d: modules.LazyBatchNorm2d,
    nn.LazyBatchNorm3d: modules.LazyBatchNorm3d,
}
_TORCHS = {ours: torchs for torchs, ours in _OURS.items()}


def convert_batchnorm(model: _Model) -> _Model:
    """Makes every ``nn.BatchNorm1d/2d/3d`` of ``model`` (and every lazy one) a ``my_ops`` module, in place.

    Each module stays the same object and only changes its class. So its parameters, buffers, hooks, name, training
    flag, device, dtype and ``requires_grad`` stay, an optimizer made before goes on working, and a module that is
    registered twice stays one. ``state_dict`` has the same keys before and after.

    Left alone: ``nn.SyncBatchNorm``, and subclasses of torch's modules (your own, or those that
    ``torch.nn.utils.parametrize`` makes), since their behaviour may not be that of batch norm.

    Returns:
        ``model`` itself, also when it is a batch norm module itself.
    """
    return _change_classes(model, _OURS)


def revert_batchnorm(model: _Model) -> _Model:
    """The inverse of :func:`convert_batchnorm`: makes every ``my_ops`` batch norm of ``model`` one of ``torch.nn``."""
    return _change_classes(model, _TORCHS)


def _change_classes(model: _Model, becomes: Mapping[type[nn.Module], type[nn.Module]]) -> _Model:
    for module in model.modules():
        module.__class__ = becomes.get(type(module), type(module))
    return model
