"""The suite: shapes x dtypes x layouts x directions, each validated, then timed against native and a copy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from profiling.measure import correctness, machine, timing, workloads
from profiling.measure.machine import Machine
from profiling.measure.peers import OURS, Aten, CompiledNative, Implementation, Native, OneDnn, Ours
from profiling.measure.timing import Direction, Measurement
from profiling.measure.workloads import Case, Shape
from profiling.output import files, json_text

DTYPES = {str(each).removeprefix("torch."): each for each in (torch.float32, torch.bfloat16, torch.float16)}

# Dispatch dominates in these, or there are too few channels to give each thread some.
TINY: tuple[Shape, ...] = ((2, 3, 5, 5), (64, 32), (8, 16, 4, 4), (8, 1, 64, 64), (32, 3, 224, 224), (2, 4096, 1, 1))

# Two 3-D images through the levels of a U-Net, each halved in size and doubled in channels, and layers at each level.
UNET3D: tuple[tuple[Shape, int], ...] = (
    ((2, 32, 64, 64, 64), 4),
    ((2, 64, 32, 32, 32), 4),
    ((2, 128, 16, 16, 16), 4),
    ((2, 256, 8, 8, 8), 2),
)

# Features of fully connected layers and of point clouds.
MATRICES: tuple[Shape, ...] = ((128, 1024), (4096, 256), (65536, 64))

_RIVAL_SLACK = 1000  # bounds that a rival's error may be


@dataclass(frozen=True)
class Task:
    """One tensor of the suite. ``layers``: of ResNet-50 that have this shape."""

    group: str
    shape: Shape
    layers: int
    dtype: torch.dtype
    layout: str

    @property
    def label(self) -> str:
        return f"{'x'.join(map(str, self.shape))} {str(self.dtype).removeprefix('torch.')} {self.layout}"


@dataclass(frozen=True)
class Row:
    """One task in one direction; ``left_out``: why an implementation is not in the measurement."""

    group: str
    measurement: Measurement
    left_out: dict[str, str]


@dataclass(frozen=True)
class Suite:
    machine: Machine
    seconds: float
    rows: list[Row]
    failures: list[str]  # tasks in which ours is wrong, with the quantity; they have no rows

    @property
    def correct(self) -> bool:
        return not self.failures


def implementations(compiled: bool, onednn: bool, device: torch.device) -> list[Implementation]:
    """What computes batch norm."""
    chosen: list[Implementation] = [Ours(), Native()]
    on_gpu = device.type == "cuda"
    return chosen + [Aten()] * on_gpu + [CompiledNative()] * compiled + [OneDnn()] * onednn


def select(
    shapes: Sequence[str] | None, dtypes: Sequence[str] | None, layouts: Sequence[str] | None, batch: int
) -> list[Task]:
    """The tasks that the options name. Raises ValueError for a name that means nothing."""
    kinds = [_known(name, [*DTYPES, "float64"], "dtype") for name in dtypes or DTYPES]
    arrangements = [_known(name, workloads.LAYOUTS, "layout") for name in layouts or workloads.LAYOUTS]
    chosen = [item for name in shapes or ("resnet50", "tiny") for item in _shapes(name, batch)]
    return [
        Task(group, shape, layers, getattr(torch, kind), arrangement)
        for kind in kinds
        for arrangement in arrangements
        for group, shape, layers in chosen
        if workloads.has_layout(shape, arrangement)
    ]


def select_directions(names: Sequence[str] | None) -> list[Direction]:
    known = [direction.value for direction in Direction]
    return [Direction(_known(name, known, "direction")) for name in names or known]


def run(
    tasks: Sequence[Task],
    directions: Sequence[Direction],
    peers: Sequence[Implementation],
    seconds: float,
    device: torch.device,
    console: Console,
    keep: Callable[[Suite], None],
    floors: Callable[[Case], Sequence[Implementation]] | None = None,
) -> Suite:
    """``keep`` is called with what is there after every task: a run that is stopped has not been for nothing.

    ``floors`` of a case are timed with ``peers``, but compute no batch norm.
    """
    suite = Suite(machine.describe(device), seconds, [], [])
    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("benchmark", total=len(tasks))
        for task in tasks:
            progress.update(bar, description=task.label)
            case = workloads.random_case(task.shape, task.dtype, task.layout, device)
            left_out = _validate(case, task.layout, peers)
            if OURS in left_out:
                suite.failures.append(f"{task.label}: {left_out[OURS]}")
            else:
                able = [peer for peer in peers if peer.name not in left_out]
                timed = [*able, *(floors(case) if floors else ())]
                for direction in directions:
                    measurement = timing.measure(case, task.layout, direction, timed, seconds, task.layers)
                    suite.rows.append(Row(task.group, measurement, left_out))
            keep(suite)
            progress.advance(bar)
    return suite


def _validate(case: Case, layout: str, peers: Sequence[Implementation]) -> dict[str, str]:
    """Which peers do not compute batch norm of ``case``, and why.

    Ours must be right within rounding. Rivals must only do the same work: no wrong result, saved statistics aside,
    which are theirs to define.
    """
    left_out = {}
    for peer in peers:
        try:
            findings = correctness.check(case, [peer], layout)
        except RuntimeError as error:
            if peer.name == OURS:
                raise
            left_out[peer.name] = str(error).splitlines()[0].split(". ")[0]
            continue
        if peer.name == OURS:
            wrong = [found.quantity for found in findings if not found.passes(OURS)]
        else:
            results = (found for found in findings if found.quantity not in ("mean", "invstd"))
            wrong = [found.quantity for found in results if found.shares[peer.name] > _RIVAL_SLACK]
        if wrong:
            left_out[peer.name] = f"wrong {', '.join(wrong)}"
    return left_out


def write(suite: Suite, path: Path) -> None:
    """Writes the figures as JSON; the file is replaced at once, never half written."""
    content = {
        "machine": suite.machine,
        "method": timing.METHOD,
        "seconds": suite.seconds,
        "failures": suite.failures,
        "rows": [
            {"group": row.group, **timing.figures(row.measurement), "left_out": row.left_out} for row in suite.rows
        ],
    }
    files.write(path, json_text.of(content))


def _shapes(name: str, batch: int) -> list[tuple[str, Shape, int]]:
    if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", name):
        return [("given", tuple(map(int, name.split("x"))), 0)]
    if name not in GROUPS:
        raise ValueError(f"expected shapes {', '.join(GROUPS)} or like 8x64x56x56, got {name}")
    return [(name, shape, layers) for shape, layers in GROUPS[name](batch)]


def _fixed(shapes: Iterable[Shape]) -> list[tuple[Shape, int]]:
    return [(shape, 0) for shape in shapes]


GROUPS: dict[str, Callable[[int], list[tuple[Shape, int]]]] = {
    "resnet50": workloads.resnet50_shapes,
    "mobilenetv2": workloads.mobilenetv2_shapes,
    "unet3d": lambda batch: list(UNET3D),
    "matrices": lambda batch: _fixed(MATRICES),
    "tiny": lambda batch: _fixed(TINY),
}


def _known(name: str, names: Iterable[str], what: str) -> str:
    if name not in names:
        raise ValueError(f"expected {what} {', '.join(names)}, got {name}")
    return name
