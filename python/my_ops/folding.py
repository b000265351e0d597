"""Folds batch norms into the convolutions before them, for inference."""

from collections import Counter
from typing import Any, TypeVar

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_weights

from . import conv, fused, modules, tracing
from .fusion import activation_module, fuse_activations, unfuse_activations

__all__ = ["fuse_conv_bn"]

_Model = TypeVar("_Model", bound=nn.Module)

_LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(modules.BatchNorm1d, modules.BatchNorm2d, modules.BatchNorm3d),
)
_ACTS = (fused.BatchNormAct1d, fused.BatchNormAct2d, fused.BatchNormAct3d)
_BOTH = (conv.ConvBatchNorm1d, conv.ConvBatchNorm2d, conv.ConvBatchNorm3d)


def fuse_conv_bn(model: _Model) -> _Model:
    """Folds each batch norm of ``model`` into the convolution before it, in place, for inference.

    With ``scale = gamma / sqrt(running_var + eps)``, computed in float64 and rounded once, the convolution takes the
    weight ``weight * scale`` and the bias ``(bias - running_mean) * scale + beta``; the batch norm becomes an
    ``nn.Identity`` of the same name (a ``BatchNormAct`` its activation), and its parameters and buffers are gone.

    Folded are ``nn.Conv1d/2d/3d``, ``nn.ConvTranspose1d/2d/3d`` without groups and ``nn.Linear`` (for input ``[N, C]``)
    before a batch norm of torch's or of ours, in any module that ``torch.fx`` can trace, however deep, and
    ``ConvBatchNorm``. Left as they are: modules that cannot be traced (those inside of them are tried one by one),
    convolutions whose output goes elsewhere too, modules or weights with several places, or that another module which
    can be traced calls past the one that holds them, convolutions and batch norms with hooks, subclasses,
    ``SyncBatchNorm``, batch norms in place or without running statistics. Of a model that was converted with
    ``fuse=True``, activations are fused anew with the batch norms that remain.

    Returns:
        ``model`` itself.

    Raises:
        ValueError: a batch norm of ``model`` is in training mode.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise ValueError(f"fuse_conv_bn: expected a model in eval mode, got {name or 'it'} in training mode")
    unfused = unfuse_activations(model)
    owners = Counter(
        id(part) for owner in model.modules() for part in (*owner._modules.values(), *owner._parameters.values())
    )
    reached = tracing.reached_from_outside(model)
    for module in reversed(list(model.modules())):
        if isinstance(module, _BOTH):
            if type(module) in _BOTH and _can_fold(module.conv, module.norm, owners):
                _fold(module.conv, module.norm)
                setattr(module, "__class__", nn.Sequential)  # noqa: B010
        elif any(isinstance(part, _BatchNorm) for part in module.modules()):
            for linear, norm in _pairs(module, owners, reached):
                _fold(linear, norm)
    if unfused:
        fuse_activations(model)
    return model


def _pairs(module: nn.Module, owners: Counter[int], reached: tracing.Reached) -> list[tuple[nn.Module, nn.Module]]:
    graph = tracing.trace(module)
    if graph is None:
        return []
    called = {node: module.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
    calls = Counter(called.values())
    pairs = []
    for node, norm in called.items():
        before = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        linear = called.get(before) if isinstance(before, fx.Node) and len(before.users) == 1 else None
        if linear is None or {module}.union(*(reached.get(part, ()) for part in (linear, norm))) != {module}:
            continue
        if calls[linear] == calls[norm] == 1 and _can_fold(linear, norm, owners):
            pairs.append((linear, norm))
    return pairs


def _can_fold(linear: Any, norm: Any, owners: Counter[int]) -> bool:
    if type(linear) not in _LINEAR or type(norm) not in (*_NORMS, *_ACTS):
        return False
    if norm.running_mean is None or norm.running_var is None:
        return False
    channels = linear.out_features if isinstance(linear, nn.Linear) else linear.out_channels
    if channels != norm.num_features or (isinstance(linear, _ConvTransposeNd) and linear.groups > 1):
        return False
    changed = (linear, norm, *linear.parameters())
    return all(owners[id(part)] == 1 for part in changed) and not (tracing.has_hooks(linear) or tracing.has_hooks(norm))


def _fold(linear: Any, norm: Any) -> None:
    def wide(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.detach().double()

    old = linear.weight
    statistics = wide(norm.running_mean), wide(norm.running_var), norm.eps, wide(norm.weight), wide(norm.bias)
    transposed = isinstance(linear, _ConvTransposeNd)
    weight, bias = fuse_conv_bn_weights(wide(old), wide(linear.bias), *statistics, transposed)
    linear.weight = nn.Parameter(weight.detach().to(old.dtype), old.requires_grad)
    linear.bias = nn.Parameter(bias.detach().to(old.dtype), old.requires_grad)
    _become(norm, activation_module(norm.activation, norm.slope) if isinstance(norm, _ACTS) else nn.Identity())


def _become(module: nn.Module, other: nn.Module) -> None:
    """The same object to all who hold it."""
    module.__class__ = type(other)
    state = vars(other.train(module.training))
    vars(module).clear()
    vars(module).update(state)
