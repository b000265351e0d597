"""What the ranks of tests/test_sync.py run: each check on every rank at once, each rank with its part of a batch.

Every rank makes the same whole batch and computes the truth from it, in float64 and by itself.
"""

from __future__ import annotations

import copy
import io
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import my_ops
import reference
from checks import EPS, activations, arguments, bit_equal, ops, unchanged
from layouts import arrange, assert_layout
from reference import Result
from tolerances import TOLERANCES, accumulation_dtype, assert_within

Split = tuple[int, ...]  # how many samples each rank has

LAYOUTS = ("contiguous", "channels_last", "strided", "chunk")


def group() -> tuple[int, str]:
    return dist.get_world_size(), dist.group.WORLD.group_name


def mine(whole: Tensor, split: Split) -> Tensor:
    return whole.split(split)[dist.get_rank()]


def my_result(whole: Result, split: Split) -> Result:
    return Result(mine(whole.value, split), mine(whole.scale, split))


def total(tensor: Tensor) -> Tensor:
    """Over all ranks, in float64."""
    wide = tensor.double().clone()
    dist.all_reduce(wide)
    return wide


class Log(TorchDispatchMode):
    """The operators that ran, and the bytes that this rank gave to each collective."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.sent: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        self.names.append(name)
        if func.namespace == "_c10d_functional" and name != "wait_tensor":
            self.sent.append((name, args[0].nbytes))
        return func(*args, **(kwargs or {}))


@contextmanager
def collectives(*expected: str) -> Iterator[None]:
    with Log() as log:
        yield
    assert [name for name, _ in log.sent] == list(expected)


# The operator: forward, running statistics and gradients of one large batch, in every dtype and layout.


def step(split: Split, tail: tuple[int, ...], dtype: torch.dtype, layout: str, momentum: float | None) -> list[Tensor]:
    tolerance, wide = TOLERANCES[dtype], accumulation_dtype(dtype)
    whole = activations((sum(split), 6, *tail), dtype, torch.get_default_device())
    grads = torch.randn(whole.shape, dtype=torch.float64).to(dtype)
    args = arguments(whole, True, (dtype, dtype, wide, wide))
    counter = torch.tensor(4)
    want = reference.forward(*args.values()[:6], momentum, EPS, counter)

    input = arrange(mine(whole, split).contiguous(), layout).detach().requires_grad_()
    gamma, beta = (vector.clone().requires_grad_() for vector in (args.gamma, args.beta))
    running = (args.running_mean, args.running_var)
    with unchanged(input):
        output, mean, invstd = ops.sync_batchnorm_forward(
            input, gamma, beta, *running, momentum, EPS, counter, *group()
        )
    assert int(counter) == want.num_batches_tracked
    assert mean.dtype == invstd.dtype == wide
    assert_layout(output, input, "output")
    exact = reference.normalise(whole, args.gamma, args.beta, reference.given(mean), invstd)
    assert_within(output, my_result(exact, split), tolerance.forward, "output")
    named = {"mean": mean, "invstd": invstd, "running_mean": running[0], "running_var": running[1]}
    for name, got in named.items():
        assert_within(got, getattr(want, name), tolerance.statistics, name)

    output.backward(arrange(mine(grads, split).contiguous(), layout))
    truth = reference.backward(grads, whole, args.gamma, mean, invstd, True)
    assert_within(input.grad, my_result(truth.grad_input, split), tolerance.backward, "grad_input")
    assert_layout(input.grad, input, "grad_input")
    own = reference.backward(mine(grads, split), mine(whole, split), args.gamma, mean, invstd, True)
    assert_within(gamma.grad, own.grad_gamma, tolerance.backward, "grad_gamma of this part")
    assert_within(beta.grad, own.grad_beta, tolerance.backward, "grad_beta of this part")
    return [tensor.detach().clone().cpu() for tensor in (mean, invstd, *running)]


def steps(split: Split, dtype: torch.dtype) -> list[Tensor]:
    """Returns what must have the same bits on every rank."""
    common = []
    for layout, tail in product(LAYOUTS, ((), (7,), (5, 3), (2, 3, 4))):
        if not tail and layout != "contiguous":
            continue
        torch.manual_seed(1)
        first = step(split, tail, dtype, layout, 0.3 if len(tail) % 2 else None)
        torch.manual_seed(1)
        again = step(split, tail, dtype, layout, 0.3 if len(tail) % 2 else None)
        assert all(map(bit_equal, first, again)), "another run, other bits"
        common += first
    return common


def far_from_zero(split: Split) -> None:
    """A mean of 10^4 with deviation 1, where a sum of squares in float32 has no digit of the variance left.

    The means of the parts travel in float32, off by up to 2^-24 * 10^4; times their distance from the mean of all, that
    is in the variance.
    """
    whole = activations((sum(split), 3, 40), torch.float32, torch.get_default_device()) + 1e4
    _, mean, invstd = ops.sync_batchnorm_forward(mine(whole, split), *[None] * 5, EPS, None, *group())
    want = reference.statistics(whole)
    torch.testing.assert_close(mean.double(), want.mean.value, rtol=2**-23, atol=0)  # parts are rounded, and the whole
    exact = reference.inverse_std(want.var, EPS)
    torch.testing.assert_close(invstd.double(), exact.value, rtol=2e-5, atol=0)


def large_counts() -> None:
    """Counts are exact where float32 is not: 2^24 + 1 values beside 2^24 - 1 of another mean."""
    values = 2**24 + (1 if dist.get_rank() == 0 else -1)
    sign = 1.0 if dist.get_rank() == 0 else -1.0
    part = torch.full((1, 1), sign).expand(values, 1)
    _, mean, _ = ops.sync_batchnorm_forward(part, *[None] * 5, EPS, None, *group())
    assert float(mean) == 2.0 / 2.0**25


# Communication: how much, when, and whether at all.


def messages(channels: int, dtype: torch.dtype) -> dict[str, list[tuple[str, int]]]:
    """Bytes that a rank gives to each collective of a training step, by phase."""
    module = my_ops.SyncBatchNorm(channels, dtype=dtype)
    module(torch.randn(4, channels, 3, dtype=dtype))  # from here on it knows that all ranks agree
    input = torch.randn(4, channels, 3, dtype=dtype, requires_grad=True)
    with Log() as forward:
        output = module(input)
    with Log() as backward:
        output.sum().backward()
    module.requires_grad_(True)
    with Log() as parameters_only:
        module(input.detach()).sum().backward()
    return {"forward": forward.sent, "backward": backward.sent, "first layer": parameters_only.sent}


def overlap() -> list[str]:
    """The order of the operators of a backward pass, with parameters whose gradients are converted."""
    module = my_ops.SyncBatchNorm(8, dtype=torch.bfloat16)
    output = module(torch.randn(4, 8, 3, 3, dtype=torch.bfloat16, requires_grad=True))
    with Log() as log:
        output.sum().backward()
    return log.names


def without_communication() -> None:
    """Only rank 0 calls the layers, so that a collective would never end."""
    if dist.get_rank() > 0:
        return
    input = activations((4, 3, 5), torch.float64, torch.get_default_device())
    for tracks in (True, False):
        module = my_ops.SyncBatchNorm(3, track_running_stats=tracks, dtype=torch.float64).eval()
        plain = nn.BatchNorm1d(3, track_running_stats=tracks, dtype=torch.float64).eval()
        with collectives():
            torch.testing.assert_close(module(input), plain(input))
    assert module._agreed is None


def group_of_one() -> None:
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    module = my_ops.SyncBatchNorm(3, process_group=groups[dist.get_rank()], dtype=torch.float64)
    plain = nn.BatchNorm1d(3, dtype=torch.float64)
    input = torch.randn(4 + dist.get_rank(), 3, 2, dtype=torch.float64)
    with collectives():
        torch.testing.assert_close(module(input), plain(input))
    torch.testing.assert_close(module.running_var, plain.running_var)


def process_groups() -> None:
    """Ranks 0, 2 and 1, 3 share a batch; a model is converted for the group that its rank is in."""
    torch.manual_seed(3)
    pairs = [[0, 2], [1, 3]]
    groups = [dist.new_group(pair) for pair in pairs]
    rank = dist.get_rank()
    whole = activations((8, 5, 3), torch.float64, torch.get_default_device())
    parts = whole.split(2)
    model = my_ops.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(5)).double(), groups[rank % 2])
    plain = nn.BatchNorm1d(5, dtype=torch.float64)
    input = parts[rank].clone().requires_grad_()
    both = torch.cat([parts[r] for r in pairs[rank % 2]]).requires_grad_()
    output, want = model(input), plain(both)
    (output * input.detach()).sum().backward()
    (want * both.detach()).sum().backward()
    rows = slice(2 * (rank // 2), 2 * (rank // 2) + 2)
    torch.testing.assert_close(output, want[rows])
    torch.testing.assert_close(input.grad, both.grad[rows])
    torch.testing.assert_close(model[0].running_var, plain.running_var)


# Derivatives beyond the first.


def whole_and_mine(split: Split, channels: int = 4) -> tuple[Tensor, Tensor, nn.Module, nn.Module]:
    """A batch in float64, weights of a loss, our module for the parts and torch's for the whole."""
    torch.manual_seed(11)
    whole = activations((sum(split), channels, 3), torch.float64, torch.get_default_device())
    weights = torch.randn_like(whole)
    plain = nn.BatchNorm1d(channels, eps=EPS, dtype=torch.float64)
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    return whole, weights, my_ops.convert_sync_batchnorm(copy.deepcopy(plain)), plain


def gradient_penalty(module: Callable[[Tensor], Tensor], input: Tensor, weights: Tensor) -> Tensor:
    """A loss with a gradient in it: its backward pass is a double backward."""
    (gradient,) = torch.autograd.grad((module(input) * weights).sin().sum(), input, create_graph=True)
    return gradient.square().sum()


def double_backward(split: Split) -> None:
    whole, weights, module, plain = whole_and_mine(split)
    input = mine(whole, split).clone().requires_grad_()
    whole.requires_grad_()
    gradient_penalty(module, input, mine(weights, split)).backward()
    gradient_penalty(plain, whole, weights).backward()
    torch.testing.assert_close(input.grad, mine(whole.grad, split), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(total(module.weight.grad), plain.weight.grad, rtol=1e-9, atol=1e-9)


def third_derivative(split: Split) -> None:
    whole, weights, module, plain = whole_and_mine(split)

    def third(module: Callable[[Tensor], Tensor], input: Tensor, weights: Tensor) -> Tensor:
        input = input.clone().requires_grad_()
        penalty = gradient_penalty(module, input, weights)
        (second,) = torch.autograd.grad(penalty, input, create_graph=True)
        return torch.autograd.grad(second.square().sum(), input)[0]

    def exact(x: Tensor) -> Tensor:
        """Third derivatives of native batch norm are wrong."""
        return reference.differentiable(x, plain.weight, plain.bias, None, None, True, EPS)

    got = third(module, mine(whole, split), mine(weights, split))
    want = mine(third(exact, whole, weights), split)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def forward_mode(split: Split) -> None:
    """Tangents, and the tangent of a gradient (forward over reverse, with and without a graph of the gradient)."""
    whole, weights, module, plain = whole_and_mine(split)
    direction = torch.randn_like(whole)

    def tangents(module: Callable[[Tensor], Tensor], x: Tensor, dx: Tensor, g: Tensor, graph: bool) -> list[Tensor]:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x.clone().requires_grad_(), dx)
            output = module(dual)
            (gradient,) = torch.autograd.grad((output * g).sin().sum(), dual, create_graph=graph)
            return [forward_ad.unpack_dual(each).tangent.detach() for each in (output, gradient)]

    def exact(x: Tensor) -> Tensor:
        return reference.differentiable(x, plain.weight, plain.bias, None, None, True, EPS)

    wanted = tangents(exact, whole, direction, weights, True)
    for graph in (True, False):
        got = tangents(module, *(mine(each, split) for each in (whole, direction, weights)), graph)
        for each, want in zip(got, wanted, strict=True):
            torch.testing.assert_close(each, mine(want, split), rtol=1e-9, atol=1e-9)


def functional_transforms(split: Split) -> None:
    """torch.func.grad, and its composition."""
    whole, weights, module, plain = whole_and_mine(split)

    def loss(module: Callable[[Tensor], Tensor], g: Tensor) -> Callable[[Tensor], Tensor]:
        inner = torch.func.grad(lambda x: (module(x) * g).sin().sum())
        return lambda x: inner(x).square().sum()

    def exact(x: Tensor) -> Tensor:
        return reference.differentiable(x, plain.weight, plain.bias, None, None, True, EPS)

    module.track_running_stats = False  # nothing is written inside a transform
    got = torch.func.grad(loss(module, mine(weights, split)))(mine(whole, split))
    want = torch.func.grad(loss(exact, weights))(whole)
    torch.testing.assert_close(got, mine(want, split), rtol=1e-9, atol=1e-9)


# Compilers.


def compiled(split: Split, backend: str) -> None:
    """One graph without breaks; later batches of other sizes too."""
    whole, weights, module, plain = whole_and_mine(split)
    module(mine(whole, split))
    plain(whole)
    program = torch.compile(module, fullgraph=True, backend=backend)
    for repeat in (1, 2):
        x, g = (torch.cat([mine(each, split)] * repeat) for each in (whole, weights))
        all_x, all_g = (torch.cat([each] * repeat) for each in (whole, weights))
        x, all_x = x.requires_grad_(), all_x.requires_grad_()
        module.zero_grad()
        plain.zero_grad()
        (program(x) * g).sin().sum().backward()
        (plain(all_x) * all_g).sin().sum().backward()
        want = torch.cat([mine(all_x.grad[: whole.shape[0]], split)] * repeat)
        torch.testing.assert_close(x.grad, want, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(total(module.weight.grad), plain.weight.grad, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(module.running_var, plain.running_var)
    assert int(module.num_batches_tracked) == 3


def compiled_cumulative() -> None:
    """momentum=None breaks the graph of torch's own module."""
    module = my_ops.SyncBatchNorm(3, momentum=None, dtype=torch.float64)
    plain = nn.BatchNorm1d(3, momentum=None, dtype=torch.float64)
    program = torch.compile(module, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        torch.manual_seed(seed)
        whole = torch.randn(4 * dist.get_world_size(), 3, 2, dtype=torch.float64)
        output = program(whole.chunk(dist.get_world_size())[dist.get_rank()])
        torch.testing.assert_close(output, plain(whole).chunk(dist.get_world_size())[dist.get_rank()])
    torch.testing.assert_close(module.running_mean, plain.running_mean)
    torch.testing.assert_close(module.running_var, plain.running_var)


# DistributedDataParallel, FSDP.


class TwoLayers(nn.Module):
    def __init__(self, affine: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 40, bias=False), nn.BatchNorm1d(4, affine=affine))
        self.head = nn.Linear(40, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body[0](x).view(-1, 4, 10)
        return torch.softmax(self.head(self.body[1](x).flatten(1)), dim=1)


def train(
    model: nn.Module, split: Split, input: Tensor, target: Tensor, wrap: Callable[..., nn.Module], n: int
) -> None:
    """The same steps on the parts as on the whole."""
    alone = copy.deepcopy(model)
    together = wrap(my_ops.convert_sync_batchnorm(model))
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9) for each in (alone, together)]
    for _ in range(n):
        for optimizer in optimizers:
            optimizer.zero_grad()
        whole = nn.functional.mse_loss(alone(input), target)
        errors = nn.functional.mse_loss(together(mine(input, split)), mine(target, split), reduction="sum")
        part = errors / target.numel()
        whole.backward()
        (part * dist.get_world_size()).backward()  # DDP averages over the ranks
        torch.testing.assert_close(total(part.detach()), whole.detach().double())
        for optimizer in optimizers:
            optimizer.step()
    state = {name.removeprefix("module."): each for name, each in together.state_dict().items()}
    for name, value in alone.state_dict().items():
        got = state[name]
        torch.testing.assert_close(got.full_tensor() if hasattr(got, "full_tensor") else got, value, msg=name)


def through_a_file(model: nn.Module) -> nn.Module:
    """Saved and loaded, as a whole."""
    file = io.BytesIO()
    torch.save(DistributedDataParallel(model), file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def ddp(split: Split, affine: bool) -> None:
    torch.manual_seed(5)
    input = torch.randn(sum(split), 2, dtype=torch.float64)
    target = torch.randn(sum(split), 4, dtype=torch.float64)
    train(TwoLayers(affine).double(), split, input, target, through_a_file, 4)


def ddp_matrix() -> None:
    """Rank 2 inputs, one sample per rank."""
    torch.manual_seed(5)
    split = (1,) * dist.get_world_size()
    input, target = torch.randn(2, sum(split), 3, dtype=torch.float64)
    train(nn.BatchNorm1d(3).double(), split, input, target, DistributedDataParallel, 4)


def ddp_channels_last() -> None:
    for memory_format, rank in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        torch.manual_seed(5)
        split = (2,) * dist.get_world_size()
        input, target = torch.randn(2, sum(split), 3, *(2, 3, 2)[: rank - 2], dtype=torch.float64)
        input, target = (each.contiguous(memory_format=memory_format) for each in (input, target))
        norm = nn.BatchNorm2d(3) if rank == 4 else nn.BatchNorm3d(3)
        train(norm.double(), split, input, target, DistributedDataParallel, 3)


def ddp_running_statistics() -> None:
    """Sizes that differ by powers of ten, each rank with other constants: the statistics of all values together."""
    model = DistributedDataParallel(my_ops.SyncBatchNorm(2, momentum=0.99))
    inputs = [
        torch.cat([torch.full((2, 1, 10 ** (r + 1)), base ** (r - 1)) for base in (0.1, 0.3)], dim=1)
        for r in range(dist.get_world_size())
    ]
    for _ in range(20):
        model(inputs[dist.get_rank()]).mean().backward()
    values = torch.cat([each.transpose(0, 1).flatten(1) for each in inputs], dim=1)
    torch.testing.assert_close(model.module.running_mean, values.mean(1))
    torch.testing.assert_close(model.module.running_var, values.var(1))


def ddp_half(dtype: torch.dtype) -> None:
    model = DistributedDataParallel(my_ops.convert_sync_batchnorm(TwoLayers().to(dtype)))
    output = model(torch.randn(3, 2).to(dtype))
    assert output.dtype == dtype
    output.sum().backward()
    assert all(parameter.grad.dtype == dtype for parameter in model.parameters())


def two_forwards(broadcast_buffers: bool) -> None:
    """DDP's broadcast writes running statistics in place between a forward and its backward."""
    torch.manual_seed(5)
    world, rank = dist.get_world_size(), dist.get_rank()
    model = TwoLayers().double()
    alone = copy.deepcopy(model)
    together = DistributedDataParallel(my_ops.convert_sync_batchnorm(model), broadcast_buffers=broadcast_buffers)
    inputs = torch.randn(2, 3 * world, 2, dtype=torch.float64)
    outputs = [together(each.chunk(world)[rank]) for each in inputs]
    (outputs[0] * outputs[1]).square().mean().backward()
    first, second = (alone(each) for each in inputs)
    (first * second).square().mean().backward()
    for got, want in zip(together.module.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad)
    for got, want in zip(together.module.buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(got, want)


def fsdp() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(5)
    split = (3,) * dist.get_world_size()
    input = torch.randn(sum(split), 2, dtype=torch.float64)
    target = torch.randn(sum(split), 4, dtype=torch.float64)
    mesh = init_device_mesh(torch.get_default_device().type, (dist.get_world_size(),))

    def wrap(model: nn.Module) -> nn.Module:
        fully_shard(model.body[1], mesh=mesh)
        return fully_shard(model, mesh=mesh)

    train(TwoLayers().double(), split, input, target, wrap, 3)


# What goes wrong.


def different_channels() -> None:
    """An error on every rank, after which the group is as good as before."""
    rank = dist.get_rank()
    channels = 3 if rank == 0 else 4
    module = my_ops.SyncBatchNorm(channels, affine=False, track_running_stats=False)
    try:
        module(torch.randn(2, channels, 5))
    except RuntimeError as error:
        dist.barrier()
        raise RuntimeError(f"{error}; {int(total(torch.ones(())))} ranks here") from error


def different_dtypes() -> None:
    dtype = torch.float32 if dist.get_rank() == 0 else torch.float64
    my_ops.SyncBatchNorm(3, dtype=dtype)(torch.randn(2, 3, dtype=dtype))


def one_value() -> None:
    """One value per channel on all ranks together."""
    my_ops.SyncBatchNorm(3)(torch.randn(1 if dist.get_rank() == 0 else 0, 3))


def nothing() -> None:
    """No values on any rank: nothing changes, gradients are zero."""
    module = my_ops.SyncBatchNorm(3, momentum=None)
    input = torch.randn(0, 3, 2, requires_grad=True)
    module(input).sum().backward()
    assert input.grad.shape == input.shape
    assert int(module.num_batches_tracked) == 0
    assert torch.equal(module.running_var, torch.ones(3))
    assert torch.equal(module.weight.grad, torch.zeros(3))


def unused_output(split: Split) -> None:
    """A rank whose loss does not depend on its output but through zeros still answers the others."""
    whole, weights, module, plain = whole_and_mine(split)
    factor = torch.ones(sum(split), 1, 1, dtype=torch.float64)
    factor[: split[0]] = 0
    input = mine(whole, split).clone().requires_grad_()
    whole.requires_grad_()
    (module(input) * mine(weights * factor, split)).sum().backward()
    (plain(whole) * weights * factor).sum().backward()
    torch.testing.assert_close(input.grad, mine(whole.grad, split))


def step_forever(module: nn.Module) -> None:
    while True:
        module(torch.randn(4, 3, 5, requires_grad=True)).sum().backward()


def killed(victim: int) -> float:
    """The victim dies between its forward and its backward. Returns after how many seconds the others know."""
    module = my_ops.SyncBatchNorm(3)
    output = module(torch.randn(4, 3, 5, requires_grad=True))
    if dist.get_rank() == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    begin = time.monotonic()
    try:
        output.sum().backward()
        step_forever(module)
    except dist.DistBackendError as error:
        raise RuntimeError(f"{error}\nafter {time.monotonic() - begin:.1f} s") from error
    return 0.0


def late(victim: int) -> None:
    """The victim fails by itself after its forward and does not come back."""
    module = my_ops.SyncBatchNorm(3)
    output = module(torch.randn(4, 3, 5, requires_grad=True))
    if dist.get_rank() == victim:
        time.sleep(4)
        raise ValueError("a bug of its own")
    output.sum().backward()
