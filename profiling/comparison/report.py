"""The folder of the main job: a page that opens from disk, the figures as JSON, one picture."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Console

from profiling.comparison import compare_tables, figures
from profiling.comparison.recording import by_name
from profiling.comparison.training import loss_difference
from profiling.measure import timing
from profiling.measure.correctness import QUANTITIES
from profiling.measure.peers import NATIVE, OURS
from profiling.measure.timing import Direction, mean_speedup
from profiling.output import json_text, plots
from profiling.output.tables import Table, exponent, fixed, plural, ratio
from profiling.output.tables import print_to as print_table
from profiling.traces import trace_tables

if TYPE_CHECKING:
    from profiling.comparison.compare import Comparison


def write(comparison: Comparison, folder: Path) -> None:
    """Writes index.html, figures.json and overview.png into ``folder``."""
    (folder / "figures.json").write_text(as_json(comparison), encoding="utf-8")
    (folder / "index.html").write_text(as_html(comparison), encoding="utf-8")
    plots.to_png(figures.overview(comparison), folder / "overview.png")


def tables(comparison: Comparison, operators: int | None = None) -> dict[str, list[Table]]:
    """The tables of each section, (a) to (d); ``operators``: at most so many rows of the operator table."""
    ours, native = by_name(comparison.recordings)
    return {
        "a": [compare_tables.errors(comparison.findings), compare_tables.errors_by_layer(comparison.findings)],
        "b": [compare_tables.times(comparison.measurements), compare_tables.totals(comparison.measurements)],
        "c": [compare_tables.trainings(comparison.runs)],
        "d": [
            trace_tables.split(ours, native),
            trace_tables.batch_norm_calls(ours.summary, native.summary),
            trace_tables.operators(ours.summary, native.summary, operators),
        ],
    }


def print_to(console: Console, comparison: Comparison) -> None:
    """The tables that fit a terminal."""
    for section in tables(comparison, operators=15).values():
        for table in section:
            if not table.long:
                print_table(console, table)


def as_json(comparison: Comparison) -> str:
    """Every figure of the report, unrounded; null where it is infinite."""
    content = {
        "correct": comparison.correct,
        "machine": comparison.machine,
        "settings": comparison.settings,
        "native": comparison.native,
        "method": timing.METHOD,
        "errors": comparison.findings,
        "times": [timing.figures(measurement) for measurement in comparison.measurements],
        "training": comparison.runs,
        "traces": comparison.recordings,
    }
    return json_text.of(content)


def as_html(comparison: Comparison) -> str:
    folder = Path(__file__).parents[1] / "output" / "templates"
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
    drawings = {
        "a": figures.errors(comparison.findings),
        "b": figures.times(comparison.measurements),
        "c": figures.losses(comparison.runs),
        "d": figures.split(comparison.recordings),
    }
    return environment.get_template("report.html.j2").render(
        comparison=comparison,
        headlines=_headlines(comparison),
        machine={name.replace("_", " "): value for name, value in asdict(comparison.machine).items() if value},
        method=timing.METHOD,
        threads=plural(comparison.machine.threads, "CPU thread"),
        plots={key: Markup(plots.to_svg(drawing, key)) for key, drawing in drawings.items()},
        tables=tables(comparison),
    )


def _headlines(comparison: Comparison) -> list[tuple[str, str]]:
    """Figures that sum the run up, each with what it means."""
    found = []
    for direction in Direction:
        chosen = [m for m in comparison.measurements if m.direction is direction]
        meaning = f"native's speed, {direction.value} (geometric mean of {len(chosen)} layer shapes)"
        found.append((ratio(mean_speedup(chosen)), meaning))
    steps = {each.name: statistics.median(each.step_seconds) for each in comparison.recordings}
    found.append((ratio(steps[NATIVE] / steps[OURS]), "native's speed, a whole ResNet-50 training step"))
    worst = max(comparison.findings, key=lambda finding: finding.shares[OURS])
    meaning = f"largest error, as a share of what rounding explains ({QUANTITIES[worst.quantity]})"
    found.append((fixed(worst.shares[OURS]), meaning))
    found.append((exponent(loss_difference(comparison.runs)), "largest difference between the two loss curves"))
    return found
