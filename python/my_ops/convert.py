"""Swaps the batch norm modules of a model, there and back."""

import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from . import fused, fusion, modules
from .fusion import fuse_activations, unfuse_activations
from .sync import SyncBatchNorm, SyncBatchNormAct, SyncInPlaceBatchNormAct

__all__ = ["convert_batchnorm", "convert_sync_batchnorm", "revert_batchnorm"]

_Model = TypeVar("_Model", bound=nn.Module)

_OURS: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: modules.BatchNorm1d,
    nn.BatchNorm2d: modules.BatchNorm2d,
    nn.BatchNorm3d: modules.BatchNorm3d,
    nn.LazyBatchNorm1d: modules.LazyBatchNorm1d,
    nn.LazyBatchNorm2d: modules.LazyBatchNorm2d,
    nn.LazyBatchNorm3d: modules.LazyBatchNorm3d,
}
_TORCHS = {ours: torchs for torchs, ours in _OURS.items()} | {SyncBatchNorm: nn.SyncBatchNorm}

_KINDS: Mapping[type[SyncBatchNorm], tuple[type[nn.Module], ...]] = {
    SyncBatchNorm: (*_OURS, *_OURS.values(), nn.SyncBatchNorm),
    SyncBatchNormAct: (fused.BatchNormAct1d, fused.BatchNormAct2d, fused.BatchNormAct3d),
    SyncInPlaceBatchNormAct: (
        fused.InPlaceBatchNormAct1d,
        fused.InPlaceBatchNormAct2d,
        fused.InPlaceBatchNormAct3d,
    ),
    fusion.FusedSyncBatchNorm: (fusion.FusedBatchNorm1d, fusion.FusedBatchNorm2d, fusion.FusedBatchNorm3d),
}
_SYNCHRONIZED = {kind: synchronized for synchronized, kinds in _KINDS.items() for kind in (synchronized, *kinds)}


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
    later sees the output of the activation); batch norms with more than one place; what another module calls past the
    one that holds it (``self.features[0](x)``), if that other one can be traced; what is in a module whose ``forward``
    is decorated, has optional arguments, sets attributes, draws random numbers, asks for types, or switches gradients
    or autocast.

    Returns:
        ``model`` itself, also when it is a batch norm module itself.
    """
    if fuse:
        fuse_activations(model)
    return _change_classes(model, _OURS)


def revert_batchnorm(model: _Model) -> _Model:
    """The inverse of :func:`convert_batchnorm`: makes every ``my_ops`` batch norm of ``model`` one of ``torch.nn``.

    What was fused is taken apart again, and what :func:`convert_sync_batchnorm` made is what it was.
    """
    unfuse_activations(model)
    for module in model.modules():
        _unsynchronize(module)
    return _change_classes(model, _TORCHS)


def convert_sync_batchnorm(model: _Model, process_group: Any | None = None) -> _Model:
    """Makes every batch norm module of ``model``, torch's or ours, a :class:`SyncBatchNorm`, in place.

    As in :func:`convert_batchnorm` a module stays the same object and only changes its class: parameters (frozen or
    not), buffers, hooks, training flag, device, dtype and name stay. Those with an activation, fused or not, become
    :class:`SyncBatchNormAct`, those in place :class:`SyncInPlaceBatchNormAct`; a :class:`ConvBatchNorm2d` is
    synchronized by its child ``norm``. ``nn.SyncBatchNorm`` is converted too, and keeps its process group unless one is
    given.

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
        if type(module) not in _SYNCHRONIZED:
            warnings.warn(f"convert_sync_batchnorm: left {type(module).__qualname__} alone", stacklevel=2)
            continue
        _synchronize(module, process_group)
    return model


def _synchronize(module: nn.Module, process_group: Any | None) -> None:
    attributes = vars(module)
    if not isinstance(module, SyncBatchNorm):
        attributes["unsynchronized"] = type(module)
    module.__class__ = _SYNCHRONIZED[type(module)]
    attributes["process_group"] = attributes.get("process_group") if process_group is None else process_group


def _unsynchronize(module: nn.Module) -> None:
    """Also where taking out an activation has already brought back the class from before."""
    attributes = vars(module)
    before = attributes.pop("unsynchronized", None)
    if before is None:
        return
    if isinstance(module, SyncBatchNorm):
        module.__class__ = before
    attributes.pop("_agreed", None)
    if not isinstance(module, nn.SyncBatchNorm):
        del attributes["process_group"]


def _change_classes(model: _Model, becomes: Mapping[type[nn.Module], type[nn.Module]]) -> _Model:
    for module in model.modules():
        module.__class__ = becomes.get(type(module), type(module))
    return model
