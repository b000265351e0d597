"""TensorBoard with torch-tb-profiler shows both runs of a capture: asked over HTTP, on loopback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

for package in ("tensorboard", "torch_tb_profiler"):
    pytest.importorskip(package, reason=f"the test needs {package}: pip install -r requirements/compare.txt")

TRACES = Path(__file__).parent / "data" / "traces"
SECONDS = 120
CALLS = {"native": "aten::native_batch_norm", "my_ops": "my_ops::batchnorm_forward"}  # 14 layers, three steps


class Board:
    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, what: str, **arguments: str) -> Any:
        url = f"{self.address}/data/plugin/pytorch_profiler/{what}?{urlencode(arguments)}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=30) as answer:
            return json.loads(answer.read())


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """A server over the two traces, as capture lays them out; it has read both."""
    folder = tmp_path_factory.mktemp("board")
    for name in CALLS:
        (folder / "traces" / name).mkdir(parents=True)
        content = (TRACES / f"unet-{name}.pt.trace.json.gz").read_bytes()
        (folder / "traces" / name / "unet.pt.trace.json.gz").write_bytes(content)
    options = ["--logdir", str(folder / "traces"), "--host", "127.0.0.1", "--port", "0", "--load_fast", "false"]
    log = folder / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "tensorboard.main", *options],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        board = Board(_wait(lambda: _address(log), log))
        _wait(lambda: set(board.ask("runs")["runs"]) == CALLS.keys() and not board.ask("runs")["loading"], log)
        yield board
    finally:
        server.terminate()
        server.wait(timeout=30)


def _address(log: Path) -> str | None:
    found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text(errors="replace"))
    return found.group() if found else None


def _wait(ready: Any, log: Path) -> Any:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if found := ready():
            return found
        time.sleep(0.2)
    raise AssertionError(f"TensorBoard was not ready after {SECONDS} s:\n{log.read_text(errors='replace')[-2000:]}")


@pytest.mark.parametrize("run", CALLS)
def test_operator_table(board: Board, run: str) -> None:
    assert {"Overview", "Operator", "Trace", "Memory"} <= set(board.ask("views", run=run))
    (worker,) = board.ask("workers", run=run, view="Operator")
    (span,) = board.ask("spans", run=run, worker=worker)
    where = {"run": run, "worker": worker, "span": span}
    rows = {row["name"]: row for row in board.ask("operation/table", **where, group_by="Operation")["data"]}
    name = CALLS[run]
    assert rows[name]["calls"] == 42 and rows[name]["host_total_duration"] > 0
    assert CALLS["native" if run == "my_ops" else "my_ops"] not in rows
    table = board.ask("operation/table", **where, group_by="OperationAndInputShape")["data"]
    shapes = [row["input_shape"] for row in table if row["name"] == name]
    assert any(shape.startswith("[[2,16,32,32]") for shape in (each.replace(" ", "") for each in shapes)), shapes
