"""Two traces matched call by call, and what each layer, shape and phase takes in both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from profiling.measure import intervals
from profiling.measure.intervals import Estimate
from profiling.traces.breakdown import Breakdown
from profiling.traces.calls import Site
from profiling.traces.operators import PHASES


@dataclass(frozen=True)
class Match:
    """The same place of the network in both traces."""

    first: Site
    second: Site

    @property
    def speedup(self) -> Estimate:
        """How many times faster the second is; with few steps the interval spans all of them."""
        return intervals.of(self.first.times).over(intervals.of(self.second.times))

    @property
    def saved(self) -> float:
        """Microseconds per step."""
        return self.first.time - self.second.time


@dataclass(frozen=True)
class Difference:
    first: Breakdown
    second: Breakdown
    matches: tuple[Match, ...]
    only_first: tuple[Site, ...]
    only_second: tuple[Site, ...]


@dataclass(frozen=True)
class Total:
    """Microseconds per step, sums of medians over the matched calls."""

    name: str
    calls: int
    first: float
    second: float

    @property
    def speedup(self) -> float:
        return self.first / self.second


def of(first: Breakdown, second: Breakdown) -> Difference:
    """Layers with a name are matched by name, phase, shape and order; the rest by their order and shapes."""
    by_key = {_key(site): site for site in second.sites if site.named}
    named = {site: by_key[_key(site)] for site in first.sites if site.named and _key(site) in by_key}
    taken = set(named.values())
    left = [site for site in first.sites if site not in named]
    right = [site for site in second.sites if site not in taken]
    matches = named | {left[i]: right[j] for i, j in _aligned(left, right)}
    taken = set(matches.values())
    return Difference(
        first,
        second,
        tuple(Match(site, matches[site]) for site in first.sites if site in matches),
        tuple(site for site in first.sites if site not in matches),
        tuple(site for site in second.sites if site not in taken),
    )


def totals(matches: Sequence[Match], group: Callable[[Site], str]) -> list[Total]:
    """Largest of the first trace first."""
    groups: dict[str, list[Match]] = {}
    for match in matches:
        groups.setdefault(group(match.first), []).append(match)
    found = [
        Total(name, len(of_group), sum(m.first.time for m in of_group), sum(m.second.time for m in of_group))
        for name, of_group in groups.items()
    ]
    return sorted(found, key=lambda total: -total.first)


def by_phase(matches: Sequence[Match]) -> list[Total]:
    return sorted(totals(matches, lambda site: site.phase), key=lambda total: PHASES.index(total.name))


def step_times(first: Breakdown, second: Breakdown) -> tuple[Sequence[float], Sequence[float]] | None:
    """Seconds of steps without the profiler, taken in turns by one run of ``capture``; None for other traces."""
    one, other = first.record, second.record
    if not one.run or one.run != other.run or not 0 < len(one.step_seconds) == len(other.step_seconds):
        return None
    return one.step_seconds, other.step_seconds


def _key(site: Site) -> tuple[object, ...]:
    return (site.phase, site.module, site.shape, site.dtype, site.parameters, site.occurrence)


def _aligned(left: Sequence[Site], right: Sequence[Site]) -> list[tuple[int, int]]:
    a, b = ([(site.phase, site.shape, site.dtype) for site in side] for side in (left, right))
    blocks = SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    return [(block.a + i, block.b + i) for block in blocks for i in range(block.size)]
