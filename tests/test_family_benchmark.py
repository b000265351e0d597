"""The benchmark of the family: members agree with their rivals, wrong ones are not timed, memory is what it is."""
# ruff: noqa: E402 (what profiling imports may be missing on a machine that only runs the operators)

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

for package in ("msgspec", "rich", "sklearn", "transformers"):
    pytest.importorskip(package, reason=f"profiling needs {package}: pip install -r requirements/compare.txt")

from rich.console import Console

import my_ops
from profiling.measure import memory
from profiling.measure.peers import NATIVE, OURS
from profiling.suites import family, family_update, lean, steps

CPU = torch.device("cpu")


@pytest.mark.parametrize("member", family.members(), ids=lambda member: member.name)
@pytest.mark.parametrize("kind", family.DTYPES)
def test_members_are_right(member: family.Member | family.Precise, kind: str) -> None:
    """In every dtype, on small images."""
    small = replace(member, shape=(16, member.shape[1], 4, 4))
    row = small.measure(family.DTYPES[kind], "channels_last", 0.0, CPU)
    assert row.wrong == ""
    assert {OURS, NATIVE} <= row.training.keys()
    assert all(min(samples) > 0 for samples in (*row.training.values(), *row.inference.values()))
    assert row.kept[OURS] <= 1.1 * row.kept[NATIVE]  # a bit per value for a residual, and vectors


def test_wrong_statistics_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own averages the batches' variances: here the batches' means differ."""
    monkeypatch.setattr(my_ops, "update_bn", swa_utils.update_bn)
    row = family_update.Precise((8, 3, 4, 4)).measure(torch.float32, "contiguous", 0.0, CPU)
    assert row.wrong.startswith("variance is off by")
    assert not row.training


def test_wrong_member_is_not_timed() -> None:
    ours, native = partial(my_ops.BatchNorm2d, 4), partial(nn.BatchNorm2d, 4, eps=0.01)
    wrong = family.Member("wrong", ours, native, (2, 4, 3, 3))
    row = wrong.measure(torch.float32, "contiguous", 0.0, CPU)
    assert row.wrong.startswith("training, result 0 is off by")
    assert not row.training
    assert any("WRONG" in cell for cell in family.times([row]).rows[0])


def test_memory_of_a_call() -> None:
    x = torch.ones(1000)
    found = memory.of(lambda: (x + 1) * 2, CPU)
    assert (found.peak, found.held) == (pytest.approx(8000, rel=0.01), pytest.approx(4000, rel=0.01))


def test_convolution_keeps_its_input_alone() -> None:
    """The benchmark's own figure: the output, and native's keeps as much again."""
    (pointwise,) = (member for member in family.members() if "1x1" in member.name)
    row = replace(pointwise, shape=(4, 64, 8, 8)).measure(torch.float32, "contiguous", 0.0, CPU)
    output = 4 * 256 * 64 * 4
    assert row.kept[OURS] == pytest.approx(output, rel=0.02)
    assert row.kept[NATIVE] == pytest.approx(2 * output, rel=0.02)
    assert row.more_convolutions() == row.more_convolutions()  # not NaN


def test_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and steps of a small network, as tables and as JSON; losses of all ways agree."""
    monkeypatch.setitem(steps.NETWORKS, "small", lambda: steps.ResNet((1, 1), 8))
    path = tmp_path / "family.json"
    members = [replace(family.members()[0], shape=(4, 256, 2, 2))]
    settings = steps.Settings(batch=8, size=32, steps=2)
    console = Console(file=(tmp_path / "log").open("w"), width=200)
    assert family.run(members, torch.float32, "contiguous", 0.0, ["small"], settings, CPU, path, console)
    content = json.loads(path.read_text())
    assert content["rows"][0]["training"][OURS] > 0
    runs = {run["name"]: run for run in content["steps"]}
    assert runs.keys() == {NATIVE, OURS, steps.FUSED}
    assert len(runs[NATIVE]["losses"]) == 3
    assert len(runs[NATIVE]["seconds"]) == 2
    assert runs[steps.FUSED]["losses"] == pytest.approx(runs[NATIVE]["losses"], rel=1e-3)
    assert 0 < runs[steps.FUSED]["loss_error"] < 1e-10
    assert runs[steps.FUSED]["peak"] < runs[NATIVE]["peak"]


def test_losses_that_part_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion that changes one layer by a ten-thousandth, too little for losses in float32."""

    def convert(model: nn.Module, fuse: bool = False) -> nn.Module:
        with torch.no_grad():
            model.fc.weight.mul_(1 + 1e-4 * fuse)
        return model

    monkeypatch.setitem(steps.NETWORKS, "small", lambda: steps.ResNet((1, 1), 8))
    monkeypatch.setattr(my_ops, "convert_batchnorm", convert)
    runs = steps.run("small", steps.Settings(batch=4, size=32, steps=1), CPU, Console(quiet=True))
    assert {run.name for run in runs if run.loss_error > 0} == {steps.FUSED}
    assert steps.losses_agree(runs[:2]) and not steps.losses_agree(runs)


def test_a_lean_network_trains_as_before_in_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(steps.NETWORKS, "small", lambda: lean.leaky_resnet((2, 1), 8))
    runs = {run.name: run for run in steps.run("small", steps.Settings(8, 64, 1), CPU, Console(quiet=True))}
    assert runs[steps.LEAN].loss_error < 1e-10
    assert runs[steps.LEAN].peak < 0.7 * runs[NATIVE].peak
