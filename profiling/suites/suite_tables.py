"""The benchmark as tables: its rows, then geometric means."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence

from profiling.measure.peers import NATIVE, OURS
from profiling.measure.timing import COPY, FRESH_COPY, Measurement, mean_speedup, speedup
from profiling.output.tables import Table, fixed, number, ratio, shape
from profiling.suites.benchmark import Suite


def of(suite: Suite) -> list[Table]:
    names = dict.fromkeys(name for row in suite.rows for name in row.measurement.samples)
    peers = [name for name in names if name not in (OURS, COPY, FRESH_COPY)]
    return [rows(suite, peers), means(suite, peers)]


def rows(suite: Suite, peers: Sequence[str]) -> Table:
    cells = []
    for m in (row.measurement for row in suite.rows):
        ours = (number(m.seconds(OURS) * 1e6), fixed(m.gigabytes_per_second(OURS)))
        copies = [fixed(m.copies(name)) if name in m.samples else "" for name in (FRESH_COPY, OURS, *peers)]
        ratios = [ratio(speedup(m, name)) if name in m.samples else "" for name in peers]
        cells.append((shape(m.shape), m.dtype, m.layout, m.direction.value, *ours, *copies, *ratios))
    own = (f"{OURS} us", f"{OURS} GB/s", FRESH_COPY, OURS)
    return Table(
        title="Benchmark: times as multiples of y.copy_(x)",
        note="Medians; the columns after GB/s are multiples of the copy. "
        + " ".join((*_reasons(suite), *_cudnn(suite))),
        head=("shape", "dtype", "layout", "direction", *own, *peers, *(f"{name} / {OURS}" for name in peers)),
        rows=cells,
        words=4,
    )


def means(suite: Suite, peers: Sequence[str]) -> Table:
    groups: dict[tuple[str, str, str, str], list[Measurement]] = {}
    for row in suite.rows:
        m = row.measurement
        for key in ((row.group, m.direction.value, m.dtype, m.layout), ("all", m.direction.value, "all", "all")):
            groups.setdefault(key, []).append(m)
    cells = []
    for key, found in sorted(groups.items(), key=lambda item: item[0][0] == "all"):
        copies = fixed(statistics.geometric_mean(m.copies(OURS) for m in found))
        slower = sum(speedup(m) < 1 for m in found if NATIVE in m.samples)
        ratios = (ratio(mean_speedup(found, name)) for name in peers)
        cells.append((*key, str(len(found)), copies, *ratios, str(slower)))
    return Table(
        title="Geometric means",
        note=f"Slower: rows in which {NATIVE} is faster than {OURS}.",
        head=(
            *("group", "direction", "dtype", "layout", "rows", f"{OURS} copies"),
            *(f"{name} / {OURS}" for name in peers),
            "slower",
        ),
        rows=cells,
        words=4,
    )


def _reasons(suite: Suite) -> Iterator[str]:
    found = Counter(item for row in suite.rows for item in row.left_out.items())
    for (name, reason), times in found.items():
        yield f"{name} left out of {times} rows: {reason}."


def _cudnn(suite: Suite) -> Iterator[str]:
    """Which library native was, by the names of its GPU kernels."""
    kernels = [row.measurement.kernels[NATIVE] for row in suite.rows if NATIVE in row.measurement.kernels]
    if kernels:
        cudnn = sum(any("cudnn" in name.lower() for name in names) for names in kernels)
        yield f"{NATIVE} ran kernels of cuDNN in {cudnn} of {len(kernels)} rows, of ATen in the others."
