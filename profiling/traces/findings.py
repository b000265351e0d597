"""One trace, or several and the difference of the first two: as figures, tables and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from profiling.measure import intervals
from profiling.measure.intervals import Estimate
from profiling.output import json_text
from profiling.output.tables import Table, number, plural
from profiling.traces import breakdown, call_tables, differences, history
from profiling.traces.breakdown import Breakdown
from profiling.traces.calls import Site
from profiling.traces.differences import Difference


@dataclass(frozen=True)
class Findings:
    """``difference``: of the first two traces, where there are two or more."""

    breakdowns: tuple[Breakdown, ...]
    difference: Difference | None

    def tables(self, brief: bool = False) -> list[Table]:
        """``brief``: only the columns that fit a terminal."""
        return list(call_tables.all_of(self.breakdowns, self.difference, brief))

    @property
    def step(self) -> Estimate | None:
        """The first's time over the second's of whole steps, taken in turns without the profiler."""
        times = differences.step_times(*self.breakdowns[:2]) if self.difference else None
        return intervals.ratios(*times) if times else None


def analyze(paths: Sequence[Path]) -> Findings:
    """Raises Failure for the first file that cannot be used."""
    read = _told_apart([breakdown.read(path) for path in paths])
    return Findings(read, differences.of(*read[:2]) if len(read) > 1 else None)


def _told_apart(found: Sequence[Breakdown]) -> tuple[Breakdown, ...]:
    """Traces of the same name get a number each."""
    names = [each.name for each in found]
    return tuple(
        replace(each, name=f"{each.name} ({place})") if names.count(each.name) > 1 else each
        for place, each in enumerate(found, 1)
    )


def as_json(found: Findings) -> str:
    """Every figure, unrounded. ``figures``: those that a later run is held against."""
    content: dict[str, object] = {"traces": [_trace(each) for each in found.breakdowns]}
    if found.difference:
        content["difference"] = _difference(found)
    record = found.breakdowns[-1].record
    content |= {
        "machine": record.machine,
        "figures": history.of_findings(found.breakdowns[-1], found.step),
    }
    return json_text.of(content)


def sentences(found: Findings) -> list[str]:
    """The summary in words."""
    lines = []
    for each in found.breakdowns:
        step, backends = each.step, " and ".join(each.backends)
        lines.append(
            f"{each.name}: batch norm, run by {backends}, takes {number(step.batch_norm / 1e3)} of the "
            f"{number(step.whole / 1e3)} ms of a traced step ({step.batch_norm / step.whole:.1%}), nothing runs for "
            f"{step.idle / step.whole:.1%}." + _limit(each)
        )
    difference = found.difference
    if difference and difference.matches:
        whole = differences.totals(difference.matches, lambda site: "all")[0]
        first, second = difference.first.name, difference.second.name
        before, after = number(whole.first / 1e3), number(whole.second / 1e3)
        lines.insert(
            0,
            f"{plural(whole.calls, 'matched call')} of batch norm per step take {before} ms in {first} and {after} ms "
            f"in {second}: {_faster(whole.speedup, second)}." + _whole(found),
        )
    return lines


def _faster(speedup: float, second: str) -> str:
    return f"{second} is {speedup:.2f} times faster" if speedup >= 1 else f"{second} is {1 / speedup:.2f} times slower"


def _limit(each: Breakdown) -> str:
    limit = call_tables.limit(each)
    return "" if limit is None else f" At the speed of a copy its calls would take {limit:.0%} of their time."


def _whole(found: Findings) -> str:
    if not found.step:
        return ""
    step = found.step
    return (
        f" Whole steps without the profiler, in turns: {step.value:.3f}x (95 % interval {step.low:.3f} to "
        f"{step.high:.3f})."
    )


def _trace(each: Breakdown) -> dict[str, object]:
    return {
        "name": each.name,
        "path": Path(each.path).name,
        "record": each.record,
        "marked": each.marked,
        "step": each.step,
        "splits": each.splits,
        "backends": each.backends,
        "limit": call_tables.limit(each),
        "sites": [_site(each, site) for site in each.sites],
        "copies": [{**asdict(copy), "gigabytes_per_second": copy.gigabytes_per_second} for copy in each.copies],
        "memory": each.memory,
    }


def _site(each: Breakdown, site: Site) -> dict[str, object]:
    speed, share = site.gigabytes_per_second, each.share(site)
    return {"label": site.label, **asdict(site), "time": site.time, "gigabytes_per_second": speed, "share": share}


def _difference(found: Findings) -> dict[str, object]:
    difference = found.difference
    assert difference is not None
    return {
        "step": found.step,
        "by_phase": differences.by_phase(difference.matches),
        "matches": [
            {
                "label": match.first.label,
                "phase": match.first.phase,
                "shape": match.first.shape,
                "first": match.first.time,
                "second": match.second.time,
                "speedup": match.speedup,
                "saved": match.saved,
            }
            for match in difference.matches
        ],
        "only_first": [site.label for site in difference.only_first],
        "only_second": [site.label for site in difference.only_second],
    }
