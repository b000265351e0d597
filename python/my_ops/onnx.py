"""Export to ONNX, where batch normalization of inference is one standard operator, BatchNormalization."""

from collections.abc import Callable
from operator import getitem
from typing import Any, cast

import torch
from torch import nn
from torch.fx import Graph, Node

__all__ = ["export"]

_ops = torch.ops.my_ops
_native = torch.ops.aten._native_batch_norm_legit_no_training.default


def export(
    model: nn.Module,
    args: tuple[Any, ...],
    f: str | None = None,
    *,
    kwargs: dict[str, Any] | None = None,
    dynamic_shapes: dict[str, Any] | tuple[Any, ...] | None = None,
    **options: Any,
) -> torch.onnx.ONNXProgram:
    """``torch.onnx.export(dynamo=True)`` for models with operators of ``my_ops``.

    Batch norm becomes BatchNormalization with the same tensors as inputs, and instance norm what torch's becomes.
    (torch's own export cannot do that by a translation table: operators that may write to an argument do not reach it.)

    Args:
        model: in eval mode, or with statistics that training does not write.
        args, kwargs: example inputs.
        f: the file to write, if any.
        dynamic_shapes: sizes that vary, as for :func:`torch.export.export`.
        options: more arguments of :func:`torch.onnx.export`, such as ``input_names`` or ``opset_version``.

    Returns:
        The ``torch.onnx.ONNXProgram``.

    Raises:
        ValueError: the model calls an operator of training; the message names it.
    """
    program = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes)
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in list(module.graph.nodes):
                if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "my_ops":
                    _translate(module.graph, node)
            module.recompile()
    return cast(torch.onnx.ONNXProgram, torch.onnx.export(program, f=f, dynamo=True, **options))


def _translate(graph: Graph, node: Node) -> None:
    """Replaces a call of ours by one of ATen, which torch's exporter knows."""
    operator = cast(torch._ops.OpOverload, node.target)
    translation = _TRANSLATIONS.get(operator)
    if translation is None:
        name = operator._schema.name.removeprefix("my_ops::")
        raise ValueError(f"{name}: expected an operator of inference for ONNX, got one that has no equivalent there")
    arguments = {argument.name: argument.default_value for argument in operator._schema.arguments}
    arguments.update(zip(arguments, node.args, strict=False), **node.kwargs)
    with graph.inserting_before(node):
        translation(graph, node, arguments)


def _forward(graph: Graph, node: Node, arguments: dict[str, Any]) -> None:
    if arguments["training"]:
        raise ValueError("batchnorm_forward: expected training False for ONNX, got True: call model.eval() first")
    _check_users("batchnorm_forward", node)
    tensors = [arguments[name] for name in ("input", "gamma", "beta", "running_mean", "running_var")]
    node.target = _native
    node.args = (*tensors, 0.0, arguments["eps"])  # 0: the momentum, which inference does not read
    node.kwargs = {}


def _instance(graph: Graph, node: Node, arguments: dict[str, Any]) -> None:
    """Group normalization, with a group for every channel."""
    if arguments["running_mean"] is not None or arguments["running_var"] is not None:
        raise ValueError(
            "instancenorm_forward: expected no running statistics for ONNX, got some: call model.eval() first"
        )
    _check_users("instancenorm_forward", node)
    input = arguments["input"]
    rest = (input.meta["val"].shape[1], arguments["gamma"], arguments["beta"], arguments["eps"], False)
    output = graph.call_function(torch.ops.aten.group_norm.default, (input, *rest))
    output.meta["val"] = node.meta["val"][0]
    for user in list(node.users):
        user.replace_all_uses_with(output)
        graph.erase_node(user)
    graph.erase_node(node)


def _check_users(name: str, node: Node) -> None:
    """ATen's inference returns no statistics."""
    if any(user.args[1] != 0 and user.users for user in node.users):
        raise ValueError(f"{name}: expected only its output to be used for ONNX, got uses of its statistics")


def _apply(graph: Graph, node: Node, arguments: dict[str, Any]) -> None:
    """BatchNormalization takes variances: var = invstd**-2, eps = 0."""
    mean, invstd = arguments["mean"], arguments["invstd"]
    variance = graph.call_function(torch.ops.aten.pow.Tensor_Scalar, (invstd, -2))
    tensors = [arguments[name] for name in ("input", "gamma", "beta")]
    results = graph.call_function(_native, (*tensors, mean, variance, 0.0, 0.0))
    output = graph.call_function(getitem, (results, 0))
    variance.meta["val"] = invstd.meta["val"]
    results.meta["val"] = (node.meta["val"], mean.meta["val"], invstd.meta["val"])
    output.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(output)
    graph.erase_node(node)


_TRANSLATIONS: dict[torch._ops.OpOverload, Callable[[Graph, Node, dict[str, Any]], None]] = {
    _ops.batchnorm_forward.default: _forward,
    _ops.batchnorm_apply.default: _apply,
    _ops.instancenorm_forward.default: _instance,
}
