"""Instance norm against batch norm of shape (1, N*C, S) in float64, against torch, and against a derivation by hand."""

from __future__ import annotations

import copy
from itertools import product

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import my_ops
import reference
from checks import EPS, activations, arguments, bit_equal, ops, unchanged
from layouts import LAYOUTS, SHAPES, arrange, assert_layout
from reference import Result
from sizes import AMBIGUOUS, PROPORTIONS, around_vectors
from tolerances import TOLERANCES, accumulation_dtype, assert_within

instance_norm = my_ops.functional.instance_norm

RANKED_LAYOUTS = [(rank, layout) for layout, ranks in LAYOUTS.items() for rank in ranks if rank > 2]
SIZES = [
    (shape, layout)
    for shape, layout in PROPORTIONS + around_vectors(17) + around_vectors(65) + around_vectors(257)
    if len(shape) > 2 and torch.Size(shape[2:]).numel() > 1
]
MODULES = {
    1: (my_ops.InstanceNorm1d, nn.InstanceNorm1d, (3, 4, 9)),
    2: (my_ops.InstanceNorm2d, nn.InstanceNorm2d, (3, 4, 5, 6)),
    3: (my_ops.InstanceNorm3d, nn.InstanceNorm3d, (3, 4, 2, 5, 3)),
}


def as_channels(image: Tensor) -> Tensor:
    """[N, C, ...] as [1, N*C, S]."""
    return image.reshape(1, image.shape[0] * image.shape[1], -1)


def repeated(vector: Tensor | None, images: int) -> Tensor | None:
    return None if vector is None else vector.repeat(images)


def over_images(result: Result, like: Tensor) -> Result:
    """[N*C] as [N, C], summed over N."""
    return Result(*(tensor.reshape(like.shape[:2]).sum(0) for tensor in (result.value, result.scale)))


def reshaped(result: Result, shape: torch.Size) -> Result:
    return Result(result.value.reshape(shape), result.scale.reshape(shape))


def running_average(running: Tensor, batch: Result, like: Tensor, momentum: float) -> Result:
    """Towards the mean over N of the images' statistics."""
    total = over_images(batch, like)
    images = like.shape[0]
    average = Result(total.value / images, total.scale / images)
    moved = reference.moving_average(running, average, momentum)
    assert moved is not None
    return moved


def check(
    input: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    momentum: float = 0.3,
) -> None:
    """Forward and backward, held against the reference in all that they return and write."""
    dtype, images = input.dtype, input.shape[0]
    tolerance, flat = TOLERANCES[dtype], as_channels(input)
    want = reference.forward(flat, repeated(gamma, images), repeated(beta, images), None, None, True, None, EPS)
    batch = reference.statistics(flat)
    before = [None if tensor is None else tensor.clone() for tensor in (running_mean, running_var)]
    with unchanged(input, gamma, beta):
        output, mean, invstd = ops.instancenorm_forward(input, gamma, beta, running_mean, running_var, momentum, EPS)
    assert_layout(output, input, "output")
    assert output.dtype == dtype
    assert mean.dtype == invstd.dtype == accumulation_dtype(dtype)
    assert_within(output, reshaped(want.output, input.shape), tolerance.forward, "output")
    assert_within(mean, reshaped(want.mean, input.shape[:2]), tolerance.statistics, "mean")
    assert_within(invstd, reshaped(want.invstd, input.shape[:2]), tolerance.statistics, "invstd")
    values = flat.shape[2] - 1
    unbiased = Result(batch.m2.value / values, batch.m2.scale / values)
    for got, old, part in ((running_mean, before[0], batch.mean), (running_var, before[1], unbiased)):
        if got is not None and old is not None:
            assert_within(got, running_average(old, part, input, momentum), tolerance.statistics, "running statistic")

    grad_output = arrange_like(torch.randn_like(input, dtype=torch.float64).to(dtype), input)
    saved = (mean.reshape(-1), invstd.reshape(-1))
    sums = reference.backward(as_channels(grad_output), flat, repeated(gamma, images), *saved, True)
    with unchanged(grad_output, input, gamma, mean, invstd):
        dx, dgamma, dbeta = ops.instancenorm_backward(grad_output, input, gamma, mean, invstd)
    assert_layout(dx, input, "grad_input")
    assert dx.dtype == dtype
    assert dgamma.dtype == dbeta.dtype == (accumulation_dtype(dtype) if gamma is None else gamma.dtype)
    assert_within(dx, reshaped(sums.grad_input, input.shape), tolerance.backward, "grad_input")
    assert_within(dgamma, over_images(sums.grad_gamma, input), tolerance.backward, "grad_gamma")
    assert_within(dbeta, over_images(sums.grad_beta, input), tolerance.backward, "grad_beta")


def arrange_like(values: Tensor, like: Tensor) -> Tensor:
    return torch.empty_like(like).copy_(values)


def image(layout: str = "contiguous", shape: tuple[int, ...] = (3, 4, 5, 2)) -> Tensor:
    """In float64, for derivatives."""
    return arrange(activations(shape, torch.float64, "cpu"), layout).requires_grad_()


def vectors(count: int, channels: int = 4) -> list[Tensor]:
    return [torch.randn(channels, dtype=torch.float64, requires_grad=True) for _ in range(count)]


@pytest.mark.parametrize(("rank", "layout"), RANKED_LAYOUTS)
def test_every_layout_and_dtype(device: str, rank: int, layout: str, dtype: torch.dtype) -> None:
    args = arguments(arrange(activations(SHAPES[rank], dtype, device), layout), training=True)
    check(args.input, args.gamma, args.beta, args.running_mean, args.running_var)


@pytest.mark.parametrize(("shape", "layout"), SIZES)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_every_size(device: str, shape: tuple[int, ...], layout: str, kind: torch.dtype) -> None:
    args = arguments(arrange(activations(shape, kind, device), layout), training=True)
    check(args.input, args.gamma, args.beta)


@pytest.mark.parametrize(("shape", "strides"), [case for case in AMBIGUOUS if torch.Size(case[0][2:]).numel() > 1])
def test_ambiguous_strides(device: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    memory = activations((1, 2000), torch.float32, device).flatten()
    args = arguments(memory.as_strided(shape, strides), training=True)
    check(args.input, args.gamma, args.beta)


@pytest.mark.parametrize("given", list(product([True, False], repeat=4)))
def test_every_vector_is_optional(device: str, given: tuple[bool, ...]) -> None:
    input = activations((4, 6, 5, 7), torch.float32, device)
    args = arguments(input, training=True)
    vectors = (args.gamma, args.beta, args.running_mean, args.running_var)
    check(input, *(vector if wanted else None for vector, wanted in zip(vectors, given, strict=True)))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_parameters_in_float32_beside_half_input(device: str, layout: str) -> None:
    input = arrange(activations((4, 6, 5, 7), torch.bfloat16, device), layout)
    args = arguments(input, training=True, dtypes=(torch.float32, torch.bfloat16, torch.float32, torch.bfloat16))
    check(input, args.gamma, args.beta, args.running_mean, args.running_var)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_large_mean_costs_no_digits(device: str, layout: str) -> None:
    input = arrange(activations((3, 5, 40, 41), torch.float32, device) + 1e4, layout)
    check(input, None, None)


def numpy_backward(dy: numpy.ndarray, x: numpy.ndarray, gamma: numpy.ndarray, eps: float) -> tuple[numpy.ndarray, ...]:
    """Instance norm's gradients by the chain rule, one path from y to x after the other."""
    axes = tuple(range(2, x.ndim))
    values = x[0, 0].size
    centered = x - x.mean(axes, keepdims=True)
    var = (centered**2).mean(axes, keepdims=True)
    invstd = 1 / numpy.sqrt(var + eps)
    dxhat = dy * gamma.reshape(1, -1, *[1] * len(axes))
    # third: x -> xhat, with mean and variance held fixed
    third = dxhat * invstd
    # second: x -> var -> xhat
    dvar = (dxhat * centered * -0.5 * invstd**3).sum(axes, keepdims=True)
    second = dvar * 2 * centered / values
    # first: x -> mean -> xhat and, though it adds up to zero, mean -> var
    dmean = (-dxhat * invstd).sum(axes, keepdims=True) + dvar * (-2 * centered).sum(axes, keepdims=True) / values
    first = dmean / values
    over = (0, *axes)
    return third + second + first, (dy * centered * invstd).sum(over), dy.sum(over)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients_are_those_of_the_derivation_by_hand(layout: str) -> None:
    x, dy = image(layout), image(layout).detach()
    gamma, beta = vectors(2)
    got = torch.autograd.grad(instance_norm(x, None, None, gamma, beta, eps=EPS), (x, gamma, beta), dy)
    want = numpy_backward(dy.numpy(), x.detach().numpy(), gamma.detach().numpy(), EPS)
    for ours, by_hand in zip(got, want, strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(by_hand), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "spatial_swapped"])
@pytest.mark.parametrize("use_input_stats", [True, False])
def test_results_and_state_are_those_of_torch(device: str, layout: str, use_input_stats: bool) -> None:
    x = image(layout).detach().to(device).requires_grad_()
    gamma, beta = (vector.detach().to(device).requires_grad_() for vector in vectors(2))
    running = [torch.rand(4, dtype=torch.float64, device=device) for _ in range(2)]
    results = []
    for function in (instance_norm, F.instance_norm):
        state = [tensor.clone() for tensor in running]
        y = function(x, *state, gamma, beta, use_input_stats, 0.3, 1e-4)
        results.append((y, *torch.autograd.grad(y.sin().sum(), (x, gamma, beta)), *state))
    for ours, native in zip(*results, strict=True):
        torch.testing.assert_close(ours, native, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("outputs", [[0], [1, 2], [0, 1, 2]])
def test_derivatives_of_the_forward_operator(layout: str, outputs: list[int]) -> None:
    def call(x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
        results = ops.instancenorm_forward(x, gamma, beta, None, None, 0.1, EPS)
        return tuple(results[i] for i in outputs)

    inputs = (image(layout, (2, 3, 2, 2)), *vectors(2, 3))
    torch.autograd.gradcheck(call, inputs, check_forward_ad=True, check_batched_grad=True)
    torch.autograd.gradgradcheck(call, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("outputs", [[0], [1, 2], [0, 1, 2]])
def test_derivatives_of_the_backward_operator(outputs: list[int]) -> None:
    """In every argument: the statistics are arguments like any other."""

    def call(*args: Tensor) -> tuple[Tensor, ...]:
        mask = [i in outputs for i in range(3)]
        return tuple(result for result in ops.instancenorm_backward(*args, mask) if result is not None)

    statistics = [torch.rand(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    inputs = (image("channels_last", (2, 3, 2, 2)), image("contiguous", (2, 3, 2, 2)), *vectors(1, 3), *statistics)
    torch.autograd.gradcheck(call, inputs, check_forward_ad=True)
    torch.autograd.gradgradcheck(call, inputs, check_fwd_over_rev=True)


def test_nested_forward_mode_is_reverse_mode() -> None:
    x, t, gamma = image().detach(), image().detach(), vectors(1)[0].detach()

    def loss(x: Tensor) -> Tensor:
        return instance_norm(x, None, None, gamma).sin().sum()

    def slope(x: Tensor) -> Tensor:
        return torch.func.jvp(loss, (x,), (t,))[1]

    by_forward = torch.func.jvp(slope, (x,), (t,))[1]
    by_reverse = (torch.func.grad(lambda x: (torch.func.grad(loss)(x) * t).sum())(x) * t).sum()
    torch.testing.assert_close(by_forward, by_reverse)


@pytest.mark.parametrize("batched", [{0}, {1}, {0, 1, 2}, {0, 3, 4}])
def test_vmap(batched: set[int]) -> None:
    """Arguments: input, gamma, beta and both running statistics, which are given if they are batched."""
    shapes = ((3, 4, 5, 2), (4,), (4,), (4,), (4,))
    args = [torch.rand(6 if i in batched else 1, *shape, dtype=torch.float64) for i, shape in enumerate(shapes)]
    stateful = 3 in batched

    def call(x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        state = (mean, var) if stateful else (None, None)
        return instance_norm(x, *state, gamma, beta)

    dims = tuple(0 if i in batched else None for i in range(5))
    mapped = [arg.clone() if i in batched else arg[0] for i, arg in enumerate(args)]
    one_by_one = [arg.clone().expand(6, *arg.shape[1:]) for arg in args]
    got = torch.func.vmap(call, in_dims=dims)(*mapped)
    want = torch.stack([call(*(arg[b] for arg in one_by_one)) for b in range(6)])
    torch.testing.assert_close(got, want)
    for state, expected in zip(mapped[3:], one_by_one[3:], strict=True):
        if stateful:
            torch.testing.assert_close(state, expected)


def test_vmap_refuses_shared_running_statistics() -> None:
    x, mean, var = torch.rand(6, 3, 4, 5), torch.zeros(4), torch.ones(4)
    with pytest.raises(RuntimeError, match="instancenorm_forward: expected running_mean to be batched under vmap"):
        torch.func.vmap(lambda x: instance_norm(x, mean, var))(x)


def test_gradients_per_sample_of_a_shared_gamma() -> None:
    x, gamma, beta = torch.rand(6, 3, 4, 5, dtype=torch.float64), *vectors(2)

    def loss(gamma: Tensor, beta: Tensor, x: Tensor) -> Tensor:
        return instance_norm(x, None, None, gamma, beta).cos().sum()

    got = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(None, None, 0))(gamma, beta, x)
    want = [torch.func.grad(loss, argnums=(0, 1))(gamma, beta, sample) for sample in x]
    for ours, samples in zip(got, zip(*want, strict=True), strict=True):
        torch.testing.assert_close(ours, torch.stack(samples))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_same_bits_for_any_number_of_threads(layout: str, restore_threads: None) -> None:
    input = arrange(activations((5, 70, 31, 33), torch.float32, "cpu"), layout)
    args = arguments(input, training=True)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        state = [args.running_mean.clone(), args.running_var.clone()]
        y, mean, invstd = ops.instancenorm_forward(input, args.gamma, args.beta, *state, 0.1, EPS)
        gradients = ops.instancenorm_backward(y.sin(), input, args.gamma, mean, invstd)
        results.append((y, mean, invstd, *state, *gradients))
    for others in results[1:]:
        assert all(bit_equal(a, b) for a, b in zip(results[0], others, strict=True))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_memory_is_that_of_the_results(layout: str) -> None:
    """No copy of the input in either layout, no repeated gamma and beta."""
    input = arrange(torch.randn(8, 4, 16, 16), layout)
    gamma, beta = torch.ones(4), torch.zeros(4)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        output, mean, invstd = ops.instancenorm_forward(input, gamma, beta, None, None, 0.1, EPS)
        results = ops.instancenorm_backward(output, input, gamma, mean, invstd)
    allocated = sum(max(event.cpu_memory_usage, 0) for event in recorded.events() if event.cpu_parent is None)
    wanted = sum(tensor.nbytes for tensor in (output, mean, invstd, *results))
    assert wanted <= allocated < wanted + input.nbytes / 8


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0), (0, 3, 4, 5), (2, 0, 4)])
def test_no_values(device: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, device=device, requires_grad=True)
    gamma, beta = (torch.ones(shape[1], device=device, requires_grad=True) for _ in range(2))
    state = [torch.full((shape[1],), value, device=device) for value in (2.0, 3.0)]
    with unchanged(*state):
        y, mean, invstd = ops.instancenorm_forward(x, gamma, beta, *state, 0.1, 0.25)
    y.sum().backward()
    assert y.shape == x.shape
    assert bool((mean == 0).all()) and bool((invstd == 2).all())
    for tensor in (x, gamma, beta):
        assert tensor.grad is not None and not tensor.grad.any()


@pytest.mark.parametrize("dimensions", MODULES)
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize(("affine", "tracks"), list(product([True, False], repeat=2)))
def test_modules_are_drop_ins(dimensions: int, batched: bool, affine: bool, tracks: bool, training: bool) -> None:
    ours, torchs, shape = MODULES[dimensions]
    settings = {"eps": 1e-4, "momentum": 0.2, "affine": affine, "track_running_stats": tracks, "dtype": torch.float64}
    native = torchs(4, **settings).train(training)
    for tensor in (*native.parameters(), *(b for b in native.buffers() if b.is_floating_point())):
        nn.init.uniform_(tensor, 0.5, 1.5)
    module = ours(4, **settings).train(training)
    assert isinstance(module, torchs)
    module.load_state_dict(native.state_dict())
    x = torch.randn(shape if batched else shape[1:], dtype=torch.float64)
    for _ in range(2):
        torch.testing.assert_close(module(x), native(x))
    assert module.state_dict().keys() == native.state_dict().keys()
    for name, tensor in native.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], tensor)


@pytest.mark.parametrize("dimensions", MODULES)
def test_lazy_modules(dimensions: int) -> None:
    ours, torchs, shape = MODULES[dimensions]
    lazy = getattr(my_ops, f"LazyInstanceNorm{dimensions}d")(affine=True, track_running_stats=True)
    native = torchs(shape[1], affine=True, track_running_stats=True)
    x = torch.randn(shape)
    torch.testing.assert_close(lazy(x), native(x))
    assert type(lazy) is ours
    assert lazy.num_features == shape[1]
    torch.testing.assert_close(lazy.state_dict(), native.state_dict())


def test_module_without_momentum_keeps_its_statistics() -> None:
    module = my_ops.InstanceNorm1d(4, momentum=None, track_running_stats=True)
    with unchanged(module.running_mean, module.running_var):
        module(torch.randn(3, 4, 9))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiled_module(layout: str) -> None:
    module = my_ops.InstanceNorm2d(4, affine=True, track_running_stats=True)
    other = copy.deepcopy(module)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    x = arrange(activations((3, 4, 5, 6), torch.float32, "cpu"), layout)
    for _ in range(2):
        results = []
        for each in (module, compiled):
            leaf = x.clone().requires_grad_()
            y = each(leaf)
            y.sin().sum().backward()
            results.append((y, leaf.grad))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
            assert ours.stride() == theirs.stride()
    for (name, buffer), compiled_buffer in zip(module.named_buffers(), other.buffers(), strict=True):
        assert bit_equal(buffer, compiled_buffer), name


def test_exported_module_with_any_batch() -> None:
    module = my_ops.InstanceNorm2d(4, affine=True)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(module, (torch.randn(3, 4, 5, 6),), dynamic_shapes=({0: batch},))
    x = torch.randn(7, 4, 5, 6)
    torch.testing.assert_close(program.module()(x), module(x), rtol=0, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_opcheck(layout: str) -> None:
    args = arguments(arrange(activations((4, 3, 5, 2), torch.float32, "cpu"), layout).requires_grad_(), training=True)
    vectors = [vector.requires_grad_() for vector in (args.gamma, args.beta)]
    state = (args.running_mean, args.running_var)
    torch.library.opcheck(ops.instancenorm_forward.default, (args.input, *vectors, *state, 0.1, EPS))
    torch.library.opcheck(ops.instancenorm_forward.default, (args.input, None, None, None, None, 0.1, EPS))
    statistics = [torch.rand(4, 3, requires_grad=True) for _ in range(2)]
    gradient = torch.randn_like(args.input, requires_grad=True)
    torch.library.opcheck(ops.instancenorm_backward.default, (gradient, args.input, vectors[0], *statistics))
    masked = (gradient, args.input, None, *statistics, [True, False, True])
    torch.library.opcheck(ops.instancenorm_backward.default, masked)


X, CHANNELS = torch.randn(2, 3, 4), torch.ones(3)
FORWARD_ERRORS = {
    "expected input of rank 3 or more, got shape [2, 3]": lambda: instance_norm(torch.randn(2, 3)),
    "expected input of dtype float64, float32, bfloat16 or float16, got int64": lambda: instance_norm(X.long()),
    "expected gamma of shape [3], got [2]": lambda: instance_norm(X, weight=torch.ones(2)),
    "expected beta of dtype float32, got float64": lambda: instance_norm(X, bias=CHANNELS.double()),
    "expected running_var of shape [3], got [3, 1]": lambda: instance_norm(X, CHANNELS, torch.ones(3, 1)),
    "expected running_mean to have memory of its own, but it overlaps gamma": lambda: instance_norm(
        X, CHANNELS, None, CHANNELS
    ),
    "expected running_mean not to require grad": lambda: instance_norm(X, torch.ones(3, requires_grad=True)),
}
VALUE_ERRORS = {
    "expected more than 1 spatial value, got input of shape [2, 3, 1]": lambda: instance_norm(torch.randn(2, 3, 1)),
    "expected eps >= 0, got -0.1": lambda: instance_norm(X, eps=-0.1),
}
BACKWARD_ERRORS = {
    "expected grad_output of shape [2, 3, 4], got [2, 3, 5]": (torch.randn(2, 3, 5), X, None, *[torch.ones(2, 3)] * 2),
    "expected save_mean of shape [2, 3], got [3]": (X, X, None, CHANNELS, torch.ones(2, 3)),
    "expected save_invstd of dtype float32, got float64": (X, X, None, torch.ones(2, 3), torch.ones(2, 3).double()),
}


def message(error: pytest.ExceptionInfo[Exception]) -> str:
    return str(error.value).splitlines()[0]


@pytest.mark.parametrize("expected", FORWARD_ERRORS)
def test_wrong_argument(expected: str) -> None:
    with pytest.raises(RuntimeError) as error:
        FORWARD_ERRORS[expected]()
    assert message(error) == f"instancenorm_forward: {expected}"


@pytest.mark.parametrize("expected", VALUE_ERRORS)
def test_wrong_value(expected: str) -> None:
    with pytest.raises(ValueError) as error:
        VALUE_ERRORS[expected]()
    assert message(error) == f"instancenorm_forward: {expected}"


@pytest.mark.parametrize("expected", BACKWARD_ERRORS)
def test_wrong_argument_of_backward(expected: str) -> None:
    with pytest.raises(RuntimeError) as error:
        ops.instancenorm_backward(*BACKWARD_ERRORS[expected])
    assert message(error) == f"instancenorm_backward: {expected}"
