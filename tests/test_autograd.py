"""Derivatives: first and second order of every operator, who gets a gradient, and what may not be changed meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import reference
from checks import EPS, activations, arguments, check_forward, ops
from layouts import arrange
from tolerances import TOLERANCES, accumulation_dtype, assert_within, unit_roundoff

DOUBLE = torch.float64
CASES = [((4, 3), "contiguous")] + [
    (shape, layout)
    for shape in ((3, 2, 5), (2, 3, 2, 2), (2, 2, 1, 2, 2))
    for layout in ("contiguous", "channels_last", "strided")
]


def leaf(*shape: int, device: str, requires_grad: bool = True) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, device=device, requires_grad=requires_grad)


def positive(*shape: int, device: str) -> Tensor:
    return (0.5 + torch.rand(shape, dtype=DOUBLE, device=device)).requires_grad_()


def check_derivatives(function: Callable[..., object], *inputs: Tensor | None) -> None:
    """First and second derivatives against finite differences, in both modes and batched.

    gradcheck also tries gradients that are undefined.
    """
    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize(("shape", "layout"), CASES)
@pytest.mark.parametrize(("gamma", "beta"), list(product([True, False], repeat=2)))
def test_forward(device: str, training: bool, shape: tuple[int, ...], layout: str, gamma: bool, beta: bool) -> None:
    """All three outputs: in training the saved statistics depend on the input, in eval they are constants."""
    channels = shape[1]
    running = (leaf(channels, device=device, requires_grad=False), positive(channels, device=device).detach())

    def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, ...]:
        statistics = (None, None) if training else running
        results = ops.batchnorm_forward(arrange(x, layout), weight, bias, *statistics, training, 0.1, EPS)
        return results if training else results[:1]

    weight = leaf(channels, device=device) if gamma else None
    bias = leaf(channels, device=device) if beta else None
    check_derivatives(forward, leaf(*shape, device=device), weight, bias)


@pytest.mark.parametrize("mask", [mask for mask in product([True, False], repeat=3) if any(mask)], ids=str)
@pytest.mark.parametrize("gamma", [True, False], ids=["gamma", "no_gamma"])
def test_backward(device: str, training: bool, mask: tuple[bool, ...], gamma: bool) -> None:
    """As a function of all its arguments, the saved statistics included."""
    channels = 3

    def backward(dy: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None) -> tuple[Tensor, ...]:
        grads = ops.batchnorm_backward(dy, x, weight, mean, invstd, training, mask)
        return tuple(grad for grad in grads if grad is not None)

    image = [leaf(2, channels, 2, 2, device=device) for _ in range(2)]
    statistics = (leaf(channels, device=device), positive(channels, device=device))
    check_derivatives(backward, *image, *statistics, leaf(channels, device=device) if gamma else None)


def test_phases(device: str) -> None:
    """Each phase operator as a function of all its floating-point arguments."""
    image, grad = (leaf(3, 2, 4, device=device) for _ in range(2))
    vectors = [leaf(2, device=device) for _ in range(4)]
    invstd = positive(2, device=device)
    count = torch.tensor([31], device=device)
    counts = torch.tensor([3, 1, 5], device=device)
    parts = (leaf(3, 2, device=device), positive(3, 2, device=device))
    check_derivatives(lambda x: ops.batchnorm_stats(x)[:2], image)
    check_derivatives(lambda mean, m2: ops.batchnorm_gather_stats(mean, m2, counts, None, None, None, EPS)[:2], *parts)
    check_derivatives(ops.batchnorm_apply, image, *vectors[:3], invstd)
    check_derivatives(lambda *args: ops.batchnorm_apply(args[0], None, None, *args[1:]), image, vectors[0], invstd)
    check_derivatives(ops.batchnorm_backward_reduce, grad, image, vectors[0], invstd)
    check_derivatives(
        lambda *args: ops.batchnorm_backward_apply(*args, count), grad, image, *vectors[:2], invstd, *vectors[2:]
    )


def test_phases_in_parts_have_the_derivative_of_the_whole(device: str) -> None:
    """Synchronized batch norm, written with the phases in one process, differentiates like batchnorm_forward."""
    x = leaf(5, 3, 4, device=device)
    gamma, beta, dy = leaf(3, device=device), leaf(3, device=device), torch.randn(5, 3, 4, dtype=DOUBLE, device=device)

    def in_parts(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        parts = x.split([2, 0, 3])
        means, m2s, counts = (torch.stack(each) for each in zip(*map(ops.batchnorm_stats, parts), strict=True))
        gathered = ops.batchnorm_gather_stats(means, m2s, counts.flatten(), None, None, None, EPS)
        return torch.cat([ops.batchnorm_apply(part, gamma, beta, *gathered[:2]) for part in parts])

    whole = ops.batchnorm_forward(x, gamma, beta, None, None, True, None, EPS)[0]
    want = torch.autograd.grad(whole, (x, gamma, beta), dy)
    got = torch.autograd.grad(in_parts(x, gamma, beta), (x, gamma, beta), dy)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 3, 0)], ids=str)
def test_empty_batch(device: str, training: bool, shape: tuple[int, ...]) -> None:
    args = arguments(torch.empty(shape, device=device), training)
    leaves = [t.requires_grad_() for t in (args.input, args.gamma, args.beta)]
    output, _, _ = ops.batchnorm_forward(*args.values())
    grads = torch.autograd.grad(output.sum(), leaves)
    assert [g.shape for g in grads] == [t.shape for t in leaves]
    assert not any(g.any() for g in grads)


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 3, 0)], ids=str)
def test_second_derivative_of_an_empty_batch(device: str, training: bool, shape: tuple[int, ...]) -> None:
    """Zeros, although M = 0 divides in the formulas."""
    args = arguments(torch.empty(shape, dtype=DOUBLE, device=device), training)
    leaves = [t.requires_grad_() for t in (args.input, args.gamma)]
    output, _, _ = ops.batchnorm_forward(*args.values())
    dy = torch.empty(shape, dtype=DOUBLE, device=device, requires_grad=True)
    grads = torch.autograd.grad(output, leaves, dy, create_graph=True)
    second = torch.autograd.grad(sum(grad.sum() for grad in grads), [*leaves, dy], materialize_grads=True)
    assert not any(grad.any() for grad in second)


@pytest.mark.parametrize("wanted", list(product([False, True], repeat=3)), ids=str)
def test_who_requires_grad(device: str, training: bool, wanted: tuple[bool, ...]) -> None:
    """Each combination of input, gamma and beta: the others get nothing, and the graph exists only if one wants it."""
    args = arguments(activations((4, 3, 5), DOUBLE, device), training)
    tensors = (args.input, args.gamma, args.beta)
    for tensor, requires_grad in zip(tensors, wanted, strict=True):
        tensor.requires_grad_(requires_grad)
    output, mean, invstd = ops.batchnorm_forward(*args.values())
    assert output.requires_grad == any(wanted)
    for saved in (mean, invstd):  # constants in eval
        assert saved.requires_grad == (training and any(wanted))
    if any(wanted):
        dy = torch.randn_like(output)
        output.backward(dy)
        exact = reference.backward(dy, args.input, args.gamma, mean, invstd, training)
        results = (exact.grad_input, exact.grad_gamma, exact.grad_beta)
        for tensor, requires_grad, want in zip(tensors, wanted, results, strict=True):
            assert (tensor.grad is not None) == requires_grad
            if requires_grad:
                assert_within(tensor.grad, want, TOLERANCES[DOUBLE].backward, "gradient")


def test_no_graph_without_grad_mode(device: str, training: bool) -> None:
    args = arguments(activations((4, 3, 5), torch.float32, device).requires_grad_(), training)
    with torch.no_grad():
        assert not any(result.requires_grad for result in ops.batchnorm_forward(*args.values()))


def test_inference_mode(device: str, training: bool) -> None:
    """Statistics made outside are updated, and nothing is recorded."""
    args = arguments(activations((4, 3, 5), torch.float32, device).requires_grad_(), training)
    with torch.inference_mode():
        output, _, _ = check_forward(args)
    assert output.is_inference()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("parameters", ["same", "wide", "none"])
def test_gradients_from_end_to_end(
    device: str, dtype: torch.dtype, training: bool, layout: str, parameters: str
) -> None:
    """output.backward(dy) in every dtype against float64, and dtypes, sizes and layout of the gradients."""
    shape = (4, 6, 5, 7)
    wide = accumulation_dtype(dtype)
    vectors = dtype if parameters == "same" else wide
    args = arguments(arrange(activations(shape, dtype, device), layout), training, (vectors, vectors, wide, wide))
    if parameters == "none":
        args = args.only(("running_mean", "running_var"))
    leaves = [t.requires_grad_() for t in (args.input, args.gamma, args.beta) if t is not None]
    exact = reference.forward(*args.values())
    output, _, _ = ops.batchnorm_forward(*args.values())
    dy = torch.randn(shape, device=device).to(dtype)
    grads = torch.autograd.grad(output, leaves, dy)

    want = reference.backward(dy, args.input, args.gamma, exact.mean.value, exact.invstd.value, training)
    results = (want.grad_input, want.grad_gamma, want.grad_beta)
    # The saved mean, around 1, is rounded to the accumulation dtype: for dx one more rounding of its terms, for
    # grad_gamma that times sum(|dy|).
    factor = TOLERANCES[dtype].backward + 4 * unit_roundoff(wide)
    for tensor, got, result in zip(leaves, grads, results, strict=False):
        assert (got.dtype, got.shape, got.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
        assert_within(got, result, factor, "gradient")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_expanded_grad_output(device: str, dtype: torch.dtype, training: bool, layout: str) -> None:
    """sum() and mean() send one value with stride 0 back."""
    args = arguments(arrange(activations((4, 6, 5, 7), dtype, device), layout), training)
    leaves = [t.requires_grad_() for t in (args.input, args.gamma, args.beta)]
    output, mean, invstd = ops.batchnorm_forward(*args.values())
    grads = torch.autograd.grad(output.sum(), leaves)
    want = reference.backward(torch.ones_like(output), args.input, args.gamma, mean, invstd, training)
    for got, result in zip(grads, (want.grad_input, want.grad_gamma, want.grad_beta), strict=True):
        assert_within(got, result, TOLERANCES[dtype].backward, "gradient")


def test_output_may_be_changed_in_place(device: str, training: bool) -> None:
    """ReLU(inplace=True) behind batch norm: the output is not needed for the gradient."""
    args = arguments(activations((4, 3, 5), DOUBLE, device).requires_grad_(), training)
    output, mean, invstd = ops.batchnorm_forward(*args.values())
    output.relu_().sum().backward()
    dy = (output > 0).double()
    want = reference.backward(dy, args.input, args.gamma, mean, invstd, training)
    assert_within(args.input.grad, want.grad_input, TOLERANCES[DOUBLE].backward, "gradient")


def test_gradient_of_saved_statistics_alone(device: str) -> None:
    """d mean / dx = 1/M, and output need not take part."""
    x = leaf(4, 3, 5, device=device)
    _, mean, _ = ops.batchnorm_forward(x, None, None, None, None, True, None, EPS)
    (grad,) = torch.autograd.grad(mean.sum(), x)
    torch.testing.assert_close(grad, torch.full_like(x, 1 / 20))


def test_graph_may_be_used_twice_or_freed(device: str) -> None:
    x = leaf(4, 3, 5, device=device)
    output = ops.batchnorm_forward(x, None, None, None, None, True, None, EPS)[0]
    loss = (output * torch.randn_like(output)).sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, x)


@pytest.mark.parametrize("name", ["input", "gamma"])
def test_changing_a_saved_tensor_is_detected(device: str, training: bool, name: str) -> None:
    args = arguments(activations((4, 3, 5), torch.float32, device), training)
    for tensor in (args.input, args.gamma):
        tensor.requires_grad_()
    output = ops.batchnorm_forward(*args.values())[0]
    with torch.no_grad():
        getattr(args, name).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_running_statistics_may_change_before_backward(device: str, training: bool) -> None:
    """Two forwards, one backward, as with a layer used twice: what is saved is no view of the running statistics."""
    args = arguments(activations((4, 3, 5), torch.float32, device).requires_grad_(), training)
    output, mean, invstd = ops.batchnorm_forward(*args.values())
    want = reference.backward(torch.ones_like(output), args.input, args.gamma, mean, invstd, training)
    ops.batchnorm_forward(*args.values())
    args.running_mean.zero_()
    args.running_var.fill_(9.0)
    output.sum().backward()
    assert_within(args.input.grad, want.grad_input, TOLERANCES[torch.float32].backward, "gradient")


@pytest.mark.parametrize("requires_grad", [True, False])
def test_writes_are_announced(device: str, requires_grad: bool) -> None:
    """The versions of what training writes rise, those of what it reads stay."""
    args = arguments(activations((4, 3, 5), torch.float32, device).requires_grad_(requires_grad), training=True)
    counter = torch.tensor(0, device=device)
    written = (args.running_mean, args.running_var, counter)
    read = (args.input, args.gamma, args.beta)
    versions = [tensor._version for tensor in written + read]
    ops.batchnorm_forward(*args.values()[:-1], counter)
    rose = [tensor._version > version for tensor, version in zip(written + read, versions, strict=True)]
    assert rose == [True] * 3 + [False] * 3


def test_a_write_under_somebody_elses_graph_is_detected(device: str) -> None:
    running_mean, factor = torch.zeros(3, device=device), torch.ones(3, device=device, requires_grad=True)
    product = factor * running_mean
    ops.batchnorm_forward(torch.randn(4, 3, device=device), None, None, running_mean, None, True, 0.1, EPS)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_third_order(device: str, training: bool) -> None:
    """The second derivatives of a gradient."""
    args = arguments(torch.randn(3, 2, 2, dtype=DOUBLE, device=device), training)
    weights = torch.randn_like(args.input)

    def gradients(x: Tensor, gamma: Tensor) -> tuple[Tensor, ...]:
        output = ops.batchnorm_forward(x, gamma, None, args.running_mean, args.running_var, training, 0.0, EPS)[0]
        return torch.autograd.grad((output * weights).sum(), (x, gamma), create_graph=True)

    leaves = [t.requires_grad_() for t in (args.input, args.gamma)]
    assert gradgradcheck(gradients, leaves)


def test_derivative_of_the_mean_is_finite(device: str) -> None:
    """d mean / dx = 1/M whatever x holds."""
    x = torch.tensor([[1.0, torch.inf], [torch.nan, 2.0]], device=device, requires_grad=True)
    mean, _, _ = ops.batchnorm_stats(x)
    (grad,) = torch.autograd.grad(mean.sum(), x)
    assert torch.equal(grad, torch.full_like(x, 0.5))


Norm = Callable[[Tensor, Tensor, Tensor], Tensor]
STATISTICS = (torch.full((3,), 0.1), torch.full((3,), 1.2))
MIXED: dict[str, Norm] = {
    "training": lambda x, *vectors: ops.batchnorm_forward(x, *vectors, None, None, True, 0.1, EPS)[0],
    "eval": lambda x, *vectors: ops.batchnorm_forward(x, *vectors, *STATISTICS, False, 0.1, EPS)[0],
    "apply": lambda x, *vectors: ops.batchnorm_apply(x, *vectors, *STATISTICS),
    "act": lambda x, *vectors: ops.batchnorm_act_forward(x, None, *vectors, None, None, True, 0.1, EPS, "silu")[0],
    "act_apply": lambda x, *vectors: ops.batchnorm_act_apply(x, None, *vectors, *STATISTICS, "silu", 0.0)[0],
    "instance": lambda x, *vectors: ops.instancenorm_forward(x, *vectors, None, None, 0.1, EPS)[0],
    "in_place": lambda x, *vectors: _in_place(x.clone(), *vectors),
    "conv": lambda x, *vectors: ops.conv_batchnorm_forward(
        x, torch.eye(3, dtype=x.dtype)[:, :, None], None, *vectors, None, None, [1], [0], [1], 1, True, 0.1, EPS
    )[0],
}


def _in_place(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    ops.batchnorm_act_forward_(x, gamma, beta, None, None, True, 0.1, EPS, "leaky_relu", 0.5)
    return x


@pytest.mark.parametrize("norm", MIXED.values(), ids=MIXED.keys())
def test_gradient_of_a_beta_wider_than_gamma(norm: Norm) -> None:
    """Every gradient has its argument's dtype, and no digits are lost on the way through the other's."""
    x = activations((8, 3, 50), torch.bfloat16, "cpu")
    dy = torch.randn(x.shape).bfloat16()
    gamma, beta = torch.tensor([0.5, 1.0, 1.5], dtype=torch.bfloat16), torch.tensor([0.1, -0.2, 0.3])
    grads = []
    for given in (gamma, gamma.float()):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, given, beta)]
        grads.append(torch.autograd.grad(norm(*leaves), leaves, dy))
        assert [gradient.dtype for gradient in grads[-1]] == [leaf.dtype for leaf in leaves]
    assert not torch.equal(grads[0][2], grads[0][2].bfloat16().float())
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1].bfloat16())
    assert torch.equal(grads[0][2], grads[1][2])
