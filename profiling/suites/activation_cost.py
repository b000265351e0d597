"""What an activation costs in the passes of batch norm: the operators with one beside those without, call by call.

The bytes are the same, so that what differs is arithmetic. Every result is held against float64 before it is timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from profiling.measure import machine, timing, workloads
from profiling.measure.timing import Direction
from profiling.output import files, json_text, tables
from profiling.output.tables import Table
from profiling.suites.family import ACTIVATIONS, DTYPES, TOLERANCE

ALONE, WITH = "batch norm", "with the activation"
SHAPES = ((64, 112, 112), (256, 56, 56), (128, 28, 28), (1024, 14, 14), (512, 14, 14), (512, 7, 7))
DIRECTIONS = (Direction.FORWARD, Direction.BACKWARD)
SLOPES = {"leaky_relu": 0.01, "elu": 1.0}  # as in ACTIVATIONS
KINK = 1e-3  # how near to 0 or 6 z may be for the derivative to be in doubt

METHOD = (
    "Medians over rounds that time both once, in one process; calls under half a millisecond are repeated within a "
    "sample. Ratios are the time with the activation by the time without. Training, no residual, all gradients."
)


@dataclass
class Row:
    """Seconds per call by way, one value per round; nothing if a result was ``wrong``."""

    shape: tuple[int, ...]
    dtype: str
    layout: str
    direction: str
    wrong: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)

    def ratio(self) -> float:
        return statistics.median(self.samples[WITH]) / statistics.median(self.samples[ALONE])


def measure(
    activation: str, shape: tuple[int, ...], dtype: torch.dtype, layout: str, seconds: float, device: torch.device
) -> list[Row]:
    """A row for each direction, timed for ``seconds``."""
    case = workloads.random_case(shape, dtype, layout, device)
    z = F.batch_norm(case.input.double(), None, None, case.gamma.double(), case.beta.double(), True, eps=case.eps)
    in_doubt = (z.abs() < KINK) | ((z - 6).abs() < KINK)
    dy = workloads.arrange(case.grad_output.masked_fill(in_doubt, 0), layout)
    ops, slope = torch.ops.my_ops, SLOPES.get(activation, 0.0)
    affine = case.gamma, case.beta
    running = case.running_mean.clone(), case.running_var.clone(), True, case.momentum, case.eps
    _, *saved = ops.batchnorm_forward(case.input, *affine, *running)
    calls: dict[Direction, dict[str, Callable[[], Sequence[Tensor | None]]]] = {
        Direction.FORWARD: {
            ALONE: lambda: ops.batchnorm_forward(case.input, *affine, *running),
            WITH: lambda: ops.batchnorm_act_forward(case.input, None, *affine, *running, activation, slope),
        },
        Direction.BACKWARD: {
            ALONE: lambda: ops.batchnorm_backward(dy, case.input, case.gamma, *saved, True, [True] * 3),
            WITH: lambda: ops.batchnorm_act_backward(
                dy, case.input, None, None, *affine, *saved, True, activation, slope, [True, False, True, True]
            ),
        },
    }
    rows = []
    for direction in DIRECTIONS:
        row = Row(shape, str(dtype).removeprefix("torch."), layout, direction.value)
        row.wrong = _wrong(activation, case, z, dy, direction, calls[direction][WITH]())
        if not row.wrong:
            row.samples = timing.interleave(calls[direction], device, seconds)
        rows.append(row)
    return rows


def _wrong(
    activation: str, case: workloads.Case, z: Tensor, dy: Tensor, direction: Direction, got: Sequence[Tensor | None]
) -> str:
    """The first result that is further from float64 than rounding explains; empty if there is none."""
    want: list[Tensor]
    if direction is Direction.FORWARD:
        want = [ACTIVATIONS[activation](z.clone())]
    else:
        inputs = [tensor.double().requires_grad_() for tensor in (case.input, case.gamma, case.beta)]
        exact = F.batch_norm(inputs[0], None, None, inputs[1], inputs[2], True, eps=case.eps)
        want = list(torch.autograd.grad(ACTIVATIONS[activation](exact), inputs, dy.double()))
    results = [tensor for tensor in got if tensor is not None]
    for number, (value, exact) in enumerate(zip(results, want, strict=False)):  # behind the output: statistics, a mask
        error = float((value.double() - exact).abs().max())
        if not error <= TOLERANCE[case.input.dtype] * float(exact.abs().max()):
            return f"{direction.value}, result {number} is off by {error:.2g}"
    return ""


def figures(row: Row) -> dict[str, object]:
    """For JSON: medians in seconds."""
    facts = {name: getattr(row, name) for name in ("shape", "dtype", "layout", "direction", "wrong")}
    return {**facts, "seconds": {name: statistics.median(values) for name, values in row.samples.items()}}


def table(rows: Sequence[Row]) -> Table:
    lines = []
    for row in rows:
        cells = [f"WRONG: {row.wrong}", "", ""]
        if row.samples:
            times = [tables.milliseconds(statistics.median(row.samples[name])) for name in (ALONE, WITH)]
            cells = [*times, tables.fixed(row.ratio())]
        lines.append([tables.shape(row.shape), row.dtype, row.layout, row.direction, *cells])
    head = ("shape", "dtype", "layout", "direction", f"{ALONE}, ms", f"{WITH}, ms", "ratio")
    return Table("What an activation costs", METHOD, head, lines, words=4)


def means(rows: Sequence[Row]) -> Table:
    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row.samples:
            groups.setdefault((row.direction, row.dtype), []).append(row.ratio())
    lines = [
        [*key, str(len(found)), tables.fixed(statistics.geometric_mean(found)), tables.fixed(max(found))]
        for key, found in groups.items()
    ]
    return Table("Geometric means", "", ("direction", "dtype", "rows", "ratio", "largest"), lines, words=2)


def write(activation: str, rows: Sequence[Row], device: torch.device, path: Path) -> None:
    """Writes the figures as JSON."""
    content = {
        "machine": machine.describe(device),
        "method": METHOD,
        "activation": activation,
        "rows": [figures(row) for row in rows],
    }
    files.write(path, json_text.of(content))


def run(
    activation: str,
    shapes: Sequence[tuple[int, ...]],
    seconds: float,
    device: torch.device,
    path: Path,
    console: Console,
) -> bool:
    """All dtypes and layouts; prints tables and keeps what is there in ``path``. Returns whether all is right."""
    rows: list[Row] = []
    for name, dtype in DTYPES.items():
        for layout in workloads.LAYOUTS:
            for shape in shapes:
                console.print(f"{tables.shape(shape)} {name} {layout}", style="dim")
                rows += measure(activation, shape, dtype, layout, seconds, device)
                write(activation, rows, device, path)
    for each in (table(rows), means(rows)):
        tables.print_to(console, each)
    return not any(row.wrong for row in rows)
