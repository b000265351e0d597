"""The five phase operators: each against the reference, and together against whole batch normalization.

They serve a batch that is split over R processes: stats of each part, gather_stats of all parts, apply on each part.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

import reference
from checks import EPS, activations, arguments, bit_equal, ops, unchanged
from layouts import RANKED_LAYOUTS, SHAPES, arrange, assert_layout
from sizes import EMPTY, PROPORTIONS
from tolerances import TOLERANCES, accumulation_dtype, assert_within

# How the samples of a batch are divided among the parts: evenly, unevenly, with a single one, with none.
SPLITS = [(8,), (4, 4), (1, 7), (5, 1, 2), (0, 8), (3, 0, 0, 5), (1,) * 8]
SUBSETS = [(), ("running_mean",), ("running_var",)]


def check_phases(input: Tensor, grad_output: Tensor) -> None:
    """Every phase operator once, the next ones on what the former gave; the reference takes the same arguments."""
    dtype, tolerance = input.dtype, TOLERANCES[input.dtype]
    args = arguments(input, training=True)
    statistics = reference.statistics(input)
    with unchanged(input, grad_output, args.gamma, args.beta):
        mean, m2, count = ops.batchnorm_stats(input)
        invstd = (m2 / count.clamp(min=1) + EPS).rsqrt()
        output = ops.batchnorm_apply(input, args.gamma, args.beta, mean, invstd)
        sums = ops.batchnorm_backward_reduce(grad_output, input, mean, invstd)
        # A larger batch than this part of it: count and sums come from all parts.
        totals = (sums[0] * 3 + 1, sums[1] * 3 - 1, count * 3)
        grad_input = ops.batchnorm_backward_apply(grad_output, input, args.gamma, mean, invstd, *totals)

    assert mean.dtype == m2.dtype == accumulation_dtype(dtype)
    assert (count.dtype, count.shape, int(count)) == (torch.int64, (1,), statistics.count)
    assert_within(mean, statistics.mean, tolerance.statistics, "mean")
    assert_within(m2, statistics.m2, tolerance.statistics, "m2")

    assert output.dtype == dtype
    assert_layout(output, input, "output")
    want = reference.normalise(input, args.gamma, args.beta, reference.given(mean), invstd)
    assert_within(output, want, tolerance.forward, "output")

    exact = reference.backward_reduce(grad_output, input, mean, invstd)
    for what, got, want in zip(("sum_dy", "sum_dy_xhat"), sums, exact, strict=True):
        assert got.dtype == accumulation_dtype(dtype)
        assert_within(got, want, tolerance.backward, what)

    assert grad_input.dtype == dtype
    assert_layout(grad_input, input, "grad_input")
    given = [reference.given(total) for total in totals[:2]]
    want = reference.backward_apply(grad_output, input, args.gamma, mean, invstd, *given, int(totals[2]))
    assert_within(grad_input, want, tolerance.backward, "grad_input")


@pytest.mark.parametrize(("rank", "layout"), RANKED_LAYOUTS)
def test_layouts(device: str, dtype: torch.dtype, rank: int, layout: str) -> None:
    input = arrange(activations(SHAPES[rank], dtype, device), layout)
    check_phases(input, arrange(torch.randn(SHAPES[rank]).to(device, dtype), layout))


@pytest.mark.parametrize(("shape", "layout"), PROPORTIONS)
def test_extreme_proportions(device: str, dtype: torch.dtype, shape: tuple[int, ...], layout: str) -> None:
    input = arrange(activations(shape, dtype, device), layout)
    check_phases(input, torch.randn(shape).to(device, dtype))


@pytest.mark.parametrize("shape", [*EMPTY, (1, 3)], ids=str)
def test_no_and_one_value_per_channel(device: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    check_phases(activations(shape, dtype, device), activations(shape, dtype, device))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_split_batch_equals_whole_batch(
    device: str, dtype: torch.dtype, split: tuple[int, ...], layout: str, offset: float
) -> None:
    shape, tolerance, wide = (8, 6, 5, 7), TOLERANCES[dtype], accumulation_dtype(dtype)
    input = arrange(activations(shape, dtype, device) + offset, layout)
    grad_output = arrange(torch.randn(shape).to(device, dtype), layout)
    args = arguments(input, True, (dtype, dtype, wide, wide))
    counter = torch.tensor(4, device=device)
    parts, grads = input.split(split), grad_output.split(split)

    means, m2s, counts = (torch.stack(each) for each in zip(*map(ops.batchnorm_stats, parts), strict=True))
    counts = counts.flatten()
    batch = reference.gather(means, m2s, counts)
    running = reference.update_running(args.running_mean, args.running_var, batch, args.momentum, counter)
    with unchanged(means, m2s, counts):
        mean, invstd, count = ops.batchnorm_gather_stats(
            means, m2s, counts, args.running_mean, args.running_var, args.momentum, args.eps, counter
        )
    assert (count.dtype, count.shape, int(count), int(counter)) == (torch.int64, (1,), 8 * 5 * 7, 5)
    for got, want, what in (
        (mean, batch.mean, "mean"),
        (invstd, reference.inverse_std(batch.var, args.eps), "invstd"),
        (args.running_mean, running[0], "running_mean"),
        (args.running_var, running[1], "running_var"),
    ):
        assert got.dtype == wide
        assert_within(got, want, tolerance.statistics, what)
    if offset == 0.0:  # else it shows that the means of the parts were rounded for the journey
        whole = reference.statistics(input)
        assert_within(mean, whole.mean, tolerance.forward, "mean of the whole")
        assert_within(invstd, reference.inverse_std(whole.var, args.eps), tolerance.forward, "invstd of the whole")

    output = torch.cat([ops.batchnorm_apply(part, args.gamma, args.beta, mean, invstd) for part in parts])
    want = reference.normalise(input, args.gamma, args.beta, reference.given(mean), invstd)
    assert_within(output, want, tolerance.forward, "output")

    pairs = list(zip(grads, parts, strict=True))
    reduced = [ops.batchnorm_backward_reduce(dy, x, mean, invstd) for dy, x in pairs]
    sums = [torch.stack(each).sum(0) for each in zip(*reduced, strict=True)]
    saved = (args.gamma, mean, invstd)
    grad_input = torch.cat([ops.batchnorm_backward_apply(dy, x, *saved, *sums, count) for dy, x in pairs])
    want = reference.backward(grad_output, input, args.gamma, mean, invstd, True)
    assert_within(grad_input, want.grad_input, tolerance.backward, "grad_input")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("names", "momentum"), list(product(SUBSETS, [0.3, None])))
def test_gather_of_one_part(device: str, names: tuple[str, ...], momentum: float | None, layout: str) -> None:
    """Each running statistic alone; momentum None is the cumulative average."""
    input = arrange(activations(SHAPES[4], torch.float32, device), layout)
    args = arguments(input, training=True).only(names)
    counter = torch.tensor(1, device=device)
    want = reference.forward(*args.values()[:6], momentum, EPS, counter)
    mean, m2, count = ops.batchnorm_stats(input)
    running = (args.running_mean, args.running_var, momentum, EPS, counter)
    got = ops.batchnorm_gather_stats(mean[None], m2[None], count, *running)
    assert bit_equal(got[2], count)
    assert int(counter) == 2
    factor = TOLERANCES[torch.float32].statistics
    for name, value in (("mean", got[0]), ("invstd", got[1]), *((name, getattr(args, name)) for name in names)):
        assert_within(value, getattr(want, name), factor, name)


@pytest.mark.parametrize("parts", [0, 1, 3])
def test_gather_of_nothing_changes_nothing(device: str, dtype: torch.dtype, parts: int) -> None:
    wide = accumulation_dtype(dtype)
    zeros = torch.zeros(parts, 4, dtype=wide, device=device)
    running = (torch.randn(4, dtype=wide, device=device), torch.rand(4, dtype=wide, device=device))
    counter = torch.tensor(7, device=device)
    with unchanged(*running, counter):
        count = torch.zeros(parts, dtype=torch.int64, device=device)
        mean, invstd, total = ops.batchnorm_gather_stats(zeros, zeros.clone(), count, *running, None, 0.25, counter)
    assert mean.tolist() == [0.0] * 4
    assert invstd.tolist() == [2.0] * 4
    assert total.tolist() == [0]


@pytest.mark.parametrize("parts", [2, 5, 300])
def test_gather_merges_many_parts(device: str, parts: int) -> None:
    """Random statistics of parts of random sizes, many channels, against the same merge in float64."""
    means = torch.randn(parts, 77, device=device)
    m2s = torch.rand(parts, 77, device=device) * 50
    counts = torch.randint(1, 90, (parts,), device=device)
    counts[0] = 3_000_000_000  # 64 bits
    counts[1], means[1], m2s[1] = 0, 0.0, 0.0  # what batchnorm_stats gives for an empty part
    mean, invstd, count = ops.batchnorm_gather_stats(means, m2s, counts, None, None, None, EPS)
    want = reference.gather(means, m2s, counts)
    assert int(count) == want.count
    factor = TOLERANCES[torch.float32].statistics
    assert_within(mean, want.mean, factor, "mean")
    assert_within(invstd, reference.inverse_std(want.var, EPS), factor, "invstd")


def test_phases_equal_the_whole_operator(device: str, dtype: torch.dtype) -> None:
    """batchnorm_forward and _backward have the same sums, bit by bit; those of dy are grad_gamma and grad_beta."""
    input, grad_output = (activations(SHAPES[4], dtype, device) for _ in range(2))
    args = arguments(input, training=True).only(())
    _, mean, invstd = ops.batchnorm_forward(*args.values())
    assert bit_equal(ops.batchnorm_stats(input)[0], mean)
    sum_dy, sum_dy_xhat = ops.batchnorm_backward_reduce(grad_output, input, mean, invstd)
    _, grad_gamma, grad_beta = ops.batchnorm_backward(grad_output, input, None, mean, invstd)
    assert bit_equal(grad_gamma, sum_dy_xhat)
    assert bit_equal(grad_beta, sum_dy)
