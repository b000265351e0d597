"""The operators of batch norm: which direction each is, whose it is, and the bytes it cannot do without."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from profiling.traces.traces import Interval, Kernel, Kind

FORWARD, BACKWARD, INFERENCE = "forward", "backward", "inference"
PHASES = (FORWARD, BACKWARD, INFERENCE)

_OPERATOR = re.compile(r"^(aten|my_ops)::\w*batch_?norm")
# Inductor names what it generates after the operators in it: triton_red_fused__native_batch_norm_legit_relu_0.
_COMPILED = re.compile(r"(triton|cpp)_\w*fused_\w*batch_?norm", re.IGNORECASE)

_ITEM = {"float": 4, "double": 8, "c10::Half": 2, "c10::BFloat16": 2}
DTYPES = {"float": "float32", "double": "float64", "c10::Half": "float16", "c10::BFloat16": "bfloat16"}


@dataclass(frozen=True)
class _Signature:
    """Where an operator's arguments are. ``images``: all that may be as large as the input."""

    phase: str
    images: tuple[int, ...]
    gamma: int
    beta: int | None = None
    running: tuple[int, int] | None = None
    training: int | None = None


_PLAIN = _Signature(FORWARD, images=(0,), gamma=1, beta=2, running=(3, 4), training=5)
_PLAIN_BACKWARD = _Signature(BACKWARD, images=(0, 1), gamma=2)
_SIGNATURES = {
    "aten::batch_norm": _PLAIN,
    "aten::_batch_norm_impl_index": _PLAIN,
    "aten::native_batch_norm": _PLAIN,
    "aten::_native_batch_norm_legit": _PLAIN,
    "aten::_batch_norm_with_update": replace(_PLAIN, training=None),
    "aten::_batch_norm_no_update": replace(_PLAIN, phase=INFERENCE, training=None),
    "aten::cudnn_batch_norm": _PLAIN,
    "aten::miopen_batch_norm": _PLAIN,
    "my_ops::batchnorm_forward": _PLAIN,
    "my_ops::batchnorm_act_forward": _Signature(FORWARD, (0, 1), gamma=2, beta=3, running=(4, 5), training=6),
    "aten::native_batch_norm_backward": _PLAIN_BACKWARD,
    "aten::batch_norm_backward": _PLAIN_BACKWARD,
    "aten::cudnn_batch_norm_backward": _PLAIN_BACKWARD,
    "aten::miopen_batch_norm_backward": _PLAIN_BACKWARD,
    "my_ops::batchnorm_backward": _PLAIN_BACKWARD,
    "my_ops::batchnorm_act_backward": _Signature(BACKWARD, (0, 1, 2, 3), gamma=4, beta=5),
    "my_ops::batchnorm_act_backward_": _Signature(BACKWARD, (0, 1, 2, 3), gamma=4, beta=5),
}

# The first match wins. Of a kernel's name, then, where no kernel ran, of the operator's.
_KERNELS = (
    ("my_ops", re.compile(r"my_ops")),
    ("cuDNN", re.compile(r"cudnn", re.IGNORECASE)),
    ("MIOpen", re.compile(r"miopen", re.IGNORECASE)),
    ("compiled", _COMPILED),
    ("ATen", re.compile(r"at::native|batch_norm", re.IGNORECASE)),
)
_OPERATORS = (
    ("my_ops", re.compile(r"^my_ops::")),
    ("cuDNN", re.compile(r"^aten::cudnn_")),
    ("MIOpen", re.compile(r"^aten::miopen_")),
    ("oneDNN", re.compile(r"^aten::mkldnn_")),
    ("compiled", _COMPILED),
    ("ATen", re.compile(r"^aten::")),
)


@dataclass(frozen=True)
class Facts:
    """What a call's arguments say. ``bytes``: that must move at least; None where the arguments do not tell."""

    phase: str
    shape: tuple[int, ...]
    dtype: str
    parameters: str  # dtype of gamma, "" without
    bytes: int | None


def is_batch_norm(interval: Interval) -> bool:
    if interval.kind is not Kind.OPERATOR:
        return False
    return bool(_OPERATOR.search(interval.name) or _COMPILED.search(interval.name))


def batch_norms(call: Interval) -> Iterator[Interval]:
    """The batch norm operators in a call and itself, from the outside inwards."""
    pending = [call]
    while pending:
        interval = pending.pop(0)
        if is_batch_norm(interval):
            yield interval
        pending.extend(child for child in interval.children if child.kind is Kind.OPERATOR)


def backend(operator: str, kernels: Sequence[Kernel]) -> str:
    """Whose code ran: the GPU kernels' names tell; on a CPU the operator does."""
    for name, pattern in _KERNELS:
        if any(pattern.search(kernel.name) for kernel in kernels):
            return f"{name} (GPU)"
    return next((name for name, pattern in _OPERATORS if pattern.search(operator)), "unknown")


def facts(outermost: Interval) -> Facts:
    """Of the call as it was made: by the arguments of the outermost operator whose arguments are known."""
    call = next((each for each in batch_norms(outermost) if each.name in _SIGNATURES), outermost)
    signature = _SIGNATURES.get(call.name)
    tensors = [tensor(d, t) for d, t in zip(call.dims, call.types, strict=False)]
    if not tensors or not tensors[0].shape:
        return Facts(_phase(call, signature), (), "", "", None)
    gamma = tensors[signature.gamma].dtype if signature and len(tensors) > signature.gamma else ""
    phase = _phase(call, signature)
    return Facts(phase, tensors[0].shape, tensors[0].dtype, gamma, _bytes(signature, phase, tensors))


@dataclass(frozen=True)
class Tensor:
    """An argument; without shape and bytes if it is None or no tensor."""

    shape: tuple[int, ...]
    dtype: str
    bytes: int


def tensor(dims: object, kind: str) -> Tensor:
    is_tensor = isinstance(dims, list) and len(dims) > 0 and all(isinstance(size, int) for size in dims)
    if not isinstance(dims, list) or not is_tensor or kind in ("", "Scalar", "ScalarList"):
        return Tensor((), "", 0)
    return Tensor(tuple(dims), DTYPES.get(kind, kind), math.prod(dims) * _ITEM.get(kind, 1))


def _phase(call: Interval, signature: _Signature | None) -> str:
    if signature is None:
        return BACKWARD if "backward" in call.name.lower() else FORWARD
    values = call.values
    place = signature.training
    return INFERENCE if place is not None and values[place : place + 1] == ["False"] else signature.phase


def _bytes(signature: _Signature | None, phase: str, tensors: Sequence[Tensor]) -> int | None:
    """Each tensor read once, each result written once, with S bytes of the input.

    Forward: images read, S written; gamma, beta and running statistics read, these written; mean and invstd written.
    Inference: images read, S written; gamma, beta and running statistics read.
    Backward: images read, S written (twice where the forward pass had a residual); gamma, beta, mean and invstd read,
    the gradients of gamma and beta written.
    Operators that do a part of batch norm (statistics alone, say), or are compiled ones, have no signature: None.
    """
    if signature is None:
        return None

    def size(place: int | None) -> int:
        return tensors[place].bytes if place is not None and place < len(tensors) else 0

    image, shape = tensors[0].bytes, tensors[0].shape
    channels = shape[1] if len(shape) > 1 else 0
    statistics = 2 * channels * (8 if tensors[0].dtype == "float64" else 4)
    images = sum(size(place) for place in signature.images)
    parameters = size(signature.gamma) + size(signature.beta)
    if phase == BACKWARD:
        gradients = 1 + any(size(place) for place in signature.images[2:])
        return images + gradients * image + parameters + statistics + 2 * size(signature.gamma)
    running = sum(size(place) for place in signature.running or ())
    written = statistics + running if phase == FORWARD else 0
    return images + image + parameters + running + written
