"""Ghost batch norm against plain batch norm of its parts, one after the other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import my_ops
import reference
from checks import EPS, activations
from layouts import arrange, assert_layout
from tolerances import TOLERANCES, assert_within

KINDS = {
    1: (my_ops.GhostBatchNorm1d, nn.BatchNorm1d, (3, 6)),
    2: (my_ops.GhostBatchNorm2d, nn.BatchNorm2d, (3, 4, 5)),
    3: (my_ops.GhostBatchNorm3d, nn.BatchNorm3d, (3, 2, 4, 3)),
}
# samples, ghost size -> the sizes of the ghost batches: a remainder is spread, so none is smaller than asked for
SPLITS = {
    (8, 4): [4, 4],
    (8, 8): [8],
    (8, 100): [8],
    (9, 4): [5, 4],
    (10, 4): [5, 5],
    (11, 4): [6, 5],
    (13, 2): [3, 2, 2, 2, 2, 2],
    (3, 1): [1, 1, 1],
    (0, 4): [0],
}


def twins(dimensions: int, ghost_size: int, **settings: object) -> tuple[nn.Module, nn.Module]:
    """A ghost batch norm and torch's plain one, with the same state."""
    kind, plain, _ = KINDS[dimensions]
    ghost = kind(3, ghost_size, dtype=torch.float64, **settings)
    native = plain(3, dtype=torch.float64, **settings)
    native.load_state_dict(ghost.state_dict())
    assert isinstance(ghost, plain)
    return ghost, native


@pytest.mark.parametrize("dimensions", KINDS)
@pytest.mark.parametrize("split", SPLITS)
def test_parts_are_batches_one_after_the_other(dimensions: int, split: tuple[int, int]) -> None:
    samples, size = split
    ghost, native = twins(dimensions, size, momentum=0.3)
    x = torch.randn(samples, *KINDS[dimensions][2], dtype=torch.float64, requires_grad=True)
    y = ghost(x)
    parts = x.split(SPLITS[split])
    want = torch.cat([native(part) for part in parts if len(part)]) if samples else x
    torch.testing.assert_close(y, want)
    inputs = (x, *ghost.parameters()), (x, *native.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(y.sin().sum(), inputs[0]),
        torch.autograd.grad(want.sin().sum(), inputs[1], allow_unused=samples == 0),
        strict=True,
    ):
        torch.testing.assert_close(ours, torch.zeros_like(ours) if theirs is None else theirs)
    for name, tensor in native.state_dict().items():
        torch.testing.assert_close(ghost.state_dict()[name], tensor)
    assert int(ghost.num_batches_tracked) == (len(parts) if samples else 0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_every_dtype_against_the_reference(layout: str, dtype: torch.dtype) -> None:
    x = arrange(activations((9, 5, 4, 6), dtype, "cpu"), layout)
    ghost = my_ops.GhostBatchNorm2d(5, 4, eps=EPS, dtype=dtype)
    y = ghost(x)
    for got, part in zip(y.tensor_split(2), x.tensor_split(2), strict=True):
        want = reference.forward(part, None, None, None, None, True, None, EPS)
        assert_within(got, want.output, TOLERANCES[dtype].forward, "output")
    if layout != "strided":
        assert_layout(y, x, "output")


def test_is_not_plain_batch_norm() -> None:
    ghost, native = twins(2, 4)
    x = torch.randn(8, 3, 4, 5, dtype=torch.float64) + torch.arange(8).view(8, 1, 1, 1)
    assert (ghost(x) - native(x)).abs().max() > 0.1


def test_eval_is_plain_batch_norm() -> None:
    ghost, native = twins(2, 4)
    x = torch.randn(9, 3, 4, 5, dtype=torch.float64)
    ghost(x)
    native.load_state_dict(ghost.state_dict())
    torch.testing.assert_close(ghost.eval()(x), native.eval()(x))


def test_cumulative_average_counts_every_part() -> None:
    """With parts of equal size it is the mean of their statistics."""
    ghost, _ = twins(2, 4, momentum=None)
    x = torch.randn(12, 3, 4, 5, dtype=torch.float64)
    ghost(x)
    parts = x.split(4)
    torch.testing.assert_close(ghost.running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(ghost.running_var, torch.stack([part.var((0, 2, 3)) for part in parts]).mean(0))
    assert int(ghost.num_batches_tracked) == 3


def test_derivatives() -> None:
    ghost = my_ops.GhostBatchNorm2d(2, 2, dtype=torch.float64)
    frozen = copy.deepcopy(ghost).requires_grad_(False)

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(frozen, {"weight": weight, "bias": bias}, (x,))

    x = torch.randn(5, 2, 2, 1, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(call, (x, ghost.weight, ghost.bias))
    torch.autograd.gradgradcheck(call, (x, ghost.weight, ghost.bias))


def test_compiles_and_exports() -> None:
    ghost = my_ops.GhostBatchNorm2d(3, 4)
    x = torch.randn(9, 3, 4, 5)
    other = copy.deepcopy(ghost)
    y = torch.compile(other, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(y, ghost(x), rtol=0, atol=0)
    for ours, compiled in zip(ghost.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(ours, compiled, rtol=0, atol=0)
    program = torch.export.export(ghost, (x,))
    torch.testing.assert_close(program.module()(x), y, rtol=0, atol=0)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="GhostBatchNorm2d: expected ghost_size of 1 or more, got 0"):
        my_ops.GhostBatchNorm2d(3, 0)
    with pytest.raises(ValueError, match="expected 4D input"):
        my_ops.GhostBatchNorm2d(3, 2)(torch.randn(4, 3))
    with pytest.raises(ValueError, match="expected more than 1 value per channel"):
        my_ops.GhostBatchNorm1d(3, 1)(torch.randn(4, 3))
    assert "ghost_size=2" in repr(my_ops.GhostBatchNorm2d(3, 2))
