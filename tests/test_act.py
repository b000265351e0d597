"""Batch normalization, residual and activation in one: values, gradients, derivatives of every order, programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import gradcheck, gradgradcheck

import my_ops
import reference
from activations import (
    MASKED,
    SLOPES,
    act_arguments,
    activation,
    away_from_kink,
    check_act_backward,
    check_act_forward,
)
from checks import EPS, Arguments, activations, arguments, bit_equal, ops
from layouts import arrange
from sizes import AMBIGUOUS, EMPTY, past_the_cache
from tolerances import accumulation_dtype

NAMES = list(SLOPES)
DOUBLE = torch.float64


def problem(
    shape: tuple[int, ...], layout: str, dtype: torch.dtype, device: str, training: bool, with_residual: bool
) -> tuple[Arguments, Tensor | None]:
    args = arguments(arrange(activations(shape, dtype, device), layout), training)
    return args, torch.randn(shape, device=device).to(dtype) if with_residual else None


def check(args: Arguments, name: str, residual: Tensor | None) -> None:
    dy = away_from_kink(torch.randn(args.input.shape, device=args.input.device).to(args.input.dtype), args, residual)
    check_act_forward(args, name, residual)
    check_act_backward(dy, args, name, residual)


# ---- values ----


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("name", NAMES)
def test_every_activation(device: str, dtype: torch.dtype, training: bool, name: str, residual: bool) -> None:
    """Runs (S >= 256), rows of short images, short images in memory order, rows of channels."""
    shapes = ((3, 5, 17, 17), (5, 7, 6, 7), (3, 20, 13, 15))
    for shape, layout in (*((shape, "contiguous") for shape in shapes), ((5, 21, 9), "channels_last")):
        check(*_insert(problem(shape, layout, dtype, device, training, residual), name))


def _insert(pair: tuple[Arguments, Tensor | None], name: str) -> tuple[Arguments, str, Tensor | None]:
    return pair[0], name, pair[1]


@pytest.mark.parametrize("layout", ["batch_inner", "offset", "chunk_channels_last", "strided", "expanded"])
@pytest.mark.parametrize("name", ["relu", "silu"])
def test_layouts(device: str, training: bool, layout: str, name: str) -> None:
    """Also of a residual and a grad_output that are laid out otherwise than the input."""
    args, residual = problem((4, 6, 5, 7), layout, torch.float32, device, training, True)
    check(args, name, residual)
    check(args, name, arrange(residual, "channels_last"))


@pytest.mark.parametrize(("shape", "strides"), AMBIGUOUS)
def test_ambiguous_strides(device: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    args = arguments(activations(shape, torch.float32, device), training=False)
    buffer = torch.zeros(2000, device=device)
    image = torch.as_strided(buffer, shape, strides).copy_(args.input)
    check(Arguments(image, *args.values()[1:]), "relu", torch.randn(shape, device=device))


# Bits of a mask meet within a byte wherever stretches of memory do: any S, any C, parts of images, folded rows.
MASK_SHAPES = [(3, 2, s) for s in (1, 3, 5, 7, 8, 9, 15, 16, 31, 33, 257, 263, 264, 300)]
MASK_SHAPES += [(9, c) for c in (1, 3, 8, 17, 31, 32, 33, 100)]
MASK_SHAPES += [(2, 3, 9001), (1, 1, 70003), (130, 1030), (40, 5, 271), (7, 70, 7, 7)]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_mask_of_every_shape(device: str, dtype: torch.dtype, layout: str) -> None:
    for shape in MASK_SHAPES:
        if len(shape) > 2 or layout == "contiguous":
            args, residual = problem(shape, layout, dtype, device, True, True)
            check(args, "relu", residual)


@pytest.mark.parametrize(
    ("name", "layout", "with_residual"), [("relu", "contiguous", True), ("elu", "channels_last", False)]
)
def test_large_results(device: str, name: str, layout: str, with_residual: bool) -> None:
    """Written past the cache; many regions."""
    check(*_insert(problem(past_the_cache(4), layout, torch.float32, device, True, with_residual), name))


@pytest.mark.parametrize("name", ["identity", "silu", "gelu_tanh"])
def test_gradients_below_the_smallest_normal(device: str, dtype: torch.dtype, training: bool, name: str) -> None:
    """dz, rounded to the input's dtype on its way, loses as much as a larger one; gamma makes it more."""
    args, residual = problem((16, 9, 8, 15), "contiguous", dtype, device, training, True)
    args = replace(args, gamma=(args.gamma.abs() + 4).to(args.gamma.dtype))
    step = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    dy = (torch.randn(args.input.shape, dtype=DOUBLE, device=device) * 8 * step).to(dtype)
    check_act_backward(dy, args, name, residual)


@pytest.mark.parametrize("wanted", [w for w in product([True, False], repeat=4) if any(w)], ids=str)
@pytest.mark.parametrize(("name", "residual"), [("relu", True), ("relu", False), ("silu", True), ("identity", True)])
def test_gradients_left_out(
    device: str, training: bool, wanted: tuple[bool, bool, bool, bool], name: str, residual: bool
) -> None:
    args, added = problem((4, 6, 5, 7), "contiguous", torch.float32, device, training, residual)
    dy = away_from_kink(torch.randn_like(args.input), args, added)
    check_act_backward(dy, args, name, added, wanted)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_relu6_above_its_bound(device: str, dtype: torch.dtype, training: bool, layout: str) -> None:
    """A good part of the values on either side of 0 and of 6."""
    args, residual = problem((4, 6, 5, 7), layout, dtype, device, training, True)
    args.gamma.mul_(4.0).add_(4.0)
    args.beta.add_(3.0)
    for added in (None, residual):
        check(args, "relu6", added)
        six = ops.batchnorm_act_forward(*act_arguments(args, "relu6", added))[0] == 6
        assert 0.1 < float(six.double().mean()) < 0.9


@pytest.mark.parametrize("names", [(), ("gamma",), ("beta",)], ids=str)
def test_without_parameters(device: str, dtype: torch.dtype, names: tuple[str, ...]) -> None:
    args, residual = problem((4, 6, 5, 7), "contiguous", dtype, device, True, True)
    check(args.only(names), "leaky_relu", residual)
    check(args.only(names), "gelu_tanh", None)


def test_wide_parameters(device: str, dtype: torch.dtype, training: bool) -> None:
    wide = accumulation_dtype(dtype)
    args = arguments(activations((4, 6, 5, 7), dtype, device), training, (wide, dtype, wide, dtype))
    check(args, "relu", None)
    check(args, "elu", torch.randn(4, 6, 5, 7, device=device).to(dtype))


@pytest.mark.parametrize("shape", EMPTY, ids=str)
def test_empty(device: str, training: bool, shape: tuple[int, ...]) -> None:
    args, residual = problem(shape, "contiguous", torch.float32, device, training, True)
    check(args, "relu", residual)
    check(args, "silu", None)


def test_running_statistics_and_counter(device: str) -> None:
    args, residual = problem((4, 6, 5, 7), "contiguous", torch.float32, device, True, True)
    counter = torch.tensor(3, device=device)
    check_act_forward(Arguments(*args.values()[:6], None, EPS, counter), "relu", residual)
    assert int(counter) == 4


@pytest.mark.parametrize("wide", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_accuracy_of_the_activation(device: str, wide: torch.dtype, name: str) -> None:
    """mean 0, variance 1 and eps 0 leave z = x: a few units in the last place, from 0 to the largest numbers."""
    grid = torch.cat([torch.linspace(-40, 40, 4001, dtype=DOUBLE), torch.logspace(-30, 3, 2000, dtype=DOUBLE)])
    x = torch.cat([grid, -grid, torch.tensor([0.0, 1e20, -1e20], dtype=DOUBLE)]).to(wide)
    z = x.to(DOUBLE)
    out, _, _, _ = eval_only(x.to(device), name)
    want = activation(name, z)
    if name == "gelu_tanh":  # whose definition cancels where 1 + tanh is small
        want = z * torch.sigmoid(1.5957691216057307 * (z + 0.044715 * z**3))
    # gates: relative to the exponent, which is z or, for gelu, 0.07 * z^3
    condition = {"silu": z.abs(), "gelu_tanh": 1.6 * z.abs() + 0.22 * z.abs() ** 3}.get(name, torch.zeros_like(z))
    unit = torch.finfo(wide).eps
    bound = unit * want.abs() * (2 + 2 * condition.clamp_max(1e4)) + torch.finfo(wide).smallest_normal * 1e4
    error = (out.cpu().to(DOUBLE).flatten() - want).abs()
    worst = int((error / bound).argmax())
    assert error[worst] <= bound[worst], f"z {float(z[worst])!r}: {float(error[worst])} of {float(bound[worst])}"


def eval_only(x: Tensor, name: str, dy: Tensor | None = None) -> tuple[Tensor, ...]:
    """Batch normalization that changes nothing, and the activation."""
    column = x.reshape(-1, 1)
    zero = torch.zeros(1, dtype=accumulation_dtype(x.dtype), device=x.device)
    one = torch.ones_like(zero)
    if dy is None:
        return ops.batchnorm_act_forward(column, None, None, None, zero, one, False, 0.1, 0.0, name, SLOPES[name])
    return ops.batchnorm_act_backward(
        dy.reshape(-1, 1), column, None, None, None, None, zero, one, False, name, SLOPES[name]
    )


@pytest.mark.parametrize("name", NAMES)
def test_not_finite(device: str, dtype: torch.dtype, name: str) -> None:
    """NaN stays NaN, at infinity are the limits; a whole vector of each, so that no lane is special."""
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 2.0], dtype=dtype, device=device).repeat_interleave(70)
    low = {"identity": -torch.inf, "leaky_relu": -torch.inf, "elu": -SLOPES["elu"]}.get(name, 0.0)
    high, high_slope = (6.0, 0.0) if name == "relu6" else (torch.inf, 1.0)
    out = eval_only(x, name)[0].flatten()
    assert out[:70].isnan().all()
    assert (out[70:140] == high).all()
    torch.testing.assert_close(out[140:210], torch.full_like(out[140:210], low))

    slopes = eval_only(x, name, torch.ones_like(x))[0].flatten()
    end = {"identity": 1.0, "leaky_relu": SLOPES["leaky_relu"]}.get(name, 0.0)
    torch.testing.assert_close(slopes[70:140], torch.full_like(slopes[:70], high_slope))
    torch.testing.assert_close(slopes[140:210], torch.full_like(slopes[:70], end))


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("gradient", [torch.inf, torch.nan])
@pytest.mark.parametrize(("name", "value"), [("relu", -1.0), ("relu6", -1.0), ("relu6", 7.0), ("leaky_relu", -1.0)])
def test_relu_stops_infinite_gradients(
    device: str, name: str, value: float, gradient: float, with_residual: bool
) -> None:
    """0, not 0 * infinity, as a gradient scaler for mixed precision expects; leaky_relu with slope 0 is relu."""
    x = torch.full((40, 1), value, device=device)
    zero, one = torch.zeros(1, device=device), torch.ones(1, device=device)
    residual = torch.zeros_like(x) if with_residual else None
    saved = ops.batchnorm_act_apply(x, residual, None, None, zero, one, name, 0.0)[1]
    dy = torch.full_like(x, gradient)
    grads = ops.batchnorm_act_backward(dy, x, None, saved, None, None, zero, one, False, name)
    assert not any(grad.any() for grad in grads)


def test_same_bits_for_any_number_of_threads(device: str, dtype: torch.dtype, restore_threads: None) -> None:
    args, residual = problem((6, 37, 19, 21), "contiguous", dtype, device, True, True)
    dy = torch.randn_like(args.input)
    runs = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        fresh = Arguments(*args.values()[:3], training=True)
        output, mean, invstd, mask = ops.batchnorm_act_forward(*act_arguments(fresh, "relu", residual))
        grads = ops.batchnorm_act_backward(
            dy, args.input, None, mask, args.gamma, args.beta, mean, invstd, True, "relu"
        )
        runs.append((output, mean, invstd, mask, *grads))
    for run in runs[1:]:
        assert all(bit_equal(one, other) for one, other in zip(runs[0], run, strict=True))


# ---- phases ----


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_phases_are_the_whole(device: str, dtype: torch.dtype, name: str, with_residual: bool) -> None:
    args, residual = problem((4, 6, 17, 17), "contiguous", dtype, device, True, with_residual)
    whole = ops.batchnorm_act_forward(*act_arguments(args.only(("gamma", "beta")), name, residual))
    act = (name, SLOPES[name])
    output, mask = ops.batchnorm_act_apply(args.input, residual, args.gamma, args.beta, *whole[1:3], *act)
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps}
    torch.testing.assert_close(output, whole[0], **tolerance)
    dy = away_from_kink(torch.randn_like(args.input), args, residual)
    saved = (args.input, None if name in MASKED else residual, mask, args.gamma, args.beta, *whole[1:3])
    grads = ops.batchnorm_act_backward(dy, *saved, True, *act)
    sums = ops.batchnorm_act_backward_reduce(dy, *saved, *act)
    count = torch.tensor([4 * 17 * 17], device=device)
    dx, dresidual = ops.batchnorm_act_backward_apply(dy, *saved, *act, *sums, count)
    assert bit_equal(dresidual, grads[1])
    torch.testing.assert_close(sums[0].to(dtype), grads[3], **tolerance)
    torch.testing.assert_close(sums[1].to(dtype), grads[2], **tolerance)
    torch.testing.assert_close(dx, grads[0], **tolerance)


# ---- derivatives ----


def leaf(*shape: int, device: str) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, device=device, requires_grad=True)


def positive(*shape: int, device: str) -> Tensor:
    return (0.5 + torch.rand(shape, dtype=DOUBLE, device=device)).requires_grad_()


def check_derivatives(function: Callable[..., object], *inputs: Tensor | None, batched: bool = True) -> None:
    """First and second derivatives against finite differences, in both modes and batched."""
    assert gradcheck(
        function, inputs, check_forward_ad=True, check_batched_grad=batched, check_batched_forward_grad=batched
    )
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_batched_grad=batched)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_derivatives_of_forward(device: str, training: bool, name: str, with_residual: bool, layout: str) -> None:
    statistics = (None, None) if training else (torch.zeros(2, dtype=DOUBLE), torch.ones(2, dtype=DOUBLE))
    running = [None if s is None else s.to(device) for s in statistics]

    def forward(x: Tensor, residual: Tensor | None, gamma: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
        args = (arrange(x, layout), residual, gamma, beta, *running, training, 0.1, EPS, name, SLOPES[name])
        return ops.batchnorm_act_forward(*args)[: 3 if training else 1]

    shape = (2, 2, 3)
    residual = leaf(*shape, device=device) if with_residual else None
    check_derivatives(forward, leaf(*shape, device=device), residual, leaf(2, device=device), leaf(2, device=device))


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_of_backward(device: str, training: bool, name: str) -> None:
    """As a function of all its arguments; a mask is none that has a derivative."""
    shape = (2, 2, 3)
    mask = torch.tensor([0b10110010, 0b0110], dtype=torch.uint8, device=device) if name in MASKED else None

    def backward(dy: Tensor, x: Tensor, residual: Tensor | None, *vectors: Tensor) -> tuple[Tensor, ...]:
        return ops.batchnorm_act_backward(dy, x, residual, mask, *vectors, training, name, SLOPES[name])

    residual = None if name in MASKED else leaf(*shape, device=device)
    vectors = (*(leaf(2, device=device) for _ in range(3)), positive(2, device=device))
    check_derivatives(backward, leaf(*shape, device=device), leaf(*shape, device=device), residual, *vectors)


@pytest.mark.parametrize("name", ["relu", "gelu_tanh"])
def test_derivatives_of_phases(device: str, name: str) -> None:
    shape, act = (2, 2, 3), (name, SLOPES[name])
    image, dy = leaf(*shape, device=device), leaf(*shape, device=device)
    vectors = (*(leaf(2, device=device) for _ in range(3)), positive(2, device=device))
    sums = (leaf(2, device=device), leaf(2, device=device))
    count = torch.tensor([31], device=device)
    residual = None if name in MASKED else leaf(*shape, device=device)
    check_derivatives(
        lambda x, r, *v: ops.batchnorm_act_apply(x, r, *v, *act)[0], image, leaf(*shape, device=device), *vectors
    )
    check_derivatives(
        lambda dy, x, r, *v: ops.batchnorm_act_backward_reduce(dy, x, r, None, *v, *act), dy, image, residual, *vectors
    )
    check_derivatives(
        lambda dy, x, r, *v: ops.batchnorm_act_backward_apply(dy, x, r, None, *v[:4], *act, *v[4:], count),
        dy,
        image,
        residual,
        *vectors,
        *sums,
    )


@pytest.mark.parametrize("name", ["relu", "silu"])
def test_hessian(device: str, training: bool, name: str) -> None:
    """torch.func in three nestings against plain torch arithmetic."""
    args, residual = problem((3, 2, 4), "contiguous", DOUBLE, device, training, True)
    weights = torch.randn_like(args.input)
    running = (None, None) if training else (args.running_mean, args.running_var)

    def ours(x: Tensor) -> Tensor:
        values = (x, residual, args.gamma, args.beta, *running, training, 0.1, EPS, name, 0.0)
        return (ops.batchnorm_act_forward(*values)[0] * weights).sum()

    def plain(x: Tensor) -> Tensor:
        z = reference.differentiable(x, args.gamma, args.beta, *running, training, EPS)
        return (activation(name, z + residual) * weights).sum()

    jacfwd, jacrev = torch.func.jacfwd, torch.func.jacrev
    want = jacrev(jacrev(plain))(args.input)
    for nested in (jacfwd(jacrev(ours)), jacrev(jacrev(ours)), jacrev(jacfwd(ours)), jacfwd(jacfwd(ours))):
        torch.testing.assert_close(nested(args.input), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["relu", "silu"])
@pytest.mark.parametrize("with_residual", [False, True])
def test_vmap(device: str, training: bool, name: str, with_residual: bool) -> None:
    """A batch of problems, each of any argument batched or not, is each problem alone."""
    shape = (3, 4, 2, 5)
    x, residual = torch.randn(2, *shape, device=device).unbind(0)
    gamma, beta = torch.randn(2, 3, 2, device=device).unbind(0)

    def output_and_gradients(x: Tensor, r: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
        def loss(*leaves: Tensor) -> Tensor:
            x, r, gamma, beta = leaves
            running = (None, None) if training else (torch.zeros(2, device=device), torch.ones(2, device=device))
            added = r if with_residual else None
            out = ops.batchnorm_act_forward(x, added, gamma, beta, *running, training, 0.1, EPS, name, 0.0)[0]
            return (out * out.detach().cos()).sum()

        return torch.func.grad(loss, argnums=(0, 1, 2, 3))(x, r, gamma, beta)

    for dims in ((0, 0, 0, 0), (0, None, None, None), (None, 0, None, 0), (None, None, 0, None)):
        batched = [v if dim == 0 else v[0] for v, dim in zip((x, residual, gamma, beta), dims, strict=True)]
        got = torch.vmap(output_and_gradients, dims)(*batched)
        for b in range(3):
            alone = output_and_gradients(*(v[b] if d == 0 else v for v, d in zip(batched, dims, strict=True)))
            for one, want in zip(got, alone, strict=True):
                torch.testing.assert_close(one[b], want, rtol=1e-4, atol=1e-5)


def test_vmap_of_running_statistics(device: str) -> None:
    x = torch.randn(3, 4, 2, 5, device=device)
    running, counter = torch.zeros(3, 2, device=device), torch.zeros(3, dtype=torch.int64, device=device)

    def forward(x: Tensor, running: Tensor, counter: Tensor) -> Tensor:
        return ops.batchnorm_act_forward(x, x, None, None, running, None, True, None, EPS, "relu", 0.0, counter)[0]

    torch.vmap(forward)(x, running, counter)
    torch.testing.assert_close(running, x.mean((1, 3)))
    assert counter.tolist() == [1, 1, 1]


# ---- what autograd keeps ----


@pytest.mark.parametrize(
    ("name", "with_residual", "images"),
    [
        ("relu", False, 1.0),
        ("relu", True, 1 + 1 / 32),
        ("silu", False, 1.0),
        ("silu", True, 2.0),
        ("identity", True, 1),
    ],
)
def test_saved_memory(device: str, name: str, with_residual: bool, images: float) -> None:
    """float32: the input, and a bit per value or the residual; never the output."""
    x = torch.randn(8, 4, 32, 32, device=device, requires_grad=True)
    residual = torch.randn_like(x).requires_grad_() if with_residual else None
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ops.batchnorm_act_forward(x, residual, None, None, None, None, True, 0.1, EPS, name, 0.0)
    assert sum(size for size in sizes if size > 64) == images * x.nbytes


def test_changing_the_output_is_no_matter(device: str) -> None:
    x = torch.randn(4, 3, 5, device=device, requires_grad=True)
    residual = torch.randn(4, 3, 5, device=device, requires_grad=True)
    output = ops.batchnorm_act_forward(x, residual, None, None, None, None, True, 0.1, EPS, "relu")[0]
    want = torch.autograd.grad(output.sum(), (x, residual), retain_graph=True)
    output.mul_(3.0)
    got = torch.autograd.grad(output.sum() / 3, (x, residual))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("changed", [0, 1])
def test_changing_a_saved_tensor_is_detected(device: str, changed: int) -> None:
    tensors = [torch.randn(4, 3, 5, device=device, requires_grad=True) for _ in range(2)]
    output = ops.batchnorm_act_forward(*tensors, None, None, None, None, True, 0.1, EPS, "silu")[0]
    with torch.no_grad():
        tensors[changed].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize(("layout", "other"), [("contiguous", "channels_last"), ("channels_last", "contiguous")])
@pytest.mark.parametrize("name", ["relu", "relu6", "silu"])
@pytest.mark.parametrize("operator", ["forward", "apply"])
def test_saved_tensors_that_come_back_in_another_layout(
    device: str, operator: str, name: str, layout: str, other: str
) -> None:
    """As those of torch's save_on_cpu may: a mask follows the memory of the input that the operator read."""
    x, residual, dy = (arrange(torch.randn(4, 3, 5, 7, device=device), layout) for _ in range(3))
    leaves = [x.requires_grad_(), residual.requires_grad_()]
    vectors = [torch.rand(3, device=device) + 0.5 for _ in range(2)]

    def output() -> Tensor:
        if operator == "apply":
            return ops.batchnorm_act_apply(*leaves, None, None, *vectors, name, SLOPES[name])[0]
        return ops.batchnorm_act_forward(*leaves, *vectors, None, None, True, 0.1, EPS, name, SLOPES[name])[0]

    want = torch.autograd.grad(output(), leaves, dy)
    packs = (lambda t: arrange(t.contiguous(), other) if t.dim() == x.dim() else t, lambda t: t)
    with torch.autograd.graph.saved_tensors_hooks(*packs):
        got = torch.autograd.grad(output(), leaves, dy)
    assert all(torch.equal(one, exact) for one, exact in zip(got, want, strict=True))


# ---- programs ----


class Block(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.norm = my_ops.BatchNormAct2d(6, activation=name)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.norm(self.norm(x * 2), residual)


@pytest.mark.parametrize("name", ["relu", "silu"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compile(name: str, layout: str) -> None:
    """One graph each way, with the fused operators in it, and the values of eager mode."""
    torch._dynamo.reset()
    x, residual = (arrange(torch.randn(4, 6, 5, 7), layout).requires_grad_() for _ in range(2))
    eager, compiled = Block(name), Block(name)
    code: list[str] = []

    def keep_code(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        code.append(graph.code)
        return graph.forward

    backend = aot_autograd(fw_compiler=keep_code)
    for program in (torch.compile(compiled, fullgraph=True, backend=backend), eager):
        program(x, residual).square().sum().backward()
    counts = [[text.count(f"my_ops.batchnorm_{op}") for op in ("act_forward", "act_backward", "")] for text in code]
    assert counts == [[2, 0, 2], [0, 2, 2]]
    for mine, want in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, want.grad)
    for mine, want in zip(compiled.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(mine, want)


def test_export_with_a_dynamic_batch() -> None:
    block = Block("relu").eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    example = (torch.randn(4, 6, 5, 7), torch.randn(4, 6, 5, 7))
    program = torch.export.export(block, example, dynamic_shapes=({0: batch}, {0: batch}))
    x, residual = torch.randn(9, 6, 5, 7), torch.randn(9, 6, 5, 7)
    torch.testing.assert_close(program.module()(x, residual), block(x, residual))


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("name", ["leaky_relu", "silu"])
def test_opcheck(device: str, training: bool, name: str, with_residual: bool) -> None:
    args, residual = problem((4, 3, 5, 2), "channels_last", torch.float32, device, training, with_residual)
    for tensor in (args.input, args.gamma, args.beta, residual):
        if tensor is not None:
            tensor.requires_grad_()
    torch.library.opcheck(ops.batchnorm_act_forward.default, act_arguments(args, name, residual))
    with torch.no_grad():
        _, mean, invstd, mask = ops.batchnorm_act_forward(*act_arguments(args, name, residual))
    dy = torch.randn_like(args.input)
    saved = (args.input, None if name in MASKED else residual, mask, args.gamma, args.beta, mean, invstd)
    saved = tuple(None if t is None else t.detach() for t in saved)
    act = (name, SLOPES[name])
    torch.library.opcheck(ops.batchnorm_act_backward.default, (dy, *saved, training, *act, [True, False, True, True]))
    torch.library.opcheck(
        ops.batchnorm_act_apply.default, (args.input, residual, args.gamma, args.beta, mean, invstd, *act)
    )
    torch.library.opcheck(ops.batchnorm_act_backward_reduce.default, (dy, *saved, *act))
    count = torch.tensor([40], device=device)
    torch.library.opcheck(ops.batchnorm_act_backward_apply.default, (dy, *saved, *act, mean, invstd, count))


# ---- Python ----


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_module_is_batch_norm_and_activation(name: str, rank: int) -> None:
    """Values, gradients and state of torch's modules one behind the other, over two steps and in eval."""
    activation_module = {
        "identity": nn.Identity(),
        "relu": nn.ReLU(),
        "leaky_relu": nn.LeakyReLU(0.2),
        "relu6": nn.ReLU6(),
        "elu": nn.ELU(0.7),
        "silu": nn.SiLU(),
        "gelu_tanh": nn.GELU(approximate="tanh"),
    }[name]
    slope = {"leaky_relu": 0.2, "elu": 0.7}.get(name)
    ours = getattr(my_ops, f"BatchNormAct{rank}d")(5, activation=name, slope=slope)
    theirs = getattr(nn, f"BatchNorm{rank}d")(5)
    for tensor in (*theirs.parameters(), theirs.running_mean, theirs.running_var):
        nn.init.uniform_(tensor, 0.5, 1.5)
    ours.load_state_dict(theirs.state_dict())
    assert isinstance(ours, getattr(my_ops, f"BatchNorm{rank}d"))
    x, residual = (torch.randn(4, 5, *[6] * rank, requires_grad=True) for _ in range(2))
    for step in range(3):
        ours.train(step < 2)
        theirs.train(step < 2)
        want = activation_module(theirs(x) + residual)
        got = ours(x, residual)
        torch.testing.assert_close(got, want)
        leaves = ((*ours.parameters(), x, residual), (*theirs.parameters(), x, residual))
        dy = torch.randn_like(want)
        torch.testing.assert_close(*(torch.autograd.grad(y, w, dy) for y, w in zip((got, want), leaves, strict=True)))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_module_without_tracking_or_affine() -> None:
    x = torch.randn(4, 5, 6)
    module = my_ops.BatchNormAct1d(5, affine=False, track_running_stats=False, activation="elu")
    for training in (True, False):
        want = nn.functional.elu(nn.functional.batch_norm(x, None, None, training=True))
        torch.testing.assert_close(module.train(training)(x), want)


def test_repr_and_defaults() -> None:
    assert "activation=leaky_relu, slope=0.01" in repr(my_ops.BatchNormAct2d(3, activation="leaky_relu"))
    assert "activation=relu" in repr(my_ops.BatchNormAct2d(3))
    assert my_ops.BatchNormAct2d(3, activation="elu").slope == 1.0


def test_functional() -> None:
    x, residual = torch.randn(4, 5, 6), torch.randn(4, 5, 6)
    mean, var, counter = torch.zeros(5), torch.ones(5), torch.tensor(0)
    want = nn.functional.leaky_relu(nn.functional.batch_norm(x, None, None, training=True) + residual)
    got = my_ops.functional.batch_norm_act(
        x, mean, var, training=True, activation="leaky_relu", residual=residual, num_batches_tracked=counter
    )
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(mean, 0.1 * x.mean((0, 2)))
    assert int(counter) == 1


# ---- errors ----


def test_unknown_activation() -> None:
    known = "identity, relu, leaky_relu, relu6, elu, silu or gelu_tanh"
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match=f"batchnorm_act_forward: expected activation {known}, got tanh"):
        my_ops.functional.batch_norm_act(x, None, None, training=True, activation="tanh")
    with pytest.raises(ValueError, match=f"BatchNormAct1d: expected activation {known}, got tanh"):
        my_ops.BatchNormAct1d(3, activation="tanh")


def test_wrong_arguments(device: str) -> None:
    x = torch.randn(4, 3, 5, device=device)
    vector = torch.ones(3, device=device)

    def refuses(message: str, op: Callable[..., object], *args: object) -> None:
        for moved in (args, [a.to("meta") if isinstance(a, Tensor) else a for a in args]):
            with pytest.raises((RuntimeError, ValueError), match=message):
                op(*moved)

    forward, backward = ops.batchnorm_act_forward, ops.batchnorm_act_backward
    rest = (None, None, None, None, True, 0.1, EPS, "relu")
    refuses(
        r"batchnorm_act_forward: expected residual of shape \[4, 3, 5\], got \[4, 3, 2", forward, x, x[..., :2], *rest
    )
    refuses("forward: expected residual of dtype float32, got float64", forward, x, x.double(), *rest)
    refuses(r"forward: expected gamma of shape \[3\], got \[2\]", forward, x, x, vector[:2], *rest[1:])
    refuses("act_forward: expected eps > 0 when training, got -1", forward, x, x, *rest[:6], -1.0, "relu")
    one = x[:1, :, 0]
    refuses(r"act_forward: expected more than 1 value per channel .*\[1, 3\]", forward, one, None, *rest)
    saved = (None, None, vector, vector, True, "relu")
    short = torch.zeros(7, dtype=torch.uint8, device=device)
    refuses(r"act_backward: expected mask of shape \[8\], got \[7\]", backward, x, x, None, short, *saved)
    refuses("act_backward: expected mask of dtype uint8, got float32", backward, x, x, None, x.flatten()[:8], *saved)
    refuses("act_backward: expected mask instead of residual for relu", backward, x, x, x, None, *saved)
    refuses(r"act_backward: expected grad_output of shape \[4, 3, 5\]", backward, x[:2], x, None, None, *saved)


def test_running_statistics_that_require_grad() -> None:
    with pytest.raises(RuntimeError, match="batchnorm_act_forward: expected running_mean not to require grad"):
        running = torch.zeros(3, requires_grad=True)
        ops.batchnorm_act_forward(torch.randn(4, 3), None, None, None, running, None, True, 0.1, EPS, "relu")


def test_running_statistics_that_overlap_the_residual() -> None:
    residual = torch.randn(4, 3)
    with pytest.raises(RuntimeError, match="running_mean to have memory of its own, but it overlaps residual"):
        ops.batchnorm_act_forward(torch.randn(4, 3), residual, None, None, residual[0], None, True, 0.1, EPS, "relu")
