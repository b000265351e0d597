"""The benchmark of activations in batch norm's passes: right results are timed, wrong ones are not."""
# ruff: noqa: E402 (what profiling imports may be missing on a machine that only runs the operators)

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

for package in ("msgspec", "rich", "sklearn", "transformers"):
    pytest.importorskip(package, reason=f"profiling needs {package}: pip install -r requirements/compare.txt")

from rich.console import Console

from profiling.suites import activation_cost, family

CPU = torch.device("cpu")
SHAPE = (4, 6, 5, 7)


@pytest.mark.parametrize("name", family.ACTIVATIONS)
@pytest.mark.parametrize("kind", family.DTYPES)
def test_rows_are_right(name: str, kind: str) -> None:
    forward, backward = activation_cost.measure(name, SHAPE, family.DTYPES[kind], "channels_last", 0.0, CPU)
    assert (forward.direction, backward.direction) == ("forward", "backward")
    for row in (forward, backward):
        assert row.wrong == ""
        assert row.ratio() > 0
        assert row.samples.keys() == {activation_cost.ALONE, activation_cost.WITH}


@pytest.mark.parametrize("direction", [0, 1])
def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch, direction: int) -> None:
    """silu in the place of relu."""
    name = ("batchnorm_act_forward", "batchnorm_act_backward")[direction]
    real = getattr(torch.ops.my_ops, name)
    monkeypatch.setattr(torch.ops.my_ops, name, lambda *args: real(*("silu" if arg == "relu" else arg for arg in args)))
    row = activation_cost.measure("relu", SHAPE, torch.float32, "contiguous", 0.0, CPU)[direction]
    assert "is off by" in row.wrong
    assert not row.samples
    assert any("WRONG" in cell for cell in activation_cost.table([row]).rows[0])


def test_figures(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    assert activation_cost.run("relu", [SHAPE], 0.0, CPU, path, Console(quiet=True))
    found = json.loads(path.read_text())
    assert found["activation"] == "relu"
    assert len(found["rows"]) == 3 * 2 * 2
    assert all(min(row["seconds"].values()) > 0 for row in found["rows"])
