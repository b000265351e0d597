"""A user's model natively and converted: steps timed in turns, then traced, with copies of its tensors beside them."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from profiling.measure import machine
from profiling.measure.peers import NATIVE, OURS
from profiling.measure.workloads import SEED
from profiling.output.exits import Exit, Failure
from profiling.traces import conversion, models, traces
from profiling.traces.models import Source
from profiling.traces.trace_file import Record

LEARNING_RATE = 1e-3
WARM_UP = 2  # steps before any is timed
COPIES = 7  # of each tensor, of which the first is not in the trace

Step = Callable[[], None]


@dataclass(frozen=True)
class Settings:
    """``shape``: of one sample. ``rounds`` steps each way are timed in turns, then ``steps`` each way are traced."""

    batch: int
    shape: tuple[int, ...]
    inference: bool
    rounds: int
    steps: int


def ticks(settings: Settings) -> int:
    """How often ``run`` calls ``advance``."""
    return 2 * (WARM_UP + settings.rounds + settings.steps)


def run(
    source: Source, settings: Settings, device: torch.device, folder: Path, advance: Callable[[], None]
) -> list[Path]:
    """Writes ``folder``/traces/NAME/MODEL.pt.trace.json.gz, native first, and returns both paths.

    Raises Failure if the model does not run on such input, or calls no batch norm.
    """
    inputs = source.inputs or _random(settings)
    inputs = tuple(each.to(device) if isinstance(each, Tensor) else each for each in inputs)
    shapes = _batch_norm_inputs(source, inputs, settings, device)
    steps = {name: _stepper(source, name == OURS, inputs, settings, device) for name in (NATIVE, OURS)}
    seconds = _timed(steps, settings.rounds, advance)
    record = Record(
        run=uuid.uuid4().hex,
        model=source.name,
        mode="inference" if settings.inference else "training",
        inputs=[list(each.shape) for each in inputs if isinstance(each, Tensor)],
        machine=asdict(machine.describe(device)),
    )
    paths = []
    for name, step in steps.items():
        path = folder / "traces" / name / f"{re.sub(r'[^A-Za-z0-9_-]', '_', source.name)}.pt.trace.json.gz"
        path.parent.mkdir(parents=True)
        about = replace(record, name=name, step_seconds=seconds[name])
        _trace(step, settings.steps, shapes, device, path, about, advance)
        paths.append(path)
    return paths


def _random(settings: Settings) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(SEED)
    return (torch.randn(settings.batch, *settings.shape, generator=generator),)


class _Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The inputs of all batch norm operators: shape, stride and dtype."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inputs: dict[tuple[torch.Size, tuple[int, ...], torch.dtype], None] = {}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if re.search(r"batch_?norm", str(operator)) and args and isinstance(args[0], Tensor):
            self.inputs[args[0].shape, args[0].stride(), args[0].dtype] = None
        return operator(*args, **(kwargs or {}))


def _batch_norm_inputs(
    source: Source, inputs: tuple[Any, ...], settings: Settings, device: torch.device
) -> list[tuple[torch.Size, tuple[int, ...], torch.dtype]]:
    """Of a forward pass, which also tells whether the model runs at all."""
    model = source.make().to(device)
    conversion.set_mode(model, not settings.inference)
    seen = _Seen()
    try:
        with torch.no_grad(), seen:
            outputs = models.floats(model(*inputs))
    except Exception as error:
        given = ", ".join("x".join(map(str, each.shape)) for each in inputs if isinstance(each, Tensor))
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise Failure(Exit.NO_MODEL, f"{source.name}: expected to run on input {given}, got {reason}") from error
    if not outputs:
        raise Failure(Exit.NO_MODEL, f"{source.name}: expected a floating-point output, got none")
    if not seen.inputs:
        raise Failure(Exit.NO_BATCH_NORM, f"{source.name}: expected a model that calls batch norm, got none")
    return list(seen.inputs)


def _stepper(source: Source, ours: bool, inputs: tuple[Any, ...], settings: Settings, device: torch.device) -> Step:
    """A step of a model of its own, that returns when the device is done.

    Training: the mean square of all outputs is the loss, since what a user's labels mean is unknown here; the cost of a
    loss is small beside the network's.
    """
    model = source.make().to(device)
    if ours:
        conversion.convert(model)
    conversion.mark(model)
    conversion.set_mode(model, not settings.inference)

    def infer() -> None:
        with torch.no_grad():
            model(*inputs)

    step = infer if settings.inference else _training(model, inputs)

    def whole() -> None:
        step()
        _wait(device)

    return whole


def _training(model: nn.Module, inputs: tuple[Any, ...]) -> Step:
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE)

    def step() -> None:
        optimizer.zero_grad()
        loss = torch.stack([each.float().square().mean() for each in models.floats(model(*inputs))]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _timed(steps: dict[str, Step], rounds: int, advance: Callable[[], None]) -> dict[str, list[float]]:
    """Seconds per step of each, without the profiler, in turns that swap their order."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(WARM_UP + rounds):
        for name in steps if number % 2 else reversed(steps):
            begin = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - begin)
            advance()
    return {name: values[WARM_UP:] for name, values in seconds.items()}


def _trace(
    step: Step,
    count: int,
    shapes: list[tuple[torch.Size, tuple[int, ...], torch.dtype]],
    device: torch.device,
    path: Path,
    record: Record,
    advance: Callable[[], None],
) -> None:
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities, record_shapes=True, profile_memory=True) as profiler:
        for number in range(count):
            with record_function(f"{traces.STEP}{number}"):
                step()
            advance()
        for shape, stride, dtype in shapes:
            _copy(shape, stride, dtype, device)
        _wait(device)
        profiler.add_metadata_json("my_ops", json.dumps(asdict(record)))
    profiler.export_chrome_trace(str(path))


def _copy(shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """The machine's copy bandwidth for such a tensor, in the trace itself; the first copy warms up."""
    source, target = (torch.empty_strided(shape, stride, dtype=dtype, device=device).fill_(1) for _ in range(2))
    target.copy_(source)
    for _ in range(COPIES - 1):
        with record_function(traces.COPY):
            target.copy_(source)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
