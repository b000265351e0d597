"""Memory that is shared, read-only, counted elsewhere or at odd addresses: a defined result, or an error and nothing
written. (What overlaps what: test_errors.py and test_out.py; copy-on-write: test_tensor_kinds.py.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

import my_ops
import reference
from checks import EPS, activations, arguments, bit_equal, ops, unchanged
from tolerances import TOLERANCES, assert_within

DEVICES = ["cpu"]
SHAPE = (4, 3, 5)
C = SHAPE[1]
STATE = ("running_mean", "running_var", "num_batches_tracked")


def _call(op: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """An operator that moves running statistics, and arguments it accepts."""
    x = activations(SHAPE, torch.float32, "cpu")
    vectors = {"gamma": torch.ones(C), "beta": torch.zeros(C)}
    state = dict(zip(STATE, (torch.zeros(C), torch.ones(C), torch.tensor(3)), strict=True))
    training = {"training": True, "momentum": 0.5, "eps": EPS}
    calls: dict[str, dict[str, Any]] = {
        "batchnorm_forward": {"input": x} | vectors | state | training,
        "batchnorm_act_forward": {"input": x, "residual": None, "activation": "relu"} | vectors | state | training,
        "batchnorm_act_forward_": {"input": x, "activation": "elu", "slope": 1.0} | vectors | state | training,
        "instancenorm_forward": {"input": x, "momentum": 0.5, "eps": EPS} | vectors | state,
        "conv_batchnorm_forward": {"input": x, "weight": torch.ones(C, C, 1), "bias": None, "groups": 1}
        | {"stride": [1], "padding": [0], "dilation": [1]}
        | vectors
        | state
        | training,
        "batchnorm_gather_stats": {"mean": torch.ones(2, C), "m2": torch.ones(2, C), "count": torch.tensor([3, 4])}
        | {"momentum": 0.5, "eps": EPS}
        | state,
    }
    arguments = calls[op]
    if op == "instancenorm_forward":
        del arguments["num_batches_tracked"]
    return getattr(ops, op), arguments


MOVING = (
    "batchnorm_forward",
    "batchnorm_act_forward",
    "batchnorm_act_forward_",
    "instancenorm_forward",
    "conv_batchnorm_forward",
    "batchnorm_gather_stats",
)


def _tensors(arguments: dict[str, Any]) -> list[Tensor]:
    return [value for value in arguments.values() if isinstance(value, Tensor)]


def _assert_refused(call: Callable[..., Any], arguments: dict[str, Any], message: str) -> None:
    with unchanged(*_tensors(arguments)), pytest.raises(RuntimeError) as caught:
        call(**arguments)
    assert str(caught.value).splitlines()[0] == message


# ---- inference tensors ----


@pytest.mark.parametrize("op", MOVING)
@pytest.mark.parametrize("name", STATE)
def test_state_of_inference_mode_is_not_written_outside(op: str, name: str) -> None:
    call, arguments = _call(op)
    if name not in arguments:
        assert op == "instancenorm_forward"
        return
    with torch.inference_mode():
        arguments[name] = arguments[name].clone()
    wanted = f"expected {name} to be a normal tensor outside of inference mode, got an inference tensor"
    _assert_refused(call, arguments, f"{op}: {wanted}")
    with torch.inference_mode():
        before = arguments[name].clone()
        call(**arguments)
        assert not torch.equal(arguments[name], before)


def test_results_in_inference_tensors() -> None:
    x, mean, invstd = activations(SHAPE, torch.float32, "cpu"), torch.zeros(C), torch.ones(C)
    with torch.inference_mode():
        target = torch.zeros(SHAPE)
    read = {"input": x, "gamma": None, "beta": None, "mean": mean, "invstd": invstd}
    wanted = "expected {} to be a normal tensor outside of inference mode, got an inference tensor".format
    _assert_refused(ops.batchnorm_apply.out, read | {"out": target}, f"batchnorm_apply: {wanted('out')}")
    saved = {"save_mean": mean.clone(), "save_invstd": invstd.clone()}
    given = {"input": x, "gamma": None, "beta": None, "running_mean": mean, "running_var": invstd, "training": False}
    given |= {"momentum": 0.1, "eps": EPS, "output": target}
    _assert_refused(ops.batchnorm_forward.out, given | saved, f"batchnorm_forward: {wanted('output')}")
    backward = {"grad_output": x, "input": x, "gamma": None, **saved, "grad_input": target}
    backward |= {"grad_gamma": torch.zeros(C), "grad_beta": torch.zeros(C)}
    _assert_refused(ops.batchnorm_backward.out, backward, f"batchnorm_backward: {wanted('grad_input')}")
    sums = {"sum_dy": mean, "sum_dy_xhat": mean, "count": torch.tensor([20])}
    phase = {"grad_output": x, **read, **sums, "out": target}
    del phase["beta"]
    _assert_refused(ops.batchnorm_backward_apply.out, phase, f"batchnorm_backward_apply: {wanted('out')}")
    act = {"gamma": None, "beta": None, "running_mean": mean, "running_var": invstd, "training": False}
    act |= {"momentum": 0.1, "eps": EPS, "activation": "identity", "input": target}
    _assert_refused(ops.batchnorm_act_forward_, act, f"batchnorm_act_forward_: {wanted('input')}")
    phase = read | {"input": target, "activation": "identity", "slope": 0.0}
    _assert_refused(ops.batchnorm_act_apply_, phase, f"batchnorm_act_apply_: {wanted('input')}")
    sync = {name: value for name, value in act.items() if name != "training"} | {"group_size": 2, "group_name": "none"}
    sync |= {"gamma": invstd, "running_mean": None, "running_var": None, "slope": 0.0, "num_batches_tracked": None}
    _assert_refused(ops.sync_batchnorm_act_forward_, sync, f"sync_batchnorm_act_forward_: {wanted('input')}")
    with torch.inference_mode():
        ops.batchnorm_apply.out(**read, out=target)
    assert bit_equal(target, ops.batchnorm_apply(**read))


def test_inference_tensors_are_read(training: bool) -> None:
    """Activations and parameters that nobody differentiates, and in eval running statistics."""
    args = arguments(activations(SHAPE, torch.float32, "cpu"), training)
    state = [args.running_mean.clone(), args.running_var.clone()]
    want = ops.batchnorm_forward(*args.values()[:3], *state, *args.values()[5:])
    with torch.inference_mode():
        copies = [value.clone() if isinstance(value, Tensor) else value for value in args.values()]
    if training:
        copies[3:5] = args.running_mean, args.running_var
    got = ops.batchnorm_forward(*copies)
    assert all(bit_equal(left, right) for left, right in zip(got, want, strict=True))


# ---- statistics that are no constants ----


@pytest.mark.parametrize("op", MOVING)
@pytest.mark.parametrize("name", STATE[:2])
def test_running_statistics_that_require_grad(op: str, name: str) -> None:
    call, arguments = _call(op)
    arguments[name] = arguments[name].requires_grad_()
    _assert_refused(call, arguments, f"{op}: expected {name} not to require grad")


@pytest.mark.parametrize("op", MOVING)
def test_running_statistics_that_are_each_other(op: str) -> None:
    call, arguments = _call(op)
    arguments["running_var"] = arguments["running_mean"]
    who = "batchnorm_forward" if op.startswith("conv") else op
    message = "expected running_var to have memory of its own, but it overlaps running_mean"
    _assert_refused(call, arguments, f"{who}: {message}")


@pytest.mark.parametrize("op", [op for op in MOVING if op != "batchnorm_gather_stats"])
@pytest.mark.parametrize("name", ["gamma", "beta"])
def test_running_statistics_that_are_parameters(op: str, name: str) -> None:
    call, arguments = _call(op)
    arguments["running_mean"] = arguments[name]
    who = "batchnorm_forward" if op.startswith("conv") else op
    message = f"expected running_mean to have memory of its own, but it overlaps {name}"
    _assert_refused(call, arguments, f"{who}: {message}")


@pytest.mark.parametrize("name", ["gamma", "beta", "input", "residual"])
def test_synchronized_statistics_that_are_other_arguments(name: str) -> None:
    """Seen before the first message: no process group is needed."""
    x, residual, gamma, beta = torch.randn(4, 3, 3), torch.randn(4, 3, 3), torch.ones(3), torch.zeros(3)
    mean = {"gamma": gamma, "beta": beta, "input": x[0, 0], "residual": residual[0, 0]}[name]
    with unchanged(x, residual, gamma, beta), pytest.raises(RuntimeError) as caught:
        ops.sync_batchnorm_forward(x, gamma, beta, mean, None, 0.1, EPS, None, 1, "none", residual=residual)
    message = f"expected running_mean to have memory of its own, but it overlaps {name}"
    assert str(caught.value).splitlines()[0] == f"sync_batchnorm_forward: {message}"


# ---- memory that cannot be written ----


def test_read_only_files_are_read(tmp_path: Path) -> None:
    """Images and parameters mapped from a file; not a byte of it changes."""
    path = tmp_path / "values"
    numpy.random.default_rng(3).normal(size=60 + 2 * C).astype("float32").tofile(path)
    os.chmod(path, 0o444)
    before = path.read_bytes()
    with pytest.warns(UserWarning, match="not writable"):
        values = torch.from_numpy(numpy.memmap(path, dtype="float32", mode="r"))
    x, gamma, beta = values[:60].view(SHAPE), values[60 : 60 + C], values[60 + C :]
    got = my_ops.functional.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS)
    want = reference.forward(x, gamma, beta, None, None, True, 0.1, EPS)
    assert_within(got, want.output, TOLERANCES[torch.float32].forward, "output")
    ops.batchnorm_act_backward(x, x, x, None, gamma, beta, gamma, beta, True, "silu")
    assert path.read_bytes() == before


# ---- addresses ----


def _misaligned(values: Tensor) -> Tensor:
    """A copy one byte behind an element's place."""
    memory = bytearray(values.nbytes + 16)
    place = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    offset = 1 + -place % values.element_size()
    return (
        torch.frombuffer(memory, dtype=values.dtype, offset=offset, count=values.numel())
        .view(values.shape)
        .copy_(values)
    )


@pytest.mark.parametrize("name", ["input", "gamma", "running_mean", "num_batches_tracked"])
def test_elements_that_are_not_at_their_place(name: str) -> None:
    call, arguments = _call("batchnorm_forward")
    arguments[name] = _misaligned(arguments[name])
    size = arguments[name].element_size()
    message = f"expected {name} at a multiple of {size} bytes, got an address 1 beyond one"
    _assert_refused(call, arguments, f"batchnorm_forward: {message}")


def test_a_large_result_that_is_not_at_its_place() -> None:
    """As large as what is written past the cache, which demands alignment."""
    x = torch.zeros(16, 64, 128, 128)
    out = _misaligned(x)
    with pytest.raises(RuntimeError, match="batchnorm_apply: expected out at a multiple of 4 bytes, got an address 1"):
        ops.batchnorm_apply.out(x, None, None, torch.zeros(64), torch.ones(64), out=out)


# ---- numbers in tensors, which checks of shapes do not see ----


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "relu6"])
@pytest.mark.parametrize("mask", [None, torch.empty(0, dtype=torch.uint8)], ids=["none", "empty"])
def test_a_residual_without_its_mask(name: str, mask: Tensor | None) -> None:
    x, vector = torch.randn(SHAPE), torch.ones(C)
    got = "None" if mask is None else "an empty one"
    message = f"expected mask instead of residual for relu, leaky_relu and relu6, got {got}"
    first = (x, x, x, mask, None, None, vector, vector)
    for op, rest in (
        ("batchnorm_act_backward", (True, name, 0.1)),
        ("batchnorm_act_backward_reduce", (name, 0.1)),
        ("batchnorm_act_backward_apply", (name, 0.1, vector, vector, torch.tensor([20]))),
    ):
        with pytest.raises(RuntimeError) as caught:
            getattr(ops, op)(*first, *rest)
        assert str(caught.value).splitlines()[0] == f"{op}: {message}"


def test_counts_whose_sum_is_too_large() -> None:
    part = torch.zeros(2, C)
    with pytest.raises(RuntimeError, match=r"batchnorm_gather_stats: expected count of less than 2\^63 in all parts"):
        ops.batchnorm_gather_stats(part, part, torch.tensor([2**63 - 1, 1]), None, None, 0.1, EPS)
    _, _, count = ops.batchnorm_gather_stats(part, part, torch.tensor([2**63 - 2, 1]), None, None, 0.1, EPS)
    assert count.tolist() == [2**63 - 1]


@pytest.mark.parametrize("channel", [-1, C, 2**40])
def test_kept_channels_that_do_not_exist(channel: int) -> None:
    y, vector = torch.randn(SHAPE), torch.ones(C)
    kept = torch.tensor([0, channel])
    with pytest.raises(RuntimeError) as caught:
        ops.batchnorm_act_backward_from_output(y, y, kept, y[:, :2], None, None, vector, vector, True, "identity")
    message = f"expected kept of channels from 0 to {C - 1}, got {channel}"
    assert str(caught.value).splitlines()[0] == f"batchnorm_act_backward_from_output: {message}"
