"""torch.vmap and the transforms of torch.func around the operators and the modules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.utils.checkpoint import checkpoint

import my_ops
import reference
from checks import EPS, VECTORS, Arguments, activations, arguments, ops
from layouts import arrange
from tolerances import TOLERANCES, assert_within

DOUBLE = torch.float64
BATCH = 3
SHAPE = (4, 2, 3)  # of one problem
Call = Callable[..., object]


OPERATORS = ("forward", "backward", "stats", "gather_stats", "apply", "backward_reduce", "backward_apply")


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_has_a_rule(name: str) -> None:
    """Without one, vmap calls the operator sample by sample, and not at all if it writes."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"my_ops::batchnorm_{name}", "FuncTorchBatched")


def batch_of(shape: tuple[int, ...], dim: int | None, device: str, positive: bool = False) -> Tensor:
    """An argument of `shape`, with a batch dimension of its own at `dim`."""
    sizes = list(shape)
    if dim is not None:
        sizes.insert(dim if dim >= 0 else len(shape) + 1 + dim, BATCH)
    values = torch.rand if positive else torch.randn
    return values(sizes, dtype=DOUBLE, device=device) + (0.5 if positive else 0.0)


def dims_by_stride(tensor: Tensor) -> list[int]:
    """The layout, but for what lies between the samples of a batch."""
    return sorted(range(tensor.dim()), key=tensor.stride)


def leaves(results: object) -> list[Tensor]:
    return [result for result in torch.utils._pytree.tree_leaves(results) if result is not None]


def assert_like_a_loop(call: Call, dims: tuple[int | None, ...], args: tuple[Tensor, ...]) -> None:
    """vmap(call) gives what one call per sample gives, in its results and in what it writes to its arguments."""
    mine, others = ([arg.clone() for arg in args] for _ in range(2))
    got = leaves(vmap(call, in_dims=dims)(*mine))
    each = []
    for b in range(BATCH):
        sample = (arg if dim is None else arg.select(dim, b) for arg, dim in zip(others, dims, strict=True))
        each.append(leaves(call(*sample)))
    want = [torch.stack(results) for results in zip(*each, strict=True)]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mine, others, rtol=1e-12, atol=1e-12)


def subsets(*choices: tuple[int | None, ...]) -> list[tuple[int | None, ...]]:
    """Every combination in which something is batched."""
    return [dims for dims in product(*choices) if any(dim is not None for dim in dims)]


# --- vmap of each operator -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", subsets((None, 0, 2), (None, 0), (None, 1)), ids=str)
@pytest.mark.parametrize("shape", [(4, 2), SHAPE], ids=str)
def test_forward_in_training(device: str, shape: tuple[int, ...], dims: tuple[int | None, ...]) -> None:
    """Any of input, gamma and beta batched; without running statistics."""
    args = (batch_of(shape, dims[0], device), *(batch_of((2,), dim, device) for dim in dims[1:]))
    assert_like_a_loop(lambda x, g, b: ops.batchnorm_forward(x, g, b, None, None, True, 0.1, EPS), dims, args)
    if dims[0] is not None:
        assert_like_a_loop(
            lambda x: ops.batchnorm_forward(x, None, None, None, None, True, 0.1, EPS), dims[:1], args[:1]
        )


@pytest.mark.parametrize("dims", subsets((None, 0, -1), (None, 0), (None, 0), (None, 1), (None, 0)), ids=str)
def test_forward_in_eval(device: str, dims: tuple[int | None, ...]) -> None:
    """Any of the five tensors batched."""
    args = (
        batch_of(SHAPE, dims[0], device),
        *(batch_of((2,), dim, device) for dim in dims[1:4]),
        batch_of((2,), dims[4], device, positive=True),
    )
    assert_like_a_loop(lambda *t: ops.batchnorm_forward(*t, False, 0.1, EPS), dims, args)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("counter", [None, 0], ids=["one_counter", "counters"])
@pytest.mark.parametrize("dims", subsets((None, 0, -2), (None, 0))[1:], ids=str)
@pytest.mark.parametrize("at", [0, 1, -1])
def test_running_statistics_are_written_in_place(
    device: str, dims: tuple[int | None, ...], at: int, counter: int | None, momentum: float | None
) -> None:
    """Batched ones, wherever their batch dimension is; the batch counters too, each with a count of its own."""
    counts = torch.arange(5, 5 + BATCH, device=device) if counter is not None else torch.tensor(7, device=device)
    args = (
        batch_of(SHAPE, dims[0], device),
        batch_of((2,), dims[1], device),
        batch_of((2,), at, device),
        batch_of((2,), at, device, positive=True),
    )
    in_dims = (*dims, at, at)

    def forward(x: Tensor, g: Tensor, mean: Tensor, var: Tensor, count: Tensor) -> object:
        return ops.batchnorm_forward(x, g, None, mean, var, True, momentum, EPS, count)

    if counter is not None:
        assert_like_a_loop(forward, (*in_dims, 0), (*args, counts))
        return
    # One counter for all: each sample sees it one higher, as with any shared tensor that a vmapped function adds 1 to.
    count = counts.clone()
    assert_like_a_loop(lambda *t: forward(*t, counts.clone()), in_dims, args)
    vmap(lambda *t: forward(*t, count), in_dims=in_dims)(*args)
    assert int(count) == 8


def test_shared_running_statistics_with_a_shared_input(device: str) -> None:
    """Only gamma differs: one normalization, which is counted once."""
    args = arguments(activations(SHAPE, DOUBLE, device), training=True)
    counter = torch.tensor(3, device=device)
    gammas = torch.randn(BATCH, 2, dtype=DOUBLE, device=device)
    want = [reference.forward(args.input, gamma, *args.values()[2:-1], counter) for gamma in gammas]
    output, mean, _ = vmap(
        lambda gamma: ops.batchnorm_forward(args.input, gamma, *args.values()[2:-1], counter), out_dims=(0, None, None)
    )(gammas)
    for got, result in zip(output, want, strict=True):
        assert_within(got, result.output, TOLERANCES[DOUBLE].forward, "output")
    for got, name in ((mean, "mean"), (args.running_mean, "running_mean"), (args.running_var, "running_var")):
        assert_within(got, getattr(want[0], name), TOLERANCES[DOUBLE].statistics, name)
    assert int(counter) == 4


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_forward_against_the_reference(device: str, dtype: torch.dtype, training: bool, layout: str) -> None:
    """Every dtype, statistics of their own for each sample; the layout of each stays."""
    problems = [arguments(arrange(activations((4, 6, 5, 7), dtype, device), layout), training) for _ in range(BATCH)]
    want = [reference.forward(*problem.values()) for problem in problems]
    stacked = [torch.stack([getattr(problem, name) for problem in problems]) for name in ("input", *VECTORS)]
    output, _, _ = vmap(lambda *t: ops.batchnorm_forward(*t, training, 0.1, EPS))(*stacked)
    for got, mean, var, result in zip(output, *stacked[3:], want, strict=True):
        assert dims_by_stride(got) == dims_by_stride(problems[0].input)
        assert_within(got, result.output, TOLERANCES[dtype].forward, "output")
        assert_within(mean, result.running_mean, TOLERANCES[dtype].statistics, "running_mean")
        assert_within(var, result.running_var, TOLERANCES[dtype].statistics, "running_var")


@pytest.mark.parametrize("mask", [(True, True, True), (True, False, False), (False, False, True)], ids=str)
@pytest.mark.parametrize("dims", subsets((None, 0), (None, -1), (None, 0), (None, 0), (None, 1)), ids=str)
def test_backward(device: str, training: bool, dims: tuple[int | None, ...], mask: tuple[bool, ...]) -> None:
    args = (
        *(batch_of(SHAPE, dim, device) for dim in dims[:2]),
        *(batch_of((2,), dim, device) for dim in dims[2:4]),
        batch_of((2,), dims[4], device, positive=True),
    )
    call = lambda dy, x, g, m, r: tuple(leaves(ops.batchnorm_backward(dy, x, g, m, r, training, mask)))  # noqa: E731
    assert_like_a_loop(call, dims, args)
    if dims[2] is None:
        without_gamma = lambda dy, x, m, r: call(dy, x, None, m, r)  # noqa: E731
        assert_like_a_loop(without_gamma, dims[:2] + dims[3:], args[:2] + args[3:])


PHASES: dict[str, tuple[Call, str]] = {  # the kinds of the arguments, see argument()
    "stats": (ops.batchnorm_stats, "i"),
    "gather_stats": (lambda *t: ops.batchnorm_gather_stats(*t, None, None, None, EPS), "rrc"),
    "gather_stats_running": (lambda *t: ops.batchnorm_gather_stats(*t, 0.1, EPS), "rrcww"),
    "gather_stats_cumulative": (lambda *t: ops.batchnorm_gather_stats(*t[:5], None, EPS, t[5]), "rrcwwn"),
    "apply": (ops.batchnorm_apply, "ivvvv"),
    "apply_without_parameters": (lambda x, *t: ops.batchnorm_apply(x, None, None, *t), "ivv"),
    "backward_reduce": (ops.batchnorm_backward_reduce, "iivv"),
    "backward_apply": (ops.batchnorm_backward_apply, "iivvvvvm"),
}


def argument(kind: str, dim: int | None, device: str) -> Tensor:
    """i image, v vector, w vector that is written, r statistics of parts, c and m counts, n number of batches."""
    shape = {"i": SHAPE, "v": (2,), "w": (2,), "r": (3, 2), "c": (3,), "m": (1,), "n": ()}[kind]
    values = batch_of(shape, dim, device, positive=True)
    return (10.0 * values).long() if kind in "cmn" else values


@pytest.mark.parametrize("case", PHASES)
@pytest.mark.parametrize("at", [0, -1])
def test_phases(device: str, case: str, at: int) -> None:
    """All arguments batched, or one of them (and those that are written)."""
    call, kinds = PHASES[case]
    written = {i for i, kind in enumerate(kinds) if kind in "wn"}
    for batched in ({*range(len(kinds))}, *({i} | written for i in range(len(kinds)))):
        dims = tuple(at if i in batched else None for i in range(len(kinds)))
        assert_like_a_loop(call, dims, tuple(argument(*pair, device) for pair in zip(kinds, dims, strict=True)))


@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 2, 0), (4, 0, 3)], ids=str)
def test_empty_input(device: str, training: bool, shape: tuple[int, ...]) -> None:
    """No values: the running statistics and the counters stay."""
    channels = shape[1]
    args = (
        batch_of(shape, 0, device),
        *(batch_of((channels,), 0, device, positive=True) for _ in range(2)),
        torch.arange(BATCH, device=device),
    )
    call = lambda x, mean, var, n: ops.batchnorm_forward(x, None, None, mean, var, training, 0.1, EPS, n)  # noqa: E731
    assert_like_a_loop(call, (0, 0, 0, 0), args)


def test_nested_vmap(device: str, training: bool) -> None:
    """Two batch dimensions, in different places; statistics and counters for both."""
    x = torch.randn(2, 3, *SHAPE, dtype=DOUBLE, device=device)
    mean = torch.randn(2, 3, 2, dtype=DOUBLE, device=device).transpose(0, 1)
    var = 0.5 + torch.rand(2, 2, 3, dtype=DOUBLE, device=device)
    count = torch.arange(6, device=device).view(2, 3)
    before = [t.clone() for t in (mean, var, count)]

    def forward(x: Tensor, mean: Tensor, var: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return ops.batchnorm_forward(x, None, None, mean, var, training, 0.1, EPS, count)

    output, saved_mean, _ = vmap(vmap(forward, in_dims=(0, 0, 1, 0)), in_dims=(0, 1, 0, 0))(x, mean, var, count)
    for i, j in product(range(2), range(3)):
        given = [before[0][j, i], before[1][i, :, j], before[2][i, j]]
        want = reference.forward(x[i, j], None, None, *given[:2], training, 0.1, EPS, given[2])
        assert_within(output[i, j], want.output, TOLERANCES[DOUBLE].forward, "output")
        assert_within(saved_mean[i, j], want.mean, TOLERANCES[DOUBLE].statistics, "mean")
        assert_within(mean[j, i], want.running_mean, TOLERANCES[DOUBLE].statistics, "running_mean")
        assert_within(var[i, :, j], want.running_var, TOLERANCES[DOUBLE].statistics, "running_var")
        assert int(count[i, j]) == int(given[2]) + training


def test_out_dims_and_chunks(device: str) -> None:
    x = torch.randn(7, *SHAPE, dtype=DOUBLE, device=device)
    call = lambda x: ops.batchnorm_forward(x, None, None, None, None, True, 0.1, EPS)  # noqa: E731
    want = [torch.stack(results) for results in zip(*map(call, x), strict=True)]
    got = vmap(call, out_dims=(-1, 1, 0), chunk_size=3)(x)
    torch.testing.assert_close([got[0].movedim(-1, 0), got[1].T, got[2]], want)


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_shared_running_statistics_in_training(device: str, name: str) -> None:
    """Every sample would write to them. The message says so, and what to do; nothing is written."""
    args = arguments(activations(SHAPE, DOUBLE, device), training=True).only((name,))
    before = getattr(args, name).clone()
    x = torch.randn(BATCH, *SHAPE, dtype=DOUBLE, device=device)
    with pytest.raises(RuntimeError, match=f"^batchnorm_forward: expected {name} to be batched .*stack_module_state"):
        vmap(lambda x: ops.batchnorm_forward(x, *args.values()[1:]))(x)
    assert torch.equal(getattr(args, name), before)


def test_replacing_the_modules_is_a_way_out(device: str) -> None:
    """As the message says."""
    model = torch.func.replace_all_batch_norm_modules_(nn.Sequential(my_ops.BatchNorm1d(2)).to(device, DOUBLE))
    x = torch.randn(BATCH, *SHAPE, dtype=DOUBLE, device=device)
    got = vmap(lambda x: functional_call(model, dict(model.named_parameters()), (x,)))(x)
    for sample, output in zip(x, got, strict=True):
        want = reference.forward(sample, None, None, None, None, True, None, model[0].eps)
        assert_within(output, want.output, TOLERANCES[DOUBLE].forward, "output")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: (x, x.new_ones(5), None, None, None, True), RuntimeError, "gamma of shape [2], got [5]"),
        (lambda x: (x, None, None, None, None, False), RuntimeError, "running_mean when training is False, got None"),
        (lambda x: (x[0, 0], None, None, None, None, True), RuntimeError, "rank 2 or more, got shape [3]"),
        (lambda x: (x[:1, :, 0], None, None, None, None, True), ValueError, "when training, got input of shape [1, 2]"),
    ],
)
def test_errors_speak_of_one_sample(device: str, call: Call, error: type[Exception], message: str) -> None:
    x = torch.randn(BATCH, *SHAPE, device=device)
    with pytest.raises(error) as raised:
        vmap(lambda x: ops.batchnorm_forward(*call(x), 0.1, EPS))(x)
    assert str(raised.value).startswith("batchnorm_forward: expected ")
    assert message in str(raised.value)


# --- vmap and derivatives --------------------------------------------------------------------------------------------


def losses(args: Arguments) -> tuple[Call, Call]:
    """Of one sample, as functions of (input, gamma, beta): with the operator, and with the definition."""
    running = (None, None) if args.training else (args.running_mean, args.running_var)
    return (
        lambda *p: ops.batchnorm_forward(*p, *running, args.training, 0.1, EPS)[0].pow(3).sum(),
        lambda *p: reference.differentiable(*p, *running, args.training, EPS).pow(3).sum(),
    )


DERIVATIVES: dict[str, Call] = {  # of a loss, at a batch of inputs, with shared gamma and beta
    "vmap of grad": lambda f, x, *p: vmap(grad(f, argnums=(0, 1, 2)), in_dims=(0, None, None))(x, *p),
    "grad of vmap": lambda f, *p: grad(lambda *q: vmap(f, (0, None, None))(*q).sum(), argnums=(0, 1, 2))(*p),
    "vmap of jvp": lambda f, x, *p: vmap(lambda x: jvp(lambda x: f(x, *p), (x,), (x.cos(),))[1])(x),
    "jvp of vmap": lambda f, x, *p: jvp(lambda x: vmap(lambda x: f(x, *p))(x), (x,), (x.cos(),)),
    "vmap of vjp": lambda f, x, *p: vmap(lambda x: vjp(lambda x: f(x, *p), x)[1](x.sum()))(x),
    "vmap of hessian": lambda f, x, *p: vmap(hessian(f, argnums=(0, 1)), in_dims=(0, None, None))(x, *p),
    "vmap of jacfwd of jacfwd": lambda f, x, *p: vmap(jacfwd(jacfwd(f)), in_dims=(0, None, None))(x, *p),
    "hessian of vmap": lambda f, x, *p: hessian(lambda g: vmap(f, (0, None, None))(x, g, p[1]).sum())(p[0]),
    "jacrev in chunks": lambda f, x, *p: jacrev(jacrev(lambda x: f(x, *p), chunk_size=5), chunk_size=7)(x[0]),
    "grad of vmap of grad": lambda f, x, *p: grad(
        lambda *q: vmap(lambda x: grad(f, argnums=1)(x, *q))(x).square().sum(), argnums=(0, 1)
    )(*p),
}


@pytest.mark.parametrize("case", DERIVATIVES)
def test_derivatives(device: str, training: bool, case: str) -> None:
    args = arguments(activations(SHAPE, DOUBLE, device), training)
    x = torch.randn(BATCH, *SHAPE, dtype=DOUBLE, device=device)
    got, want = (DERIVATIVES[case](loss, x, args.gamma, args.beta) for loss in losses(args))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_batched_gradients(device: str, training: bool) -> None:
    """Rows of the Jacobian in one backward pass: is_grads_batched, and torch.autograd.functional in every mode."""
    args = arguments(activations(SHAPE, DOUBLE, device), training)
    running = (None, None) if training else (args.running_mean, args.running_var)

    def ours(x: Tensor) -> Tensor:
        return ops.batchnorm_forward(x, args.gamma, args.beta, *running, training, 0.1, EPS)[0]

    want = torch.autograd.functional.jacobian(
        lambda x: reference.differentiable(x, args.gamma, args.beta, *running, training, EPS), args.input
    )
    x = args.input.clone().requires_grad_()
    rows = torch.eye(x.numel(), dtype=DOUBLE, device=device).view(-1, *SHAPE)
    (batched,) = torch.autograd.grad(ours(x), x, rows, is_grads_batched=True)
    jacobian = torch.autograd.functional.jacobian
    for got in (
        batched.view(want.shape),
        jacobian(ours, args.input),
        jacobian(ours, args.input, vectorize=True),
        jacobian(ours, args.input, vectorize=True, strategy="forward-mode"),
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["hvp", "vhp", "hessian", "jvp", "vjp"])
def test_autograd_functional(device: str, training: bool, name: str) -> None:
    args = arguments(activations(SHAPE, DOUBLE, device), training)
    point = (args.input, args.gamma, args.beta)
    vectors = {"hvp": point, "vhp": point, "jvp": point, "vjp": torch.tensor(2.0, dtype=DOUBLE, device=device)}
    function = getattr(torch.autograd.functional, name)
    extra = (vectors[name],) if name in vectors else ()
    got, want = (function(loss, point, *extra) for loss in losses(args))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


# --- Modules ---------------------------------------------------------------------------------------------------------


def network(device: str) -> nn.Module:
    model = nn.Sequential(nn.Conv1d(2, 4, 2), my_ops.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    for buffer in (model[1].running_mean, model[1].running_var):
        buffer.uniform_(0.5, 1.5)
    return model.to(device, DOUBLE)


def test_per_sample_gradients_in_eval(device: str) -> None:
    """vmap over samples of the gradient, against one backward pass per sample."""
    model = network(device).eval()
    x = torch.randn(BATCH, 2, 3, dtype=DOUBLE, device=device)
    state = {name: value.detach() for name, value in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, parameters, (sample[None],)).square().sum()

    got = vmap(grad(loss), in_dims=(None, 0))(state, x)
    for b, sample in enumerate(x):
        model.zero_grad()
        model(sample[None]).square().sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(got[name][b], parameter.grad, rtol=1e-10, atol=1e-10)


def test_ensemble(device: str, training: bool) -> None:
    """Several models at once: gradients, running statistics and counters of each as if alone."""
    models = [network(device).train(training) for _ in range(BATCH)]
    alone = copy.deepcopy(models)
    parameters, buffers = stack_module_state(models)
    x = torch.randn(4, 2, 3, dtype=DOUBLE, device=device)

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return functional_call(models[0], (parameters, buffers), (x,)).square().sum()

    got = vmap(grad(loss))(parameters, buffers)
    for b, model in enumerate(alone):
        model(x).square().sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(got[name][b], parameter.grad, rtol=1e-10, atol=1e-10)
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(buffers[name][b], buffer)


def test_jvp_through_a_module(device: str, training: bool) -> None:
    """Of parameters and input together; the running statistics move as in a forward pass."""
    model = network(device).train(training)
    twin = my_ops.revert_batchnorm(copy.deepcopy(model))
    twin[1].num_batches_tracked = None  # native cannot count inside jvp
    x = torch.randn(4, 2, 3, dtype=DOUBLE, device=device)
    state = {name: value.detach() for name, value in model.named_parameters()}
    tangents = {name: torch.randn_like(value) for name, value in state.items()}
    got, want = (
        jvp(lambda s, x, m=module: functional_call(m, s, (x,)), (state, x), (tangents, x.cos()))
        for module in (model, twin)
    )
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), buffer)
    assert int(model[1].num_batches_tracked) == training


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(device: str, training: bool, use_reentrant: bool) -> None:
    """The gradients are those without it."""
    model = network(device).train(training)
    twin = copy.deepcopy(model)
    x = torch.randn(4, 2, 3, dtype=DOUBLE, device=device, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    checkpoint(model, x, use_reentrant=use_reentrant).square().sum().backward()
    twin(y).square().sum().backward()
    got, want = ([leaf.grad, *(p.grad for p in m.parameters())] for leaf, m in ((x, model), (y, twin)))
    torch.testing.assert_close(got, want)


def test_checkpoint_and_double_backward(device: str, training: bool) -> None:
    args = arguments(activations(SHAPE, DOUBLE, device), training)
    point = tuple(t.requires_grad_() for t in (args.input, args.gamma, args.beta))
    seconds = []
    for loss in losses(args):
        value = checkpoint(loss, *point, use_reentrant=False) if not seconds else loss(*point)
        grads = torch.autograd.grad(value, point, create_graph=True)
        seconds.append(torch.autograd.grad(sum(g.square().sum() for g in grads), point))
    torch.testing.assert_close(*seconds, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("transform", ["vmap", "jvp", "grad", "hessian"])
def test_compiled_transforms(device: str, training: bool, transform: str) -> None:
    """One graph with the transform inside."""
    args = arguments(activations(SHAPE, DOUBLE, device), training)
    loss, definition = losses(args)
    x = torch.randn(BATCH, *SHAPE, dtype=DOUBLE, device=device)
    cases: dict[str, Call] = {
        "vmap": lambda f: vmap(f, in_dims=(0, None, None))(x, args.gamma, args.beta),
        "jvp": lambda f: jvp(lambda x: f(x, args.gamma, args.beta), (x[0],), (x[1],)),
        "grad": lambda f: grad(f)(x[0], args.gamma, args.beta),
        "hessian": lambda f: hessian(f)(x[0], args.gamma, args.beta),
    }
    torch._dynamo.reset()
    got = torch.compile(lambda: cases[transform](loss), fullgraph=True, backend="aot_eager")()
    torch.testing.assert_close(got, cases[transform](definition), rtol=1e-10, atol=1e-10)
