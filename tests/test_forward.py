"""batchnorm_forward against the reference: every dtype, layout, rank, optional argument and mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch

from checks import VECTORS, activations, arguments, bit_equal, check_forward, ops
from layouts import RANKED_LAYOUTS, SHAPES, arrange, guarded, strided
from sizes import (
    AMBIGUOUS,
    AROUND_VECTORS,
    EMPTY,
    NO_CHANNELS,
    PROPORTIONS,
    around_vectors,
    past_the_cache,
    short_past_the_cache,
)

SUBSETS = [tuple(name for name, used in zip(VECTORS, bits, strict=True) if used) for bits in product([0, 1], repeat=4)]


@pytest.mark.parametrize(("rank", "layout"), RANKED_LAYOUTS)
def test_layouts(device: str, dtype: torch.dtype, training: bool, rank: int, layout: str) -> None:
    input = arrange(activations(SHAPES[rank], dtype, device), layout)
    check_forward(arguments(input, training))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_optional_arguments(device: str, dtype: torch.dtype, names: tuple[str, ...], layout: str) -> None:
    input = arrange(activations(SHAPES[4], dtype, device), layout)
    check_forward(arguments(input, training=True).only(names))
    if {"running_mean", "running_var"} <= set(names):
        check_forward(arguments(input, training=False).only(names))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("wide", list(product([False, True], repeat=4)), ids=str)
def test_parameter_dtypes(device: str, training: bool, half: torch.dtype, wide: tuple[bool, ...]) -> None:
    """gamma, beta, running_mean, running_var in any mix of the input's dtype and float32."""
    dtypes = tuple(torch.float32 if w else half for w in wide)
    for layout in ("contiguous", "channels_last"):
        input = arrange(activations(SHAPES[4], half, device), layout)
        check_forward(arguments(input, training, dtypes))


@pytest.mark.parametrize("size", AROUND_VECTORS)
def test_sizes_around_vectors(device: str, dtype: torch.dtype, training: bool, size: int) -> None:
    for shape, layout in around_vectors(size):
        check_forward(arguments(arrange(activations(shape, dtype, device), layout), training))


@pytest.mark.parametrize(("shape", "layout"), PROPORTIONS)
def test_extreme_proportions(
    device: str, dtype: torch.dtype, training: bool, shape: tuple[int, ...], layout: str
) -> None:
    check_forward(arguments(arrange(activations(shape, dtype, device), layout), training))


@pytest.mark.parametrize(
    ("shape_of", "layout"),
    [(past_the_cache, "contiguous"), (past_the_cache, "channels_last"), (short_past_the_cache, "contiguous")],
)
def test_large_results(
    device: str, dtype: torch.dtype, training: bool, shape_of: Callable[[int], tuple[int, ...]], layout: str
) -> None:
    """Written past the cache."""
    input = arrange(activations(shape_of(dtype.itemsize), dtype, device), layout)
    check_forward(arguments(input, training))


@pytest.mark.parametrize(("shape", "stride"), AMBIGUOUS, ids=str)
def test_ambiguous_strides(
    device: str, dtype: torch.dtype, training: bool, shape: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    input = torch.empty_strided(shape, stride, dtype=dtype, device=device)
    check_forward(arguments(input.copy_(activations(shape, dtype, device)), training))


@pytest.mark.parametrize("shape", EMPTY, ids=str)
def test_empty(device: str, dtype: torch.dtype, training: bool, shape: tuple[int, ...]) -> None:
    counter = torch.tensor(5, device=device)
    check_forward(replace(arguments(activations(shape, dtype, device), training), num_batches_tracked=counter))
    assert counter.item() == 5


@pytest.mark.parametrize("shape", NO_CHANNELS, ids=str)
def test_no_channels(device: str, dtype: torch.dtype, training: bool, shape: tuple[int, ...]) -> None:
    check_forward(arguments(activations(shape, dtype, device), training))


def test_one_value_per_channel_in_eval(device: str, dtype: torch.dtype) -> None:
    check_forward(arguments(activations((1, 5, 1), dtype, device), training=False))


@pytest.mark.parametrize("stored", [strided, guarded, lambda vector: vector[:1].expand(vector.shape)])
def test_vectors_of_any_stride(device: str, dtype: torch.dtype, training: bool, stored: object) -> None:
    """Parameters and running statistics that are views; what lies around the latter is not written."""
    args = arguments(activations(SHAPES[4], dtype, device), training)
    may_repeat = ("gamma", "beta") if training else VECTORS  # a written tensor has one place per value
    names = may_repeat if stored(args.gamma).stride() == (0,) else VECTORS
    args = replace(args, **{name: stored(getattr(args, name)) for name in names})
    check_forward(args)
    for vector in (args.running_mean, args.running_var):
        storage = vector.new_empty(0).set_(vector.untyped_storage())
        assert int(storage.isfinite().sum()) == len(vector)


@pytest.mark.parametrize("momentum", [None, 0.0, 0.3, 1.0])
def test_momentum_and_counter(device: str, dtype: torch.dtype, momentum: float | None) -> None:
    """Two batches: momentum None gives their equal average, and the operator itself counts them."""
    counter = torch.tensor(0, device=device)
    args = arguments(activations(SHAPES[4], dtype, device), training=True)
    args = replace(args, momentum=momentum, num_batches_tracked=counter)
    for batch in (1, 2):
        check_forward(replace(args, input=activations(SHAPES[4], dtype, device)))
        assert counter.item() == batch


@pytest.mark.parametrize("names", [(), ("running_mean",), ("running_var",)], ids="+".join)
def test_counter_without_all_statistics(device: str, names: tuple[str, ...]) -> None:
    counter = torch.tensor(0, device=device)
    args = arguments(activations(SHAPES[3], torch.float32, device), training=True).only(names)
    check_forward(replace(args, momentum=None, num_batches_tracked=counter))
    assert counter.item() == 1


def test_counter_is_left_alone_in_eval(device: str) -> None:
    counter = torch.tensor(3, device=device)
    args = arguments(activations(SHAPES[3], torch.float32, device), training=False)
    check_forward(replace(args, momentum=None, num_batches_tracked=counter))
    assert counter.item() == 3


def test_momentum_none_needs_no_counter_without_statistics(device: str) -> None:
    check_forward(replace(arguments(activations(SHAPES[3], torch.float32, device), True).only(()), momentum=None))


def test_eps_zero_in_eval(device: str, dtype: torch.dtype) -> None:
    check_forward(replace(arguments(activations(SHAPES[3], dtype, device), training=False), eps=0.0))


def test_saved_statistics_in_eval_are_copies(device: str) -> None:
    args = arguments(activations(SHAPES[3], torch.float32, device), training=False)
    _, mean, _ = ops.batchnorm_forward(*args.values())
    assert bit_equal(mean, args.running_mean)
    assert mean.data_ptr() != args.running_mean.data_ptr()


def test_keyword_arguments_and_defaults(device: str) -> None:
    args = arguments(activations(SHAPES[3], torch.float32, device), training=False)
    named = {name: value for name, value in vars(args).items() if name != "num_batches_tracked"}
    for got, want in zip(ops.batchnorm_forward(**named), ops.batchnorm_forward(*args.values()), strict=True):
        assert bit_equal(got, want)
