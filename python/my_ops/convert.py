"""Swaps the batch norm modules of a model, there and back."""

from collections.abc import Mapping
from typing import TypeVar

from torch import nn

from . import modules
from .fusion import fuse_activations, unfuse_activations

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


def convert_batchnorm(model: _Model, fuse: bool = False) -> _Model:
    """Makes every ``nn.BatchNorm1d/2d/3d`` of ``model`` (and every lazy one) a ``my_ops`` module, in place.

    With ``fuse``, batch norms take over what follows them: an activation (``nn.ReLU``, ``LeakyReLU``, ``ReLU6``,
    ``ELU``, ``SiLU``, ``GELU('tanh')`` or their functions), or a residual that is added and then an activation.

    Each module stays the same object and only changes its class. So its parameters, buffers, hooks, name, training
    flag, device, dtype and ``requires_grad`` stay, an optimizer made before goes on working, and a module that is
    registered twice stays one. ``state_dict`` has the same keys before and after.

    Left alone: ``nn.SyncBatchNorm``, and subclasses of torch's modules (your own, or those that
    ``torch.nn.utils.parametrize`` makes), since their behaviour may not be that of batch norm.

    What ``fuse`` does: it looks for these in the ``torch.fx`` graph of every module, inner ones first, so that a part
    which cannot be traced does no harm. The batch norm becomes a ``BatchNormAct`` of the same name; an activation
    module that follows it alone becomes an identity. Where something else must go (an addition, a function, an
    activation module with several places), the module around it gets a ``forward`` made from its graph, in which
    attributes have the values of now; only if the graph is the same in training and in eval mode. Classes of your own,
    attributes, ``state_dict``, hooks and ``isinstance`` stay, and models can be copied and pickled.

    ``fuse`` leaves alone: batch norms and activations with hooks, which would see other values (a hook that is added
    later sees the output of the activation); batch norms with more than one place; what is in a module whose
    ``forward`` is decorated, has optional arguments, sets attributes, draws random numbers, asks for types, or switches
    gradients or autocast.

    Returns:
        ``model`` itself, also when it is a batch norm module itself.
    """
    if fuse:
        fuse_activations(model)
    return _change_classes(model, _OURS)


def revert_batchnorm(model: _Model) -> _Model:
    """The inverse of :func:`convert_batchnorm`: makes every ``my_ops`` batch norm of ``model`` one of ``torch.nn``.

    What was fused is taken apart again.
    """
    unfuse_activations(model)
    return _change_classes(model, _TORCHS)


def _change_classes(model: _Model, becomes: Mapping[type[nn.Module], type[nn.Module]]) -> _Model:
    for module in model.modules():
        module.__class__ = becomes.get(type(module), type(module))
    return model
