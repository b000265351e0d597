"""The operators around batch norm, each against the modules of torch that it replaces: time, bandwidth, memory.

A row is validated before it is timed: both ways get the same weights and tensors, and every result of ours must be as
near to float64 as rounding explains.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import my_ops
from profiling.measure import machine, memory, timing, workloads
from profiling.measure.peers import NATIVE, OURS
from profiling.output import files, json_text, tables
from profiling.suites import family_norms, steps
from profiling.suites.family_row import CONVOLUTION, METHOD, Row, figures, memories, times
from profiling.suites.family_update import Precise

Shape = tuple[int, ...]
Make = Callable[[], nn.Module]
Activation = Callable[[Tensor], Tensor]

DTYPES = {str(each).removeprefix("torch."): each for each in (torch.float32, torch.bfloat16, torch.float16)}

# Largest error of ours against float64, as a share of the largest value of a result. In 16 bits the results that are
# made of rounded ones, like the gradients of a convolution's weight, are off by more than their own rounding.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}


@dataclass(frozen=True)
class Member:
    """Two ways to do the same. ``images``: of the input's size, that must be moved in a step and in inference."""

    name: str
    ours: Make
    native: Make
    shape: Shape
    images: tuple[float, float] = (5, 2)  # x, y; dy, x, dx
    residual: bool = False
    overwrites: bool = False  # its input, of which it gets a copy
    convolution: Make | None = None  # timed as well: what the backward pass runs once more

    def measure(self, dtype: torch.dtype, layout: str, seconds: float, device: torch.device) -> Row:
        """Validated, then timed for ``seconds`` in training and as long in inference."""
        torch.manual_seed(workloads.SEED)
        size = math.prod(self.shape) * dtype.itemsize
        moved = round(self.images[0] * size), round(self.images[1] * size)
        row = Row(self.name, self.shape, str(dtype).removeprefix("torch."), layout, moved)
        images = [torch.randn(self.shape, device=device).to(dtype) for _ in range(1 + self.residual)]
        inputs = [workloads.arrange(image, layout) for image in images]
        ways = {OURS: self.ours().to(device), NATIVE: self.native().to(device)}
        _same_values(dtype, *ways.values())
        calls = {name: _call(module, self.overwrites) for name, module in ways.items()}
        row.wrong = _wrong(ways, self.overwrites, inputs)
        if row.wrong:
            return row
        training = {name: _step(ways[name], call, inputs) for name, call in calls.items()}
        row.training = timing.interleave(training, device, seconds)
        row.peak = {name: memory.of(step, device).peak for name, step in training.items()}
        row.kept = {name: _kept(call, inputs, device) for name, call in calls.items()}
        if self.convolution is not None:
            calls[CONVOLUTION] = self.convolution().to(device, dtype)
        for module in ways.values():
            module.eval()
        with torch.no_grad():
            row.inference = timing.interleave(
                {name: partial(call, *inputs) for name, call in calls.items()}, device, seconds
            )
        return row


class _Chain(nn.Module):
    """One module after the other, then a residual and an activation; as networks are written, in place if possible."""

    def __init__(self, *parts: nn.Module, activation: Activation | None = None) -> None:
        super().__init__()
        self.parts = nn.Sequential(*parts)
        self.activation = activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        value: Tensor = self.parts(x)
        if residual is not None:
            value += residual
        return value if self.activation is None else self.activation(value)


ACTIVATIONS: dict[str, Activation] = {
    "relu": partial(F.relu, inplace=True),
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.01, inplace=True),
    "relu6": partial(F.relu6, inplace=True),
    "elu": partial(F.elu, inplace=True),
    "silu": F.silu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


def members() -> list[Member | Precise]:
    return [*_activations(), *_in_place(), *_convolutions(), *_norms(), Precise((16, 256, 28, 28))]


def _activations() -> list[Member]:
    channels = 256
    shape = (16, channels, 28, 28)
    found = []
    for name, activation in ACTIVATIONS.items():
        ours = partial(my_ops.BatchNormAct2d, channels, activation=name)
        native = partial(_chain, partial(nn.BatchNorm2d, channels), activation=activation)
        found.append(Member(f"batch norm + {name}", ours, native, shape))
        if name in ("relu", "silu"):
            images = 7 if name == "relu" else 8, 3  # x, r, y; dy, x, dx, dr, and r again for silu
            found.append(Member(f"batch norm + add + {name}", ours, native, shape, images, residual=True))
    return found


def _in_place() -> list[Member]:
    channels = 256
    shape = (16, channels, 28, 28)
    found = []
    for name in ("leaky_relu", "elu"):
        ours = partial(my_ops.InPlaceBatchNormAct2d, channels, activation=name)
        native = partial(_chain, partial(nn.BatchNorm2d, channels), activation=ACTIVATIONS[name])
        images = 7, 4  # the copy: x, x; x, y in its place; dy, y, dx
        found.append(Member(f"in place: batch norm + {name}", ours, native, shape, images, overwrites=True))
    return found


def _convolutions() -> list[Member]:
    found = []
    for kernel, shape, out in ((1, (16, 64, 56, 56), 256), (3, (16, 128, 28, 28), 128)):
        conv = partial(nn.Conv2d, shape[1], out, kernel, padding=kernel // 2, bias=False)
        ours = partial(my_ops.ConvBatchNorm2d, shape[1], out, kernel, padding=kernel // 2)
        native = partial(_chain, conv, partial(nn.BatchNorm2d, out))
        wider = out / shape[1]
        images = (3 + 2 * wider, 1 + wider)  # x, y; dy, x, dx
        found.append(
            Member(f"convolution {kernel}x{kernel} + batch norm", ours, native, shape, images, convolution=conv)
        )
    return found


def _norms() -> list[Member]:
    found = [Member(*row) for row in family_norms.rows()]
    channels, parts = 256, 4
    shape = (16, channels, 28, 28)
    ours = partial(my_ops.GhostBatchNorm2d, channels, shape[0] // parts)
    return [*found, Member(f"ghost batch norm, {parts} parts", ours, partial(_Ghost, channels, parts), shape)]


class _Ghost(nn.BatchNorm2d):
    """Part after part; running statistics move with each."""

    def __init__(self, channels: int, parts: int) -> None:
        super().__init__(channels)
        self.parts = parts

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        return torch.cat([super(_Ghost, self).forward(part) for part in input.chunk(self.parts)])


def _chain(*parts: Make, activation: Activation | None = None) -> nn.Module:
    return _Chain(*(make() for make in parts), activation=activation)


def _same_values(dtype: torch.dtype, ours: nn.Module, native: nn.Module) -> None:
    """As in mixed precision: convolutions in ``dtype``, norms with float32 parameters."""
    both = zip((*ours.parameters(), *ours.buffers()), (*native.parameters(), *native.buffers()), strict=True)
    with torch.no_grad():
        for mine, theirs in both:
            mine.copy_(theirs)
    for part in (*ours.modules(), *native.modules()):
        if isinstance(part, nn.Conv2d):
            part.to(dtype)


def _call(module: nn.Module, overwrites: bool) -> Callable[..., Tensor]:
    return (lambda x, *rest: module(x.clone(), *rest)) if overwrites else module


def _step(module: nn.Module, call: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Callable[[], object]:
    wanted = [tensor.detach().requires_grad_() for tensor in inputs]
    grad_output = torch.randn_like(call(*inputs))
    parameters = list(module.parameters())
    return lambda: torch.autograd.grad(call(*wanted), [*wanted, *parameters], grad_output)


def _kept(call: Callable[..., Tensor], inputs: Sequence[Tensor], device: torch.device) -> int:
    wanted = [tensor.detach().requires_grad_() for tensor in inputs]
    return memory.of(lambda: call(*wanted), device).held


def _wrong(ways: dict[str, nn.Module], overwrites: bool, inputs: Sequence[Tensor]) -> str:
    """The first result of ours that is further from float64 than rounding explains; empty if there is none."""
    dtype = inputs[0].dtype
    models = {dtype: copy.deepcopy(ways[OURS]), torch.float64: copy.deepcopy(ways[NATIVE]).double()}
    for mode in ("training", "inference"):
        results = []
        for kind, model in models.items():
            model.train(mode == "training")
            wanted = [tensor.detach().to(kind).requires_grad_() for tensor in inputs]
            output = _call(model, overwrites)(*wanted)
            torch.manual_seed(workloads.SEED + 1)  # the gradient of dy = x is 0
            grad_output = torch.randn(output.shape, device=output.device).to(dtype).to(kind)
            gradients = torch.autograd.grad(output, [*wanted, *model.parameters()], grad_output)
            results.append([output.detach(), *gradients, *model.buffers()])
        for number, (got, want) in enumerate(zip(*results, strict=True)):
            error = float((got.double() - want.double()).abs().max())
            if not error <= TOLERANCE[dtype] * float(want.abs().max()):
                return f"{mode}, result {number} is off by {error:.2g}"
    return ""


def write(rows: Sequence[Row], runs: Sequence[steps.Run], device: torch.device, path: Path) -> None:
    """Writes the figures as JSON."""
    content = {
        "machine": machine.describe(device),
        "method": METHOD,
        "rows": [figures(row) for row in rows],
        "steps": [steps.figures(run) for run in runs],
    }
    files.write(path, json_text.of(content))


def run(
    chosen: Sequence[Member | Precise],
    dtype: torch.dtype,
    layout: str,
    seconds: float,
    networks: Sequence[str],
    settings: steps.Settings,
    device: torch.device,
    path: Path,
    console: Console,
) -> bool:
    """Rows, then whole networks; prints tables and keeps what is there in ``path``. Returns whether all is right."""
    rows: list[Row] = []
    runs: list[steps.Run] = []
    for member in chosen:
        console.print(f"{member.name} {tables.shape(member.shape)}", style="dim")
        rows.append(member.measure(dtype, layout, seconds, device))
        write(rows, runs, device, path)
    if rows:
        tables.print_to(console, times(rows))
        tables.print_to(console, memories(rows))
    for network in networks:
        runs += steps.run(network, settings, device, console)
        write(rows, runs, device, path)
    if runs:
        tables.print_to(console, steps.table(runs))
    return not any(row.wrong for row in rows) and steps.losses_agree(runs)
