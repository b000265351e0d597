"""Every bad argument: one message that names operator, argument, expectation and what came; on real and meta tensors.

Nothing is written before an error, not even by an operator whose other arguments are fine.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from checks import EPS, ops, unchanged

C = 3
IMAGE, VECTOR, DTYPE = (4, C, 5), (C,), torch.float32
WRITTEN = ("running_mean", "running_var", "num_batches_tracked")


def _good(op: str, device: str) -> dict[str, Any]:
    """Arguments by name that `op` accepts."""
    images = {name: torch.randn(IMAGE, device=device) for name in ("input", "grad_output")}
    names = ("gamma", "beta", "mean", "invstd", "save_mean", "save_invstd", "sum_dy", "sum_dy_xhat", *WRITTEN[:2])
    vectors = {name: torch.ones(VECTOR, device=device) for name in names}
    parts = {name: torch.ones(2, C, device=device) for name in ("mean", "m2")}
    scalars = {
        "num_batches_tracked": torch.tensor(3, device=device),
        "count": torch.tensor([20, 20] if op == "batchnorm_gather_stats" else [20], device=device),
        "training": True,
        "momentum": 0.1,
        "eps": EPS,
    }
    everything = images | vectors | scalars | (parts if op == "batchnorm_gather_stats" else {})
    schema = getattr(ops, op).default._schema
    return {a.name: everything[a.name] for a in schema.arguments if a.name in everything}


def _zeros(*shape: int, dtype: torch.dtype = DTYPE) -> Callable[[str], Tensor]:
    return lambda device: torch.zeros(shape, dtype=dtype, device=device)


def _images(shape: tuple[int, ...], dtype: torch.dtype = DTYPE) -> dict[str, Callable[[str], Tensor]]:
    return {name: _zeros(*shape, dtype=dtype) for name in ("input", "grad_output")}


@dataclass(frozen=True)
class Case:
    op: str
    changed: dict[str, Any]
    message: str  # behind the operator's name
    error: type[Exception]

    def __str__(self) -> str:
        return f"{self.op}: {self.message}"


OPS_WITH_INPUT = {
    "batchnorm_forward": ("gamma", "beta", "running_mean", "running_var"),
    "batchnorm_backward": ("gamma", "save_mean", "save_invstd"),
    "batchnorm_stats": (),
    "batchnorm_apply": ("gamma", "beta", "mean", "invstd"),
    "batchnorm_backward_reduce": ("mean", "invstd"),
    "batchnorm_backward_apply": ("gamma", "mean", "invstd", "sum_dy", "sum_dy_xhat"),
}
PARAMETERS = ("gamma", "beta", "running_mean", "running_var")
WITH_GRAD_OUTPUT = ("batchnorm_backward", "batchnorm_backward_reduce", "batchnorm_backward_apply")


def _cases() -> list[Case]:
    cases: list[Case] = []

    def bad(op: str, message: str, error: type[Exception] = RuntimeError, **changed: Any) -> None:
        cases.append(Case(op, changed, message, error))

    for op, vectors in OPS_WITH_INPUT.items():
        bad(op, "expected input of rank 2 or more, got shape [5]", **_images((5,)))
        bad(op, "expected input of rank 2 or more, got shape []", **_images(()))
        kinds = "float64, float32, bfloat16 or float16"
        for dtype in ("int64", "bool", "complex64"):
            bad(op, f"expected input of dtype {kinds}, got {dtype}", **_images(IMAGE, getattr(torch, dtype)))
        for name in vectors:
            bad(op, f"expected {name} of shape [3], got [4]", **{name: _zeros(4)})
            bad(op, f"expected {name} of shape [3], got [1]", **{name: _zeros(1)})
            bad(op, f"expected {name} of shape [3], got []", **{name: _zeros()})
            bad(op, f"expected {name} of shape [3], got [1, 3]", **{name: _zeros(1, C)})
            bad(op, f"expected {name} of dtype float32, got float64", **{name: _zeros(C, dtype=torch.float64)})
            bad(op, f"expected {name} of dtype float32, got bfloat16", **{name: _zeros(C, dtype=torch.bfloat16)})
            if name in PARAMETERS:
                wrong = {name: _zeros(C, dtype=torch.float16)} | _images(IMAGE, torch.bfloat16)
                bad(op, f"expected {name} of dtype bfloat16 or float32, got float16", **wrong)
    for op in WITH_GRAD_OUTPUT:
        bad(op, "expected grad_output of shape [4, 3, 5], got [4, 3, 6]", grad_output=_zeros(4, C, 6))
        bad(op, "expected grad_output of shape [4, 3, 5], got [12, 5]", grad_output=_zeros(12, 5))
        bad(op, "expected grad_output of shape [4, 3, 5], got []", grad_output=_zeros())
        bad(op, "expected grad_output of dtype float32, got float64", grad_output=_zeros(*IMAGE, dtype=torch.float64))

    op = "batchnorm_forward"
    double = _images(IMAGE, torch.float64)
    bad(op, "expected gamma of dtype float64, got float32", **double)
    for name in ("running_mean", "running_var"):
        without = {"running_mean": _zeros(C), "running_var": _zeros(C), name: None}
        bad(op, f"expected {name} when training is False, got None", training=False, **without)
    for shape in ((1, C), (1, C, 1), (1, C, 1, 1)):
        message = f"expected more than 1 value per channel when training, got input of shape {list(shape)}"
        bad(op, message, ValueError, input=_zeros(*shape))
    for eps in (-1, 0, torch.nan):
        bad(op, f"expected eps > 0 when training, got {eps}", ValueError, eps=float(eps))
    bad(op, "expected eps >= 0 when training is False, got -1", ValueError, eps=-1.0, training=False)

    for op in ("batchnorm_forward", "batchnorm_gather_stats"):
        without = {"num_batches_tracked": None, "momentum": None}
        bad(op, "expected num_batches_tracked when momentum is None, got None", **without)
        bad(op, "expected num_batches_tracked when momentum is None, got None", **without, running_mean=None)
        counter = "num_batches_tracked"
        bad(op, f"expected {counter} of shape [], got [2]", **{counter: _zeros(2, dtype=torch.int64)})
        bad(op, f"expected {counter} of shape [], got [1]", **{counter: _zeros(1, dtype=torch.int64)})
        bad(op, f"expected {counter} of dtype int64, got float32", **{counter: _zeros()})
        bad(op, f"expected {counter} of dtype int64, got int32", **{counter: _zeros(dtype=torch.int32)})
        for name in ("running_mean", "running_var"):
            bad(op, f"expected {name} not to require grad", **{name: lambda device: _zeros(C)(device).requires_grad_()})

    op = "batchnorm_gather_stats"
    bad(op, "expected mean of rank 2 (parts, channels), got shape [3]", mean=_zeros(C), m2=_zeros(C))
    bad(op, "expected mean of dtype float64 or float32, got bfloat16", mean=_zeros(2, C, dtype=torch.bfloat16))
    bad(op, "expected m2 of shape [2, 3], got [1, 3]", m2=_zeros(1, C))
    bad(op, "expected m2 of dtype float32, got float64", m2=_zeros(2, C, dtype=torch.float64))
    bad(op, "expected count of shape [2], got [1]", count=_zeros(1, dtype=torch.int64))
    bad(op, "expected count of shape [2], got [2, 1]", count=_zeros(2, 1, dtype=torch.int64))
    bad(op, "expected count of dtype int64, got float32", count=_zeros(2))
    bad(op, "expected running_mean of shape [3], got [2]", running_mean=_zeros(2))
    bad(op, "expected running_var of shape [3], got [2]", running_var=_zeros(2))
    bad(op, "expected eps > 0 when training, got -1", ValueError, eps=-1.0)
    op = "batchnorm_backward_apply"
    bad(op, "expected count of shape [1], got [2]", count=_zeros(2, dtype=torch.int64))
    bad(op, "expected count of shape [1], got []", count=_zeros(dtype=torch.int64))
    bad(op, "expected count of dtype int64, got float32", count=_zeros(1))
    return cases


def _assert_raises(op: str, arguments: dict[str, Any], message: str, error: type[Exception] = RuntimeError) -> None:
    """`op` raises `error` itself with exactly this message, and writes nothing."""
    written = [arguments.get(name) for name in WRITTEN]
    with (
        unchanged(*(tensor for tensor in written if tensor is not None and not tensor.is_meta)),
        pytest.raises(error, match=rf"^{op}: {re.escape(message)}$") as caught,
    ):
        getattr(ops, op)(**arguments)
    assert type(caught.value) is error


@pytest.mark.parametrize("case", _cases(), ids=str)
@pytest.mark.parametrize("on_meta", [False, True], ids=["real", "meta"])
def test_bad_argument(device: str, on_meta: bool, case: Case) -> None:
    place = "meta" if on_meta else device
    good = _good(case.op, place)
    changed = {name: value(place) if callable(value) else value for name, value in case.changed.items() if name in good}
    _assert_raises(case.op, good | changed, case.message, case.error)


@pytest.mark.parametrize("op", [*OPS_WITH_INPUT, "batchnorm_gather_stats"])
def test_good_arguments_are_accepted(device: str, op: str) -> None:
    """What the cases above start from is no error."""
    for place in (device, "meta"):
        getattr(ops, op)(**_good(op, place))


@pytest.mark.parametrize("op", [*OPS_WITH_INPUT, "batchnorm_gather_stats"])
def test_device_of_each_argument(device: str, op: str) -> None:
    """One tensor on the meta device among real ones, whichever it is."""
    first = "mean" if op == "batchnorm_gather_stats" else "input"
    for name, value in _good(op, device).items():
        if isinstance(value, Tensor) and name != first:
            arguments = _good(op, device) | {name: value.to("meta")}
            got = arguments[first].device
            _assert_raises(op, arguments, f"expected {name} on device {got}, got meta")


def _overlapping(device: str) -> dict[str, tuple[str, dict[str, Any], str]]:
    """name -> (operator, arguments, message): a written tensor shares memory with another argument."""
    memory = torch.ones(64, device=device)
    image, vector = memory[:60].view(IMAGE), memory[10:13]
    counter = memory[10:12].view(torch.int64)[0]
    parts = memory[8:14].view(2, C)
    forward, gather = "batchnorm_forward", "batchnorm_gather_stats"
    own = "expected {} to have memory of its own, but it overlaps {}".format
    twice = {"running_mean": memory[:C], "running_var": memory[2 : 2 + C]}  # one element in common
    zero = torch.ones((), device=device)
    return {
        "mean_input": (forward, {"input": image, "running_mean": vector}, own("running_mean", "input")),
        "var_input": (forward, {"input": image, "running_var": vector}, own("running_var", "input")),
        "counter_input": (forward, {"input": image, "num_batches_tracked": counter}, own(WRITTEN[2], "input")),
        "mean_gamma": (forward, {"gamma": vector, "running_mean": vector}, own("running_mean", "gamma")),
        "var_beta": (forward, {"beta": vector, "running_var": vector}, own("running_var", "beta")),
        "each_other": (forward, twice, own("running_var", "running_mean")),
        "each_other_in_gather": (gather, twice, own("running_var", "running_mean")),
        "gather_mean": (gather, {"mean": parts, "running_mean": vector}, own("running_mean", "mean")),
        "gather_m2": (gather, {"m2": parts, "running_var": vector}, own("running_var", "m2")),
        "stride_0": (
            forward,
            {"running_mean": zero.expand(C)},
            "expected running_mean with memory for each channel, got stride 0",
        ),
    }


@pytest.mark.parametrize("case", _overlapping("cpu"))
def test_written_memory_is_not_shared(device: str, case: str) -> None:
    op, changed, message = _overlapping(device)[case]
    _assert_raises(op, _good(op, device) | changed, message)


def test_one_channel_that_shares_memory(device: str) -> None:
    """Vectors of one element may have stride 0."""
    shared = torch.ones((), device=device).expand(1)
    message = "expected running_var to have memory of its own, but it overlaps running_mean"
    arguments = {"input": torch.randn(4, 1, 5, device=device), "gamma": None, "beta": None}
    statistics = {"running_mean": shared, "running_var": shared, "training": True, "momentum": 0.1, "eps": EPS}
    _assert_raises("batchnorm_forward", arguments | statistics, message)


def test_neighbours_in_memory_are_no_overlap(device: str) -> None:
    """Statistics beside each other, interleaved as columns of a matrix, or read in eval and shared: all fine."""
    beside, columns = torch.ones(2 * C, device=device), torch.ones(C, 2, device=device)
    for mean, var in ((beside[:C], beside[C:]), (columns[:, 0], columns[:, 1])):
        ops.batchnorm_forward(**_good("batchnorm_forward", device) | {"running_mean": mean, "running_var": var})
        assert not torch.equal(mean, torch.ones_like(mean))
    one = torch.ones(C, device=device)
    shared = {"gamma": one, "running_mean": one, "running_var": one, "training": False}
    ops.batchnorm_forward(**_good("batchnorm_forward", device) | shared)
