"""Every figure of the analysis and of its page, recomputed from the events of two real traces in another way.

The traces are of ``capture --model profiling.examples.unet:unet --batch 2 --shape 3x32x32 --steps 3 --threads 1``.
"""
# ruff: noqa: E402 (what profiling imports may be missing on a machine that only runs the operators)

from __future__ import annotations

import gzip
import json
import math
import re
import statistics
from dataclasses import dataclass
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

for package in ("jinja2", "matplotlib", "msgspec", "rich", "typer"):
    pytest.importorskip(package, reason=f"profiling needs {package}: pip install -r requirements/compare.txt")

import numpy as np
from typer.testing import CliRunner

from profiling import cli
from profiling.output.exits import Exit
from profiling.traces import call_figures, findings
from trace_events import event, write

TRACES = Path(__file__).parent / "data" / "traces"
NATIVE, OURS = TRACES / "unet-native.pt.trace.json.gz", TRACES / "unet-my_ops.pt.trace.json.gz"
BATCH_NORM = re.compile(r"batch_?norm", re.IGNORECASE)
FORWARD = ("aten::batch_norm", "my_ops::batchnorm_forward")
BACKWARD = ("aten::native_batch_norm_backward", "my_ops::batchnorm_backward")
TICK = 0.05  # microseconds


@dataclass(frozen=True)
class Raw:
    """A trace, read with json alone, and questions answered by looking through all events every time."""

    path: Path

    @cached_property
    def content(self) -> dict[str, Any]:
        content = json.loads(gzip.decompress(self.path.read_bytes()))
        assert isinstance(content, dict)
        return content

    @cached_property
    def complete(self) -> list[dict[str, Any]]:
        return [event for event in self.content["traceEvents"] if event["ph"] == "X"]

    def inside(self, outer: dict[str, Any]) -> list[dict[str, Any]]:
        end = outer["ts"] + outer["dur"]
        return [e for e in self.content["traceEvents"] if e is not outer and outer["ts"] <= e.get("ts", -1) < end]

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        return [event for event in self.complete if event["name"].startswith("ProfilerStep#")]

    def calls(self, names: tuple[str, ...], step: dict[str, Any]) -> list[dict[str, Any]]:
        """Those that no call of the same name is around."""
        found = [e for e in self.inside(step) if e["name"] in names]
        spans = [(e["ts"], e["ts"] + e["dur"]) for e in found]
        return [e for e in found if sum(a <= e["ts"] and e["ts"] + e["dur"] <= b for a, b in spans) == 1]

    def module(self, call: dict[str, Any]) -> str:
        marks = [e for e in self.complete if e["name"].startswith("my_ops.module: ")]
        (found,) = (m for m in marks if m["ts"] <= call["ts"] and call["ts"] + call["dur"] <= m["ts"] + m["dur"])
        return str(found["name"]).removeprefix("my_ops.module: ")

    def layers(self) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """By layer and phase, its call in each step. The backward pass visits the layers from the last to the first."""
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for step in self.steps:
            forward, backward = self.calls(FORWARD, step), self.calls(BACKWARD, step)
            assert len(forward) == len(backward) == 14
            names = [self.module(call) for call in forward]
            for name, first, second in zip(names, forward, reversed(backward), strict=True):
                found.setdefault((name, "forward"), []).append(first)
                found.setdefault((name, "backward"), []).append(second)
        return found

    def copies(self) -> dict[tuple[int, ...], list[float]]:
        found: dict[tuple[int, ...], list[float]] = {}
        for mark in self.complete:
            if mark["name"] == "my_ops.copy":
                (copy,) = (e for e in self.inside(mark) if e["name"] == "aten::copy_")
                found.setdefault(tuple(copy["args"]["Input Dims"][0]), []).append(copy["dur"])
        return found

    def split(self, step: dict[str, Any]) -> tuple[float, float]:
        """Microseconds in which batch norm ran, and in which any operator ran: one tick after the other."""
        busy = np.zeros(math.ceil(step["dur"] / TICK), dtype=bool)
        batch_norm = np.zeros_like(busy)
        for each in self.inside(step):
            if each.get("cat") != "cpu_op":
                continue
            first = round((each["ts"] - step["ts"]) / TICK)
            span = slice(first, first + round(each["dur"] / TICK))
            busy[span] = True
            counts = each["name"] == "aten::add_" and each["args"]["Input type"][0] == "long int"
            if BATCH_NORM.search(each["name"]) or counts:
                batch_norm[span] = True
        return float(batch_norm.sum() * TICK), float(busy.sum() * TICK)


def least_bytes(call: dict[str, Any]) -> int:
    """All tensors of these traces are float32. Forward x, y and 8 vectors; backward x, dy, dx and 5 vectors."""
    shape = call["args"]["Input Dims"][0]
    images, vectors = (2, 8) if call["name"] in FORWARD else (3, 5)
    return 4 * (images * math.prod(shape) + vectors * int(shape[1]))


class Tables(HTMLParser):
    """The cells of all tables of a page, by their heads."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self._in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.tables[-1][-1][-1] += data

    def rows(self, head: str) -> list[dict[str, str]]:
        """Of the table that has such a column."""
        ((names, *rows),) = (table for table in self.tables if head in table[0])
        return [dict(zip(names, row, strict=True)) for row in rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("traces") / "page"
    done = CliRunner().invoke(cli.app, ["report", str(NATIVE), str(OURS), "--output", str(place)])
    assert done.exit_code == 0, done.output
    return place


@pytest.fixture(scope="module")
def content(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "analysis.json").read_bytes())
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("number", "path"), [(0, NATIVE), (1, OURS)], ids=["native", "my_ops"])
class TestOneTrace:
    def test_every_call(self, content: dict[str, Any], number: int, path: Path) -> None:
        raw, trace = Raw(path), content["traces"][number]
        layers, copies = raw.layers(), raw.copies()
        assert {(s["label"], s["phase"]) for s in trace["sites"]} == layers.keys() and len(trace["sites"]) == 28
        for site in trace["sites"]:
            calls = layers[site["label"], site["phase"]]
            assert [call["cpu"] for call in site["calls"]] == pytest.approx([call["dur"] for call in calls])
            time = sorted(call["dur"] for call in calls)[1]  # of three
            assert site["time"] == pytest.approx(time)
            shape = calls[0]["args"]["Input Dims"][0]
            assert (site["shape"], site["dtype"], site["parameters"]) == (shape, "float32", "float32")
            speed = least_bytes(calls[0]) / 1e3 / time
            assert site["gigabytes_per_second"] == pytest.approx(speed)
            copy = 8 * math.prod(shape) / 1e3 / statistics.median(copies[tuple(shape)])
            assert site["share"] == pytest.approx(speed / copy)
            for call, recorded in zip(site["calls"], calls, strict=True):
                took = [e["args"]["Bytes"] for e in raw.inside(recorded) if e["name"] == "[memory]"]
                assert call["allocated"] == sum(bytes for bytes in took if bytes > 0) >= 4 * math.prod(shape)
                assert call["bytes"] == least_bytes(recorded)

    def test_split_of_every_step(self, content: dict[str, Any], number: int, path: Path) -> None:
        raw, splits = Raw(path), content["traces"][number]["splits"]
        for split, step in zip(splits, raw.steps, strict=True):
            batch_norm, busy = raw.split(step)
            near = {"rel": 1e-3, "abs": 1.0}
            assert (split["step"], split["whole"]) == (step["name"], pytest.approx(step["dur"]))
            assert split["batch_norm"] == pytest.approx(batch_norm, **near)
            assert split["rest"] == pytest.approx(busy - batch_norm, **near)
            assert split["idle"] == pytest.approx(step["dur"] - busy, **near)

    def test_memory(self, content: dict[str, Any], number: int, path: Path) -> None:
        raw, memory = Raw(path), content["traces"][number]["memory"]
        events = [e for step in raw.steps for e in raw.inside(step) if e["name"] == "[memory]"]
        assert memory["peak"] == max(e["args"]["Total Allocated"] for e in events)
        step = sorted(raw.steps, key=lambda step: step["dur"])[1]
        totals = {
            (round(e["ts"] - step["ts"], 3), e["args"]["Total Allocated"])
            for e in raw.inside(step)
            if e["name"] == "[memory]"
        }
        assert {(round(time, 3), total) for time, total in memory["curve"]} <= totals
        assert max(total for _, total in memory["curve"]) == max(total for _, total in totals)

    def test_copies_and_backend(self, content: dict[str, Any], number: int, path: Path) -> None:
        raw, trace = Raw(path), content["traces"][number]
        found = {tuple(copy["shape"]): copy["times"] for copy in trace["copies"]}
        assert found == {shape: pytest.approx(times) for shape, times in raw.copies().items()}
        assert all(len(times) == 6 for times in found.values())
        assert trace["backends"] == ({"ATen": 28} if path is NATIVE else {"my_ops": 28})

    def test_share_at_the_limit(self, content: dict[str, Any], number: int, path: Path) -> None:
        """The time that the bytes of each call take at the speed of its copy, over the time that they took."""
        raw, copies = Raw(path), Raw(path).copies()
        needed, took = 0.0, 0.0
        for calls in raw.layers().values():
            shape = tuple(calls[0]["args"]["Input Dims"][0])
            needed += least_bytes(calls[0]) / (8 * math.prod(shape)) * statistics.median(copies[shape])
            took += statistics.median(call["dur"] for call in calls)
        assert content["traces"][number]["limit"] == pytest.approx(needed / took)


def test_the_difference(content: dict[str, Any]) -> None:
    native, ours = (
        {key: statistics.median(call["dur"] for call in calls) for key, calls in Raw(path).layers().items()}
        for path in (NATIVE, OURS)
    )
    difference = content["difference"]
    assert difference["only_first"] == difference["only_second"] == []
    matches = {(match["label"], match["phase"]): match for match in difference["matches"]}
    assert matches.keys() == native.keys() == ours.keys()
    for key, match in matches.items():
        assert match["saved"] == pytest.approx(native[key] - ours[key])
        assert match["speedup"]["value"] == pytest.approx(native[key] / ours[key])
    for total in difference["by_phase"]:
        for side, times in (("first", native), ("second", ours)):
            assert total[side] == pytest.approx(sum(time for key, time in times.items() if key[1] == total["name"]))
    seconds = [Raw(path).content["my_ops"]["step_seconds"] for path in (NATIVE, OURS)]
    ratios = sorted(a / b for a, b in zip(*seconds, strict=True))
    assert len(ratios) == 8  # the interval at 95 %: all but the smallest and the largest would be 93 %
    step = {"value": (ratios[3] + ratios[4]) / 2, "low": ratios[0], "high": ratios[-1]}
    assert difference["step"] == pytest.approx(step)


def number(text: str) -> float:
    return float(text.split("x")[0].rstrip("%"))


def test_tables_of_the_page(page: str, content: dict[str, Any]) -> None:
    tables = Tables(page)
    rows = tables.rows("speed-up")
    layers = [Raw(path).layers() for path in (NATIVE, OURS)]
    assert {(row["layer"], row["phase"]) for row in rows} == layers[0].keys()
    for row in rows:
        times = [statistics.median(c["dur"] for c in side[row["layer"], row["phase"]]) for side in layers]
        for name, time in zip(("native", "my_ops"), times, strict=True):
            call = layers[0][row["layer"], row["phase"]][0]
            assert number(row[f"us, {name}"]) == pytest.approx(time, rel=6e-3)
            assert number(row[f"GB/s, {name}"]) == pytest.approx(least_bytes(call) / 1e3 / time, rel=6e-3, abs=6e-4)
        assert number(row["speed-up"]) == pytest.approx(times[0] / times[1], abs=6e-3)
    steps = tables.rows("rest")
    for row, path in zip(steps, (NATIVE, OURS), strict=True):
        step = sorted(Raw(path).steps, key=lambda step: step["dur"])[1]
        batch_norm, busy = Raw(path).split(step)
        parts = [step["dur"], batch_norm, busy - batch_norm, step["dur"] - busy]
        found = [number(row[name]) for name in ("step", "batch norm", "rest", "idle")]
        assert found == pytest.approx([part / 1e3 for part in parts], rel=7e-3, abs=2e-3)


def test_points_of_the_plots(content: dict[str, Any]) -> None:
    found = findings.analyze([NATIVE, OURS])
    (roofline,) = call_figures.roofline(found.breakdowns).axes
    drawn = {(round(float(x)), float(y)) for line in roofline.lines for x, y in zip(*line.get_data(), strict=True)}
    for path in (NATIVE, OURS):
        for calls in Raw(path).layers().values():
            speed = least_bytes(calls[0]) / 1e3 / statistics.median(call["dur"] for call in calls)
            assert any(x == least_bytes(calls[0]) and y == pytest.approx(speed) for x, y in drawn)
        for shape, times in Raw(path).copies().items():
            size = 8 * math.prod(shape)
            assert any(x == size and y == pytest.approx(size / 1e3 / statistics.median(times)) for x, y in drawn)
    (layers,) = call_figures.layers(found.breakdowns, found.difference).axes
    values = sorted(float(x) for line in layers.lines[:-1] for x in line.get_xdata() if line.get_marker() in "os")
    assert values == pytest.approx(sorted(match["speedup"]["value"] for match in content["difference"]["matches"]))
    (memory,) = call_figures.memory(found.breakdowns).axes
    for line, trace in zip(memory.lines, content["traces"], strict=True):
        assert list(line.get_ydata()) == pytest.approx([total / 2**20 for _, total in trace["memory"]["curve"]])


def test_the_folder_is_whole_and_needs_no_network(folder: Path, page: str) -> None:
    pictures = {f"{name}.png" for name in ("overview", "layers", "roofline", "timeline", "memory")}
    assert {path.name for path in folder.iterdir()} == pictures | {"index.html", "analysis.json"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))
    assert not re.search(r"<(script [^>]*src|link|img|iframe)\b|@import|url\(http", page), "the page loads something"
    assert page.count("<svg") == 4 and "currentColor" in page
    (link,) = set(re.findall(r'href="([^"]*unet-native[^"]*)"', page))
    assert (folder / link).resolve() == NATIVE.resolve()


def test_names_from_traces_are_text(tmp_path: Path) -> None:
    evil = "<script>document.title='hit'</script>$x_{1}$"
    arguments = {"Input Dims": [[2, 3, 4, 4], [3]], "Input type": ["float", "float"]}
    events = [
        event(f"my_ops.module: {evil}", 5, 90, cat="user_annotation"),
        event("aten::batch_norm", 10, 50, **arguments),
        event("cudaLaunchKernel", 20, 5, cat="cuda_runtime", correlation=1),
        event(f"cudnn::{evil}", 30, 5, tid=7, cat="kernel", correlation=1),
    ]
    path = write(tmp_path / "evil.json", events, my_ops={"name": evil, "model": evil, "mode": evil})
    done = CliRunner().invoke(cli.app, ["report", str(path), "--output", str(tmp_path / "page")])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert page.count("<script>") == 1, "only the page's own"
    assert page.count("&lt;script&gt;document.title=") >= 5


GOOD = [event("aten::batch_norm", 10, 50)]


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (None, Exit.NO_FILE, "expected a trace file, got none there"),
        (gzip.compress(b'{"traceEvents": []}')[:-9], Exit.BROKEN_GZIP, "expected a whole gzip file, got a broken one"),
        (b"\x1f\x8bnonsense", Exit.BROKEN_GZIP, "expected a whole gzip file, got a broken one"),
        (b'{"traceEvents": [{"name": "a', Exit.NO_TRACE, "expected a chrome trace of torch.profiler, got a broken"),
        (b"", Exit.NO_TRACE, "expected a chrome trace of torch.profiler, got a broken"),
        (b'{"events": []}', Exit.NO_TRACE, "expected a chrome trace of torch.profiler, got a broken"),
        (b"\x80\x02}q\x00.", Exit.NO_TRACE, "expected a chrome trace of torch.profiler, got a broken"),
        (b'{"traceEvents": []}', Exit.NO_BATCH_NORM, "expected batch norm operators in the trace, found none"),
    ],
    ids=["missing", "cut gzip", "broken gzip", "cut", "empty", "other", "pickle", "no batch norm"],
)
@pytest.mark.parametrize("command", ["analyze", "report"])
def test_each_broken_trace_has_one_sentence_and_its_code(
    tmp_path: Path, command: str, content: bytes | None, code: Exit, message: str
) -> None:
    path = tmp_path / "some.trace.json.gz"
    if content is not None:
        path.write_bytes(content)
    output = tmp_path / "out"
    good = write(tmp_path / "good.json", GOOD)
    done = CliRunner().invoke(cli.app, [command, str(good), str(path), "--output", str(output)])
    assert done.exit_code == code, done.output
    assert done.stderr.startswith(f"error: {path}: {message}") and done.stderr.count("\n") == 1
    assert not output.exists()


def test_analyze_prints_tables_or_json_and_reads_plain_and_gzipped_alike(tmp_path: Path) -> None:
    plain = tmp_path / "plain.pt.trace.json"
    plain.write_bytes(gzip.decompress(OURS.read_bytes()))
    outputs = []
    for path in (OURS, plain):
        done = CliRunner().invoke(cli.app, ["analyze", str(path), "--json"])
        assert done.exit_code == 0, done.output
        outputs.append(json.loads(done.stdout))
    for output in outputs:
        output["traces"][0].pop("path")
    assert outputs[0] == outputs[1]
    done = CliRunner().invoke(cli.app, ["analyze", str(NATIVE), str(OURS), "--output", str(tmp_path / "a" / "b.json")])
    assert "Every call, matched" in done.stdout and "28 matched calls of batch norm per step" in done.stdout
    assert json.loads((tmp_path / "a" / "b.json").read_bytes())["traces"][1]["name"] == "my_ops"


def test_a_list_of_events_is_a_trace_too(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps(GOOD))
    assert findings.analyze([path]).breakdowns[0].sites[0].time == 50


def test_traces_of_one_name_are_told_apart() -> None:
    names = [each.name for each in findings.analyze([OURS, NATIVE, OURS]).breakdowns]
    assert names == ["my_ops (1)", "native", "my_ops (3)"]


@pytest.mark.parametrize("command", ["compare", "benchmark", "capture", "analyze", "report"])
def test_every_command_explains_itself(command: str) -> None:
    assert command in CliRunner().invoke(cli.app, ["--help"]).stdout
    done = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0 and "Usage" in done.stdout
    assert command in ("compare", "benchmark") or "4 broken gzip" in done.stdout
