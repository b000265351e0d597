"""Batch norm calls of a trace, by hand: on a synthetic CUDA trace and on small host ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("msgspec", reason="profiling needs msgspec: pip install -r requirements/compare.txt")

from profiling.output.exits import Exit, Failure
from profiling.traces import breakdown, calls, differences, operators
from profiling.traces.breakdown import Breakdown
from synthetic_cuda_trace import ATEN, ATEN_SECOND, BYTES, CUDNN, CUDNN_BACK, EVENTS, IMAGE
from trace_events import event, memory, trace_of

FLOATS = ["float"] * 5 + ["Scalar"] * 4
VECTOR = 8 * 4


@pytest.fixture(scope="module")
def cuda() -> Breakdown:
    return breakdown.of(trace_of(EVENTS), Path("synthetic.json"))


def test_each_call_of_the_synthetic_cuda_trace(cuda: Breakdown) -> None:
    found = [
        (s.module, s.phase, c.operator, c.backend, c.start, c.cpu, c.gpu, c.launch_delay, c.kernel_gaps, c.kernels)
        for s in cuda.sites
        for c in s.calls
    ]
    compiled = "triton_red_fused__native_batch_norm_legit_relu_0"
    backward = "aten::cudnn_batch_norm_backward"
    assert found == [
        ("stem.norm", "forward", "aten::cudnn_batch_norm", "cuDNN (GPU)", 15, 80, 30, 40, 0, (CUDNN,)),
        ("forward call 2", "forward", "aten::native_batch_norm", "ATen (GPU)", 200, 60, 44, 15, 6, (ATEN, ATEN_SECOND)),
        ("stem.norm", "backward", backward, "cuDNN (GPU)", 510, 80, 50, 75, 0, (CUDNN_BACK,)),
        ("forward call 3", "forward", compiled, "compiled (GPU)", 700, 20, 10, 20, 0, (compiled,)),
    ]
    assert cuda.backends == {"cuDNN (GPU)": 2, "ATen (GPU)": 1, "compiled (GPU)": 1}


def test_bytes_and_bandwidth_of_the_synthetic_cuda_trace(cuda: Breakdown) -> None:
    forward, _, backward, compiled = cuda.sites
    assert (forward.shape, forward.dtype, forward.parameters) == (tuple(IMAGE), "float16", "float32")
    assert forward.bytes == 2 * BYTES + 8 * VECTOR and backward.bytes == 3 * BYTES + 5 * VECTOR
    assert forward.gigabytes_per_second == pytest.approx((2 * BYTES + 8 * VECTOR) / 30e-6 / 1e9)
    (copy,) = cuda.copies
    assert copy.times == (8, 16, 8) and copy.gigabytes_per_second == pytest.approx(2 * BYTES / 8e-6 / 1e9)
    assert cuda.share(forward) == pytest.approx((2 * BYTES + 8 * VECTOR) / 30 / (2 * BYTES / 8))
    assert compiled.bytes is None and compiled.gigabytes_per_second is None and cuda.share(compiled) is None


def test_split_and_memory_of_the_synthetic_cuda_trace(cuda: Breakdown) -> None:
    (split,) = cuda.splits
    # Kernels from 85 to 740: batch norm 30 + 20 + 24 + 50 + 10, the convolution 100.
    assert (split.on_gpu, split.whole, split.batch_norm, split.rest) == (True, 655, 134, 100)
    assert split.idle == 655 - 234
    assert {span.part for span in cuda.kernels} == {"batch norm", "convolution"}
    assert cuda.memory is not None and (cuda.memory.device, cuda.memory.peak) == ("GPU", 10_000)
    assert cuda.sites[0].calls[0].allocated == 4096 and cuda.sites[1].calls[0].allocated == 0


@pytest.mark.parametrize(
    ("kernel", "operator", "name"),
    [
        ("void my_ops::cuda::reduce<float>(int)", "aten::native_batch_norm", "my_ops (GPU)"),
        ("MIOpenBatchNormFwdTrainSpatial", "aten::miopen_batch_norm", "MIOpen (GPU)"),
        (None, "aten::native_batch_norm_backward", "ATen"),
        (None, "my_ops::batchnorm_forward", "my_ops"),
        (None, "aten::mkldnn_batch_norm", "oneDNN"),
        (None, "graph_0_cpp_fused__native_batch_norm_legit_0", "compiled"),
        ("elementwise", "somewhere::else", "unknown"),
    ],
)
def test_the_backend_is_named_by_its_kernels(kernel: str | None, operator: str, name: str) -> None:
    from profiling.traces.traces import Kernel

    kernels = [Kernel(kernel, 0, 1, 7, 0)] if kernel else []
    assert operators.backend(operator, kernels) == name


def forward(name: str, start: float, dims: list[Any], types: list[str] = FLOATS, training: str = "True") -> Any:
    values = ["", "", "", "", "", training, "0.1", "1e-05", ""]
    arguments = {"Input Dims": dims, "Input type": types, "Concrete Inputs": values}
    return event(name, start, 10, **arguments, **{"Sequence number": int(start)})


def only_call(events: list[Any]) -> calls.Call:
    ((call,),) = calls.of_trace(trace_of(events))
    return call


@pytest.mark.parametrize(
    ("name", "dims", "types", "flag", "phase", "expected"),
    [
        ("my_ops::batchnorm_forward", [IMAGE, [8], [8], [8], [8]], ["float"] * 5, "True", "forward", (2, 8)),
        ("my_ops::batchnorm_forward", [IMAGE, [8], [8], [8], [8]], ["float"] * 5, "False", "inference", (2, 4)),
        ("aten::native_batch_norm", [IMAGE, [], [], [], []], ["float", "", "", "", ""], "True", "forward", (2, 2)),
        ("aten::_native_batch_norm_legit", [IMAGE, [8], [8], []], ["float"] * 3 + ["Scalar"], "", "forward", (2, 4)),
        # Input, residual, gamma, beta, running statistics: the residual is one more tensor to read.
        ("my_ops::batchnorm_act_forward", [IMAGE, IMAGE, *[[8]] * 4], ["float"] * 6, "", "forward", (3, 8)),
    ],
)
def test_bytes_by_hand(name: str, dims: Any, types: Any, flag: str, phase: str, expected: Any) -> None:
    call = only_call([forward(name, 1, dims, types, flag)])
    images, vectors = expected
    assert (call.phase, call.bytes) == (phase, images * 2 * BYTES + vectors * VECTOR)


def test_bytes_of_mixed_dtypes_and_of_float64() -> None:
    # float16 throughout: its statistics are saved in float32.
    mixed = only_call([forward("aten::cudnn_batch_norm", 1, [IMAGE, [8], [8], [8], [8]], ["c10::Half"] * 5)])
    assert mixed.bytes == 2 * BYTES + 6 * 16 + 2 * VECTOR
    double = only_call([forward("aten::batch_norm", 1, [[5, 3], [3], [3], [3], [3]], ["double"] * 5)])
    assert double.bytes == (2 * 15 + 8 * 3) * 8


def test_parts_of_batch_norm_and_unknown_arguments_have_no_bytes() -> None:
    assert (
        only_call([event("my_ops::batchnorm_stats", 1, 5, **{"Input Dims": [IMAGE], "Input type": ["float"]})]).bytes
        is None
    )
    assert only_call([event("aten::native_batch_norm", 1, 5)]).bytes is None


def test_a_call_is_counted_once_with_what_is_inside() -> None:
    dims = [IMAGE, [8], [8], [8], [8]]
    events = [
        forward("aten::batch_norm", 10, dims) | {"dur": 100.0},
        forward("aten::_batch_norm_impl_index", 12, dims) | {"dur": 90.0},
        forward("aten::native_batch_norm", 20, dims) | {"dur": 70.0},
        memory(25, 64, 64),
        memory(30, -64, 0),
        memory(31, 32, 32),
        memory(32, 1000, 1032, tid=2),  # another thread's
    ]
    call = only_call(events)
    assert (call.operator, call.cpu, call.allocated) == ("aten::native_batch_norm", 100, 96)


def test_names_of_layers_come_from_marks_else_from_torch_else_from_the_order() -> None:
    dims = [IMAGE, [8], [8], [8], [8]]
    events = [
        event("nn.Module: BatchNorm2d_0", 5, 50, cat="python_function"),
        event("my_ops.module: stem", 8, 30, cat="user_annotation"),
        forward("my_ops::batchnorm_forward", 10, dims),
        event("nn.Module: BatchNorm2d_1", 60, 30, cat="python_function"),
        forward("my_ops::batchnorm_forward", 70, dims),
        forward("my_ops::batchnorm_forward", 100, dims),
        event("MyOpsBatchnormForwardBackward", 200, 20, **{"Sequence number": 100}),
        event("my_ops::batchnorm_backward", 205, 10, **{"Input Dims": [IMAGE, IMAGE], "Input type": ["float"] * 2}),
    ]
    ((*first, backward),) = calls.of_trace(trace_of(events))
    assert [(call.module, call.named) for call in first] == [
        ("stem", True),
        ("BatchNorm2d_1", True),
        ("forward call 3", False),
    ]
    assert (backward.phase, backward.module, backward.named) == ("backward", "forward call 3", False)


def test_sites_join_the_steps_and_tell_repeated_calls_apart() -> None:
    dims = [IMAGE, [8], [8], [8], [8]]
    events = []
    for step, extra in ((0, 0.0), (1, 4.0)):
        start = 1000 * step
        events += [event(f"ProfilerStep#{step}", start, 900, cat="user_annotation")]
        for mark in (10, 110):  # the same layer, twice
            events += [event("my_ops.module: shared", start + mark, 50, cat="user_annotation")]
            events += [forward("my_ops::batchnorm_forward", start + mark + 1, dims) | {"dur": 10 + extra + mark}]
    found = calls.sites(calls.of_trace(trace_of(events)))
    assert [(site.label, site.times) for site in found] == [("shared", [20, 24]), ("shared #2", [120, 124])]
    assert found[0].time == 22


def breakdown_of(events: list[Any], name: str = "a") -> Breakdown:
    return breakdown.of(trace_of(events, name=name), Path(f"{name}.json"))


def test_traces_without_names_are_matched_by_order_and_shape() -> None:
    wide, narrow = [IMAGE, [8], [8], [8], [8]], [[2, 8, 4, 4], [8], [8], [8], [8]]
    first = [forward("aten::batch_norm", start, dims) for start, dims in ((10, wide), (30, narrow), (50, wide))]
    second = [forward("my_ops::batchnorm_forward", start, dims) for start, dims in ((10, wide), (50, wide))]
    found = differences.of(breakdown_of(first), breakdown_of(second, "b"))
    assert [(m.first.shape, m.second.shape) for m in found.matches] == [(tuple(IMAGE),) * 2] * 2
    assert [site.shape for site in found.only_first] == [(2, 8, 4, 4)] and found.only_second == ()


def test_named_layers_are_matched_by_name_in_any_order() -> None:
    dims = [IMAGE, [8], [8], [8], [8]]

    def layers(*names: str, duration: float) -> Breakdown:
        events = []
        for number, name in enumerate(names):
            events.append(event(f"my_ops.module: {name}", 100 * number, 90, cat="user_annotation"))
            events.append(forward("aten::batch_norm", 100 * number + 1, dims) | {"dur": duration + number})
        return breakdown_of(events)

    found = differences.of(layers("a", "b", "c", duration=20), layers("b", "a", duration=10))
    assert {m.first.label: (m.first.time, m.second.time) for m in found.matches} == {"a": (20, 11), "b": (21, 10)}
    assert [site.label for site in found.only_first] == ["c"]
    (total,) = differences.by_phase(found.matches)
    assert (total.name, total.calls, total.first, total.second, total.speedup) == ("forward", 2, 41, 21, 41 / 21)


def test_a_step_splits_into_batch_norm_the_rest_and_nothing_on_all_threads() -> None:
    events = [
        event("ProfilerStep#0", 0, 1000, cat="user_annotation"),
        event("aten::conv2d", 100, 200),
        event("aten::empty", 120, 30),
        event("my_ops.module: x", 350, 100, cat="user_annotation"),  # a name, no work
        event("my_ops::batchnorm_forward", 400, 40),
        event("Optimizer.step#SGD.step", 450, 100, cat="user_annotation"),
        event("aten::add_", 460, 50),
        event("BatchnormBackward", 290, 60, tid=2),  # 10 of it beside the convolution
        event("my_ops::batchnorm_backward", 300, 40, tid=2),
    ]
    ((split,), spans) = (breakdown_of(events).splits, breakdown_of(events).spans)
    assert (split.whole, split.batch_norm, split.rest, split.idle) == (1000, 100, 190 + 50, 660)
    assert [(span.part, span.start) for span in spans] == [
        ("convolution", 100),
        ("batch norm", 290),
        ("batch norm", 400),
        ("optimizer", 460),
    ]


def test_a_trace_without_steps_is_one_step() -> None:
    found = breakdown_of([event("aten::relu", 5, 10), event("aten::batch_norm", 20, 30)])
    assert not found.marked and found.step.whole == 45 and found.step.idle == 5


def test_a_trace_without_batch_norm_is_named() -> None:
    with pytest.raises(Failure, match=r"a\.json: expected batch norm operators in the trace, found none") as caught:
        breakdown_of([event("aten::relu", 5, 10)])
    assert caught.value.code == Exit.NO_BATCH_NORM
