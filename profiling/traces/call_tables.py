"""The batch norm calls of one trace, or of two side by side, as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from profiling.measure.intervals import Estimate
from profiling.output.tables import Table, count, number, ratio, shape
from profiling.traces import differences
from profiling.traces.breakdown import Breakdown
from profiling.traces.calls import Site
from profiling.traces.differences import Difference, Total

Cell = Callable[[Breakdown, Site], str]


def overview(found: Sequence[Breakdown]) -> Table:
    rows = []
    for each in found:
        step = each.step
        times = (step.whole, step.batch_norm, step.rest, step.idle)
        backends = ", ".join(f"{name} {calls}" for name, calls in each.backends.items())
        peak = number(each.memory.peak / 2**20) if each.memory else ""
        where = "GPU" if step.on_gpu else "host"
        rows.append((each.name, where, *(number(time / 1e3) for time in times), percent(limit(each)), peak, backends))
    return Table(
        title="A step of each trace",
        note="Milliseconds of the median step. Batch norm: when its operators, or on a GPU its kernels, ran; "
        "rest: other work; idle: none. At the limit: the share of their time that the calls of batch norm would take "
        "at the speed of a copy of their inputs, where the trace has such copies. Peak: MiB taken since the profiler "
        "began. Backend: whose code ran, with calls per step; the kernels' names tell, on a CPU the operators'.",
        head=("trace", "clock", "step", "batch norm", "rest", "idle", "at the limit", "peak MiB", "backends"),
        rows=rows,
        words=2,
    )


def limit(found: Breakdown) -> float | None:
    """How much of the time of its calls a trace would need at the speed of its copies."""
    shares = [(site.time, found.share(site)) for site in found.sites]
    known = [(time, share) for time, share in shares if share is not None]
    return sum(time * share for time, share in known) / sum(time for time, _ in known) if known else None


def sites(found: Breakdown, brief: bool = False) -> Table:
    """Every call of one trace."""
    cells = _cells([found], brief)
    return Table(
        title=f"Every call: {found.name}",
        note=_NOTE,
        head=(*_HEAD, *cells),
        rows=[(*_words(site), *(cell(found, site) for cell in cells.values())) for site in found.sites],
        words=len(_HEAD),
    )


def matches(difference: Difference, brief: bool = False) -> Table:
    """Every matched call of two traces."""
    sides = (difference.first, difference.second)
    cells = _cells(sides, brief)
    rows = []
    for match in difference.matches:
        pairs = zip(sides, (match.first, match.second), strict=True)
        texts = list(zip(*([cell(*pair) for cell in cells.values()] for pair in pairs), strict=True))
        compared = (bounds(match.speedup), number(match.saved))
        rows.append((*_words(match.first), *compared, *(text for pair in texts for text in pair)))
    first, second = (side.name for side in sides)
    columns = (f"{name}, {side}" for name in cells for side in (first, second))
    return Table(
        title="Every call, matched",
        note=f"Speed-up: the median time of {first} over that of {second}; in brackets its interval (95 %; with fewer "
        f"than six steps, all that was seen). Saved: microseconds. {_NOTE}",
        head=(*_HEAD, "speed-up", "saved us", *columns),
        rows=rows,
        words=len(_HEAD),
    )


def totals(difference: Difference) -> list[Table]:
    found = difference.matches
    return [
        _totals("phase", differences.by_phase(found), difference),
        _totals("shape", differences.totals(found, _shape_and_dtype), difference),
        _totals("layer", differences.totals(found, lambda site: site.module), difference, long=True),
    ]


def unmatched(difference: Difference) -> Table | None:
    """None where every call has its partner."""
    sides = ((difference.first, difference.only_first), (difference.second, difference.only_second))
    rows = [(side.name, *_words(site), number(site.time)) for side, only in sides for site in only]
    if not rows:
        return None
    head = ("only in", *_HEAD, "us")
    return Table("Calls without a partner", "In no total and no plot.", head, rows, words=len(head) - 1)


def copies(found: Sequence[Breakdown]) -> Table:
    rows = [
        (
            each.name,
            shape(copy.shape),
            copy.dtype,
            str(copy.bytes),
            str(len(copy.times)),
            _speed(copy.gigabytes_per_second),
        )
        for each in found
        for copy in each.copies
    ]
    return Table(
        title="Copies, measured in the same run",
        note="y.copy_(x) of a tensor like each input, in the trace itself; medians. Bytes: read and written together.",
        head=("trace", "shape", "dtype", "bytes", "copies", "GB/s"),
        rows=rows,
        words=3,
    )


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def bounds(estimate: Estimate) -> str:
    return f"{ratio(estimate.value)} [{estimate.low:.2f}, {estimate.high:.2f}]"


_HEAD = ("layer", "phase", "shape", "dtype", "parameters")
_NOTE = (
    "us: median over the steps, of the GPU's kernels where some ran, else of the operator on the host. Bytes: what has "
    "to move at least, each tensor once; GB/s: these over the time; of a copy: GB/s over those of a copy of the input "
    "in that trace. Allocated: bytes taken during the call."
)


def _words(site: Site) -> tuple[str, ...]:
    return (site.label, site.phase, shape(site.shape), site.dtype, site.parameters)


def _shape_and_dtype(site: Site) -> str:
    return f"{shape(site.shape)} {site.dtype}"


def _speed(value: float | None) -> str:
    return "" if value is None else number(value)


def _cells(found: Iterable[Breakdown], brief: bool) -> dict[str, Cell]:
    """The columns that there is something to say in."""
    cells: dict[str, Cell] = {
        "us": lambda _, site: number(site.time),
        "GB/s": lambda _, site: _speed(site.gigabytes_per_second),
        "of a copy": lambda side, site: percent(side.share(site)),
    }
    if brief:
        return cells
    cells |= {
        "bytes": lambda _, site: str(site.bytes or ""),
        "allocated": lambda _, site: str(site.calls[0].allocated if site.calls[0].allocated is not None else ""),
        "backend": lambda _, site: ", ".join(dict.fromkeys(call.backend for call in site.calls)),
    }
    if any(call.gpu for each in found for site in each.sites for call in site.calls):
        cells |= {
            "host us": lambda _, site: number(site.median("cpu")),
            "launch us": lambda _, site: number(site.median("launch_delay")),
            "gaps us": lambda _, site: number(site.median("kernel_gaps")),
            "kernels": lambda _, site: ", ".join(site.calls[0].kernels),
        }
    return cells


def _totals(what: str, found: Sequence[Total], difference: Difference, long: bool = False) -> Table:
    first, second = difference.first.name, difference.second.name
    everything = Total("all", sum(t.calls for t in found), sum(t.first for t in found), sum(t.second for t in found))
    return Table(
        title=f"Batch norm by {what}",
        note="Milliseconds per step: sums of the medians of all matched calls.",
        head=(what, "calls", first, second, f"{first} / {second}"),
        rows=[_total_row(total) for total in [*found, everything]],
        long=long,
    )


def _total_row(total: Total) -> tuple[str, ...]:
    return (total.name, count(total.calls), number(total.first / 1e3), number(total.second / 1e3), ratio(total.speedup))


def all_of(found: Sequence[Breakdown], difference: Difference | None, brief: bool) -> Iterator[Table]:
    """In the order of interest."""
    yield overview(found)
    if difference:
        yield from totals(difference)
        only = unmatched(difference)
        yield from [only] if only else []
        yield matches(difference, brief)
    else:
        yield from (sites(each, brief) for each in found)
    if any(each.copies for each in found):
        yield copies(found)
