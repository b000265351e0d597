"""Digits: hard data, long runs, large sizes, thread counts; and the two cases everybody knows."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import reference
from activations import SLOPES, activation
from checks import EPS, Arguments, activations, arguments, bit_equal, check_backward, check_forward, ops
from layouts import arrange
from reference import Result
from tolerances import CLASSIC_CASE, TOLERANCES, assert_within, unit_roundoff

LAYOUTS = ["contiguous", "channels_last"]
SHAPE = (8, 6, 15, 17)


def _normal(mean: float, std: float) -> Tensor:
    return torch.randn(SHAPE, dtype=torch.float64) * std + mean


def _outlier_first() -> Tensor:
    data = _normal(0.0, 1.0)
    data[0, :, 0, 0] = 1e6
    return data


def _halves_far_apart() -> Tensor:
    """Each half of the batch has nearly no variance of its own; that between them is found in merging."""
    data = _normal(1e4, 1e-2)
    data[SHAPE[0] // 2 :] += 10.0
    return data


HARD = {
    "mean_1e4": lambda: _normal(1e4, 1.0),
    "mean_1e6": lambda: _normal(-1e6, 1.0),
    "mean_1e4_std_0.1": lambda: _normal(1e4, 0.1),
    "constant_1e7": lambda: _normal(1e7, 0.0),
    "constant_0.1": lambda: _normal(0.1, 0.0),  # no binary fraction: sums of it are inexact
    "outlier_first": _outlier_first,
    "halves_far_apart": _halves_far_apart,
    "huge": lambda: _normal(0.0, 1e15),  # squares and their sum still fit float32
    "tiny": lambda: _normal(0.0, 1e-15),
    "subnormal": lambda: _normal(0.0, 1e-40),
    "zero": lambda: _normal(0.0, 0.0),
}


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_hard_data(device: str, dtype: torch.dtype, kind: str, layout: str) -> None:
    """Output, statistics, running statistics and gradients keep their digits whatever the mean and the magnitude."""
    data = HARD[kind]()
    if data.abs().max() > torch.finfo(dtype).max:
        data = data * (torch.finfo(dtype).max / data.abs().max() / 2)
    input = arrange(data.to(device, dtype), layout)
    grad_output = arrange(torch.randn(SHAPE).to(device, dtype), layout)
    wide = torch.float64 if dtype == torch.float64 else torch.float32  # running statistics that hold the values
    args = arguments(input, True, (dtype, dtype, wide, wide))
    check_forward(args)
    check_backward(grad_output, args)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1e3, 1e6, 1e9])
@pytest.mark.parametrize("images", [4, 8, 32])
def test_one_outlier_costs_no_digits(device: str, layout: str, size: float, images: int) -> None:
    """Around the mean, which it moves, the other values' squares all round alike beside its own."""
    data = torch.cat([_normal(1.0, 1.0) for _ in range(4)])[:images]
    data[0, :, 0, 0] = size
    input = arrange(data.float().to(device), layout)
    _, _, invstd = ops.batchnorm_forward(*arguments(input, training=True).values())
    want = reference.inverse_std(reference.statistics(input).var, EPS).value
    assert ((invstd.cpu().double() - want) / want).abs().max() < 3 * unit_roundoff(torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [0.1, 3.0, 1e7])
def test_constant_gives_exactly_beta(device: str, layout: str, value: float) -> None:
    input = arrange(torch.full(SHAPE, value, device=device), layout)
    args = arguments(input, training=True)
    output, _, _ = ops.batchnorm_forward(*args.values())
    assert torch.equal(output, reference.per_channel(args.beta, input).expand(SHAPE))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_variance_beyond_float32(device: str, layout: str) -> None:
    """Values up to 1e30, whose squares overflow float32: the output is right, the running variance infinite."""
    input = arrange((_normal(0.0, 1e30)).to(device, torch.float32), layout)
    args = arguments(input, training=True)
    check_forward(args)
    assert args.running_var.isinf().all()


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1e19, 1e25, 1e30])
def test_gradient_of_values_whose_squares_overflow(device: str, layout: str, kind: torch.dtype, size: float) -> None:
    """invstd^2 is 0 in float32, and so are native's gradients, all of them."""
    input = arrange(_normal(0.0, size).to(device, kind), layout)
    grad_output = arrange(_normal(1.0, 0.5).to(device, kind), layout)
    check_backward(grad_output, arguments(input, training=True), (True, True, True))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 4), (3, 5, 40, 3)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_and_infinity_stay_in_their_channel(
    device: str, dtype: torch.dtype, value: float, shape: tuple[int, ...], layout: str
) -> None:
    """The other channels have the same bits as without; in training nothing in the poisoned one looks healthy."""
    clean = arguments(arrange(activations(shape, dtype, device), layout), training=True)
    input = clean.input.clone()
    input[1, 2] = value
    poisoned = replace(
        clean, input=input, running_mean=clean.running_mean.clone(), running_var=clean.running_var.clone()
    )
    grad_output = torch.randn(shape).to(device, dtype)
    results = []
    for args in (clean, poisoned):
        forward = ops.batchnorm_forward(*args.values())
        backward = ops.batchnorm_backward(grad_output, args.input, args.gamma, *forward[1:])
        results.append((*forward, args.running_mean, args.running_var, *backward))
    others = torch.tensor([0, 1, 3, 4], device=device)
    for index, (want, got) in enumerate(zip(*results, strict=True)):
        dim = 1 if got.dim() > 1 else 0
        assert bit_equal(got.index_select(dim, others), want.index_select(dim, others)), f"result {index}"
    output, _, _, _, running_var, grad_input, grad_gamma, _ = results[1]
    for got in (output[:, 2], running_var[2], grad_input[:, 2], grad_gamma[2]):
        assert not got.isfinite().any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_nan_and_infinity_stay_in_place_in_eval(device: str, dtype: torch.dtype, value: float) -> None:
    input = activations((3, 5, 4), dtype, device)
    input[1, 2, 3] = value
    check_forward(arguments(input, training=False))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_running_statistics_after_1000_steps(device: str, input_dtype: torch.dtype, momentum: float | None) -> None:
    """float32 statistics follow the float64 recurrence."""
    steps, channels = 1000, 6
    mean, var = torch.zeros(channels, device=device), torch.ones(channels, device=device)
    want_mean, want_var = reference.upcast(mean), reference.upcast(var)
    counter = torch.tensor(0, device=device)
    for step in range(1, steps + 1):
        input = activations((8, channels, 3), input_dtype, device)
        ops.batchnorm_forward(input, None, None, mean, var, True, momentum, 1e-5, counter)
        batch, share = reference.statistics(input), momentum or 1.0 / step
        want_mean += share * (batch.mean.value - want_mean)
        want_var += share * (batch.m2.value / (batch.count - 1) - want_var)
    assert counter.item() == steps
    # A step rounds the product, the sum and the batch's share. What it adds decays with the average itself: so the last
    # 1/momentum steps count; of the equal average all n count, with signs that cancel to about sqrt(n).
    carried = 1.0 / momentum if momentum else steps**0.5
    for got, want, what in ((mean, want_mean, "running_mean"), (var, want_var, "running_var")):
        assert_within(got, Result(want, want.abs() + 1.0), 3 * carried * unit_roundoff(torch.float32), what)


def _every_result(args: Arguments, grad_output: Tensor) -> tuple[Tensor, ...]:
    """Forward, backward and phases, with running statistics of their own."""
    running = [args.running_mean.clone(), args.running_var.clone()]
    args = replace(args, running_mean=running[0], running_var=running[1])
    output, mean, invstd = ops.batchnorm_forward(*args.values())
    stats = ops.batchnorm_stats(args.input)
    apply = ops.batchnorm_apply(args.input, args.gamma, args.beta, mean, invstd)
    sums = ops.batchnorm_backward_reduce(grad_output, args.input, mean, invstd)
    saved = (args.input, args.gamma, mean, invstd)
    return (
        *(output, mean, invstd, *running, *stats, apply, *sums),
        *ops.batchnorm_backward(grad_output, *saved, args.training),
        ops.batchnorm_backward_apply(grad_output, *saved, *sums, stats[2]),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(16, 64, 28, 28), (4, 3, 150, 201), (2, 1, 300, 300), (64, 700, 2, 2)], ids=str)
def test_same_bits_for_any_number_of_threads(
    device: str, training: bool, shape: tuple[int, ...], layout: str, restore_threads: None
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        input = arrange(torch.randn(shape).to(device, dtype), layout)
        grad_output = arrange(torch.randn(shape).to(device, dtype), layout)
        args = arguments(input, training)
        torch.set_num_threads(1)
        want = _every_result(args, grad_output)
        for threads in (2, 3, 7, 7):
            torch.set_num_threads(threads)
            got = _every_result(args, grad_output)
            differ = [index for index, (g, w) in enumerate(zip(got, want, strict=True)) if not bit_equal(g, w)]
            assert not differ, f"results {differ} change with {threads} threads"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(16, 512, 7, 7), (8, 3, 224, 224), (4096, 400, 1)], ids=str)
def test_large(device: str, shape: tuple[int, ...], layout: str) -> None:
    args = arguments(arrange(activations(shape, torch.float32, device), layout), training=True)
    check_forward(args)
    check_backward(arrange(torch.randn(shape, device=device), layout), args)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "train"), [((32, 64, 56, 56), True), ((8, 128, 28, 28), False)])
def test_classic_cases(device: str, shape: tuple[int, ...], train: bool, layout: str) -> None:
    """Training and inference in float32, against nn.BatchNorm2d and against float64."""
    native = nn.BatchNorm2d(shape[1], device=device)
    nn.init.uniform_(native.weight, 0.5, 1.0)
    nn.init.uniform_(native.bias, -0.5, 0.5)
    native.running_mean.normal_(0.0, 0.1)
    native.running_var.uniform_(0.8, 1.2)
    native.train(train)
    input = torch.randn(shape, device=device)
    running = (native.running_mean.clone(), native.running_var.clone())
    vectors = (native.weight.detach(), native.bias.detach(), *running)
    args = Arguments(arrange(input, layout), *vectors, training=train, eps=native.eps)
    exact = reference.forward(*args.values()).output.value
    output, _, _ = check_forward(args)
    assert (output - native(input)).abs().max().item() <= CLASSIC_CASE  # contiguous: native's more exact layout
    assert (reference.upcast(output) - exact).abs().max().item() <= CLASSIC_CASE
    if train:
        torch.testing.assert_close(args.running_mean, native.running_mean, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(args.running_var, native.running_var, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, -1, 0x7F800001], ids=hex)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_nan_stays_nan(device: str, dtype: torch.dtype, layout: str, bits: int) -> None:
    """Whatever the bits of a NaN: rounding them up as if they were a number's would make it zero or infinity."""
    if dtype == torch.float64:
        pytest.skip("parameters of float64 are no float32")
    nan = torch.tensor(bits, dtype=torch.int32, device=device).view(torch.float32)
    vectors = {name: torch.ones(6, device=device) for name in ("gamma", "beta", "mean", "var")}
    input = arrange(torch.randn(4, 6, 3, 100, device=device).to(dtype), layout)
    for channel, vector in enumerate(vectors.values()):
        vector[channel] = nan
    output, _, invstd = ops.batchnorm_forward(input, *vectors.values(), False, 0.1, 1e-5)
    assert output.isnan().all(dim=(0, 2, 3)).tolist() == [True] * 4 + [False] * 2
    gradient, _, _ = ops.batchnorm_backward(input, input, vectors["gamma"], vectors["mean"], invstd)
    assert gradient.isnan().all(dim=(0, 2, 3)).tolist() == [True, False, True, True, False, False]


def _gigabytes_free() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) / 2**20


REPEATS = 2**11 + 1


@pytest.mark.skipif(not os.environ.get("MY_OPS_SLOW"), reason="takes minutes: set MY_OPS_SLOW=1")
@pytest.mark.skipif(_gigabytes_free() < 20, reason="needs 20 GB of free memory")
@pytest.mark.parametrize(
    ("block_shape", "shape"),
    [
        ((1, 1, 2**20), (1, 1, REPEATS * 2**20)),
        ((1, 2, 2**19), (REPEATS, 2, 2**19)),
        ((2**10, 2**10), (REPEATS * 2**10, 2**10)),
    ],
    ids=["one_run", "many_samples", "matrix"],
)
def test_more_than_2_to_the_31_elements(block_shape: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """One block of bfloat16 values again and again: its statistics are those of the whole, 4 GB large."""
    block = activations(block_shape, torch.bfloat16, "cpu")
    input = torch.empty(shape, dtype=torch.bfloat16)
    input.view(REPEATS, *block_shape).copy_(block)
    want = reference.forward(block, None, None, None, None, True, None, 1e-5)
    tolerance = TOLERANCES[torch.bfloat16]

    output, mean, invstd = ops.batchnorm_forward(input, None, None, None, None, True, None, 1e-5)
    assert_within(mean, want.mean, tolerance.statistics, "mean")
    assert_within(invstd, want.invstd, tolerance.statistics, "invstd")
    blocks = output.view(REPEATS, *block_shape)
    assert_within(blocks[0], want.output, tolerance.forward, "output")
    assert all(torch.equal(other, blocks[0]) for other in blocks[1:])
    del output, blocks

    grads = reference.backward(block, block, None, mean, invstd, True)
    grad_input, grad_gamma, grad_beta = ops.batchnorm_backward(input, input, None, mean, invstd)
    for got, one, what in ((grad_gamma, grads.grad_gamma, "grad_gamma"), (grad_beta, grads.grad_beta, "grad_beta")):
        assert_within(got, Result(one.value * REPEATS, one.scale * REPEATS), tolerance.backward, what)
    blocks = grad_input.view(REPEATS, *block_shape)
    assert_within(blocks[0], grads.grad_input, tolerance.backward, "grad_input")
    assert all(torch.equal(other, blocks[0]) for other in blocks[1:])


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (2048, 1030, 1)], ids=["runs", "rows"])
@pytest.mark.parametrize("name", SLOPES)
def test_float32_sums_of_at_most_100_terms(device: str, name: str, shape: tuple[int, ...]) -> None:
    """A term of 1.5 and, behind it, terms of half its last place, each of which is lost while they are added to it."""
    z = torch.full((), 0.5, dtype=torch.float64, requires_grad=True)  # where all activations rise
    slope = float(torch.autograd.grad(activation(name, z), z)[0])
    dy = torch.full(shape, 1.9 * 2.0**-25 / slope, device=device)
    (dy.flatten()[:16] if shape[0] == 1 else dy[::256]).fill_(1.5 / slope)  # of a vector, or of each region
    half, zero, one = (torch.full((shape[1],), value, device=device) for value in (0.5, 0.0, 1.0))
    arguments = (dy, torch.zeros_like(dy), None, None, one, half, zero, one)
    sums = ops.batchnorm_act_backward(*arguments, False, name, SLOPES[name], [False, False, False, True])[3]
    want = dy.double().sum((0, *range(2, dy.dim()))).cpu() * slope
    assert bool(((sums.double().cpu() - want).abs() <= 100 * unit_roundoff(torch.float32) * want).all())
