"""What traces say, as figures in JSON, as tables, and as one page that opens from disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from profiling import breakdown, call_figures, call_tables, differences, figures, files, history, intervals, json_text
from profiling.breakdown import Breakdown
from profiling.calls import Site
from profiling.differences import Difference
from profiling.history import Change
from profiling.intervals import Estimate
from profiling.tables import Table, plural, ratio, shape


@dataclass(frozen=True)
class Findings:
    """``difference``: of the first two traces, where there are two or more."""

    breakdowns: tuple[Breakdown, ...]
    difference: Difference | None

    @property
    def tables(self) -> list[Table]:
        return list(call_tables.all_of(self.breakdowns, self.difference))

    @property
    def step(self) -> Estimate | None:
        """The first's time over the second's of whole steps, taken in turns without the profiler."""
        times = differences.step_times(*self.breakdowns[:2]) if self.difference else None
        return intervals.ratios(*times) if times else None


@dataclass(frozen=True)
class Section:
    key: str
    title: str
    text: str
    caption: str


def analyze(paths: Sequence[Path]) -> Findings:
    """Raises Failure for the first file that cannot be used."""
    found = tuple(breakdown.read(path) for path in paths)
    return Findings(found, differences.of(*found[:2]) if len(found) > 1 else None)


def as_json(findings: Findings) -> str:
    """Every figure, unrounded. ``figures``: those that a later run is held against."""
    content: dict[str, object] = {"traces": [_trace(each) for each in findings.breakdowns]}
    if findings.difference:
        content["difference"] = _difference(findings)
    record = findings.breakdowns[-1].record
    content |= {
        "machine": record.get("machine"),
        "figures": history.of_findings(findings.breakdowns[-1], findings.step),
    }
    return json_text.of(content)


def write(findings: Findings, folder: Path, changes: Sequence[Change] = ()) -> Path:
    """Writes the pictures, analysis.json and, last, the page; returns its path."""
    plots = _plots(findings)
    for name, figure in (plots | {"overview": _overview(findings)}).items():
        files.write(folder / f"{name}.png", figures.as_png(figure))
    files.write(folder / "analysis.json", as_json(findings))
    files.write(folder / "index.html", _page(findings, plots, folder, changes))
    return folder / "index.html"


def sentences(findings: Findings) -> list[str]:
    """The summary in words."""
    found = []
    for each in findings.breakdowns:
        step, backends = each.step, " and ".join(each.backends)
        found.append(
            f"{each.name}: batch norm, run by {backends}, takes {step.batch_norm / 1e3:.3g} of the "
            f"{step.whole / 1e3:.3g} ms of a traced step ({step.batch_norm / step.whole:.1%}), nothing runs for "
            f"{step.idle / step.whole:.1%}." + _limit(each)
        )
    difference = findings.difference
    if difference and difference.matches:
        whole = differences.totals(difference.matches, lambda site: "all")[0]
        first, second = difference.first.name, difference.second.name
        found.insert(
            0,
            f"{plural(whole.calls, 'matched call')} of batch norm per step take {whole.first / 1e3:.3g} ms in {first} "
            f"and {whole.second / 1e3:.3g} ms in {second}: {_faster(whole.speedup, second)}." + _whole(findings),
        )
    return found


def _faster(speedup: float, second: str) -> str:
    return f"{second} is {speedup:.2f} times faster" if speedup >= 1 else f"{second} is {1 / speedup:.2f} times slower"


def _limit(each: Breakdown) -> str:
    limit = call_tables.limit(each)
    return "" if limit is None else f" At the speed of a copy its calls would take {limit:.0%} of their time."


def _whole(findings: Findings) -> str:
    if not findings.step:
        return ""
    step = findings.step
    return (
        f" Whole steps without the profiler, in turns: {step.value:.3f}x (95 % interval {step.low:.3f} to "
        f"{step.high:.3f})."
    )


def _headlines(findings: Findings) -> list[tuple[str, str]]:
    found = []
    difference = findings.difference
    if difference and difference.matches:
        first, second = difference.first.name, difference.second.name
        for total in differences.by_phase(difference.matches):
            found.append((ratio(total.speedup), f"{first} / {second}, batch norm, {total.name}"))
        if findings.step:
            found.append((ratio(findings.step.value), f"{first} / {second}, whole step without the profiler"))
    for each in findings.breakdowns:
        found.append((f"{each.step.batch_norm / each.step.whole:.1%}", f"of a traced step is batch norm, {each.name}"))
    return found


def _plots(findings: Findings) -> dict[str, Figure]:
    found = findings.breakdowns
    return {
        "layers": call_figures.layers(found, findings.difference),
        "roofline": call_figures.roofline(found),
        "timeline": call_figures.timeline(found),
        "memory": call_figures.memory(found),
    }


def _overview(findings: Findings) -> Figure:
    return call_figures.overview(
        findings.breakdowns, findings.difference, f"Batch norm in {_model(findings)}. {_about(findings)}"
    )


def _page(findings: Findings, plots: dict[str, Figure], folder: Path, changes: Sequence[Change]) -> str:
    templates = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(loader=templates, autoescape=True, undefined=StrictUndefined)
    tables = _by_section(findings)
    if changes:
        tables["layers"].append(history.table(changes))
    return environment.get_template("traces.html.j2").render(
        model=_model(findings),
        about=_about(findings),
        sentences=sentences(findings),
        headlines=_headlines(findings),
        sections=_SECTIONS,
        plots={name: Markup(figures.to_svg(figure, name)) for name, figure in plots.items()},
        tables=tables,
        links=[_link(each, folder) for each in findings.breakdowns],
        machine={name.replace("_", " "): value for name, value in _machine(findings).items() if value},
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


def _by_section(findings: Findings) -> dict[str, list[Table]]:
    found: dict[str, list[Table]] = {section.key: [] for section in _SECTIONS}
    for table in findings.tables:
        key = (
            "timeline"
            if table.title.startswith("A step")
            else "roofline"
            if table.title.startswith("Copies")
            else "layers"
        )
        found[key].append(table)
    return found


def _model(findings: Findings) -> str:
    names = dict.fromkeys(str(each.record.get("model") or each.name) for each in findings.breakdowns)
    return " and ".join(names)


def _machine(findings: Findings) -> dict[str, object]:
    found = findings.breakdowns[-1].record.get("machine")
    return found if isinstance(found, dict) else {}


def _about(findings: Findings) -> str:
    record, machine = findings.breakdowns[-1].record, _machine(findings)
    inputs = ", ".join(shape(sizes) for sizes in record.get("inputs") or ())
    words = [str(record.get("mode", "")), f"input {inputs}" if inputs else ""]
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


def _difference(findings: Findings) -> dict[str, object]:
    difference = findings.difference
    assert difference is not None
    return {
        "step": findings.step,
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
