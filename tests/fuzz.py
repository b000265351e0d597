"""What the operators are fuzzed with: tensors of any memory, any values, any mix of dtypes. Every draw is small."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from checks import Arguments
from layouts import GUARD
from tolerances import accumulation_dtype

CASES = int(os.environ.get("MY_OPS_FUZZ_CASES", "500"))  # of all tests that fuzz, together
_REPEATS = "MY_OPS_FUZZ_CASES" not in os.environ  # the same cases every time

# Reducing what failed takes minutes.
PHASES = [Phase.generate]

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SIZES = (0, 1, 2, 3, 5, 7, 8, 9, 13, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 255, 256, 257, 511, 1031)
MOST_VALUES = 4000
RANKS = (2, 3, 4, 5, 6)


def fuzz(share: float, *strategies: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Runs a test with that share of all cases."""
    limits = settings(
        max_examples=max(1, round(share * CASES)),
        derandomize=_REPEATS,
        database=None,
        phases=PHASES,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    return lambda test: limits(given(*strategies)(test))


# ---- shapes and memory ----


@st.composite
def shapes(draw: st.DrawFn, ranks: tuple[int, ...] = RANKS, empty: bool = True) -> tuple[int, ...]:
    """Of up to MOST_VALUES values; about one in ten without any, unless `empty` is False."""
    rank = draw(st.sampled_from(ranks))
    sizes = SIZES if empty and draw(st.integers(0, 9)) == 0 else SIZES[1:]
    shape: list[int] = []
    for _ in range(rank):
        left = MOST_VALUES // max(1, math.prod(shape))
        shape.append(draw(st.sampled_from([size for size in sizes if size <= max(left, 1)])))
    return tuple(draw(st.permutations(shape)))


@dataclass(frozen=True)
class Memory:
    """Where the values of a tensor lie: element i of dimension d at offset + sum of i * strides[d]."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    negated: bool = False  # a lazy negation in front, as in the imaginary part of a conjugate

    def hold(self, values: Tensor) -> Tensor:
        """A tensor of `values`, of which several may share an element; everything around them is NaN."""
        length = (
            self.offset + 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        )
        length = self.offset if 0 in self.shape else length
        places = torch.arange(length + GUARD).as_strided(self.shape, self.strides, self.offset).reshape(-1)
        numbers = np.full(length + GUARD, np.nan if values.is_floating_point() else 99.0)
        numbers[places] = values.double().reshape(-1)  # of those that share an element, the last one
        buffer = torch.from_numpy(numbers).to(values.dtype)
        tensor = buffer.as_strided(self.shape, self.strides, self.offset)
        return torch._neg_view(tensor) if self.negated else tensor


@st.composite
def memories(draw: st.DrawFn, shape: tuple[int, ...], shared: bool = True) -> Memory:
    """Contiguous, channels last, in any other order, with gaps, repeated, overlapping; at any offset."""
    rank = len(shape)
    kinds = ["contiguous", "channels_last", "permuted", "gaps"] + ["expanded", "overlapping", "negated"] * shared
    kind = draw(st.sampled_from(kinds))
    order = list(range(rank))
    if kind == "channels_last" and rank > 1:
        order = [0, *range(2, rank), 1]
    elif kind in ("permuted", "gaps", "expanded"):
        order = list(draw(st.permutations(order)))
    strides = [0] * rank
    step = draw(st.sampled_from([1, 2, 3])) if kind == "gaps" else 1
    for dim in reversed(order):
        strides[dim] = step
        step *= max(shape[dim], 1)
        step += draw(st.integers(0, 3)) if kind == "gaps" else 0
    if kind == "expanded":
        for dim in draw(st.sets(st.integers(0, rank - 1), min_size=1)) if rank else ():
            strides[dim] = 0
    if kind == "overlapping":
        strides = [draw(st.integers(0, 5)) for _ in strides]
    return Memory(shape, tuple(strides), draw(st.sampled_from([0, 0, 1, 2, 3, 5, 8])), kind == "negated")


# ---- values ----

FINITE = ("normal", "far", "very_far", "constant", "zero", "subnormal", "tiny", "huge", "outlier", "integers")


def make_values(kind: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """[N, C, ...] or [C] of one kind; each channel of an image has a mean and a deviation of its own."""
    random = torch.Generator().manual_seed(seed)
    data = torch.randn(shape, dtype=torch.float64, generator=random)
    mean = deviation = torch.tensor(1.0, dtype=torch.float64)
    if len(shape) > 1:
        along = [1, shape[1]] + [1] * (len(shape) - 2)
        mean = 1.0 + torch.randn(along, dtype=torch.float64, generator=random)
        deviation = 0.5 + 1.5 * torch.rand(along, dtype=torch.float64, generator=random)
    limits = torch.finfo(dtype)
    largest = min(1e30, limits.max / 16)
    match kind:
        case "normal":
            data = data * deviation + mean
        case "far":
            data = data * deviation + 1e4 * mean
        case "very_far":
            data = data * 1e-2 + min(1e6, largest) * mean
        case "constant":
            data = mean * 1e3 + 0 * data
        case "zero":
            data = 0 * data
        case "subnormal":
            data = data * limits.smallest_normal / 8
        case "tiny":
            data = data * max(1e-15, limits.smallest_normal)
        case "huge":
            data = data * largest / 8
        case "outlier":
            data[(0,) * len(shape) if data.numel() else slice(0)] = min(1e6, largest)
        case "integers":
            data = (data * 4).round()
        case _:
            raise ValueError(kind)
    return data.clamp(-limits.max, limits.max).to(dtype)


@st.composite
def images(
    draw: st.DrawFn,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    kinds: tuple[str, ...] = FINITE,
    shared: bool = True,
) -> Tensor:
    values = make_values(draw(st.sampled_from(kinds)), shape, dtype, draw(st.integers(0, 2**31)))
    return draw(memories(shape, shared)).hold(values)


@st.composite
def vectors(draw: st.DrawFn, channels: int, dtype: torch.dtype, kind: str = "signed", written: bool = False) -> Tensor:
    """gamma and beta ("signed", now and then 0), running variances ("positive"), statistics."""
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.randn(channels, dtype=torch.float64, generator=random)
    if kind == "positive":
        values = 0.5 + values.abs()
    elif draw(st.integers(0, 4)) == 0:
        values[: (channels + 1) // 2] = 0
    return draw(memories((channels,), shared=not written)).hold(values.to(dtype))


# ---- calls ----


@st.composite
def arguments(
    draw: st.DrawFn,
    shape: st.SearchStrategy[tuple[int, ...]] | None = None,
    kinds: tuple[str, ...] = FINITE,
    shared: bool = True,
    training: bool | None = None,
    affine: bool = False,
) -> Arguments:
    """What batchnorm_forward accepts, with gamma and beta if `affine`; in training not one value per channel.

    Whatever is drawn is of use: Hypothesis gives up on a test that turns away most of what it gets.
    """
    training = draw(st.booleans()) if training is None else training
    dims = draw(shapes() if shape is None else shape)
    if training and math.prod(dims) == dims[1]:
        dims = (2, *dims[1:])
    dtype = draw(st.sampled_from(DTYPES))
    vector_dtypes = (dtype, accumulation_dtype(dtype))

    def vector(kind: str = "signed", written: bool = False) -> Tensor:
        return draw(vectors(dims[1], draw(st.sampled_from(vector_dtypes)), kind, written))

    optional = [affine or draw(st.booleans()) for _ in range(2)] + [draw(st.booleans()) for _ in range(2)]
    counter = draw(st.sampled_from([None, 0, 1, 7, 10**6]))
    momentum = draw(st.sampled_from([None, 0.0, 0.1, 0.9, 1.0]))
    if momentum is None and counter is None:
        momentum = 0.3
    return Arguments(
        draw(images(dims, dtype, kinds, shared)),
        vector() if optional[0] else None,
        vector() if optional[1] else None,
        vector(written=True) if optional[2] or not training else None,
        vector("positive", written=True) if optional[3] or not training else None,
        training,
        momentum,
        draw(st.sampled_from([1e-3, 1e-5, 0.5] + [0.0] * (not training))),
        None if counter is None else torch.tensor(counter),
    )


def copied(args: Arguments) -> Arguments:
    """With running statistics of their own."""
    names = ("running_mean", "running_var", "num_batches_tracked")
    old = {name: getattr(args, name) for name in names}
    return replace(args, **{name: None if tensor is None else tensor.clone() for name, tensor in old.items()})
