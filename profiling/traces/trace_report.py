"""What traces say, as one page that opens from disk, with pictures and figures beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from profiling.output import files, plots
from profiling.output.tables import Table, ratio, shape
from profiling.traces import call_figures, differences, findings, history
from profiling.traces.breakdown import Breakdown
from profiling.traces.findings import Findings
from profiling.traces.history import Change


@dataclass(frozen=True)
class Section:
    key: str
    title: str
    text: str
    caption: str


def write(found: Findings, folder: Path, changes: Sequence[Change] = ()) -> Path:
    """Writes the pictures, analysis.json and, last, the page; returns its path."""
    drawings = _drawings(found)
    for name, figure in (drawings | {"overview": _overview(found)}).items():
        files.write(folder / f"{name}.png", plots.as_png(figure))
    files.write(folder / "analysis.json", findings.as_json(found))
    files.write(folder / "index.html", _page(found, drawings, folder, changes))
    return folder / "index.html"


def _headlines(found: Findings) -> list[tuple[str, str]]:
    lines = []
    difference = found.difference
    if difference and difference.matches:
        first, second = difference.first.name, difference.second.name
        for total in differences.by_phase(difference.matches):
            lines.append((ratio(total.speedup), f"{first} / {second}, batch norm, {total.name}"))
        if found.step:
            lines.append((ratio(found.step.value), f"{first} / {second}, whole step without the profiler"))
    for each in found.breakdowns:
        lines.append((f"{each.step.batch_norm / each.step.whole:.1%}", f"of a traced step is batch norm, {each.name}"))
    return lines


def _drawings(found: Findings) -> dict[str, Figure]:
    return {
        "layers": call_figures.layers(found.breakdowns, found.difference),
        "roofline": call_figures.roofline(found.breakdowns),
        "timeline": call_figures.timeline(found.breakdowns),
        "memory": call_figures.memory(found.breakdowns),
    }


def _overview(found: Findings) -> Figure:
    return call_figures.overview(found.breakdowns, found.difference, f"Batch norm in {_model(found)}. {_about(found)}")


def _page(found: Findings, drawings: dict[str, Figure], folder: Path, changes: Sequence[Change]) -> str:
    templates = FileSystemLoader(Path(__file__).parents[1] / "output" / "templates")
    environment = Environment(loader=templates, autoescape=True, undefined=StrictUndefined)
    tables = _by_section(found)
    if changes:
        tables["layers"].append(history.table(changes))
    return environment.get_template("traces.html.j2").render(
        model=_model(found),
        about=_about(found),
        sentences=findings.sentences(found),
        headlines=_headlines(found),
        sections=_SECTIONS,
        plots={name: Markup(plots.to_svg(figure, name)) for name, figure in drawings.items()},
        tables=tables,
        links=[_link(each, folder) for each in found.breakdowns],
        machine={name.replace("_", " "): value for name, value in _machine(found).items() if value},
    )


_SECTIONS = (
    Section(
        "timeline",
        "Where does a step spend its time?",
        "The median step of each trace: batch norm with all that runs inside it, other work, and the time in which "
        "nothing ran.",
        "Batch norm in colour; other work in grey.",
    ),
    Section(
        "layers",
        "What does each layer gain?",
        "Calls are matched by layer, phase, shape and order; where a trace names no layers, by order and shape.",
        "Right of the dashed line the second trace is faster.",
    ),
    Section(
        "roofline",
        "How far from the memory's limit?",
        "Batch norm computes little: what it must read and write sets the limit. The copies are of the same tensors, "
        "in the same trace. A copy reads each line that it overwrites; a call that writes past the cache, or finds its "
        "input there, can be faster.",
        "Higher is better; the dashed lines are the copies.",
    ),
    Section("memory", "What memory does it take?", "As the profiler saw blocks come and go.", "Lower is better."),
)


def _by_section(found: Findings) -> dict[str, list[Table]]:
    sections: dict[str, list[Table]] = {section.key: [] for section in _SECTIONS}
    for table in found.tables():
        key = (
            "timeline"
            if table.title.startswith("A step")
            else "roofline"
            if table.title.startswith("Copies")
            else "layers"
        )
        sections[key].append(table)
    return sections


def _model(found: Findings) -> str:
    names = dict.fromkeys(each.record.model or each.name for each in found.breakdowns)
    return " and ".join(names)


def _machine(found: Findings) -> dict[str, object]:
    return found.breakdowns[-1].record.machine


def _about(found: Findings) -> str:
    record, machine = found.breakdowns[-1].record, _machine(found)
    inputs = ", ".join(shape(sizes) for sizes in record.inputs)
    words = [record.mode, f"input {inputs}" if inputs else ""]
    if machine:
        threads = machine.get("threads")
        where = machine.get("gpu") or f"{machine.get('cpu')}, {threads} thread" + "s" * (threads != 1)
        words += [str(where), f"torch {machine.get('torch')}", str(machine.get("date", ""))[:10]]
    return ", ".join(word for word in words if word)


@dataclass(frozen=True)
class _Link:
    name: str
    path: str
    href: str


def _link(each: Breakdown, folder: Path) -> _Link:
    path = Path(os.path.relpath(each.path, folder)).as_posix()
    return _Link(each.name, path, quote(path))
