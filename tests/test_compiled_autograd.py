"""Compiled autograd: an eager forward pass whose backward pass is compiled as one graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch._dynamo.compiled_autograd as compiled_autograd
from torch import Tensor

from checks import EPS, activations, arguments, ops

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def captures() -> int:
    return torch._dynamo.utils.counters["compiled_autograd"]["captures"]


def compiled_gradients(value: Tensor, leaves: list[Tensor]) -> list[Tensor | None]:
    """What value.backward() leaves in the leaves' grad."""
    for leaf in leaves:
        leaf.grad = None
    with compiled_autograd._enable(lambda graph: torch.compile(graph, backend="aot_eager", fullgraph=True)):
        value.backward()
    return [leaf.grad for leaf in leaves]


def assert_same_gradients(loss: Callable[..., Tensor], leaves: list[Tensor]) -> None:
    want = torch.autograd.grad(loss(*leaves), leaves)
    before = captures()
    got = compiled_gradients(loss(*leaves), leaves)
    assert captures() == before + 1
    torch.testing.assert_close(got, list(want), rtol=1e-11, atol=1e-12)
    # The same graph again, with other values
    with torch.no_grad():
        for leaf in leaves:
            leaf.mul_(1.5)
    want = torch.autograd.grad(loss(*leaves), leaves)
    torch.testing.assert_close(compiled_gradients(loss(*leaves), leaves), list(want), rtol=1e-11, atol=1e-12)
    assert captures() == before + 1


@pytest.mark.parametrize("parameters", [True, False], ids=["parameters", "no_parameters"])
def test_forward(device: str, training: bool, parameters: bool) -> None:
    args = arguments(activations((4, 3, 5), DOUBLE, device), training)
    running = (args.running_mean, args.running_var)

    def loss(x: Tensor, *vectors: Tensor) -> Tensor:
        results = ops.batchnorm_forward(x, *(vectors or (None, None)), *running, training, 0.1, EPS)
        return sum(result.sin().sum() for result in (results if training else results[:1]))

    leaves = [args.input, args.gamma, args.beta] if parameters else [args.input]
    assert_same_gradients(loss, [leaf.requires_grad_() for leaf in leaves])


def test_some_results_alone(device: str) -> None:
    """No gradient comes for the output; and the mode is a part of what finds a graph again."""
    x = torch.randn(4, 3, 5, dtype=DOUBLE, device=device, requires_grad=True)
    assert_same_gradients(lambda x: ops.batchnorm_forward(x, None, None, None, None, True, None, EPS)[2].sum(), [x])
    running = torch.zeros(3, dtype=DOUBLE, device=device), torch.ones(3, dtype=DOUBLE, device=device)
    for training in (True, False):
        assert_same_gradients(
            lambda x, t=training: ops.batchnorm_forward(x, None, None, *running, t, 0.0, EPS)[0].sin().sum(), [x]
        )


def test_double_backward(device: str, training: bool) -> None:
    args = arguments(activations((4, 3, 5), DOUBLE, device), training)
    running = (None, None) if training else (args.running_mean, args.running_var)

    def penalty(x: Tensor, gamma: Tensor) -> Tensor:
        output = ops.batchnorm_forward(x, gamma, None, *running, training, 0.1, EPS)[0]
        grads = torch.autograd.grad(output.pow(3).sum(), (x, gamma), create_graph=True)
        return sum(grad.square().sum() for grad in grads)

    assert_same_gradients(penalty, [leaf.requires_grad_() for leaf in (args.input, args.gamma)])


def test_phases(device: str) -> None:
    x = torch.randn(4, 3, 5, dtype=DOUBLE, device=device, requires_grad=True)
    gamma, beta = (torch.randn(3, dtype=DOUBLE, device=device, requires_grad=True) for _ in range(2))

    def loss(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        mean, m2, count = ops.batchnorm_stats(x)
        mean, invstd, count = ops.batchnorm_gather_stats(mean[None], m2[None], count, None, None, None, EPS)
        dy = ops.batchnorm_apply(x, gamma, beta, mean, invstd).sin()
        sums = ops.batchnorm_backward_reduce(dy, x, mean, invstd)
        return ops.batchnorm_backward_apply(dy, x, gamma, mean, invstd, *sums, count).square().sum()

    assert_same_gradients(loss, [x, gamma, beta])


def test_instance_norm(device: str) -> None:
    args = arguments(activations((4, 3, 5), DOUBLE, device), training=True)

    def loss(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return sum(result.sin().sum() for result in ops.instancenorm_forward(x, gamma, beta, None, None, 0.1, EPS))

    assert_same_gradients(loss, [tensor.requires_grad_() for tensor in (args.input, args.gamma, args.beta)])
