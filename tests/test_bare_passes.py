"""The floor of the benchmark does the work it stands for: every value is read and written, in all its orders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from profiling import cli
from profiling.measure import allocator, bare_passes

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in bare_passes._FLAGS, reason="needs a CPU with AVX2 or AVX512"
)
ROUNDINGS = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


@pytest.mark.parametrize("kind", ROUNDINGS, ids=str)
@pytest.mark.parametrize("slice_", [4096, 3 * 4096, 10**9], ids=["slices", "uneven_slices", "whole"])
@pytest.mark.parametrize("streaming", [False, True], ids=["cached", "streaming"])
def test_values(kind: torch.dtype, slice_: int, streaming: bool) -> None:
    operator = bare_passes._operator()
    x, dy = torch.randn(2, 25 * 4096).to(kind)
    for gradient, reduces in ((None, False), (None, True), (dy, True)):
        exact = x.double() * 1.25 - 0.5 + (0 if gradient is None else gradient.double() * 0.75)
        result = operator(gradient, x, slice_, reduces, streaming)
        torch.testing.assert_close(result.double(), exact, rtol=ROUNDINGS[kind], atol=2.0**-21)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(RuntimeError, match="expected float32, bfloat16 or float16, got Double"):
        bare_passes._operator()(None, torch.zeros(4096, dtype=torch.float64), 4096, False, False)


def test_benchmark_has_the_floor_beside_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_restart: Callable[..., Any] = lambda setting: None  # noqa: E731
    monkeypatch.setattr(allocator, "run_under", no_restart)
    path = tmp_path / "figures.json"
    options = ["--shapes", "4x32x8x8", "--dtype", "bfloat16", "--seconds", "0", "--threads", "1", "--output", str(path)]
    done = CliRunner().invoke(cli.app, ["benchmark", "--floor", *options])
    assert done.exit_code == 0, done.output
    rows = json.loads(path.read_bytes())["rows"]
    assert len(rows) == 2 * 3 and all({"bare, sliced", "bare, whole"} <= set(row["peers"]) for row in rows)
