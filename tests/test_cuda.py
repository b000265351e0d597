"""What only a GPU can show: graphs, streams, many repetitions, sizes beyond 2^31 and 65535. Skipped without one.

Everything else is tested on the GPU by the other files, whose `device` parameter has the value cuda there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import reference
from checks import Arguments, activations, arguments, bit_equal, check_backward, check_forward, ops
from conftest import devices
from layouts import arrange
from reference import Result
from tolerances import TOLERANCES, assert_within

pytestmark = pytest.mark.skipif("cuda" not in devices(), reason="needs a GPU and a library built with CUDA")

# Each family in training forward on a GPU of 132 multiprocessors and 60 MB of L2 cache: one CTA, a cluster, the grid,
# streaming; runs and columns.
FAMILIES = [
    ((32, 2048, 7, 7), "contiguous"),
    ((32, 64, 56, 56), "contiguous"),
    ((64, 64, 112, 112), "contiguous"),
    ((128, 64, 112, 112), "contiguous"),
    ((32, 2048, 7, 7), "channels_last"),
    ((32, 64, 56, 56), "channels_last"),
    ((32, 64, 112, 112), "channels_last"),
    ((5, 65, 7, 7), "contiguous"),
]


def _case(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> tuple[Arguments, Tensor]:
    input = arrange(torch.randn(shape, device="cuda").to(dtype), layout)
    grad_output = arrange(torch.randn(shape, device="cuda").to(dtype), layout)
    counter = torch.tensor(3, device="cuda")
    return replace(arguments(input, training=True), num_batches_tracked=counter), grad_output


def _step(args: Arguments, grad_output: Tensor) -> tuple[Tensor, ...]:
    output, mean, invstd = ops.batchnorm_forward(*args.values())
    return (output, mean, invstd, *ops.batchnorm_backward(grad_output, args.input, args.gamma, mean, invstd))


def _assert_equal(got: tuple[Tensor, ...], want: tuple[Tensor, ...], what: str) -> None:
    differ = [i for i, (g, w) in enumerate(zip(got, want, strict=True)) if not bit_equal(g, w)]
    assert not differ, f"results {differ} {what}"


@pytest.mark.parametrize(("shape", "layout"), FAMILIES)
@pytest.mark.parametrize("half", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_families(shape: tuple[int, ...], layout: str, half: torch.dtype) -> None:
    args, grad_output = _case(shape, layout, half)
    check_forward(args)
    check_backward(grad_output, args)


def _poison() -> None:
    """Leaves NaN in the memory that the next calls are given."""
    for size in (2**10, 2**16, 2**22, 2**27):
        torch.full((size,), torch.nan, device="cuda")


@pytest.mark.parametrize(("shape", "layout"), FAMILIES)
def test_same_bits_1000_times(shape: tuple[int, ...], layout: str) -> None:
    """Into memory that was NaN before, beside work on another stream."""
    args, grad_output = _case(shape, layout, torch.bfloat16)
    want = _step(args, grad_output)
    busy, other = torch.randn(2048, 2048, device="cuda"), torch.cuda.Stream()
    for _ in range(1000):
        with torch.cuda.stream(other):
            busy @ busy
        _poison()
        _assert_equal(_step(args, grad_output), want, "change from call to call")
    torch.cuda.synchronize()


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(("shape", "layout"), FAMILIES)
def test_graph(shape: tuple[int, ...], layout: str, momentum: float | None) -> None:
    """Captured once, replayed: the same as eager steps, running statistics and counter included."""
    args, grad_output = _case(shape, layout, torch.bfloat16)
    args = replace(args, momentum=momentum)
    state = [args.running_mean, args.running_var, args.num_batches_tracked]
    start = [tensor.clone() for tensor in state]

    def reset() -> None:
        for tensor, value in zip(state, start, strict=True):
            tensor.copy_(value)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _step(args, grad_output)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _step(args, grad_output)
    reset()
    for _ in range(3):
        graph.replay()
    got = [tensor.clone() for tensor in (*captured, *state)]
    reset()
    for _ in range(3):
        want = _step(args, grad_output)
    _assert_equal(tuple(got), (*want, *state), "of the graph differ from eager")
    assert int(args.num_batches_tracked) == 6


def test_side_stream() -> None:
    """The operators run on the current stream: behind what was enqueued there, not beside it."""
    args, grad_output = _case((32, 256, 28, 28), "contiguous", torch.float32)
    want = _step(args, grad_output)
    values = args.input.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        args.input.zero_()
        torch.cuda._sleep(50_000_000)
        args.input.copy_(values)
        got = _step(args, grad_output)
    side.synchronize()
    _assert_equal(got, want, "differ on another stream")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_second_device() -> None:
    args, grad_output = _case((8, 16, 9, 9), "contiguous", torch.float32)
    want = _step(args, grad_output)
    there = replace(
        args, **{name: value.to("cuda:1") for name, value in vars(args).items() if isinstance(value, Tensor)}
    )
    got = _step(there, grad_output.to("cuda:1"))
    assert all(tensor.device.index == 1 for tensor in got)
    _assert_equal(tuple(tensor.to("cuda:0") for tensor in got), want, "differ on the second device")


def test_many_samples(training: bool) -> None:
    """More samples than a grid has rows: N > 65535."""
    args = arguments(activations((70_000, 3, 5), torch.float32, "cuda"), training)
    check_forward(args)
    check_backward(torch.randn(70_000, 3, 5, device="cuda"), args)


REPEATS = 2**11 + 1


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
    """One block again and again: its statistics are those of the whole."""
    block = activations(block_shape, torch.bfloat16, "cuda")
    input = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
    input.view(REPEATS, *block_shape).copy_(block)
    want = reference.forward(block, None, None, None, None, True, None, 1e-5)
    tolerance = TOLERANCES[torch.bfloat16]
    output, mean, invstd = ops.batchnorm_forward(input, None, None, None, None, True, None, 1e-5)
    assert_within(mean, want.mean, tolerance.statistics, "mean")
    assert_within(invstd, want.invstd, tolerance.statistics, "invstd")
    _assert_blocks(output.view(REPEATS, *block_shape), want.output, tolerance.forward, "output")
    del output
    grads = reference.backward(block, block, None, mean, invstd, True)
    grad_input, grad_gamma, grad_beta = ops.batchnorm_backward(input, input, None, mean, invstd)
    for got, one, what in ((grad_gamma, grads.grad_gamma, "grad_gamma"), (grad_beta, grads.grad_beta, "grad_beta")):
        assert_within(got, Result(one.value * REPEATS, one.scale * REPEATS), tolerance.backward, what)
    _assert_blocks(grad_input.view(REPEATS, *block_shape), grads.grad_input, tolerance.backward, "grad_input")


def _assert_blocks(blocks: Tensor, want: Result, factor: float, what: str) -> None:
    assert_within(blocks[0], want, factor, what)
    assert all(torch.equal(other, blocks[0]) for other in blocks[1:]), f"{what}: blocks differ"


def test_no_host_synchronisation() -> None:
    """Every operator, momentum None included, under torch's own watch."""
    args, grad_output = _case((8, 16, 9, 9), "contiguous", torch.float32)
    args = replace(args, momentum=None)
    running = (args.running_mean, args.running_var, None, args.eps, args.num_batches_tracked)
    calls: list[Callable[[], object]] = [lambda: _step(args, grad_output), lambda: _phases(args, grad_output, running)]
    for call in calls:
        call()
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode(mode)


def _phases(args: Arguments, grad_output: Tensor, running: tuple[object, ...]) -> None:
    mean, m2, count = ops.batchnorm_stats(args.input)
    mean, invstd, count = ops.batchnorm_gather_stats(mean[None], m2[None], count, *running)
    ops.batchnorm_apply(args.input, args.gamma, args.beta, mean, invstd)
    sums = ops.batchnorm_backward_reduce(grad_output, args.input, mean, invstd)
    ops.batchnorm_backward_apply(grad_output, args.input, args.gamma, mean, invstd, *sums, count)
