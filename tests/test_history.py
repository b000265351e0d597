"""Figures against earlier ones, and the intervals that tell a change from noise."""
# ruff: noqa: E402 (what profiling imports may be missing on a machine that only runs the operators)

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path
from typing import Any

import pytest

for package in ("msgspec", "rich", "typer"):
    pytest.importorskip(package, reason=f"profiling needs {package}: pip install -r requirements/compare.txt")

from typer.testing import CliRunner

from profiling import cli
from profiling.measure import intervals
from profiling.measure.intervals import Estimate
from profiling.output.exits import Exit
from profiling.traces import history

RESULTS = Path(__file__).parent.parent / "profiling" / "results" / "benchmark-cpu.json"
TRACES = Path(__file__).parent / "data" / "traces"


@pytest.mark.parametrize(("count", "rank"), [(1, 0), (5, 0), (6, 0), (8, 0), (9, 1), (20, 5), (100, 39)])
def test_the_interval_is_of_order_statistics(count: int, rank: int) -> None:
    """The ranks of tables of the sign test at 5 %: 0 up to 8 samples, 1 for 9, 5 for 20, 39 for 100."""
    found = intervals.of([float(number) for number in range(count)][::-1])
    assert (found.low, found.high) == (rank, count - 1 - rank) and found.value == (count - 1) / 2


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    generator = random.Random(20240607)
    draws = [intervals.of([generator.lognormvariate(0, 1) for _ in range(15)]) for _ in range(2000)]
    held = statistics.mean(each.low <= 1 <= each.high for each in draws)
    assert 0.95 <= held <= 0.985  # 0.965 by theory


def test_ratios_are_taken_in_pairs() -> None:
    """A machine that becomes ten times slower half-way changes no ratio."""
    slow = [1.0] * 5 + [10.0] * 5
    found = intervals.ratios([2 * each for each in slow], slow)
    assert (found.value, found.low, found.high) == (2, 2, 2)


def test_a_quotient_spans_the_worst_cases() -> None:
    found = Estimate(3, 2, 4).over(Estimate(2, 1, 2.5))
    assert (found.value, found.low, found.high) == (1.5, 0.8, 4)


def suite(copies: float, interval: tuple[float, float] | None, cpu: str = "a") -> dict[str, Any]:
    ours: dict[str, Any] = {"copies": copies, "copies_quartiles": (copies * 0.98, copies * 1.02)}
    ours |= {"copies_interval": interval} if interval else {}
    facts = {"shape": [2, 3], "dtype": "float32", "layout": "contiguous", "direction": "forward", "group": "given"}
    return {"machine": {"cpu": cpu}, "rows": [{**facts, "rounds": 25, "peers": {"my_ops": ours}}]}


@pytest.mark.parametrize(
    ("now", "verdict", "code"),
    [
        (suite(1.5, (1.4, 1.6)), "slower", Exit.WRONG_RESULTS),
        (suite(1.5, (1.0, 1.6)), "same", 0),  # larger, but not surely
        (suite(1.04, (1.03, 1.05)), "same", 0),  # surely larger, but by next to nothing
        (suite(0.5, (0.45, 0.55)), "faster", 0),
        (suite(1.5, None), "slower", Exit.WRONG_RESULTS),  # an older file: by its quartiles
    ],
)
def test_report_tells_what_got_slower(tmp_path: Path, now: dict[str, Any], verdict: str, code: int) -> None:
    (tmp_path / "then.json").write_text(json.dumps(suite(1.0, (0.99, 1.01), cpu="b")))
    (tmp_path / "now.json").write_text(json.dumps(now))
    done = CliRunner().invoke(cli.app, ["report", str(tmp_path / "now.json"), "--against", str(tmp_path / "then.json")])
    assert done.exit_code == code, done.output
    assert f"1 {verdict}" in done.stdout and "given 2x3 float32 contiguous forward" in done.stdout
    assert "not the same: cpu: b then, a now" in done.stdout


def test_the_quartiles_of_an_older_file_bound_its_median() -> None:
    found = intervals.from_quartiles(1.0, (0.98, 1.02), 25)
    half = 1.57 * 0.04 / 5
    assert (found.low, found.high) == pytest.approx((1 - half, 1 + half))


def test_the_results_in_the_repository_are_the_same_as_themselves() -> None:
    file = history.read(RESULTS)
    rows = json.loads(RESULTS.read_bytes())["rows"]
    assert len(file.figures) == len(rows) > 100
    changes = history.compare(file, file)
    assert {change.verdict for change in changes} == {"same"} and len(changes) == len(rows)


def test_a_page_against_its_own_figures(tmp_path: Path) -> None:
    trace = str(TRACES / "unet-my_ops.pt.trace.json.gz")
    assert CliRunner().invoke(cli.app, ["analyze", trace, "--output", str(tmp_path / "a.json")]).exit_code == 0
    content = json.loads((tmp_path / "a.json").read_bytes())
    for name, figure in content["figures"].items():
        if " backward " in name:
            content["figures"][name] = {key: value / 1000 for key, value in figure.items()}
    (tmp_path / "then.json").write_text(json.dumps(content))
    command = ["report", trace, "--output", str(tmp_path / "page"), "--against", str(tmp_path / "then.json")]
    done = CliRunner().invoke(cli.app, command)
    assert done.exit_code == Exit.WRONG_RESULTS and "28 figures: 14 slower, 0 faster, 14 same" in done.stdout
    assert (tmp_path / "page" / "index.html").read_text().count(">slower<") == 14


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (None, Exit.NO_FILE, "expected a file of figures, got none there"),
        ("[1]", Exit.NO_TRACE, "expected figures of benchmark or report, got another file"),
        ("{", Exit.NO_TRACE, "expected figures of benchmark or report, got another file"),
        ('{"rows": [], "machine": {}}', Exit.NO_TRACE, "expected figures of the same calls, got none"),
    ],
)
def test_bad_earlier_figures_are_named(tmp_path: Path, text: str | None, code: Exit, message: str) -> None:
    if text is not None:
        (tmp_path / "then.json").write_text(text)
    done = CliRunner().invoke(cli.app, ["report", str(RESULTS), "--against", str(tmp_path / "then.json")])
    assert done.exit_code == code and message in done.stderr and done.stderr.count("\n") == 1
