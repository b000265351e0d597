"""What the main job found out about errors, times and training, as tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from profiling.comparison.training import Run, loss_difference
from profiling.measure.correctness import QUANTITIES, Finding
from profiling.measure.peers import NATIVE, OURS
from profiling.measure.timing import COPY, FRESH_COPY, Measurement, mean_speedup, speedup
from profiling.output.tables import Table, exponent, fixed, milliseconds, ratio, shape


def errors(findings: Sequence[Finding]) -> Table:
    rows = []
    for quantity, words in QUANTITIES.items():
        for layout in dict.fromkeys(finding.layout for finding in findings):
            chosen = [f for f in findings if f.quantity == quantity and f.layout == layout]
            worst = max(chosen, key=lambda f: f.shares[OURS])
            rows.append(
                (
                    words,
                    layout,
                    exponent(max(f.largest_value for f in chosen)),
                    *(exponent(max(f.errors[name] for f in chosen)) for name in (OURS, NATIVE)),
                    *(fixed(max(f.shares[name] for f in chosen)) for name in (OURS, NATIVE)),
                    exponent(max(f.difference for f in chosen)),
                    "ok" if worst.passes(OURS) else f"FAILS in {worst.case}",
                )
            )
    layers = len({finding.case for finding in findings})
    return Table(
        title=f"(a) Largest errors over the real activations of {layers} batch norm layers",
        note="Error: largest |result - float64 result|. Of bound: error as a share of what rounding explains, at most "
        "1 to pass. Difference: largest |my_ops - native|.",
        head=(
            "quantity",
            "layout",
            "largest value",
            "my_ops error",
            "native error",
            "my_ops, of bound",
            "native, of bound",
            "difference",
            "my_ops",
        ),
        rows=rows,
        words=2,
    )


def errors_by_layer(findings: Sequence[Finding]) -> Table:
    quantities = ("output", "grad_input", "running_mean", "running_var")
    by_case: dict[str, list[Finding]] = {}
    for finding in findings:
        by_case.setdefault(finding.case, []).append(finding)
    rows = []
    for name, found in by_case.items():
        largest = [
            exponent(max(f.errors[who] for f in found if f.quantity == quantity))
            for quantity in quantities
            for who in (OURS, NATIVE)
        ]
        rows.append((name, shape(found[0].shape), *largest, fixed(max(f.shares[OURS] for f in found))))
    return Table(
        title="(a) Errors layer by layer",
        note="Largest |result - float64 result| over both layouts; the last column is the worst of all quantities.",
        head=(
            "layer",
            "shape",
            *(f"{QUANTITIES[quantity]}, {who}" for quantity in quantities for who in (OURS, NATIVE)),
            "my_ops, of bound",
        ),
        rows=rows,
        words=2,
        long=True,
    )


def times(measurements: Sequence[Measurement]) -> Table:
    rows = []
    for m in measurements:
        cells = [shape(m.shape), m.direction.value, str(m.layers), milliseconds(m.seconds(FRESH_COPY))]
        for name in (COPY, OURS, NATIVE):
            cells += [milliseconds(m.seconds(name)), fixed(m.gigabytes_per_second(name))]
        rows.append((*cells, fixed(m.copies(OURS)), fixed(m.copies(NATIVE)), ratio(speedup(m))))
    return Table(
        title="(b) Time of each layer shape",
        note="Medians in milliseconds; GB/s of the bytes that must move at least; copies: the time as a multiple of "
        "the copy into an existing output.",
        head=(
            *("shape", "direction", "layers", "fresh copy ms"),
            *(f"{name} {unit}" for name in (COPY, OURS, NATIVE) for unit in ("ms", "GB/s")),
            *(f"{name} copies" for name in (OURS, NATIVE)),
            f"{NATIVE} / {OURS}",
        ),
        rows=rows,
        words=2,
    )


def totals(measurements: Sequence[Measurement]) -> Table:
    rows = []
    for direction in dict.fromkeys(m.direction for m in measurements):
        chosen = [m for m in measurements if m.direction is direction]
        sums = {name: sum(m.layers * m.seconds(name) for m in chosen) for name in (COPY, OURS, NATIVE)}
        rows.append(
            (
                direction.value,
                *(milliseconds(seconds) for seconds in sums.values()),
                f"{sums[OURS] / sums[COPY]:.2f}",
                f"{sums[NATIVE] / sums[COPY]:.2f}",
                ratio(sums[NATIVE] / sums[OURS]),
                ratio(mean_speedup(chosen)),
            )
        )
    return Table(
        title="(b) All batch norm layers of the network together",
        note="Each shape's median times the number of layers that have it. The mean over shapes is geometric.",
        head=(
            "direction",
            "copy ms",
            "my_ops ms",
            "native ms",
            "my_ops copies",
            "native copies",
            "native / my_ops",
            "mean over shapes",
        ),
        rows=rows,
    )


def trainings(runs: Sequence[Run]) -> Table:
    rows = [
        (
            run.name,
            f"{run.losses[0]:.4f}",
            f"{run.losses[-1]:.4f}",
            f"{run.accuracy:.1%}",
            milliseconds(statistics.median(run.step_seconds)),
        )
        for run in runs
    ]
    return Table(
        title=f"(c) {len(runs[0].losses)} training steps of a small ResNet on real digits",
        note=f"Largest difference between the loss curves: {exponent(loss_difference(runs, 10))} over the first ten "
        f"steps, {exponent(loss_difference(runs))} over all. Accuracy: on digits held out, in inference mode, so "
        "through the running statistics.",
        head=("way", "first loss", "last loss", "accuracy", "median step ms"),
        rows=rows,
    )
