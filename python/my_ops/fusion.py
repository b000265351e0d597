"""Finds activations behind batch norms, and residual additions between the two, and makes each one operator.

A fused batch norm, and an activation that is computed elsewhere, stay the same objects and change their class; what the
class was is kept as ``original``.
"""

import importlib
import linecache
import operator
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, SupportsIndex

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from . import fused, modules, sync, tracing

__all__ = ["activation_module", "fuse_activations", "unfuse_activations"]


class _AnyResidual(nn.Module):
    """A residual that does not fit the operator, being of another shape or dtype, is added by torch."""

    activation: str
    slope: float
    adds_in_place: bool  # which keeps dtype and shape
    _plain: ClassVar[type[nn.Module]] = modules._Forward

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is None or (residual.shape == input.shape and residual.dtype == input.dtype):
            output: Tensor = super().forward(input, residual)
            return output
        value = self._plain.forward(self, input)
        value = value.add_(residual) if self.adds_in_place else value + residual
        output = activation_module(self.activation, self.slope)(value)
        return output


class FusedBatchNorm1d(_AnyResidual, fused.BatchNormAct1d):
    """A ``BatchNorm1d`` with the activation that was behind it."""


class FusedBatchNorm2d(_AnyResidual, fused.BatchNormAct2d):
    """A ``BatchNorm2d`` with the activation that was behind it."""


class FusedBatchNorm3d(_AnyResidual, fused.BatchNormAct3d):
    """A ``BatchNorm3d`` with the activation that was behind it."""


class FusedSyncBatchNorm(_AnyResidual, sync.SyncBatchNormAct):
    """A ``SyncBatchNorm`` with the activation that was behind it."""

    _plain = sync.SyncBatchNorm


class Absorbed(nn.Identity):
    """An activation that the batch norm before it computes."""


_FUSED: Mapping[type[nn.Module] | None, type[nn.Module]] = {
    nn.BatchNorm1d: FusedBatchNorm1d,
    nn.BatchNorm2d: FusedBatchNorm2d,
    nn.BatchNorm3d: FusedBatchNorm3d,
    modules.BatchNorm1d: FusedBatchNorm1d,
    modules.BatchNorm2d: FusedBatchNorm2d,
    modules.BatchNorm3d: FusedBatchNorm3d,
    sync.SyncBatchNorm: FusedSyncBatchNorm,
}

_Activation = tuple[str, float]  # name and slope, as BatchNormAct takes them

_MODULES: Mapping[type[nn.Module] | None, Callable[[Any], _Activation | None]] = {
    nn.ReLU: lambda module: ("relu", 0.0),
    nn.LeakyReLU: lambda module: ("leaky_relu", float(module.negative_slope)),
    nn.ReLU6: lambda module: ("relu6", 0.0),
    nn.ELU: lambda module: ("elu", float(module.alpha)),
    nn.SiLU: lambda module: ("silu", 0.0),
    nn.GELU: lambda module: ("gelu_tanh", 0.0) if module.approximate == "tanh" else None,
}

# Function or method -> activation, and the name and default of its parameter, which comes second.
_FUNCTIONS: Mapping[object, tuple[str, str, float]] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, "relu", "relu_"), ("relu", "", 0.0)),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), ("leaky_relu", "negative_slope", 0.01)),
    F.relu6: ("relu6", "", 0.0),
    **dict.fromkeys((F.elu, F.elu_), ("elu", "alpha", 1.0)),
    F.silu: ("silu", "", 0.0),
    F.gelu: ("gelu_tanh", "", 0.0),
}
_ADDITIONS = (operator.add, torch.add, "add")
_ADDITIONS_IN_PLACE = (operator.iadd, "add_")


def activation_module(name: str, slope: float) -> nn.Module:
    """The inverse of the table above."""
    modules: dict[str, nn.Module] = {
        "identity": nn.Identity(),
        "relu": nn.ReLU(),
        "leaky_relu": nn.LeakyReLU(slope),
        "relu6": nn.ReLU6(),
        "elu": nn.ELU(slope),
        "silu": nn.SiLU(),
        "gelu_tanh": nn.GELU(approximate="tanh"),
    }
    return modules[name]


@dataclass(frozen=True)
class _Pair:
    """``activation(norm(x))`` or ``activation(norm(x) + residual)``, as a chain of nodes from norm to activation.

    Each is used by the next one only. ``place``: the last one with two inputs, which is the addition or norm.
    """

    chain: tuple[fx.Node, ...]
    place: fx.Node
    residual: fx.Node | None
    kind: _Activation

    @property
    def norm(self) -> str:
        return str(self.chain[0].target)

    @property
    def adds_in_place(self) -> bool:
        return self.place.target in _ADDITIONS_IN_PLACE

    @property
    def key(self) -> tuple[object, ...]:
        """The same in every graph of the module."""
        return self.norm, self.chain[-1].op, self.chain[-1].target, self.kind, self.residual is None


@dataclass(frozen=True)
class _Parts:
    """Who else has the modules of a graph: in how many places they are, and which forwards reach in for them."""

    registered: Counter[nn.Module | None]
    reached: tracing.Reached

    def only_in(self, module: nn.Module, part: nn.Module) -> bool:
        return all(other is module for other in self.reached.get(part, ()))


def fuse_activations(model: nn.Module) -> None:
    """In every module of ``model``, those inside of others first: so the smallest one that holds a pair is changed."""
    registered = Counter(child for parent in model.modules() for child in parent._modules.values())
    parts = _Parts(registered, tracing.reached_from_outside(model))
    for module in reversed(list(model.modules())):
        if any(type(part) in _FUSED for part in module.modules()):
            _fuse_in(module, parts)


def unfuse_activations(model: nn.Module) -> bool:
    """The inverse: everything is of the class that it had, and the forward methods are those that were written.

    Returns whether anything was fused.
    """
    found = False
    for module in model.modules():
        attributes = vars(module)
        original = module.written if isinstance(module, _Rewritten) else attributes.pop("original", None)
        if original is not None:
            if isinstance(module, _AnyResidual):
                del attributes["activation"], attributes["slope"], attributes["adds_in_place"]
            module.__class__ = original
            found = True
    return found


def _fuse_in(module: nn.Module, parts: _Parts) -> None:
    graphs = tracing.in_both_modes(module)
    if graphs is None:
        return
    pairs, in_eval = ({pair.key: pair for pair in _pairs(module, graph, parts)} for graph in graphs)
    pairs = {key: pair for key, pair in pairs.items() if key in in_eval}
    alone = [key for key, pair in pairs.items() if _is_alone(module, pair, parts)]
    for key in alone:
        pair = pairs.pop(key)
        _fuse(module, pair)
        _change(module.get_submodule(str(pair.chain[-1].target)), Absorbed)
    if pairs:
        _rewrite(module, pairs.keys(), parts)


def _fuse(module: nn.Module, pair: _Pair) -> None:
    norm = module.get_submodule(pair.norm)
    _change(norm, _FUSED[type(norm)])
    vars(norm).update(activation=pair.kind[0], slope=pair.kind[1], adds_in_place=pair.adds_in_place)


def _change(module: nn.Module, becomes: type[nn.Module]) -> None:
    vars(module)["original"] = type(module)
    module.__class__ = becomes


def _is_alone(module: nn.Module, pair: _Pair, parts: _Parts) -> bool:
    """Whether the activation is a module that does nothing else: then no forward method needs to be written anew."""
    activation = pair.chain[-1]
    if pair.residual is not None or activation.op != "call_module":
        return False
    calls = sum(node.op == "call_module" and node.target == activation.target for node in activation.graph.nodes)
    return calls == 1 and parts.registered[module.get_submodule(str(activation.target))] == 1


def _pairs(module: nn.Module, graph: fx.Graph, parts: _Parts) -> list[_Pair]:
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    pairs: dict[fx.Node, _Pair] = {}
    for node in graph.nodes:
        norm = _called(module, node)
        if norm is None or type(norm) not in _FUSED or tracing.has_hooks(norm):
            continue
        if calls[node.target] > 1 or parts.registered[norm] > 1:
            continue
        pair = _pair(module, node) if len(node.args) == 1 and not node.kwargs else None
        called = () if pair is None else (_called(module, link) for link in pair.chain)
        if pair is not None and all(part is None or parts.only_in(module, part) for part in called):
            pairs.setdefault(pair.chain[-1], pair)  # both sides of an addition may be batch norms
    return list(pairs.values())


def _pair(module: nn.Module, norm: fx.Node) -> _Pair | None:
    chain: tuple[fx.Node, ...] = (norm,)
    place, residual = norm, None
    while len(chain[-1].users) == 1:
        (user,) = chain[-1].users
        kind = _activation(module, user)
        if kind is not None:
            return _Pair((*chain, user), place, residual, kind)
        if residual is None and (residual := _other_term(user, chain[-1])) is not None:
            if not _can_wait(norm):
                return None
            place = user
        elif type(between := _called(module, user)) is not nn.Identity or tracing.has_hooks(between):
            return None
        chain = (*chain, user)
    return None


def _can_wait(norm: fx.Node) -> bool:
    """Whether nobody can write to its input before the addition: a new tensor, which nobody else sees."""
    (input,) = norm.args
    return isinstance(input, fx.Node) and input.op == "call_module" and len(input.users) == 1


def _other_term(node: fx.Node, term: fx.Node) -> fx.Node | None:
    """What ``node`` adds to ``term``, if it is such an addition. In place, it must not be into the other term."""
    in_place = node.target in _ADDITIONS_IN_PLACE
    if node.op == "call_module" or not (in_place or node.target in _ADDITIONS) or len(node.args) != 2 or node.kwargs:
        return None
    left, right = node.args
    other = right if left is term else None if in_place else left
    return other if isinstance(other, fx.Node) and other is not term else None


def _activation(module: nn.Module, node: fx.Node) -> _Activation | None:
    called = _called(module, node)
    if called is not None:
        return None if type(called) not in _MODULES or tracing.has_hooks(called) else _MODULES[type(called)](called)
    if node.op not in ("call_function", "call_method") or node.target not in _FUNCTIONS:
        return None
    name, parameter, default = _FUNCTIONS[node.target]
    if name == "gelu_tanh" and node.kwargs.get("approximate") != "tanh":
        return None
    slope: Any = node.args[1] if parameter and len(node.args) > 1 else node.kwargs.get(parameter, default)
    return (name, float(slope)) if isinstance(slope, (int, float)) and len(node.all_input_nodes) == 1 else None


def _called(module: nn.Module, node: fx.Node) -> nn.Module | None:
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None


def _rewrite(module: nn.Module, keys: Collection[tuple[object, ...]], parts: _Parts) -> None:
    """Gives ``module`` a forward without these activations and additions; it must do the same in both modes.

    Modules inside stay calls, but for those that hold one of the parts.
    """
    paths = [str(key[0]) for key in keys] + [str(key[2]) for key in keys if key[1] == "call_module"]
    holders = {".".join(path.split(".")[:depth]) for path in paths for depth in range(1, path.count(".") + 1)}
    graphs = tracing.in_both_modes(module, [module.get_submodule(holder) for holder in holders])
    if graphs is None or len({graph.python_code("self").src for graph in graphs}) > 1:
        return
    graph = graphs[0]
    for pair in _pairs(module, graph, parts):
        if pair.key not in keys:
            continue
        with graph.inserting_before(pair.place):
            terms = () if pair.residual is None else (pair.residual,)
            both = graph.call_module(pair.norm, (*pair.chain[0].args, *terms))
        pair.chain[-1].replace_all_uses_with(both)
        for node in reversed(pair.chain):
            graph.erase_node(node)
        _fuse(module, pair)
    code = graph.python_code("self")
    written = module.written if isinstance(module, _Rewritten) else type(module)
    module.__class__ = _rewritten(written, code.src, code.globals)


class _Rewritten:
    """Base of the classes that are made here: that which ``module`` had, with another forward."""

    written: ClassVar[type[nn.Module]]
    code: ClassVar[tuple[str, dict[str, object]]]

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        """For copies and pickles: the class exists in this process only."""
        reduced = super().__reduce_ex__(protocol)
        assert isinstance(reduced, tuple)
        source, names = self.code
        picklable = {k: _Module(v.__name__) if isinstance(v, ModuleType) else v for k, v in names.items()}
        return _restore, (self.written, source, picklable), *reduced[2:]


@dataclass(frozen=True)
class _Module:
    """Stands for a module of Python's in a pickle."""

    name: str


def _rewritten(written: type[nn.Module], source: str, names: dict[str, object]) -> type[nn.Module]:
    scope = dict(names)
    place = f"<forward of {written.__qualname__} with fused batch norms, {len(linecache.cache)}>"
    linecache.cache[place] = (len(source), None, source.splitlines(keepends=True), place)  # for tracebacks
    exec(compile(source, place, "exec"), scope)
    members = {name: getattr(written, name) for name in ("__module__", "__qualname__", "__doc__")}
    members |= {"forward": scope["forward"], "written": written, "code": (source, names)}
    return type(written.__name__, (_Rewritten, written), members)


def _restore(written: type[nn.Module], source: str, names: dict[str, object]) -> nn.Module:
    loaded = {k: importlib.import_module(v.name) if isinstance(v, _Module) else v for k, v in names.items()}
    made = _rewritten(written, source, loaded)
    return made.__new__(made)
