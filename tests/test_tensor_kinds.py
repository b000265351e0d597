"""Tensors that are more than memory: copy-on-write, functional, fake and distributed ones; autocast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import my_ops
import reference
from checks import EPS, activations, arguments, bit_equal, ops
from layouts import arrange
from ranks import Ranks
from tolerances import TOLERANCES, assert_within, unit_roundoff

SHAPE = (4, 3, 5, 6)
C = SHAPE[1]


def _calls(device: str, layout: str = "contiguous") -> dict[str, tuple[Callable[..., Any], list[Any]]]:
    """Every operator with arguments; the running statistics come last but for scalars."""
    x, dy = (arrange(activations(SHAPE, torch.float32, device), layout) for _ in range(2))
    gamma, beta = torch.randn(2, C, device=device).unbind()
    mean, m2, count = ops.batchnorm_stats(x)
    invstd = (m2 / count + EPS).rsqrt()
    sums = ops.batchnorm_backward_reduce(dy, x, mean, invstd)
    state = [torch.zeros(C, device=device), torch.ones(C, device=device), torch.tensor(2, device=device)]
    parts = [mean[None].contiguous(), m2[None].contiguous(), count]
    return {
        "forward": (ops.batchnorm_forward, [x, gamma, beta, *state[:2], True, 0.1, EPS, state[2]]),
        "forward_eval": (ops.batchnorm_forward, [x, gamma, beta, *state[:2], False, 0.1, EPS, state[2]]),
        "backward": (ops.batchnorm_backward, [dy, x, gamma, mean, invstd]),
        "stats": (ops.batchnorm_stats, [x]),
        "gather": (ops.batchnorm_gather_stats, [*parts, *state[:2], None, EPS, state[2]]),
        "apply": (ops.batchnorm_apply, [x, gamma, beta, mean, invstd]),
        "backward_reduce": (ops.batchnorm_backward_reduce, [dy, x, mean, invstd]),
        "backward_apply": (ops.batchnorm_backward_apply, [dy, x, gamma, mean, invstd, *sums, count]),
    }


CALLS = list(_calls("cpu"))
WRITING = {"forward": (3, 4, 8), "gather": (3, 4, 7)}  # positions of what is written


def _as_tuple(results: Any) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def _map(args: list[Any], change: Callable[[Tensor], Tensor]) -> list[Any]:
    return [change(arg) if isinstance(arg, Tensor) else arg for arg in args]


# ---- copy-on-write ----


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", CALLS)
def test_reading_copies_nothing(device: str, name: str, layout: str) -> None:
    """Lazy clones stay lazy unless they are written, and then the original is spared."""
    op, args = _calls(device, layout)[name]
    before = _map(args, torch.clone)
    lazy = _map(args, torch._lazy_clone)
    got = _as_tuple(op(*lazy))
    for left, right in zip(got, _as_tuple(op(*before)), strict=True):
        assert bit_equal(left, right)
    for index, arg in enumerate(lazy):
        if isinstance(arg, Tensor):
            assert torch._C._is_cow_tensor(arg) == (index not in WRITING.get(name, ())), index
            assert bit_equal(arg, before[index])
    untouched = _calls(device, layout)[name][1]
    for index in WRITING.get(name, ()):
        assert bit_equal(args[index], untouched[index])
        assert not bit_equal(args[index], lazy[index])


def test_lazy_targets_become_real(device: str) -> None:
    _, args = _calls(device)["apply"]
    original = torch.zeros(SHAPE, device=device)
    out = torch._lazy_clone(original)
    ops.batchnorm_apply.out(*args, out=out)
    assert not torch._C._is_cow_tensor(out)
    assert bit_equal(out, ops.batchnorm_apply(*args))
    assert not original.any()


# ---- functional and fake tensors ----


@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("forward", "forward_eval", "gather")])
def test_functionalize(device: str, name: str) -> None:
    op, args = _calls(device)[name]
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    got = torch.func.functionalize(lambda *tensors: op(*tensors))(*tensors)
    for left, right in zip(_as_tuple(got), _as_tuple(op(*args)), strict=True):
        assert bit_equal(left, right)


@pytest.mark.parametrize("name", ["forward", "gather"])
def test_functionalize_of_what_writes(device: str, name: str) -> None:
    """torch.func.functionalize knows no custom operator that writes; torch.compile and torch.export do."""
    op, args = _calls(device)[name]
    with pytest.raises(RuntimeError, match="Found a custom"):
        torch.func.functionalize(lambda x: op(x, *args[1:]))(args[0])
    eager, traced = _map(args, torch.clone), _map(args, torch.clone)
    want = op(*eager)
    got = torch.compile(lambda *args: op(*args), fullgraph=True, backend="aot_eager")(*traced)
    torch._dynamo.reset()
    for left, right in zip([*got, *traced], [*want, *eager], strict=True):
        assert bit_equal(left, right) if isinstance(left, Tensor) else left == right


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("name", CALLS)
def test_fake_tensors(device: str, name: str, layout: str) -> None:
    """Sizes, strides, dtypes and devices of results without values."""
    op, args = _calls(device, layout)[name]
    with FakeTensorMode() as mode:
        shadows = _as_tuple(op(*_map(args, mode.from_tensor)))
    for shadow, real in zip(shadows, _as_tuple(op(*args)), strict=True):
        facts = [(t.shape, t.stride(), t.dtype, t.device) for t in (shadow, real)]
        assert facts[0] == facts[1]


# ---- autocast: no operator is on a list of its, as native batch norm is on none ----

LOW = [torch.bfloat16, torch.float16]


def _mixed(device: str, low: torch.dtype, parameter: torch.dtype | None) -> tuple[Tensor, ...]:
    input = activations(SHAPE, low, device).requires_grad_()
    vectors = 0.5 + torch.rand(2, C, device=device)
    gamma, beta = (None, None) if parameter is None else [v.to(parameter).requires_grad_() for v in vectors]
    statistics = torch.zeros(C, device=device), torch.ones(C, device=device)
    return (input, *statistics, gamma, beta)


def _second(first: tuple[Tensor, ...], leaves: list[Tensor]) -> Sequence[Tensor | None]:
    """Of the sum of squares; none at all in eval without gamma, where dx does not depend on x."""
    total = sum(g.float().square().sum() for g in first)
    return torch.autograd.grad(total, leaves, allow_unused=True) if total.requires_grad else [None] * len(leaves)


@pytest.mark.parametrize("low", LOW, ids=str)
@pytest.mark.parametrize("parameters", ["float32", "same", "none"])
def test_autocast(device: str, training: bool, low: torch.dtype, parameters: str) -> None:
    """16-bit input keeps its dtype, as native's does, statistics are float32, gradients are those without autocast."""
    parameter = {"float32": torch.float32, "same": low, "none": None}[parameters]
    input, mean, var, gamma, beta = _mixed(device, low, parameter)
    want = reference.forward(input, gamma, beta, mean, var, training, 0.1, EPS)
    copies = [mean.clone(), var.clone()]
    gradient = torch.randn(SHAPE, device=device)  # float32, as from a loss that autocast computes in float32
    leaves = [leaf for leaf in (input, gamma, beta) if leaf is not None]
    with torch.autocast(torch.device(device).type, dtype=low):
        output = my_ops.functional.batch_norm(input, mean, var, gamma, beta, training, 0.1, EPS)
        # Native takes no float32 statistics beside 16-bit parameters.
        fitting = [copy.to(low if parameter == low else torch.float32) for copy in copies]
        native = torch.nn.functional.batch_norm(input, *fitting, gamma, beta, training, 0.1, EPS)
        _, saved, _ = ops.batchnorm_forward(input, gamma, beta, mean.clone(), var.clone(), training, 0.1, EPS)
        first = torch.autograd.grad((output.float() * gradient).sum(), leaves, create_graph=True)
        second = _second(first, leaves)
    assert output.dtype == native.dtype == low
    assert mean.dtype == saved.dtype == torch.float32
    assert_within(output, want.output, TOLERANCES[low].forward, "output")
    assert_within(mean, want.running_mean if training else reference.given(mean), TOLERANCES[low].statistics, "mean")
    assert [g.dtype for g in first] == [leaf.dtype for leaf in leaves]
    plain = my_ops.functional.batch_norm(input, *copies, gamma, beta, training, 0.1, EPS)
    wanted = torch.autograd.grad((plain.float() * gradient).sum(), leaves, create_graph=True)
    wanted_second = _second(wanted, leaves)
    for got, expected in zip(first, wanted, strict=True):
        assert bit_equal(got, expected)
    for got, expected, leaf in zip(second, wanted_second, leaves, strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            assert got.dtype == leaf.dtype
            torch.testing.assert_close(got, expected, rtol=8 * unit_roundoff(low), atol=1e-2)


@pytest.mark.parametrize("low", LOW, ids=str)
def test_autocast_leaves_float32_alone(device: str, training: bool, low: torch.dtype) -> None:
    input, mean, var, gamma, beta = _mixed(device, torch.float32, torch.float32)
    want = my_ops.functional.batch_norm(input, mean.clone(), var.clone(), gamma, beta, training)
    with torch.autocast(torch.device(device).type, dtype=low):
        output = my_ops.functional.batch_norm(input, mean, var, gamma, beta, training)
        native = torch.nn.functional.batch_norm(input, mean, var, gamma, beta, training)
    assert output.dtype == native.dtype == torch.float32
    assert bit_equal(output, want)


@pytest.mark.parametrize("low", LOW, ids=str)
def test_autocast_of_a_network(device: str, low: torch.dtype) -> None:
    """A convolution gives 16-bit values to a norm with float32 parameters; training changes all of them."""
    network = torch.nn.Sequential(torch.nn.Conv2d(C, 8, 3), my_ops.BatchNorm2d(8), torch.nn.ReLU()).to(device)
    seen: list[torch.dtype] = []
    network[1].register_forward_hook(lambda module, inputs, output: seen.extend([inputs[0].dtype, output.dtype]))
    with torch.autocast(torch.device(device).type, dtype=low):
        loss = network(torch.randn(SHAPE, device=device)).float().square().mean()
    loss.backward()
    assert seen == [low, low]
    norm = network[1]
    assert norm.weight.grad.dtype == norm.running_mean.dtype == torch.float32
    assert norm.weight.grad.abs().sum() > 0


# ---- distributed tensors: each process holds some of the channels ----


def _shard_by_channel() -> None:
    """What a user writes: no operator needs a value of another channel, so that nothing is communicated."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    images, vectors = Shard(1), Shard(0)

    @register_sharding(ops.batchnorm_forward.default)
    def forward(input, gamma, beta, mean, var, training, momentum, eps, counter=None):
        given = [vectors if vector is not None else None for vector in (gamma, beta, mean, var)]
        tracked = None if counter is None else Replicate()
        return [([images, vectors, vectors], [images, *given, None, None, None, tracked])]

    @register_sharding(ops.batchnorm_backward.default)
    def backward(dy, input, gamma, mean, invstd, training=True, mask=None):
        weight = None if gamma is None else vectors
        return [([images, vectors, vectors], [images, images, weight, vectors, vectors, None, None])]


def _train_sharded() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    _shard_by_channel()
    torch.manual_seed(5)
    values = activations((4, 6, 5), torch.float64, "cpu")
    whole = arguments(values, training=True)
    whole = type(whole)(**(vars(whole) | {"num_batches_tracked": torch.tensor(2)}))
    placements = {"input": Shard(1), "num_batches_tracked": Replicate()}
    parts = {
        name: distribute_tensor(value.clone(), mesh, [placements.get(name, Shard(0))])
        for name, value in vars(whole).items()
        if isinstance(value, Tensor)
    }
    gradients = []
    for given in (vars(whole), vars(whole) | parts):
        leaves = [given[name].requires_grad_() for name in ("input", "gamma", "beta")]
        output, mean, _ = ops.batchnorm_forward(*given.values())
        gradients.append([output, mean, *torch.autograd.grad(output.square().sum() / 2 + output.sum(), leaves)])
    for want, got in zip(*gradients, strict=True):
        assert list(got.placements) == [Shard(1) if got.dim() > 1 else Shard(0)]
        torch.testing.assert_close(got.full_tensor(), want, rtol=1e-12, atol=1e-12)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(parts[name].full_tensor(), getattr(whole, name), rtol=1e-12, atol=1e-12)


def test_channels_over_two_processes(tmp_path: Path) -> None:
    """Training forward and backward of DTensors sharded by channel: the values of one process, running state too."""
    pytest.importorskip("torch.distributed.tensor.experimental")
    ranks = Ranks(tmp_path, "gloo")
    ranks.run(2, _train_sharded)
    ranks.close()
