"""The implementations that are compared, each as calls without arguments, so that a clock times nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from profiling.measure.workloads import Case
from profiling.output.names import NATIVE as NATIVE
from profiling.output.names import OURS as OURS

Call = Callable[[], Any]


class Implementation(Protocol):
    """A batch norm. Both methods do all preparation; the call they return does the work and nothing more."""

    name: str

    def forward(self, case: Case, training: bool) -> Call:
        """A call that returns (output, mean, invstd, ...) and, if ``training``, updates the running statistics."""

    def backward(self, case: Case) -> Call:
        """A call that returns (grad_input, grad_gamma, grad_beta) of training."""


class Ours:
    name = OURS

    def forward(self, case: Case, training: bool) -> Call:
        return partial(torch.ops.my_ops.batchnorm_forward.default, *_forward_arguments(case, training))

    def backward(self, case: Case) -> Call:
        _, mean, invstd = self.forward(case.private(), training=True)()
        operator = torch.ops.my_ops.batchnorm_backward.default
        return partial(operator, case.grad_output, case.input, case.gamma, mean, invstd)


class Native:
    """What ``torch.nn.functional.batch_norm`` runs: cuDNN where PyTorch chooses it, else ATen's own kernels."""

    name = NATIVE

    def forward(self, case: Case, training: bool) -> Call:
        aten = torch.ops.aten
        operator = aten.cudnn_batch_norm if self.uses_cudnn(case, training) else aten.native_batch_norm
        return partial(operator.default, *_forward_arguments(case, training))

    def backward(self, case: Case) -> Call:
        _, mean, invstd, *reserve = self.forward(case.private(), training=True)()
        running = (case.running_mean, case.running_var)
        if reserve:
            operator = torch.ops.aten.cudnn_batch_norm_backward.default
            rest = (mean, invstd, case.eps, *reserve)
            return partial(operator, case.input, case.grad_output, case.gamma, *running, *rest)
        return partial(torch.ops.aten.native_batch_norm_backward.default, *_backward_arguments(case, mean, invstd))

    @staticmethod
    def uses_cudnn(case: Case, training: bool) -> bool:
        vectors = (case.gamma, case.beta, case.running_mean, case.running_var)
        chosen = torch._C._select_batch_norm_backend(case.input, *vectors, training, case.eps)
        return bool(chosen == torch._C._BatchNormBackend.Cudnn)  # type: ignore[attr-defined]


class Aten:
    """ATen's own GPU kernels where native is cuDNN. Elsewhere building a call raises RuntimeError."""

    name = "ATen"

    def forward(self, case: Case, training: bool) -> Call:
        if not Native.uses_cudnn(case, training=True):
            raise RuntimeError("native is ATen")
        return partial(torch.ops.aten.native_batch_norm.default, *_forward_arguments(case, training))

    def backward(self, case: Case) -> Call:
        _, mean, invstd = self.forward(case.private(), training=True)()
        return partial(torch.ops.aten.native_batch_norm_backward.default, *_backward_arguments(case, mean, invstd))


class CompiledNative:
    """Native's operators through ``torch.compile``, one static shape at a time."""

    name = "compiled native"

    def __init__(self) -> None:
        self._key: object = None
        self._compiled: Callable[..., Any] = lambda: None

    def forward(self, case: Case, training: bool) -> Call:
        return self._call(torch.ops.aten.native_batch_norm.default, _forward_arguments(case, training))

    def backward(self, case: Case) -> Call:
        _, mean, invstd = Native().forward(case.private(), training=True)()[:3]
        return self._call(torch.ops.aten.native_batch_norm_backward.default, _backward_arguments(case, mean, invstd))

    def _call(self, operator: Callable[..., Any], arguments: tuple[Any, ...]) -> Call:
        """Compiled anew only where the last call was about something else."""
        key = (operator, *((a.shape, a.stride(), a.dtype) if isinstance(a, Tensor) else str(a) for a in arguments))
        if key != self._key:
            self._key, self._compiled = key, _compile(operator, arguments)
        return partial(self._compiled, *arguments)


class OneDnn:
    """oneDNN's batch norm, on tensors in oneDNN's own layout; their conversion is not part of the call.

    Building or running a call raises RuntimeError for what oneDNN does not support.
    """

    name = "oneDNN"

    def forward(self, case: Case, training: bool) -> Call:
        x, *rest = _forward_arguments(case, training)
        return partial(torch.ops.aten.native_batch_norm.default, x.to_mkldnn(), *rest)

    def backward(self, case: Case) -> Call:
        _, mean, invstd = self.forward(case.private(), training=True)()
        dy, x, *rest = _backward_arguments(case, mean, invstd)
        return partial(torch.ops.aten.native_batch_norm_backward.default, dy.to_mkldnn(), x.to_mkldnn(), *rest)


def copy(case: Case) -> Call:
    """The unit of every comparison: one copy of the input into an output that exists: reads x, writes y."""
    return partial(torch.empty_like(case.input).copy_, case.input)


def fresh_copy(case: Case) -> Call:
    """The same copy into a newly allocated output, as the batch norm operators allocate theirs."""
    return partial(torch.clone, case.input)


def _forward_arguments(case: Case, training: bool) -> tuple[Any, ...]:
    """In the order that all forward operators share."""
    vectors = (case.gamma, case.beta, case.running_mean, case.running_var)
    return (case.input, *vectors, training, case.momentum, case.eps)


def _backward_arguments(case: Case, mean: Tensor, invstd: Tensor) -> tuple[Any, ...]:
    """In the order of aten::native_batch_norm_backward."""
    running = (case.running_mean, case.running_var)
    return (case.grad_output, case.input, case.gamma, *running, mean, invstd, True, case.eps, [True, True, True])


def _compile(operator: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[..., Any]:
    torch.compiler.reset()  # else the cache of this one function would fill up with shapes

    def call(*arguments: Any) -> Any:
        return operator(*arguments)

    compiled = torch.compile(call, dynamic=False, fullgraph=True)
    compiled(*(argument.clone() if isinstance(argument, Tensor) else argument for argument in arguments))
    return compiled
