"""What a benchmark row of the family holds, and the tables of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from profiling.measure.peers import NATIVE, OURS
from profiling.output import tables
from profiling.output.tables import Table

CONVOLUTION = "convolution alone"

METHOD = (
    "A training step is forward and backward; inference is forward in eval mode, without gradients. Medians over "
    "rounds that time every way once, in one process. GB/s: bytes of the images that must be read or written at "
    "least, by the time. Kept: what the output and its graph hold for the backward pass. Peak: the most at once in a "
    "step. Neither counts inputs and parameters. Both ways of in-place rows begin with a copy of the input, which "
    "stands for the output of the layer before."
)


@dataclass
class Row:
    """Seconds per call by way, one value per round."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str
    bytes: tuple[int, int]  # moved at least in a training step, in inference
    wrong: str = ""  # then nothing is timed
    training: dict[str, list[float]] = field(default_factory=dict)
    inference: dict[str, list[float]] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)

    def more_convolutions(self) -> float:
        """How much longer ours takes than native, in forward passes of the convolution."""
        if CONVOLUTION not in self.inference:
            return math.nan
        mine, theirs = (statistics.median(self.training[name]) for name in (OURS, NATIVE))
        return (mine - theirs) / statistics.median(self.inference[CONVOLUTION])


def times(rows: Sequence[Row]) -> Table:
    head = ["", "shape", "step", "native", "/ ours", "GB/s", "convs more", "inference", "native", "/ ours", "GB/s"]
    lines = []
    for row in rows:
        cells = [f"WRONG: {row.wrong}"]
        if not row.wrong:
            training = _cells(row.training, row.bytes[0])
            inference = _cells(row.inference, row.bytes[1]) if row.inference else []
            more = row.more_convolutions()
            cells = [*training, "" if math.isnan(more) else tables.fixed(more), *inference]
        lines.append([row.name, tables.shape(row.shape), *cells, *[""] * (len(head) - 2 - len(cells))])
    note = f"{METHOD} Convs more: how much longer ours takes, in forward passes of the convolution."
    return Table("The family: times in ms", note, head, lines, words=2)


def _cells(samples: dict[str, list[float]], moved: int) -> list[str]:
    mine, theirs = (statistics.median(samples[name]) for name in (OURS, NATIVE))
    both = [tables.milliseconds(mine), tables.milliseconds(theirs)]
    return [*both, tables.ratio(theirs / mine), tables.number(moved / mine / 1e9)]


def memories(rows: Sequence[Row]) -> Table:
    head = ["", "shape", "kept, ours", "native", "share", "peak, ours", "native", "share"]
    lines = []
    for row in rows:
        if not row.wrong:
            cells = [row.name, tables.shape(row.shape)]
            for found in (row.kept, row.peak):
                cells += [tables.number(found[name] / 1e6) for name in (OURS, NATIVE)]
                cells.append(tables.fixed(found[OURS] / found[NATIVE]) if found[NATIVE] else "")
            lines.append(cells)
    return Table("The family: memory in MB", "As above; 1 MB = 10^6 bytes.", head, lines, words=2)


def figures(row: Row) -> dict[str, object]:
    """For JSON: medians in seconds."""
    found = {
        name: getattr(row, name) for name in ("name", "shape", "dtype", "layout", "bytes", "wrong", "kept", "peak")
    }
    for mode, samples in (("training", row.training), ("inference", row.inference)):
        found[mode] = {name: statistics.median(values) for name, values in samples.items()}
    return found
