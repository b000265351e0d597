"""Any of the three kinds of model with my_ops batch norm in place of torch's, and marks around each layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.profiler import record_function

import my_ops
from profiling.measure.workloads import batch_norms
from profiling.traces.traces import MODULE

_SCRIPTED = """
graph(%x, %w, %b, %mean, %var, %training, %momentum, %eps, %cudnn):
  %y = aten::batch_norm(%x, %w, %b, %mean, %var, %training, %momentum, %eps, %cudnn)
  return (%y)"""
_SCRIPTED_OURS = """
graph(%x, %w, %b, %mean, %var, %training, %momentum, %eps, %cudnn):
  %none : None = prim::Constant()
  %y : Tensor, %m : Tensor, %i : Tensor = my_ops::batchnorm_forward(
      %x, %w, %b, %mean, %var, %training, %momentum, %eps, %none)
  return (%y)"""


def convert(model: nn.Module) -> nn.Module:
    """Changes ``model``: its modules, or the graph of a TorchScript or an exported model."""
    if isinstance(model, torch.jit.ScriptModule):
        torch._C._jit_pass_inline(model.graph)
        torch._C._jit_pass_custom_pattern_based_rewrite_graph(_SCRIPTED, _SCRIPTED_OURS, model.graph)
    elif isinstance(model, fx.GraphModule):
        for node in model.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default):
            node.target = _ours
        model.recompile()
    else:
        my_ops.convert_batchnorm(model)
    return model


def mark(model: nn.Module) -> None:
    """Puts a range with the layer's name around every batch norm layer. TorchScript runs no hooks: it has no names."""
    if isinstance(model, torch.jit.ScriptModule):
        return
    if isinstance(model, fx.GraphModule):
        for node in model.graph.nodes:
            if node.target in (torch.ops.aten.batch_norm.default, _ours):
                stack = node.meta.get("nn_module_stack") or {"": ("", "")}
                node.target = _marked(node.target, list(stack.values())[-1][0] or node.name)
        model.recompile()
        return
    for name, module in batch_norms(model).items():
        _hook(module, MODULE + name)


def set_mode(model: nn.Module, training: bool) -> None:
    """An exported model keeps the mode that it was exported in."""
    if not isinstance(model, fx.GraphModule):
        model.train(training)


def _ours(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn: bool,
) -> Tensor:
    """The arguments of ``aten::batch_norm``."""
    result = torch.ops.my_ops.batchnorm_forward.default(x, weight, bias, mean, var, training, momentum, eps)
    output: Tensor = result[0]
    return output


def _marked(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        with record_function(MODULE + name):
            return function(*arguments)

    call.__name__ = f"batch_norm_{abs(hash(name))}"  # generated code calls it by its name
    return call


def _hook(module: nn.Module, name: str) -> None:
    ranges: list[record_function] = []

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        ranges.append(record_function(name))
        ranges[-1].__enter__()  # type: ignore[no-untyped-call]

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        ranges.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave, always_call=True)
