"""How far a result may be from the float64 reference: one table, and the comparison that uses it.

The bound is `factor * scale`, plus one rounding into the result's own dtype. `scale` is the sum of the absolute terms
of the result (reference.py); `factor` counts the roundings on the path of one term, in units of the unit roundoff of
the accumulation dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reference import Result


@dataclass(frozen=True)
class Tolerance:
    statistics: float
    forward: float
    backward: float


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which statistics are summed and returned, and all arithmetic on values of `dtype` runs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def unit_roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def _in_units(u: float, statistics: int, forward: int, backward: int) -> Tolerance:
    return Tolerance(statistics * u, forward * u, backward * u)


# The operators sum in the accumulation dtype over blocks of up to 256 values, and go on in float64. The roundings of a
# block mostly cancel. Values of 16 bits do not reach that: they repeat, and with them their roundings, which add up to
# half of what is possible. That is far below the last rounding of their own results, except near zero.
#
# statistics  sums 13, x - pivot 1, square 1, last division 1
# forward     of the above typically a tenth, in mean and in invstd; x - mean 1, times gamma * invstd 2, + beta 1.
#             In float32 it is 4.8e-7: data of unit variance stays below 2e-6 where the terms add up to 4.
# backward    xhat 2, its product with dy 1, sums 3, coefficients 3, two products 2, two sums of terms 1
# float64     twice that, since the reference rounds as often as the operators
TOLERANCES = {
    torch.float64: _in_units(2 * unit_roundoff(torch.float64), statistics=16, forward=8, backward=12),
    torch.float32: _in_units(unit_roundoff(torch.float32), statistics=16, forward=8, backward=12),
    torch.bfloat16: _in_units(unit_roundoff(torch.float32), statistics=128, forward=128, backward=128),
    torch.float16: _in_units(unit_roundoff(torch.float32), statistics=128, forward=128, backward=128),
}

# Largest difference to native batch norm, on float32 activations of unit variance.
CLASSIC_CASE = 2e-6


def assert_within(got: Tensor, want: Result, factor: float, what: str) -> None:
    """|got - want| <= factor * scale + one rounding; NaN where NaN, infinite where `want` overflows got's dtype."""
    assert got.shape == want.value.shape, f"{what}: shape {list(got.shape)}, expected {list(want.value.shape)}"
    value = got.detach().to("cpu", torch.float64)
    limits = torch.finfo(got.dtype)
    subnormal = limits.smallest_normal * limits.eps
    bound = factor * want.scale + unit_roundoff(got.dtype) * want.value.abs() + subnormal
    same = (value == want.value.to(got.dtype)) | (value.isnan() & want.value.isnan())
    error = (value - want.value).abs()
    wrong = ~(same | (error <= bound) & bound.isfinite())
    if wrong.any():
        ratio = torch.where(wrong, (error / bound).nan_to_num(nan=torch.inf), -1.0)
        worst = tuple(int(i) for i in torch.unravel_index(ratio.argmax(), ratio.shape))
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} values wrong; worst at {list(worst)}: "
            f"got {float(value[worst])!r}, expected {float(want.value[worst])!r}, "
            f"error {float(error[worst]):.3g}, allowed {float(bound[worst]):.3g}"
        )
