"""The model of profiling/suites/scale.py: its formulas by hand, and its fit on samples that the model itself made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

scale = pytest.importorskip("profiling.suites.scale", reason="profiling needs the packages of its own requirements")
machine = scale.machine

CHANNELS = (64, 256)
MADE_UP = scale.Network("made up", "", 4, 1e9, (scale.Algorithm(5e-6, 1e-6, 3e-6),))


def test_bytes_of_a_layer() -> None:
    """As tests/test_sync.py counts them where they are sent."""
    assert scale.messages("ours", 64) == (2 * 64 * 4 + 8, 2 * 64 * 4)
    assert scale.messages("naive", 64) == (2 * 64 * 4 + 4, 2 * 64 * 4)
    assert scale.received("ours", CHANNELS, 2) == sum(16 * c + 8 for c in CHANNELS)
    assert scale.received("ours", CHANNELS, 9) == 8 * scale.received("ours", CHANNELS, 2)
    assert scale.received("naive", CHANNELS, 4096) < 2 * sum(16 * c + 4 for c in CHANNELS)


def test_formulas() -> None:
    """8 ranks on 2 nodes of 4: 6 steps within a node, 1 between; 1,000 bytes take 1 us."""
    assert MADE_UP.all_gather(8, 1000) == pytest.approx(5e-6 + 6e-6 + 3e-6 + 7e-6)
    assert MADE_UP.all_reduce(8, 1000) == pytest.approx(5e-6 + 2 * (6e-6 + 3e-6) + 2 * 7 / 8 * 1e-6)
    tree = scale.Network("made up", "", 4, 1e9, MADE_UP.rings, (scale.Algorithm(0.0, 1e-6, 3e-6),))
    assert tree.all_reduce(8, 1000) == pytest.approx(2 * (3e-6 + 3e-6) + 2e-6)
    steps = [MADE_UP.all_gather(8, size) for c in CHANNELS for size in (8 * c + 8, 8 * c)]
    assert MADE_UP.step("ours", CHANNELS, 8) == pytest.approx(sum(steps))


def made_up_samples() -> list[Any]:
    network = scale.Network("made up", "", 1, 2e8, (scale.Algorithm(2e-5, 4e-5, 4e-5),))
    return [
        scale.Sample("ours", ranks, size, network.all_gather(ranks, size))
        for ranks in (2, 3, 4)
        for size in (64, 65536)
    ]


def test_fit_finds_the_parameters() -> None:
    found = scale.fitted(made_up_samples())
    assert found.bandwidth == pytest.approx(2e8)
    assert (found.rings[0].base, found.rings[0].between) == pytest.approx((2e-5, 4e-5))


def test_what_is_shown(tmp_path: Path) -> None:
    network = scale.fitted(made_up_samples())
    steps = [scale.Step("ours", 2, 0.5, 0.25)]
    training = [scale.TrainingStep(way, 2, t) for way, t in (("alone", 0.1), ("ours", 0.2), ("naive", 0.3))]
    result = scale.Scale(
        machine.describe(torch.device("cpu")), list(CHANNELS), made_up_samples(), network, steps, training
    )
    trained, checked, predicted, received = scale.tables_of(result)
    assert list(trained.rows[0]) == ["2", "100", "200", "300", "1.50"]
    assert list(checked.rows[0]) == ["ours", "2", "500", "250", "2.00"]
    assert [row[0] for row in predicted.rows] == [str(2**k) for k in range(1, 13)]
    assert received.rows[0] == ["2", "5.136", "5.128"]
    json, png = scale.write(result, tmp_path)
    assert '"predicted": 0.5' in json.read_text()
    assert png.read_bytes().startswith(b"\x89PNG")
