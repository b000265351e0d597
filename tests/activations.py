"""The activations behind batch normalization by definition, and calls of the operators held against them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import reference
from checks import Arguments, ops, unchanged
from layouts import assert_layout
from reference import Result, upcast
from tolerances import TOLERANCES, accumulation_dtype, assert_within, unit_roundoff

SLOPES = {"identity": 0.0, "relu": 0.0, "leaky_relu": 0.1, "relu6": 0.0, "elu": 1.3, "silu": 0.0, "gelu_tanh": 0.0}
MASKED = ("relu", "leaky_relu", "relu6")
LIPSCHITZ = {"leaky_relu": 1.0, "elu": 1.3, "silu": 1.1, "gelu_tanh": 1.13}  # of act; 1 for the others
KINK = 1e-4  # how near to 0 (or, relative, to 6) z may be for act' to be in doubt; more than it is off in any dtype


def activation(name: str, z: Tensor) -> Tensor:
    match name:
        case "identity":
            return z
        case "relu":
            return F.relu(z)
        case "leaky_relu":
            return F.leaky_relu(z, SLOPES[name])
        case "relu6":
            return F.relu6(z)
        case "elu":
            return F.elu(z, SLOPES[name])
        case "silu":
            return F.silu(z)
        case "gelu_tanh":
            return F.gelu(z, approximate="tanh")
    raise ValueError(name)


def derivative(name: str, z: Tensor) -> Tensor:
    z = z.detach().requires_grad_()
    return torch.autograd.grad(activation(name, z).sum(), z)[0]


def preactivation(args: Arguments, residual: Tensor | None, mean: Result, invstd: Tensor) -> Result:
    z = reference.normalise(args.input, args.gamma, args.beta, mean, invstd)
    if residual is None:
        return z
    return Result(z.value + upcast(residual), z.scale + upcast(residual).abs())


def near_kink(z: Tensor) -> Tensor:
    return (z.abs() < KINK) | ((z - 6).abs() < 6 * KINK)


def away_from_kink(grad_output: Tensor, args: Arguments, residual: Tensor | None) -> Tensor:
    """grad_output, but 0 where act' could be that of either side of a kink."""
    exact = reference.forward(*args.values())
    z = preactivation(args, residual, exact.mean, exact.invstd.value).value
    return grad_output.masked_fill(near_kink(z).to(grad_output.device), 0.0)


@dataclass(frozen=True)
class Outcome:
    output: Tensor
    mean: Tensor
    invstd: Tensor
    mask: Tensor


def in_memory_order(values: Tensor, like: Tensor) -> Tensor:
    """One dimension, in the order of the memory of `like`."""
    return (values if like.is_contiguous() else values.movedim(1, -1)).reshape(-1)


def check_mask(mask: Tensor, name: str, z: Result, output: Tensor) -> None:
    bits = (mask.cpu()[:, None] >> torch.arange(8)) & 1
    want = in_memory_order(z.value, output)
    got = bits.flatten()[: want.numel()].bool()
    inside = (want > 0) & (want < 6) if name == "relu6" else want > 0
    sure = ~near_kink(want)
    assert mask.shape == ((want.numel() + 7) // 8,)
    assert torch.equal(got[sure], inside[sure])
    assert not bits.flatten()[want.numel() :].any(), "bits behind the end"


def check_act_forward(args: Arguments, name: str, residual: Tensor | None) -> Outcome:
    want = reference.forward(*args.values())
    z = preactivation(args, residual, want.mean, want.invstd.value)
    with unchanged(args.input, args.gamma, args.beta, residual):
        got = Outcome(*ops.batchnorm_act_forward(*act_arguments(args, name, residual)))
    dtype = args.input.dtype
    value = activation(name, z.value)
    assert got.output.dtype == dtype
    assert_layout(got.output, args.input, "output")
    assert_within(got.output, Result(value, LIPSCHITZ.get(name, 1.0) * z.scale), TOLERANCES[dtype].forward, "output")
    for what in ("mean", "invstd"):
        assert_within(getattr(got, what), getattr(want, what), TOLERANCES[dtype].statistics, what)
    for what in ("running_mean", "running_var"):
        if getattr(args, what) is not None:
            assert_within(getattr(args, what), getattr(want, what), TOLERANCES[dtype].statistics, what)
    if args.num_batches_tracked is not None:
        assert int(args.num_batches_tracked) == want.num_batches_tracked
    if residual is not None and name in MASKED:
        check_mask(got.mask, name, z, got.output)
    else:
        assert got.mask.shape == (0,)
    assert got.mask.dtype == torch.uint8
    return got


def act_arguments(args: Arguments, name: str, residual: Tensor | None) -> tuple[object, ...]:
    values = args.values()
    return (values[0], residual, *values[1:8], name, SLOPES[name], values[8])


def gradient_of_z(grad_output: Tensor, args: Arguments, name: str, z: Result) -> Result:
    """dz = dy * act'(z). |act''| < 1.3 for all of them."""
    dy = upcast(grad_output)
    slope = derivative(name, z.value)
    return Result(dy * slope, dy.abs() * (slope.abs() + 0.2 + 1.3 * z.scale))


def check_act_backward(
    grad_output: Tensor,
    args: Arguments,
    name: str,
    residual: Tensor | None,
    wanted: tuple[bool, bool, bool, bool] = (True, True, True, True),
) -> tuple[Tensor | None, ...]:
    """With the statistics and the mask that the forward operator saved; the reference takes the same statistics."""
    _, mean, invstd, mask = ops.batchnorm_act_forward(*act_arguments(args, name, residual))
    z = preactivation(args, residual, reference.given(mean), upcast(invstd))
    dz = gradient_of_z(grad_output, args, name, z)
    kept = wanted[1] or residual is not None  # dz passes through memory, rounded
    least = kept * torch.finfo(args.input.dtype).smallest_normal  # of smaller values as much is rounded off as of this
    value = reference.backward(dz.value, args.input, args.gamma, mean, invstd, args.training)
    scale = reference.backward(dz.scale + least, args.input, args.gamma, mean, invstd, args.training)
    masked = residual is not None and name in MASKED
    saved = (args.input, None if masked else residual, mask, args.gamma, args.beta, mean, invstd)
    with unchanged(grad_output, *saved):
        grads = ops.batchnorm_act_backward(grad_output, *saved, args.training, name, SLOPES[name], wanted)

    dtype = args.input.dtype
    vector_dtype = accumulation_dtype(dtype) if args.gamma is None else args.gamma.dtype
    factor = TOLERANCES[dtype].backward
    want = {
        "grad_input": (Result(value.grad_input.value, scale.grad_input.scale), dtype, kept),
        "grad_residual": (dz, dtype, False),
        "grad_gamma": (Result(value.grad_gamma.value, scale.grad_gamma.scale), vector_dtype, False),
        "grad_beta": (Result(value.grad_beta.value, scale.grad_beta.scale), vector_dtype, False),
    }
    for (what, (result, got_dtype, rounded)), got, is_wanted in zip(want.items(), grads, wanted, strict=True):
        assert (got is not None) == is_wanted, f"{what} against its mask"
        if got is not None:
            assert got.dtype == got_dtype, f"{what} has dtype {got.dtype}"
            assert_within(got, result, factor + rounded * unit_roundoff(dtype), f"{name}: {what}")
            if got.dim() > 1:
                assert_layout(got, args.input, what)
    return tuple(grads)
