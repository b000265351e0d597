"""Calls of the operators, held against the reference in everything they return, may write and must leave alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

import reference
from layouts import assert_layout
from tolerances import TOLERANCES, accumulation_dtype, assert_within

ops = torch.ops.my_ops

VECTORS = ("gamma", "beta", "running_mean", "running_var")
EPS = 1e-3  # so large that an eps in the wrong place is outside every tolerance


@dataclass(frozen=True)
class Arguments:
    """The arguments of batchnorm_forward, in order."""

    input: Tensor
    gamma: Tensor | None = None
    beta: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    training: bool = True
    momentum: float | None = 0.1
    eps: float = EPS
    num_batches_tracked: Tensor | None = None

    def values(self) -> tuple[object, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))

    def only(self, names: tuple[str, ...]) -> Arguments:
        """Without the vectors that `names` leaves out."""
        return replace(self, **dict.fromkeys(set(VECTORS) - set(names)))


def activations(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Normal data; each channel has a mean of its own, around 1, and a deviation of its own, from 0.5 to 2."""
    channels = shape[1]
    mean = 1.0 + torch.randn(channels, dtype=torch.float64)
    deviation = 0.5 + 1.5 * torch.rand(channels, dtype=torch.float64)
    data = torch.randn(shape, dtype=torch.float64)
    data = data * reference.per_channel(deviation, data) + reference.per_channel(mean, data)
    return data.to(device, dtype)


def arguments(input: Tensor, training: bool, dtypes: tuple[torch.dtype, ...] | None = None) -> Arguments:
    """Every optional vector for `input`, one dtype each (default: the input's)."""
    channels = input.shape[1]
    vectors = (*torch.randn(3, channels), 0.5 + torch.rand(channels))
    dtypes = dtypes or (input.dtype,) * 4
    tensors = [vector.to(input.device, dtype, copy=True) for vector, dtype in zip(vectors, dtypes, strict=True)]
    return Arguments(input, *tensors, training=training)


def bit_equal(left: Tensor, right: Tensor) -> bool:
    """Every bit, those of NaN and of the sign of zero included."""
    left, right = (t.detach().reshape(-1).clone(memory_format=torch.contiguous_format) for t in (left, right))
    return left.dtype == right.dtype and torch.equal(left.view(torch.uint8), right.view(torch.uint8))


@contextmanager
def unchanged(*tensors: Tensor | None) -> Iterator[None]:
    """Fails if the body writes to one of `tensors`."""
    before = [None if tensor is None else tensor.detach().clone() for tensor in tensors]
    yield
    for index, (tensor, copy) in enumerate(zip(tensors, before, strict=True)):
        assert tensor is None or bit_equal(tensor, copy), f"tensor {index} of {len(tensors)} was written"


def check_forward(args: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    want = reference.forward(*args.values())
    writable = args.training and args.input.numel() > 0
    written = (args.running_mean, args.running_var, args.num_batches_tracked)
    with unchanged(args.input, args.gamma, args.beta, *(() if writable else written)):
        output, mean, invstd = ops.batchnorm_forward(*args.values())

    dtype = args.input.dtype
    assert output.dtype == dtype
    assert mean.dtype == invstd.dtype == accumulation_dtype(dtype)
    assert output.device == mean.device == invstd.device == args.input.device
    assert_layout(output, args.input, "output")
    assert_within(output, want.output, TOLERANCES[dtype].forward, "output")
    for name, got in (
        ("mean", mean),
        ("invstd", invstd),
        ("running_mean", args.running_mean),
        ("running_var", args.running_var),
    ):
        if got is not None:
            assert_within(got, getattr(want, name), TOLERANCES[dtype].statistics, name)
    if args.num_batches_tracked is not None:
        assert int(args.num_batches_tracked) == want.num_batches_tracked
    return output, mean, invstd


def check_backward(
    grad_output: Tensor, args: Arguments, mask: tuple[bool, bool, bool] = (True, True, True)
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """batchnorm_backward with the statistics that batchnorm_forward saved; the reference takes the same ones."""
    _, mean, invstd = ops.batchnorm_forward(*args.values())
    saved = (args.input, args.gamma, mean, invstd, args.training)
    want = reference.backward(grad_output, *saved)
    with unchanged(grad_output, *saved[:-1]):
        grads = ops.batchnorm_backward(grad_output, *saved, mask)

    dtype = args.input.dtype
    vector_dtype = accumulation_dtype(dtype) if args.gamma is None else args.gamma.dtype
    names = ("grad_input", "grad_gamma", "grad_beta")
    for name, got, wanted, got_dtype in zip(names, grads, mask, (dtype, vector_dtype, vector_dtype), strict=True):
        assert (got is not None) == wanted, f"{name} against its mask"
        if wanted:
            assert got.dtype == got_dtype, f"{name} has dtype {got.dtype}, expected {got_dtype}"
            assert_within(got, getattr(want, name), TOLERANCES[dtype].backward, name)
    if mask[0]:
        assert_layout(grads[0], args.input, "grad_input")
    return grads
