"""Today's figures against those of an earlier file: what got slower, beyond what noise explains."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiling.measure import intervals
from profiling.measure.intervals import Estimate
from profiling.output.exits import Exit, Failure
from profiling.output.names import OURS
from profiling.output.tables import Table, fixed
from profiling.traces.breakdown import Breakdown

TOLERANCE = 0.05  # a change that is smaller is none: two runs of the same code differ by that

# Differences of these facts make two files hard to compare.
_FACTS = ("cpu", "threads", "torch", "gpu", "allocator", "my_ops_cpu_capability")


@dataclass(frozen=True)
class Change:
    """One figure then and now; lower is better. ``ratio``: now over then."""

    name: str
    then: Estimate
    now: Estimate

    @property
    def ratio(self) -> Estimate:
        return self.now.over(self.then)

    @property
    def verdict(self) -> str:
        if self.ratio.low > 1 + TOLERANCE:
            return "slower"
        return "faster" if self.ratio.high < 1 - TOLERANCE else "same"


@dataclass(frozen=True)
class File:
    machine: dict[str, Any]
    figures: dict[str, Estimate]


def read(path: Path) -> File:
    """Figures of a benchmark's file or of an analysis.json. Raises Failure if it is neither."""
    try:
        content = json.loads(path.read_bytes())
        if "rows" in content:
            return File(content["machine"], dict(_of_rows(content["rows"])))
        return File(content["machine"] or {}, {name: Estimate(**each) for name, each in content["figures"].items()})
    except FileNotFoundError as error:
        raise Failure(Exit.NO_FILE, f"{path}: expected a file of figures, got none there") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failure(
            Exit.NO_TRACE, f"{path}: expected figures of benchmark or report, got another file ({error})"
        ) from error


def is_figures(path: Path) -> bool:
    """Whether a file is one of those, and no trace."""
    return path.is_file() and path.suffix == ".json" and b'"traceEvents"' not in path.read_bytes()


def compare(then: File, now: File) -> list[Change]:
    """Of all figures that both files have, the worst first."""
    found = [Change(name, then.figures[name], each) for name, each in now.figures.items() if name in then.figures]
    return sorted(found, key=lambda change: -change.ratio.low)


def different_facts(then: File, now: File) -> list[str]:
    return [
        f"{name}: {then.machine.get(name)} then, {now.machine.get(name)} now"
        for name in _FACTS
        if then.machine.get(name) != now.machine.get(name)
    ]


def table(changes: Sequence[Change]) -> Table:
    rows = [(c.name, c.verdict, *(fixed(x) for x in (c.then.value, c.now.value)), _bounds(c.ratio)) for c in changes]
    return Table(
        title="Then and now",
        note="Times as multiples of a copy of the input in the same run: the machine's own speed is in neither. now / "
        f"then with the bounds that the two 95 % intervals allow; slower: all of them above {1 + TOLERANCE:g}.",
        head=("figure", "verdict", "then", "now", "now / then"),
        rows=rows,
        words=2,
    )


def of_findings(found: Breakdown, step: Estimate | None) -> Mapping[str, Estimate]:
    """A trace's figures: each call in copies of its input, and the step's ratio to the other trace's, inverted."""
    figures = {}
    for site in found.sites:
        copy = found.copy_of(site)
        if copy and site.time:
            estimate = intervals.of(site.times).over(intervals.of(copy.times))
            figures[f"{found.name} {site.label} {site.phase} {site.shape} {site.dtype}"] = estimate
    if step:
        figures["whole step, of the other trace's"] = Estimate(1 / step.value, 1 / step.high, 1 / step.low)
    return figures


def now(found: Breakdown, step: Estimate | None) -> File:
    return File(found.record.machine, dict(of_findings(found, step)))


def _of_rows(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Estimate]]:
    """Of a benchmark: ours, in copies of the same round."""
    for row in rows:
        ours = row["peers"].get(OURS)
        if ours:
            sizes = "x".join(map(str, row["shape"]))
            name = f"{row['group']} {sizes} {row['dtype']} {row['layout']} {row['direction']}"
            interval = ours.get("copies_interval")
            if interval:
                yield name, Estimate(ours["copies"], *interval)
            else:
                yield name, intervals.from_quartiles(ours["copies"], ours["copies_quartiles"], row["rounds"])


def _bounds(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
