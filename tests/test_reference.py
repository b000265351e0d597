"""The reference itself: against numbers worked out by hand, torch.autograd, and native batch norm in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import reference
from checks import activations
from reference import Result
from tolerances import assert_within

SHAPES = [(6, 3), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 2), (2, 1, 3, 2, 1, 2)]
DOUBLE = torch.float64


def test_forward_by_hand() -> None:
    # Channel 0 holds 1, 3, 5, 7: mean 4, M2 = 9 + 1 + 1 + 9 = 20, var 5, unbiased 20/3. eps = 4 gives invstd 1/3.
    input = torch.tensor([[[1.0, 3.0], [2.0, 2.0]], [[5.0, 7.0], [2.0, 2.0]]])
    gamma, beta = torch.tensor([6.0, 1.0]), torch.tensor([10.0, -1.0])
    running_mean, running_var = torch.tensor([8.0, 0.0]), torch.tensor([4.0, 1.0])
    got = reference.forward(input, gamma, beta, running_mean, running_var, True, 0.25, 4.0, torch.tensor(2))
    torch.testing.assert_close(got.output.value[:, 0].flatten(), torch.tensor([4.0, 8, 12, 16], dtype=DOUBLE))
    torch.testing.assert_close(got.output.value[:, 1].flatten(), torch.full((4,), -1.0, dtype=DOUBLE))
    torch.testing.assert_close(got.running_mean.value, torch.tensor([7.0, 0.5], dtype=DOUBLE))
    torch.testing.assert_close(got.running_var.value, torch.tensor([3 + 5 / 3, 0.75], dtype=DOUBLE))
    assert got.num_batches_tracked == 3
    cumulative = reference.forward(input, gamma, beta, running_mean, running_var, True, None, 4.0, torch.tensor(3))
    torch.testing.assert_close(cumulative.running_mean.value, got.running_mean.value)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_formulas_agree_with_autograd(shape: tuple[int, ...], training: bool) -> None:
    """The derivative formulas against automatic differentiation of the forward formula."""
    x = activations(shape, DOUBLE, "cpu").requires_grad_()
    gamma, beta = (torch.randn(shape[1], dtype=DOUBLE, requires_grad=True) for _ in range(2))
    dims = [d for d in range(x.dim()) if d != 1]
    if training:
        mean, var = x.mean(dims), x.var(dims, unbiased=False)
    else:
        mean, var = torch.randn(shape[1], dtype=DOUBLE), 0.5 + torch.rand(shape[1], dtype=DOUBLE)
    invstd = (var + 1e-3).rsqrt()
    xhat = (x - reference.per_channel(mean, x)) * reference.per_channel(invstd, x)
    y = xhat * reference.per_channel(gamma, x) + reference.per_channel(beta, x)
    dy = torch.randn(shape, dtype=DOUBLE)
    wanted = torch.autograd.grad(y, (x, gamma, beta), dy)

    forward = reference.forward(x, gamma, beta, mean.detach(), var.detach(), training, 0.1, 1e-3)
    torch.testing.assert_close(forward.output.value, y.detach(), rtol=1e-12, atol=1e-12)
    got = reference.backward(dy, x, gamma, mean, invstd, training)
    for name, want in zip(("grad_input", "grad_gamma", "grad_beta"), wanted, strict=True):
        torch.testing.assert_close(getattr(got, name).value, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_native_in_float64(shape: tuple[int, ...], training: bool) -> None:
    x = activations(shape, DOUBLE, "cpu").requires_grad_()
    gamma, beta = (torch.randn(shape[1], dtype=DOUBLE, requires_grad=True) for _ in range(2))
    running_mean, running_var = torch.randn(shape[1], dtype=DOUBLE), 0.5 + torch.rand(shape[1], dtype=DOUBLE)
    dy = torch.randn(shape, dtype=DOUBLE)
    want = reference.forward(x, gamma, beta, running_mean, running_var, training, 0.3, 1e-3)
    y = F.batch_norm(x, running_mean, running_var, gamma, beta, training, 0.3, 1e-3)
    torch.testing.assert_close(want.output.value, y.detach(), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(want.running_mean.value, running_mean)
    torch.testing.assert_close(want.running_var.value, running_var)
    grads = torch.autograd.grad(y, (x, gamma, beta), dy)
    got = reference.backward(dy, x, gamma, want.mean.value, want.invstd.value, training)
    for name, native in zip(("grad_input", "grad_gamma", "grad_beta"), grads, strict=True):
        torch.testing.assert_close(getattr(got, name).value, native, rtol=1e-10, atol=1e-10)


def test_empty_batch_changes_nothing() -> None:
    running = torch.tensor([1.0, 2.0])
    got = reference.forward(torch.empty(0, 2, 3), None, None, running, running, True, None, 0.25, torch.tensor(4))
    assert got.num_batches_tracked == 4
    assert got.mean.value.tolist() == [0.0, 0.0]
    assert got.invstd.value.tolist() == [2.0, 2.0]
    assert got.running_mean.value.tolist() == [1.0, 2.0]


def test_comparison_rejects_what_it_should() -> None:
    """assert_within sees one wrong value, NaN in place of a number, a number in place of NaN, and wrong shapes."""
    want = Result(torch.tensor([1.0, -2.0, torch.nan, torch.inf, 1e300], dtype=DOUBLE), torch.ones(5, dtype=DOUBLE))
    right = torch.tensor([1.0, -2.0, torch.nan, torch.inf, torch.inf])  # 1e300 overflows float32
    assert_within(right, want, 1e-6, "equal")
    for index, wrong in enumerate((1.001, torch.nan, 0.0, -torch.inf, 1e38)):
        got = right.clone()
        got[index] = wrong
        with pytest.raises(AssertionError, match=rf"1 of 5 values wrong; worst at \[{index}\]"):
            assert_within(got, want, 1e-6, "wrong")
    with pytest.raises(AssertionError, match="shape"):
        assert_within(right[:3], want, 1e-6, "short")
    vague = Result(want.value, torch.full((5,), torch.inf, dtype=DOUBLE))
    with pytest.raises(AssertionError, match="1 of 5"):
        assert_within(torch.tensor([1.5, -2.0, torch.nan, torch.inf, torch.inf]), vague, 1e-6, "infinite scale")
