"""The row of ``my_ops.update_bn``: exact running statistics of a data set, beside torch's average over batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import swa_utils

import my_ops
from profiling.measure import memory, timing, workloads
from profiling.measure.peers import NATIVE, OURS
from profiling.suites.family_row import Row

BATCHES = 4
TOLERANCE = 1e-5  # of the variance, as a share of it; of the mean, as a share of the deviation


@dataclass(frozen=True)
class Precise:
    """A data set of ``shape`` in BATCHES batches, through one layer. A step is one pass over all of it."""

    shape: tuple[int, ...]
    name: str = f"update_bn, {BATCHES} batches"

    def measure(self, dtype: torch.dtype, layout: str, seconds: float, device: torch.device) -> Row:
        """Ours against the statistics of all values in float64, then both timed. Ours reads x twice: its statistics are
        those of all batches at once, which the forward pass of a batch does not give."""
        torch.manual_seed(workloads.SEED)
        channels = self.shape[1]
        x = workloads.arrange(torch.randn(self.shape, device=device).to(dtype), layout)
        size = math.prod(self.shape) * dtype.itemsize
        row = Row(self.name, self.shape, str(dtype).removeprefix("torch."), layout, (2 * size, 0))
        layers: dict[str, nn.BatchNorm2d] = {
            OURS: my_ops.BatchNorm2d(channels, device=device),
            NATIVE: nn.BatchNorm2d(channels, device=device),
        }
        updates: dict[str, Callable[..., None]] = {OURS: my_ops.update_bn, NATIVE: swa_utils.update_bn}
        batches = x.chunk(BATCHES)
        steps = {name: partial(update, batches, layers[name]) for name, update in updates.items()}
        steps[OURS]()
        row.wrong = _wrong(layers[OURS], x)
        if not row.wrong:
            row.training = timing.interleave(steps, device, seconds)
            found = {name: memory.of(step, device) for name, step in steps.items()}
            row.peak = {name: of.peak for name, of in found.items()}
            row.kept = {name: of.held for name, of in found.items()}
        return row


def _wrong(layer: nn.BatchNorm2d, x: Tensor) -> str:
    var, mean = torch.var_mean(x.double(), [0, 2, 3])
    assert layer.running_mean is not None and layer.running_var is not None
    for name, got, want, unit in (
        ("mean", layer.running_mean, mean, var.sqrt()),
        ("variance", layer.running_var, var, var),
    ):
        error = float(((got.double() - want) / unit).abs().max())
        if not error <= TOLERANCE:
            return f"{name} is off by {error:.2g}"
    return ""
