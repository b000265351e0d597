"""What the ranks of tests/test_sync_fused.py run: synchronized batch norm with an activation, in place, and behind a
convolution, each rank with its part of a batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

import my_ops
import reference
from activations import LIPSCHITZ, SLOPES, activation, away_from_kink, gradient_of_z, preactivation
from checks import EPS, activations, arguments, ops
from layouts import arrange, assert_layout
from reference import Result, upcast
from sync_checks import Split, collectives, group, mine, my_result, total
from tolerances import TOLERANCES, assert_within, unit_roundoff

# The operator with a residual and an activation: output and gradients of one large batch, from its statistics.


def act_step(split: Split, dtype: torch.dtype, layout: str, name: str, with_residual: bool) -> None:
    whole = activations((sum(split), 5, 3, 7), dtype, "cpu")
    args = arguments(whole, True)
    residual = torch.randn(whole.shape, dtype=torch.float64).to(dtype) if with_residual else None
    grads = away_from_kink(torch.randn(whole.shape, dtype=torch.float64).to(dtype), args, residual)

    def part(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else arrange(mine(tensor, split).contiguous(), layout).detach()

    input, added = (None if tensor is None else part(tensor).requires_grad_() for tensor in (whole, residual))
    gamma, beta = (vector.clone().requires_grad_() for vector in (args.gamma, args.beta))
    output, mean, invstd = ops.sync_batchnorm_forward(
        input, gamma, beta, None, None, None, EPS, None, *group(), added, name, SLOPES[name]
    )
    tolerance = TOLERANCES[dtype]
    want = reference.statistics(whole)
    assert_within(mean, want.mean, tolerance.statistics, "mean")
    z = preactivation(args, residual, reference.given(mean), upcast(invstd))
    exact = Result(activation(name, z.value), LIPSCHITZ.get(name, 1.0) * z.scale)
    assert_within(output, my_result(exact, split), tolerance.forward, f"{name}: output")
    assert_layout(output, input, "output")

    output.backward(part(grads))
    dz = gradient_of_z(grads, args, name, z)
    factor = tolerance.backward
    rounded = factor + unit_roundoff(dtype)  # dz passes through memory

    def expect(got: Tensor, what: str, result: Callable[[Tensor], Tensor], factor: float) -> None:
        assert_within(got, Result(result(dz.value), result(dz.scale)), factor, f"{name}: {what}")

    def of_input(values: Tensor, scale: bool) -> Tensor:
        truth = reference.backward(values, whole, args.gamma, mean, invstd, True).grad_input
        return mine(truth.scale if scale else truth.value, split)

    assert_within(
        input.grad, Result(of_input(dz.value, False), of_input(dz.scale, True)), rounded, f"{name}: grad_input"
    )
    if added is not None:
        assert_within(added.grad, my_result(dz, split), factor, f"{name}: grad_residual")
    own = [reference.backward(mine(values, split), mine(whole, split), args.gamma, mean, invstd, True)
           for values in (dz.value, dz.scale)]  # fmt: skip
    for what, got in (("grad_gamma", gamma.grad), ("grad_beta", beta.grad)):
        result = Result(getattr(own[0], what).value, getattr(own[1], what).scale)
        assert_within(got, result, factor, f"{name}: {what} of this part")


def act_steps(split: Split, dtype: torch.dtype) -> None:
    for name in SLOPES:
        for with_residual in (False, True):
            act_step(split, dtype, "channels_last" if with_residual else "strided", name, with_residual)
    act_step(split, dtype, "contiguous", "relu", True)
    packs = (lambda t: t.clone(memory_format=torch.contiguous_format), lambda t: t)
    with torch.autograd.graph.saved_tensors_hooks(*packs):  # a mask follows the input's memory
        act_step(split, dtype, "channels_last", "relu", True)


# The modules: what they replace, with the whole batch, in float64.

BEHIND: dict[str, Callable[[float], nn.Module]] = {
    "identity": lambda slope: nn.Identity(),
    "relu": lambda slope: nn.ReLU(),
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "silu": lambda slope: nn.SiLU(),
    "gelu_tanh": lambda slope: nn.GELU("tanh"),
}


class Plain(nn.Module):
    """act(norm(conv(x)) + residual) in torch's modules."""

    def __init__(self, name: str, conv: nn.Module | None, channels: int, **options: Any) -> None:
        super().__init__()
        self.conv = conv or nn.Identity()
        self.norm = nn.BatchNorm2d(channels, eps=EPS, **options)
        self.act = BEHIND[name](SLOPES[name])

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.norm(self.conv(x))
        return self.act(y if residual is None else y + residual)


def twins(kind: str, name: str, **options: Any) -> tuple[nn.Module, Plain]:
    """A synchronized module and torch's for the whole batch, of the same parameters, in float64."""
    torch.manual_seed(11)
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2) if kind == "conv" else None
    plain = Plain(name, conv, 6, **options)
    slope = SLOPES[name]
    unsynchronized: nn.Module
    if kind == "conv":
        norm = my_ops.BatchNormAct2d(6, eps=EPS, activation=name, slope=slope, **options)
        unsynchronized = my_ops.ConvBatchNorm2d.of(copy.deepcopy(conv), norm)
    elif kind == "in place":
        unsynchronized = my_ops.InPlaceBatchNormAct2d(6, eps=EPS, activation=name, slope=slope, **options)
    else:
        unsynchronized = my_ops.BatchNormAct2d(6, eps=EPS, activation=name, slope=slope, **options)
    for parameter in plain.norm.parameters():
        nn.init.normal_(parameter)
    norm = unsynchronized.norm if kind == "conv" else unsynchronized
    norm.load_state_dict(plain.norm.state_dict())
    if kind == "in place" and norm.weight is not None:
        with torch.no_grad():
            for each in (norm, plain.norm):
                each.weight[2] = 0.0  # a channel that is kept
    return my_ops.convert_sync_batchnorm(unsynchronized).double(), plain.double()


def batch(kind: str, split: Split) -> Tensor:
    return activations((sum(split), 4 if kind == "conv" else 6, 5, 4), torch.float64, "cpu")


def module_steps(split: Split, kind: str, name: str, with_residual: bool = False, **options: Any) -> None:
    """Two training steps and, from the running statistics, an inference."""
    module, plain = twins(kind, name, **options)
    for step in range(3 if options.get("track_running_stats", True) else 2):
        for each in (module, plain):
            each.train(step < 2)
            each.zero_grad()
        whole = batch(kind, split)
        residual = torch.randn(whole.shape, dtype=torch.float64) if with_residual else None
        leaves = [each.clone().requires_grad_() for each in (whole, residual) if each is not None]
        parts = [mine(each.detach(), split).clone().requires_grad_() for each in leaves]
        want = plain(*leaves)
        got = module(parts[0].mul(1), *parts[1:])  # in place of a tensor of its own
        torch.testing.assert_close(got, mine(want, split), rtol=1e-8, atol=1e-8)
        weights = torch.randn_like(want)
        (want * weights).sum().backward()
        (got * mine(weights, split)).sum().backward()
        for part, leaf in zip(parts, leaves, strict=True):
            torch.testing.assert_close(part.grad, mine(leaf.grad, split), rtol=1e-8, atol=1e-8)
        for ours, theirs in zip(module.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(total(ours.grad), theirs.grad, rtol=1e-8, atol=1e-8)
    for ours, theirs in zip(module.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


# Communication and memory.


def sent(call: Callable[[], Any]) -> tuple[Any, list[tuple[str, int]]]:
    """What `call` returns, and how many numbers this rank gave to each collective, also those inside of an operator."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        result = call()
    events = sorted(recorded.events(), key=lambda event: event.time_range.start)
    of_torch = [e for e in events if e.name.startswith("_c10d_functional::") and "wait" not in e.name]
    return result, [(e.name.split("::")[1], e.input_shapes[0][0]) for e in of_torch]


def messages(kind: str, name: str, with_residual: bool) -> dict[str, list[tuple[str, int]]]:
    """Numbers that a rank gives to each collective of a training step."""
    module, _ = twins(kind, name)
    parts = [torch.randn(3, 4 if kind == "conv" else 6, 5, 4, dtype=torch.float64, requires_grad=True)]
    parts += [torch.randn_like(parts[0]).requires_grad_()] * with_residual
    module(*(part.mul(1) for part in parts))  # from here on it knows that all ranks agree
    output, forward = sent(lambda: module(*(part.mul(1) for part in parts)))
    _, backward = sent(lambda: output.sum().backward())
    return {"forward": forward, "backward": backward}


def saved_bytes(kind: str, name: str) -> int:
    """Memory that the graph keeps alive of images: each storage once, the input's not counted."""
    module, _ = twins(kind, name)
    module.float()
    input = torch.randn(8, 4 if kind == "conv" else 6, 32, 32)
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    image = input.clone().requires_grad_().mul(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(image)
    storages.pop(image.untyped_storage().data_ptr(), None)
    del output
    return sum(storages.values())


def without_communication(kind: str, name: str) -> None:
    """Only rank 0 calls the layer, so that a collective would never end."""
    if dist.get_rank() > 0:
        return
    module, plain = twins(kind, name)
    input = batch(kind, (4,))
    with collectives():
        torch.testing.assert_close(module.eval()(input.clone()), plain.eval()(input))


# Derivatives beyond the first, and compilers.


def exactly(plain: Plain, x: Tensor, residual: Tensor | None) -> Tensor:
    """In plain torch operations."""
    norm = plain.norm
    z = reference.differentiable(plain.conv(x), norm.weight, norm.bias, None, None, True, EPS)
    return plain.act(z if residual is None else z + residual)


def higher_derivatives(split: Split, kind: str, name: str, with_residual: bool) -> None:
    """Second and third derivatives in reverse mode, and the tangent of a gradient."""
    module, plain = twins(kind, name)
    whole = batch(kind, split)
    residual = torch.randn_like(whole) if with_residual else None
    direction = torch.randn_like(whole)
    weights = torch.randn_like(plain(whole))

    def derivatives(f: Callable[[Tensor, Tensor | None], Tensor], cut: Callable[[Tensor], Tensor]) -> list[Tensor]:
        x = cut(whole).clone().requires_grad_()
        added = None if residual is None else cut(residual).clone().requires_grad_()
        leaves = [x] if added is None else [x, added]
        g = cut(weights)
        first = torch.autograd.grad((f(x, added) * g).sin().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(each.square().sum() for each in first), leaves, create_graph=True)
        third = torch.autograd.grad(sum(each.square().sum() for each in second), leaves)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x.detach().clone().requires_grad_(), cut(direction))
            output = f(dual, added)
            (gradient,) = torch.autograd.grad((output * g).sin().sum(), dual, create_graph=True)
            tangents = [forward_ad.unpack_dual(each).tangent.detach() for each in (output, gradient)]
        return [*(each.detach() for each in (*first, *second, *third)), *tangents]

    def ours(x: Tensor, added: Tensor | None) -> Tensor:
        return module(x) if added is None else module(x, added)

    got = derivatives(ours, lambda tensor: mine(tensor, split))
    want = derivatives(lambda x, added: exactly(plain, x, added), lambda tensor: tensor)
    for order, (each, exact) in enumerate(zip(got, want, strict=True)):
        torch.testing.assert_close(each, mine(exact, split), rtol=1e-7, atol=1e-7, msg=lambda m, o=order: f"{o}: {m}")


def no_second_derivative() -> None:
    module, _ = twins("in place", "elu")
    x = torch.randn(3, 6, 5, 4, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(module(x.mul(1)).square().sum(), x, create_graph=True)
    try:
        first.sum().backward()
    except NotImplementedError as error:
        assert "only the first derivative" in str(error)
    else:
        raise AssertionError("a second derivative in place")


def compiled(split: Split, kind: str, name: str, backend: str) -> None:
    """One graph, forward and backward; a later batch of another size too."""
    torch._dynamo.reset()
    module, plain = twins(kind, name)
    program = torch.compile(module, fullgraph=True, backend=backend)
    for repeat in (1, 2):
        whole = batch(kind, tuple(repeat * n for n in split))
        part = mine(whole, tuple(repeat * n for n in split)).clone().requires_grad_()
        whole.requires_grad_()
        (program(part).square() * 0.5).sum().backward()
        (plain(whole).square() * 0.5).sum().backward()
        want = mine(whole.grad, tuple(repeat * n for n in split))
        torch.testing.assert_close(part.grad, want, rtol=1e-8, atol=1e-8)
    for ours, theirs in zip(module.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def autocast(split: Split) -> None:
    """The convolution in bfloat16, statistics in float32: as without ranks."""
    module, _ = twins("conv", "relu")
    module = module.float()
    alone = my_ops.revert_batchnorm(copy.deepcopy(module))
    whole = batch("conv", split).float()
    with torch.autocast("cpu", torch.bfloat16):
        got, want = module(mine(whole, split)), alone(whole)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, mine(want, split), rtol=2e-2, atol=2e-2)
    assert module.norm.running_var.dtype == torch.float32


# Where collectives are visible to them, torch's other checks (of schema and of fake tensors) stumble over its own
# wait_tensor, which returns its argument.
AROUND = ("test_autograd_registration", "test_aot_dispatch_dynamic")


def opcheck() -> None:
    """All ranks run the same checks, each on a batch of its own."""
    act = ("elu", 0.5)
    x, residual = (torch.randn(4, 3, 5, 2, requires_grad=True) for _ in range(2))
    gamma, beta = (torch.rand(3).add(0.5).requires_grad_() for _ in range(2))
    state = (torch.zeros(3), torch.ones(3))
    counter = torch.tensor(2)
    own, name = group()
    torch.library.opcheck(
        ops.sync_batchnorm_forward.default,
        (x, gamma, beta, *state, None, EPS, counter, own, name, residual, "relu", 0.0),
        test_utils=AROUND,
    )
    with torch.no_grad():
        mean, invstd, count = ops.batchnorm_gather_stats(
            *(s[None] for s in ops.batchnorm_stats(x)[:2]), torch.tensor([40]), None, None, None, EPS
        )
    torch.library.opcheck(
        ops.sync_batchnorm_apply.default, (x, gamma, beta, mean, invstd, count, own, name, residual, *act)
    )
    in_place = (x.detach(), gamma.detach(), beta.detach(), *state, 0.1, EPS, *act, counter, own, name)
    torch.library.opcheck(ops.sync_batchnorm_act_forward_.default, in_place)
    weight, bias = torch.randn(3, 3, 3, 1, requires_grad=True), torch.randn(3, requires_grad=True)
    conv = ([1, 1], [1, 0], [1, 1], 1)
    torch.library.opcheck(
        ops.sync_conv_batchnorm_forward.default,
        (x, weight, bias, gamma, beta, *state, *conv, 0.1, EPS, counter, *act, own, name),
    )
    dy = torch.randn(4, 3, 5, 2, requires_grad=True)
    saved = (x, weight, bias, gamma, beta, mean, invstd, count)
    rest = (*conv, *act, own, name)
    torch.library.opcheck(ops.sync_conv_batchnorm_backward.default, (dy, *saved, *rest), test_utils=AROUND)
    detached = tuple(tensor.detach() for tensor in (dy, *saved))
    for wanted in ([True] * 5, [False, True, False, False, True]):
        torch.library.opcheck(ops.sync_conv_batchnorm_backward.default, (*detached, *rest, wanted))


# A network.


class Block(nn.Module):
    """What fusion finds: an activation behind a batch norm, and one behind an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.act1, self.act2 = nn.ReLU(), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.norm1(self.conv1(x)))
        return self.act2(self.norm2(self.conv2(y)) + x)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.2), Block(), nn.Flatten(), nn.Linear(144, 3)
    )


def fused_network(split: Split, sync_first: bool) -> None:
    """Fused and synchronized, in either order, and under DDP: the training of one process; a frozen layer stays."""
    torch.manual_seed(5)
    alone = network().double()
    alone[1].weight.requires_grad_(False)
    model = copy.deepcopy(alone)
    if sync_first:
        model = my_ops.convert_batchnorm(my_ops.convert_sync_batchnorm(model), fuse=True)
    else:
        model = my_ops.convert_sync_batchnorm(my_ops.convert_batchnorm(model, fuse=True))
    classes = [type(each).__name__ for each in model.modules()]
    assert classes.count("FusedSyncBatchNorm") == 3, classes
    together = DistributedDataParallel(model)
    optimizers = [
        torch.optim.SGD([p for p in each.parameters() if p.requires_grad], lr=0.05) for each in (alone, together)
    ]
    input = torch.randn(sum(split), 3, 8, 8, dtype=torch.float64)
    target = torch.randn(sum(split), 3, dtype=torch.float64)
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        (alone(input) - target).square().mean().backward()
        errors = (together(mine(input, split)) - mine(target, split)).square().sum()
        (errors * dist.get_world_size() / target.numel()).backward()
        for optimizer in optimizers:
            optimizer.step()
    reverted = my_ops.revert_batchnorm(model)
    assert [type(each) for each in reverted.modules()] == [type(each) for each in alone.modules()]
    torch.testing.assert_close(reverted.state_dict(), alone.state_dict())
