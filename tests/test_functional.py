"""my_ops.functional.batch_norm: torch's signature, the right argument in the right place, TorchScript."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
from torch import Tensor

import my_ops
import reference
from checks import Arguments, activations, arguments
from tolerances import TOLERANCES, assert_within

batch_norm = my_ops.functional.batch_norm
SHAPE = (5, 7, 6, 5)


def call(given: Arguments) -> Tensor:
    """The arguments of the operator, in the order of the function."""
    return batch_norm(
        given.input,
        given.running_mean,
        given.running_var,
        given.gamma,
        given.beta,
        given.training,
        given.momentum,
        given.eps,
        given.num_batches_tracked,
    )


def test_signature_begins_as_torchs() -> None:
    def named(function: object) -> list[tuple[str, object]]:
        return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]

    torchs = named(torch.nn.functional.batch_norm)
    assert named(batch_norm)[: len(torchs)] == torchs


def test_values(device: str, dtype: torch.dtype, training: bool) -> None:
    given = arguments(activations(SHAPE, dtype, device), training)
    want = reference.forward(*given.values())
    tolerance = TOLERANCES[dtype]

    output = call(given)
    assert output.dtype == dtype
    assert_within(output, want.output, tolerance.forward, "output")
    for name in ("running_mean", "running_var"):
        assert_within(getattr(given, name), getattr(want, name), tolerance.statistics, name)


def test_defaults_are_eval_mode_without_parameters(device: str) -> None:
    given = arguments(activations(SHAPE, torch.float64, device), training=False)
    untouched = given.running_mean.clone()
    output = batch_norm(given.input, given.running_mean, given.running_var)
    want = reference.forward(given.input, None, None, given.running_mean, given.running_var, False, 0.1, 1e-5)
    assert_within(output, want.output, TOLERANCES[torch.float64].forward, "output")
    assert torch.equal(given.running_mean, untouched)


def test_gradients_are_torchs(device: str, training: bool) -> None:
    given = arguments(activations(SHAPE, torch.float64, device), training)
    grad_output = torch.randn_like(given.input)
    gradients = []
    for function in (batch_norm, torch.nn.functional.batch_norm):
        leaves = [t.clone().requires_grad_() for t in (given.input, given.gamma, given.beta)]
        statistics = given.running_mean.clone(), given.running_var.clone()
        output = function(leaves[0], *statistics, *leaves[1:], training, 0.1, given.eps)
        gradients.append(torch.autograd.grad(output, leaves, grad_output))
    for ours, torchs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-11, atol=1e-11)


def test_momentum_none_is_the_cumulative_average(device: str) -> None:
    """After k batches the running mean is the mean of the k batch means, and the counter is k."""
    mean, var = (torch.full((7,), 100.0, dtype=torch.float64, device=device) for _ in range(2))
    counter = torch.zeros((), dtype=torch.int64, device=device)
    batches = [activations(SHAPE, torch.float64, device) for _ in range(4)]
    for batch in batches:
        batch_norm(batch, mean, var, training=True, momentum=None, num_batches_tracked=counter)
    dims = (0, 2, 3)
    assert int(counter) == len(batches)
    torch.testing.assert_close(mean, torch.stack([b.mean(dims) for b in batches]).mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(var, torch.stack([b.var(dims) for b in batches]).mean(0), rtol=0, atol=1e-12)


def test_counter_counts_with_a_momentum_too(device: str) -> None:
    given = arguments(activations(SHAPE, torch.float32, device), training=True)
    counter = torch.full((), 41, device=device)
    batch_norm(given.input, given.running_mean, given.running_var, training=True, num_batches_tracked=counter)
    assert int(counter) == 42


def test_errors_reach_the_caller(device: str) -> None:
    one_value = torch.randn(1, 3, device=device)
    with pytest.raises(ValueError, match=r"^batchnorm_forward: expected more than 1 value per channel"):
        batch_norm(one_value, None, None, training=True)
    with pytest.raises(
        RuntimeError, match=r"^batchnorm_forward: expected running_mean when training is False, got None"
    ):
        batch_norm(one_value, None, None)
    statistics = torch.zeros(3, device=device), torch.ones(3, device=device)
    with pytest.raises(RuntimeError, match=r"^batchnorm_forward: expected num_batches_tracked when momentum is None"):
        batch_norm(torch.randn(4, 3, device=device), *statistics, training=True, momentum=None)


def test_torchscript(device: str, training: bool) -> None:
    given = arguments(activations(SHAPE, torch.float32, device), training)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(batch_norm)
    statistics = given.running_mean.clone(), given.running_var.clone()
    output = scripted(given.input, *statistics, given.gamma, given.beta, training, given.momentum, given.eps)
    assert torch.equal(output, call(given))
    assert torch.equal(statistics[0], given.running_mean)
    assert torch.equal(statistics[1], given.running_var)
