"""``torch.fx`` graphs of single modules, refused where such a graph would not say what the module does.

Symbolic tracing runs ``forward`` once, on stand-ins for tensors. What it cannot see it leaves out without a word: which
way an ``isinstance`` goes, optional arguments, ``torch.no_grad``, values kept on the module, random numbers. Each is
noticed here.
"""

import inspect
import operator
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import TraceError
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["Reached", "has_hooks", "in_both_modes", "reached_from_outside", "trace"]

Reached = Mapping[nn.Module, Collection[nn.Module]]


def trace(module: nn.Module, inlined: Collection[nn.Module] | None = None) -> fx.Graph | None:
    """The graph of ``module``, or None if it has none that can be trusted.

    Of the modules inside, ``inlined`` are replaced by what they do; by default all but torch's own, ours and those with
    hooks. The others are calls.
    """
    if not _has_plain_forward(module):
        return None
    before = [(names, dict(names)) for part in module.modules() for names in _namespaces(part)]
    random_state = _random_state()
    try:
        graph = _Tracer(inlined).trace(module)
    except Exception:  # whatever a forward raises that was not made for stand-ins
        graph = None
    if _random_state() != random_state:  # constants by now
        graph = None
    for names, values in before:
        if names.keys() != values.keys() or any(names[name] is not value for name, value in values.items()):
            names.clear()  # of what the forward keeps, which are stand-ins, or of a count of its calls
            names.update(values)
            graph = None
    return graph


@contextmanager
def _mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Flags alone: a ``train`` of somebody's own may do more."""
    flags = {part: part.training for part in module.modules()}
    try:
        for part in flags:
            part.training = training
        yield
    finally:
        for part, flag in flags.items():
            part.training = flag


def in_both_modes(module: nn.Module, inlined: Collection[nn.Module] | None = None) -> tuple[fx.Graph, fx.Graph] | None:
    """The graphs in training and in eval mode, or None if one of them is missing."""
    graphs = []
    for training in (True, False):
        with _mode(module, training):
            graphs.append(trace(module, inlined))
    return None if graphs[0] is None or graphs[1] is None else (graphs[0], graphs[1])


def reached_from_outside(model: nn.Module) -> Reached:
    """Parts of a module that another one's forward calls past it (``self.features[0](x)``), and which ones do so: the
    graph of the module that holds such a part says too little about it."""
    reached = defaultdict(set)
    for module in model.modules():
        graphs = in_both_modes(module, inlined=()) if module._modules else None
        for node in (node for graph in graphs or () for node in graph.nodes):
            part = module.get_submodule(str(node.target)) if node.op == "call_module" else None
            if part is not None and part not in module._modules.values():
                reached[part].add(module)
    return reached


def has_hooks(module: nn.Module) -> bool:
    return any(
        (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
    )


class _StandIn(fx.Proxy):
    """Not asked what it is an instance of, but by torch itself."""

    @property
    def __class__(self) -> type:
        if sys._getframe(1).f_globals.get("__name__", "").partition(".")[0] != "torch":
            raise TraceError("a program that depends on the type of a value")
        return fx.Proxy

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise TypeError


def _in_place(function: Callable[[Any, Any], Any]) -> Callable[[_StandIn, Any], fx.Proxy]:
    return lambda stand_in, other: stand_in.tracer.create_proxy("call_function", function, (stand_in, other), {})


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift"):
    setattr(_StandIn, f"__i{_name}__", _in_place(getattr(operator, f"i{_name}")))  # else y += x is traced as y = y + x


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # else what is done to buffers would be done now

    def __init__(self, inlined: Collection[nn.Module] | None) -> None:
        super().__init__()
        self._inlined = inlined
        self._modes = _global_modes()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if self._inlined is not None:
            return m not in self._inlined
        ours = type(m).__module__.partition(".")[0] == "my_ops"
        is_leaf = super().is_leaf_module(m, module_qualified_name)
        return is_leaf or ours or isinstance(m, _BatchNorm) or has_hooks(m)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _StandIn(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _global_modes() != self._modes:
            raise TraceError("a program that switches gradients or autocast on or off")
        return super().create_node(*args, **kwargs)


def _global_modes() -> tuple[bool, ...]:
    autocast = (torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast)


def _has_plain_forward(module: nn.Module) -> bool:
    """Not decorated, and without optional arguments: a stand-in is given for each, also where callers give none."""
    if "forward" in vars(module) or hasattr(type(module).forward, "__wrapped__"):
        return False
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    return all(p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty for p in parameters)


def _namespaces(module: nn.Module) -> tuple[dict[str, Any], ...]:
    return vars(module), module._parameters, module._buffers, module._modules


def _random_state() -> tuple[object, ...]:
    return random.getstate(), bytes(torch.get_rng_state().numpy())
