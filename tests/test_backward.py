"""batchnorm_backward against the reference: every dtype, layout pair, rank, gamma, mask and mode."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from checks import activations, arguments, bit_equal, check_backward, ops
from layouts import LAYOUTS, RANKED_LAYOUTS, SHAPES, arrange, strided
from sizes import AMBIGUOUS, AROUND_VECTORS, EMPTY, NO_CHANNELS, PROPORTIONS, around_vectors, past_the_cache
from tolerances import accumulation_dtype

MASKS = list(product([False, True], repeat=3))


def gradients(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Not centred, so that no term of the formula vanishes."""
    return (torch.randn(shape, dtype=torch.float64) + 0.5).to(device, dtype)


@pytest.mark.parametrize(("rank", "layout"), RANKED_LAYOUTS)
def test_layouts(device: str, dtype: torch.dtype, training: bool, rank: int, layout: str) -> None:
    input = arrange(activations(SHAPES[rank], dtype, device), layout)
    grad_output = arrange(gradients(SHAPES[rank], dtype, device), layout)
    check_backward(grad_output, arguments(input, training))


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_grad_output_in_another_layout(device: str, dtype: torch.dtype, training: bool, rank: int) -> None:
    layouts = [layout for layout, ranks in LAYOUTS.items() if rank in ranks]
    values, grads = activations(SHAPES[rank], dtype, device), gradients(SHAPES[rank], dtype, device)
    for of_input, of_grad in product(layouts, repeat=2):
        check_backward(arrange(grads, of_grad), arguments(arrange(values, of_input), training))


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("gamma", [True, False], ids=["gamma", "no_gamma"])
def test_masks(
    device: str, dtype: torch.dtype, training: bool, mask: tuple[bool, ...], layout: str, gamma: bool
) -> None:
    """Each gradient alone is the same, bit by bit, as with the others."""
    input = arrange(activations(SHAPES[4], dtype, device), layout)
    grad_output = arrange(gradients(SHAPES[4], dtype, device), layout)
    args = arguments(input, training).only((("gamma",) if gamma else ()) + ("running_mean", "running_var"))
    some, every = check_backward(grad_output, args, mask), check_backward(grad_output, args)
    assert all(got is None or bit_equal(got, want) for got, want in zip(some, every, strict=True))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_float32_gamma_of_half_input(device: str, training: bool, half: torch.dtype, layout: str) -> None:
    input = arrange(activations(SHAPES[4], half, device), layout)
    grad_output = arrange(gradients(SHAPES[4], half, device), layout)
    check_backward(grad_output, arguments(input, training, (torch.float32,) * 4))


@pytest.mark.parametrize("size", AROUND_VECTORS)
def test_sizes_around_vectors(device: str, dtype: torch.dtype, training: bool, size: int) -> None:
    for shape, layout in around_vectors(size):
        input = arrange(activations(shape, dtype, device), layout)
        check_backward(arrange(gradients(shape, dtype, device), layout), arguments(input, training))


@pytest.mark.parametrize(("shape", "layout"), PROPORTIONS)
def test_extreme_proportions(
    device: str, dtype: torch.dtype, training: bool, shape: tuple[int, ...], layout: str
) -> None:
    input = arrange(activations(shape, dtype, device), layout)
    check_backward(arrange(gradients(shape, dtype, device), layout), arguments(input, training))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_large_results(device: str, dtype: torch.dtype, training: bool, layout: str) -> None:
    """Written past the cache."""
    shape = past_the_cache(dtype.itemsize)
    input = arrange(activations(shape, dtype, device), layout)
    check_backward(arrange(gradients(shape, dtype, device), layout), arguments(input, training))


@pytest.mark.parametrize(("shape", "stride"), AMBIGUOUS, ids=str)
def test_ambiguous_strides(
    device: str, dtype: torch.dtype, training: bool, shape: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    input, grad_output = (torch.empty_strided(shape, stride, dtype=dtype, device=device) for _ in range(2))
    args = arguments(input.copy_(activations(shape, dtype, device)), training)
    check_backward(grad_output.copy_(gradients(shape, dtype, device)), args)


@pytest.mark.parametrize("shape", EMPTY + NO_CHANNELS, ids=str)
def test_empty(device: str, dtype: torch.dtype, training: bool, shape: tuple[int, ...]) -> None:
    args = arguments(activations(shape, dtype, device), training)
    grads = check_backward(gradients(shape, dtype, device), args)
    assert [list(g.shape) for g in grads] == [list(shape), [shape[1]], [shape[1]]]
    assert not any(g.any() for g in grads)


def test_one_value_per_channel(device: str, dtype: torch.dtype, training: bool) -> None:
    """No error in backward: a batch split over several processes may leave one value to one of them."""
    input, grad_output = activations((1, 5, 1), dtype, device), gradients((1, 5, 1), dtype, device)
    mean, invstd = torch.zeros(2, 5, dtype=accumulation_dtype(dtype), device=device) + 0.5
    grad_input, grad_gamma, grad_beta = ops.batchnorm_backward(grad_output, input, None, mean, invstd, training)
    xhat = (input[0, :, 0].to(mean.dtype) - 0.5) * 0.5
    torch.testing.assert_close(grad_beta, grad_output[0, :, 0].to(mean.dtype))
    torch.testing.assert_close(grad_gamma, grad_beta * xhat)
    wanted = 0.5 * (grad_beta - grad_beta - xhat * grad_gamma if training else grad_beta)
    torch.testing.assert_close(grad_input[0, :, 0], wanted.to(dtype))


def test_vectors_of_any_stride(device: str, dtype: torch.dtype, training: bool) -> None:
    input, grad_output = activations(SHAPES[4], dtype, device), gradients(SHAPES[4], dtype, device)
    args = arguments(input, training)
    _, mean, invstd = ops.batchnorm_forward(*args.values())
    want = ops.batchnorm_backward(grad_output, input, args.gamma, mean, invstd, training)
    vectors = [strided(vector) for vector in (args.gamma, mean, invstd)]
    got = ops.batchnorm_backward(grad_output, input, *vectors, training)
    assert all(bit_equal(g, w) for g, w in zip(got, want, strict=True))


def test_training_and_all_gradients_are_the_defaults(device: str) -> None:
    input, grad_output = activations(SHAPES[3], torch.float32, device), gradients(SHAPES[3], torch.float32, device)
    args = arguments(input, training=True)
    _, mean, invstd = ops.batchnorm_forward(*args.values())
    got = ops.batchnorm_backward(grad_output, input, args.gamma, mean, invstd)
    want = ops.batchnorm_backward(grad_output, input, args.gamma, mean, invstd, True, [True, True, True])
    assert all(bit_equal(g, w) for g, w in zip(got, want, strict=True))
