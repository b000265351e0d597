"""Medians with bounds: what a number of samples says about the machine, not about one run of luck."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A median, and an interval that holds the true one with 95 % confidence."""

    value: float
    low: float
    high: float

    def over(self, other: Estimate) -> Estimate:
        """The quotient, at its worst: both ends of one interval over the opposite ends of the other."""
        return Estimate(self.value / other.value, self.low / other.high, self.high / other.low)


def of(samples: Sequence[float]) -> Estimate:
    """From order statistics, so that nothing is assumed about the distribution.

    The k-th smallest and k-th largest of n hold the median except with probability 2 P(Binomial(n, 1/2) < k). Fewer
    than 6 samples cannot be that sure of anything: then all of them are inside.
    """
    ordered, n = sorted(samples), len(samples)
    k, outside = 0, 2 * 0.5**n
    while outside <= 0.05:
        k += 1
        outside += 2 * math.comb(n, k) * 0.5**n
    first = max(0, k - 1)
    return Estimate(statistics.median(ordered), ordered[first], ordered[n - 1 - first])


def from_quartiles(median: float, quartiles: Sequence[float], count: int) -> Estimate:
    """Where the samples are gone: the notch of McGill, Tukey and Larsen (1978), median ± 1.57 IQR / sqrt(count)."""
    half = 1.57 * (quartiles[1] - quartiles[0]) / math.sqrt(count)
    return Estimate(median, max(median - half, min(quartiles[0], median)), median + half)


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Of samples taken in pairs, one right after the other: the machine's own drift is in both."""
    return of([a / b for a, b in zip(numerators, denominators, strict=True)])
