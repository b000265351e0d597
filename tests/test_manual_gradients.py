"""functional.batch_norm_backward, and the mistakes that hand-written backward passes are known for.

Each mistake is shown to be one: its formula gives another result than autograd of plain float64 arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import my_ops
import reference
from checks import EPS, activations, arguments, check_backward, ops, unchanged
from layouts import RANKED_LAYOUTS, SHAPES, arrange
from reference import channel_sum, per_channel
from tolerances import TOLERANCES, assert_within

batch_norm_backward = my_ops.functional.batch_norm_backward


class Problem:
    """A batch norm in float64, with gradients by autograd: the truth."""

    def __init__(self, training: bool = True) -> None:
        self.x = activations((4, 3, 5, 6), torch.float64, "cpu").requires_grad_()
        self.dy = torch.randn_like(self.x) + 0.5
        self.gamma = torch.tensor([0.5, -1.5, 2.0], dtype=torch.float64, requires_grad=True)
        self.beta = torch.tensor([1.0, 0.3, -2.0], dtype=torch.float64, requires_grad=True)
        self.running_mean = torch.tensor([0.9, 1.4, 0.2], dtype=torch.float64)
        self.running_var = torch.tensor([0.7, 1.2, 2.5], dtype=torch.float64)
        self.y = reference.differentiable(
            self.x, self.gamma, self.beta, self.running_mean, self.running_var, training, EPS
        )
        self.want = torch.autograd.grad(self.y, (self.x, self.gamma, self.beta), self.dy)
        if training:
            self.mean = self.x.detach().mean((0, 2, 3))
            var = self.x.detach().var((0, 2, 3), correction=0)
        else:
            self.mean, var = self.running_mean, self.running_var
        self.invstd = (var + EPS).rsqrt()
        self.training = training

    def ours(self) -> tuple[Tensor, Tensor, Tensor]:
        return batch_norm_backward(self.dy, self.x, self.gamma, self.mean, self.invstd, self.training)

    def xhat(self) -> Tensor:
        return (self.x.detach() - per_channel(self.mean, self.dy)) * per_channel(self.invstd, self.dy)

    def dx(self, count: int) -> Tensor:
        """The right formula, for the right count."""
        dgamma, dbeta = channel_sum(self.dy * self.xhat()), channel_sum(self.dy)
        inner = self.dy - (per_channel(dbeta, self.dy) + self.xhat() * per_channel(dgamma, self.dy)) / count
        return inner * per_channel(self.gamma.detach() * self.invstd, self.dy)


def differs(mistaken: Tensor, truth: Tensor) -> bool:
    return mistaken.shape != truth.shape or bool((mistaken - truth).abs().max() > 1e-2 * truth.abs().max())


def test_equals_autograd(training: bool) -> None:
    problem = Problem(training)
    for ours, want in zip(problem.ours(), problem.want, strict=True):
        torch.testing.assert_close(ours, want)


def test_mistake_dividing_by_the_batch_size() -> None:
    """A channel has M = N*H*W values; with N the statistics' share is far too large."""
    problem = Problem()
    count = problem.x.numel() // 3
    torch.testing.assert_close(problem.dx(count), problem.want[0])
    assert differs(problem.dx(problem.x.shape[0]), problem.want[0])


def test_mistake_running_statistics_in_training() -> None:
    """The output was made with the batch's; with the running ones xhat, and all that it enters, is another."""
    problem = Problem()
    invstd = (problem.running_var + EPS).rsqrt()
    mistaken = batch_norm_backward(problem.dy, problem.x, problem.gamma, problem.running_mean, invstd)
    assert differs(mistaken[0], problem.want[0])
    assert differs(mistaken[1], problem.want[1])


def test_mistake_training_formula_in_eval() -> None:
    """There the statistics are constants: dx = gamma * invstd * dy."""
    problem = Problem(training=False)
    mistaken = batch_norm_backward(problem.dy, problem.x, problem.gamma, problem.mean, problem.invstd, training=True)
    assert differs(mistaken[0], problem.want[0])
    torch.testing.assert_close(mistaken[1:], problem.want[1:])


def test_mistake_gamma_broadcast_along_the_width() -> None:
    """[C] against [N, C, H, W] meets the last dimension: silent where W happens to be C."""
    problem = Problem()
    square = problem.x.detach()[..., :3].clone().requires_grad_()
    dy = problem.dy[..., :3].contiguous()
    y = reference.differentiable(square, problem.gamma, problem.beta, None, None, True, EPS)
    want = torch.autograd.grad(y, square, dy)[0]
    _, mean, invstd = ops.batchnorm_forward(square, None, None, None, None, True, 0.1, EPS)
    plain = batch_norm_backward(dy, square, None, mean, invstd)[0].detach()
    torch.testing.assert_close(batch_norm_backward(dy, square, problem.gamma, mean, invstd)[0], want)
    torch.testing.assert_close(plain * per_channel(problem.gamma.detach(), plain), want)
    assert differs(plain * problem.gamma.detach(), want)


def test_mistake_dgamma_from_the_output() -> None:
    """dgamma = sum(dy * xhat), and the output is gamma * xhat + beta."""
    problem = Problem()
    torch.testing.assert_close(channel_sum(problem.dy * problem.xhat()), problem.want[1])
    assert differs(channel_sum(problem.dy * problem.y.detach()), problem.want[1])


def test_mistake_dgamma_without_the_sum_over_the_image() -> None:
    """Both parameters' gradients are [C]: sums over N, H and W."""
    problem = Problem()
    _, dgamma, dbeta = problem.ours()
    assert dgamma.shape == dbeta.shape == problem.gamma.shape
    assert differs((problem.dy * problem.xhat()).sum(0), problem.want[1])
    assert differs((problem.dy * problem.xhat()).sum((0, 2, 3)) / problem.x.shape[0], problem.want[1])


def test_mistake_dbeta_from_dx() -> None:
    """dbeta sums the gradient of the output. That of the input adds up to zero in training, whatever dy is."""
    problem = Problem()
    assert channel_sum(problem.ours()[0]).abs().max() < 1e-12
    assert differs(channel_sum(problem.want[0]), problem.want[2])


def test_mistake_eps_outside_the_root() -> None:
    """invstd = 1 / sqrt(var + eps), not 1 / (sqrt(var) + eps); and never var itself."""
    problem = Problem()
    tiny = problem.x.detach() * 0.01
    _, mean, invstd = ops.batchnorm_forward(tiny, None, None, None, None, True, 0.1, EPS)
    var = tiny.var((0, 2, 3), correction=0)
    torch.testing.assert_close(invstd, (var + EPS).rsqrt())
    right = batch_norm_backward(problem.dy, tiny, None, mean, invstd)[0]
    assert differs(batch_norm_backward(problem.dy, tiny, None, mean, 1 / (var.sqrt() + EPS))[0], right)


@pytest.mark.parametrize(("rank", "layout"), RANKED_LAYOUTS)
def test_every_layout_and_dtype(rank: int, layout: str, dtype: torch.dtype) -> None:
    args = arguments(arrange(activations(SHAPES[rank], dtype, "cpu"), layout), training=True)
    dy = torch.randn_like(args.input)
    _, mean, invstd = ops.batchnorm_forward(*args.values())
    want = reference.backward(dy, args.input, args.gamma, mean, invstd, True)
    with unchanged(dy, args.input, args.gamma, mean, invstd):
        got = batch_norm_backward(dy, args.input, args.gamma, mean, invstd)
    for ours, name in zip(got, ("grad_input", "grad_gamma", "grad_beta"), strict=True):
        assert_within(ours, getattr(want, name), TOLERANCES[dtype].backward, name)
    for ours, operators in zip(got, check_backward(dy, args), strict=True):
        assert torch.equal(ours, operators)


def test_without_weight() -> None:
    problem = Problem()
    dx, dgamma, dbeta = batch_norm_backward(problem.dy, problem.x, None, problem.mean, problem.invstd)
    ones = torch.ones(3, dtype=torch.float64)
    want = batch_norm_backward(problem.dy, problem.x, ones, problem.mean, problem.invstd)
    torch.testing.assert_close((dx, dgamma, dbeta), want)


def test_a_step_through_a_step() -> None:
    """Meta-learning: a parameter updated with the manual gradients, then differentiated through the update."""

    problem = Problem()
    gamma, x = problem.gamma, problem.x

    def loss_after_step(backward: Callable[..., tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        y, dgamma = backward(x, gamma)
        stepped = gamma - 0.1 * dgamma
        _, mean, invstd = ops.batchnorm_forward(x, None, None, None, None, True, 0.1, EPS)
        loss = (ops.batchnorm_apply(x, stepped, None, mean, invstd) * y.detach()).cos().sum()
        return torch.autograd.grad(loss, (x, gamma))

    def manual(x: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        y, mean, invstd = ops.batchnorm_forward(x, gamma, None, None, None, True, 0.1, EPS)
        return y, batch_norm_backward(y.cos(), x, gamma, mean, invstd)[1]

    def autograd(x: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        y = reference.differentiable(x, gamma, None, None, None, True, EPS)
        return y, torch.autograd.grad(y.sin().sum(), gamma, create_graph=True)[0]

    for ours, want in zip(loss_after_step(manual), loss_after_step(autograd), strict=True):
        torch.testing.assert_close(ours, want)


@pytest.mark.parametrize("outputs", [[0], [1], [0, 1, 2]])
def test_derivatives_of_the_gradients(outputs: list[int], training: bool) -> None:
    problem = Problem(training)
    small = [tensor.detach()[:2, :, :2, :2].clone().requires_grad_() for tensor in (problem.dy, problem.x)]
    statistics = [tensor.clone().requires_grad_() for tensor in (problem.mean, problem.invstd)]

    def call(*args: Tensor) -> tuple[Tensor, ...]:
        results = batch_norm_backward(*args, training)
        return tuple(results[i] for i in outputs)

    inputs = (*small, problem.gamma, *statistics)
    torch.autograd.gradcheck(call, inputs, check_forward_ad=True)
    torch.autograd.gradgradcheck(call, inputs)


def test_compiles_and_exports(training: bool) -> None:
    problem = Problem(training)
    args = tuple(tensor.detach() for tensor in (problem.dy, problem.x, problem.gamma, problem.mean, problem.invstd))

    class Gradients(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return batch_norm_backward(*tensors, training)

    want = batch_norm_backward(*args, training)
    compiled = torch.compile(batch_norm_backward, fullgraph=True, backend="aot_eager")
    for got in (compiled(*args, training), torch.export.export(Gradients(), args).module()(*args)):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_wrong_argument() -> None:
    x = torch.randn(4, 3, 5)
    with pytest.raises(RuntimeError, match=r"batchnorm_backward: expected save_mean of shape \[3\], got \[2\]"):
        batch_norm_backward(x, x, None, torch.ones(2), torch.ones(3))
