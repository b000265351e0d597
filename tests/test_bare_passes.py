"""The floor of the benchmark does the work it stands for: every value is read and written, in all its orders."""
# ruff: noqa: E402 (what profiling imports may be missing on a machine that only runs the operators)

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

for package in ("matplotlib", "msgspec", "rich", "sklearn", "transformers", "typer"):
    pytest.importorskip(package, reason=f"profiling needs {package}: pip install -r requirements/compare.txt")

from typer.testing import CliRunner

from profiling import cli
from profiling.measure import allocator, bare_passes

OBSTACLE = bare_passes.obstacle(torch.device("cpu"), [])
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))
ROUNDINGS = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


@pytest.mark.parametrize("kind", ROUNDINGS, ids=str)
@pytest.mark.parametrize(
    ("slice_", "pieces"),
    [(4096, 1), (3 * 4096, 1), (10**9, 1), (32 * 49, 5), (10**9, 5)],
    ids=["slices", "uneven_slices", "whole", "pieces", "whole_pieces"],
)
@pytest.mark.parametrize("streaming", [False, True], ids=["cached", "streaming"])
def test_values(kind: torch.dtype, slice_: int, pieces: int, streaming: bool) -> None:
    operator = bare_passes._operator()
    x, dy = torch.randn(2, 25 * 4096).to(kind)
    for gradient, reduces in ((None, False), (None, True), (dy, True)):
        exact = x.double() * 1.25 - 0.5 + (0 if gradient is None else gradient.double() * 0.75)
        result = operator(gradient, x, slice_, pieces, reduces, streaming)
        torch.testing.assert_close(result.double(), exact, rtol=ROUNDINGS[kind], atol=2.0**-21)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(RuntimeError, match="expected float32, bfloat16 or float16, got Double"):
        bare_passes._operator()(None, torch.zeros(4096, dtype=torch.float64), 4096, 1, False, False)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, restore_threads: None) -> Callable[..., Any]:
    """The command inside this process, which keeps its own allocator, on one thread."""
    monkeypatch.setattr(allocator, "run_under", lambda wanted: None)
    return lambda *options: CliRunner().invoke(cli.app, ["benchmark", "--floor", *options, "--threads", "1"])


def test_benchmark_has_the_floor_beside_each_row(benchmark: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    done = benchmark("--shapes", "4x32x8x8", "--dtype", "bfloat16", "--seconds", "0", "--output", str(path))
    assert done.exit_code == 0, done.output
    rows = json.loads(path.read_bytes())["rows"]
    assert len(rows) == 2 * 3
    for row in rows:
        floors = {name for name in row["peers"] if name.startswith("bare")}
        by_channel = {"bare, by channel"} if row["layout"] == "contiguous" else set()
        assert floors == {"bare, sliced", "bare, whole"} | by_channel


def test_what_it_cannot_measure_is_one_sentence(benchmark: Callable[..., Any], tmp_path: Path) -> None:
    done = benchmark("--shapes", "4x32x8x8", "--dtype", "float64", "--output", str(tmp_path / "figures.json"))
    said = " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.output).split())
    assert done.exit_code == 2 and "expected dtypes float32, bfloat16, float16, got float64" in said
    assert bare_passes.obstacle(torch.device("cuda"), []) == "expected device cpu, got cuda"
    assert not any(tmp_path.iterdir())
