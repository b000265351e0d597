"""Trace files, and what they say about a step operator by operator."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("msgspec", reason="profiling needs msgspec: pip install -r requirements/compare.txt")

from profiling.traces import analysis, traces
from profiling.traces.analysis import BATCH_NORM
from trace_events import event, trace_of

SHAPE = [2, 3, 4, 4]
EVENTS = [
    {"ph": "M", "name": "process_name", "pid": 1},
    event("aten::conv2d", -50, 40),  # before the first step
    event("ProfilerStep#0", 0, 1000, cat="user_annotation"),
    event("aten::conv2d", 10, 100),
    event("aten::empty", 20, 30),
    event("my_ops::batchnorm_forward", 120, 80, **{"Input Dims": [SHAPE, [3]]}),
    event("my_ops::batchnorm_forward", 130, 60, **{"Input Dims": [SHAPE, [3]]}),  # the same call, below autograd
    event("aten::empty", 140, 10),
    event("cudaLaunchKernel", 160, 5, cat="cuda_runtime", correlation=7),
    event("welford<float>", 300, 90, tid=7, cat="kernel", correlation=7),
    event("unknown launch", 300, 90, tid=7, cat="kernel", correlation=8),
    event("aten::add_", 210, 4, **{"Input Dims": [[], []], "Input type": ["long int", "long int"]}),
    event("aten::add_", 220, 6, **{"Input Dims": [SHAPE, SHAPE], "Input type": ["float", "float"]}),
    event("BatchnormBackward", 400, 200, tid=2),  # autograd's thread
    event("my_ops::batchnorm_backward", 410, 150, tid=2, **{"Input Dims": [SHAPE, SHAPE]}),
    event("Optimizer.step#SGD.step", 700, 100, cat="user_annotation"),
    event("aten::conv2d", 710, 10),
    event("ProfilerStep#1", 2000, 500, cat="user_annotation"),
    event("aten::conv2d", 2010, 300),
]


def test_summary_of_a_small_trace_by_hand() -> None:
    steps = trace_of(EVENTS).steps
    assert [step.name for step in steps] == ["ProfilerStep#0", "ProfilerStep#1"]
    found = analysis.summarise(steps[:1])
    assert found.step_ms == 1.0
    rows = {(o.name, o.group): (o.calls, o.self_ms * 1e3, o.total_ms * 1e3, o.device_ms * 1e3) for o in found.operators}
    expected = {
        ("aten::conv2d", "convolution"): (1, 70, 100, 0),
        ("aten::empty", "convolution"): (1, 30, 30, 0),
        ("my_ops::batchnorm_forward", BATCH_NORM): (1, 65, 80, 90),
        ("aten::empty", BATCH_NORM): (1, 10, 10, 0),
        ("cudaLaunchKernel", BATCH_NORM): (1, 5, 5, 0),
        ("aten::add_", BATCH_NORM): (1, 4, 4, 0),
        ("aten::add_", analysis.OTHER): (1, 6, 6, 0),
        ("BatchnormBackward", BATCH_NORM): (1, 50, 200, 0),
        ("my_ops::batchnorm_backward", BATCH_NORM): (1, 150, 150, 0),
        ("Optimizer.step#SGD.step", "optimizer"): (1, 90, 100, 0),
        ("aten::conv2d", "optimizer"): (1, 10, 10, 0),
    }
    assert rows.keys() == expected.keys()
    for key, row in rows.items():
        assert row == pytest.approx(expected[key]), key
    parts = {group.name: group.self_ms * 1e3 for group in found.groups}
    assert parts == pytest.approx(
        {BATCH_NORM: 284, "convolution": 100, "optimizer": 100, analysis.OTHER: 6},
    )
    assert found.covered_ms * 1e3 == pytest.approx(490)
    assert found.kernels == ["welford<float>"]
    calls = [(c.operator, c.direction, c.shape, c.calls, c.total_ms, c.device_ms) for c in found.batch_norms]
    assert calls == [
        ("my_ops::batchnorm_backward", "backward", tuple(SHAPE), 1, pytest.approx(0.15), 0),
        ("my_ops::batchnorm_forward", "forward", tuple(SHAPE), 1, pytest.approx(0.08), pytest.approx(0.09)),
    ]


def test_summary_of_several_steps_is_their_mean() -> None:
    steps = trace_of(EVENTS).steps
    found = analysis.summarise(steps)
    convolution = next(o for o in found.operators if (o.name, o.group) == ("aten::conv2d", "convolution"))
    assert found.step_ms == 0.75 and convolution.calls == 1 and convolution.total_ms == pytest.approx(0.2)
    assert traces.median_step(steps).name == "ProfilerStep#1" and traces.median_step(steps[:1]).name == "ProfilerStep#0"


def test_pairs_show_the_slowest_first_and_what_only_one_side_has() -> None:
    first, second = (analysis.summarise([step]) for step in trace_of(EVENTS).steps)
    pairs = analysis.pair(first, second)
    assert pairs[0].name == "aten::conv2d" and pairs[0].ours is not None and pairs[0].native is not None
    assert pairs[1].name == "my_ops::batchnorm_backward" and pairs[1].native is None
    assert len(pairs) == len(first.operators)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"traceEvents": [', "expected a chrome trace of torch.profiler"),
        ('{"events": []}', "expected a chrome trace of torch.profiler"),
        ('{"traceEvents": []}', "expected an annotation ProfilerStep#0"),
    ],
)
def test_a_broken_trace_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"trace.json: {message}"):
        traces.load(path)
