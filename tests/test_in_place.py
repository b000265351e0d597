"""In-place batch normalization with an activation: same results with less memory, or an error."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import my_ops
import reference
from activations import SLOPES, activation, derivative, preactivation
from checks import EPS, Arguments, activations, arguments, bit_equal, ops
from layouts import arrange
from profiling.measure import memory
from reference import Result, upcast
from sizes import EMPTY
from tolerances import TOLERANCES, assert_within, unit_roundoff

INVERTIBLE = ("identity", "leaky_relu", "elu")
ALLOWED = {torch.float64: 2**-32, torch.float32: 2**-12, torch.bfloat16: 2**-5, torch.float16: 2**-5}


def run(args: Arguments, name: str, dy: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    """Output, gradients of input, gamma and beta, and the channels that were kept."""
    leaf = args.input.detach().requires_grad_()
    vectors = [v.detach().requires_grad_() for v in (args.gamma, args.beta)]
    image = leaf.mul(1)
    buffer = image.data_ptr()
    _, _, kept, kept_input = ops.batchnorm_act_forward_(
        image, *vectors, *args.values()[3:8], name, SLOPES[name], args.num_batches_tracked
    )
    assert image.data_ptr() == buffer
    assert kept_input.shape == (args.input.shape[0], len(kept), *args.input.shape[2:])
    return image.detach(), list(torch.autograd.grad(image, [leaf, *vectors], dy)), kept


def check(args: Arguments, name: str) -> Tensor:
    """Against the reference; where xhat was computed back, its documented error counts besides the roundings."""
    dtype = args.input.dtype
    exact = reference.forward(*args.values())
    z = preactivation(args, None, exact.mean, exact.invstd.value)
    dy = torch.randn(args.input.shape, device=args.input.device).to(dtype)
    dy = dy.masked_fill((z.value.abs() < 1e-4).to(dy.device), 0.0)
    output, grads, kept = run(args, name, dy)
    assert_within(output, Result(activation(name, z.value), 1.3 * z.scale), TOLERANCES[dtype].forward, "output")

    slope = derivative(name, z.value)
    xhat = reference.normalise(args.input, None, None, exact.mean, exact.invstd.value)
    dz = upcast(dy) * slope
    want = reference.backward(dz, args.input, args.gamma, exact.mean.value, exact.invstd.value, args.training)
    # dz is rounded, as leaky_relu's slope is. xhat is off by `error`, z by gamma times that, act' of elu as much and by
    # y's rounding: first order in each formula.
    error = 2 * ALLOWED[dtype] + 4 * torch.finfo(dtype).eps * (1 + xhat.value.abs())
    gamma = reference.per_channel(upcast(args.gamma).abs(), error)
    dz_error = 2 * dz.abs() * unit_roundoff(dtype)
    if name == "elu":
        dz_error = dz_error + upcast(dy).abs() * (error * gamma + unit_roundoff(dtype) * upcast(output).abs())
    count = reference.values_per_channel(args.input)

    def mean(t: Tensor) -> Tensor:
        return reference.per_channel(reference.channel_sum(t) / count, t)

    sums_error = mean(dz_error), mean(dz_error * xhat.value.abs() + dz.abs() * error)
    scale = reference.per_channel(upcast(args.gamma).abs() * exact.invstd.value, dz)
    dx_error = dz_error
    if args.training:
        means = mean(dz * xhat.value).abs() + sums_error[1]
        dx_error = dx_error + sums_error[0] + error * means + xhat.value.abs() * sums_error[1]
    bounds = (scale * dx_error, count * _vector(sums_error[1]), count * _vector(sums_error[0]))
    for what, got, bound in zip(("grad_input", "grad_gamma", "grad_beta"), grads, bounds, strict=True):
        result = getattr(want, what)
        widened = Result(result.value, result.scale + bound / TOLERANCES[dtype].backward)
        assert_within(got, widened, TOLERANCES[dtype].backward, what)
    return kept


def _vector(mean: Tensor) -> Tensor:
    return mean.transpose(0, 1).flatten(1)[:, 0]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("name", INVERTIBLE)
def test_values_and_gradients(device: str, dtype: torch.dtype, training: bool, name: str, layout: str) -> None:
    args = arguments(arrange(activations((4, 6, 5, 7), dtype, device), layout), training)
    args.gamma[0] = -0.7
    check(args, name)


@pytest.mark.parametrize("name", ["identity", "leaky_relu"])
def test_no_channel_is_kept_without_need(device: str, dtype: torch.dtype, name: str) -> None:
    args = arguments(activations((4, 6, 17, 17), dtype, device), True)
    args.gamma.copy_(torch.tensor([1.0, -1.0, 0.5, 2.0, 1.0, 0.3]))
    args.beta.clamp_(-1, 1)
    assert check(args, name).tolist() == []


@pytest.mark.parametrize("name", INVERTIBLE)
def test_channels_that_cannot_be_inverted_are_kept(device: str, dtype: torch.dtype, training: bool, name: str) -> None:
    """gamma 0, or far smaller than beta: as right as any other channel."""
    args = arguments(activations((4, 6, 9, 5), dtype, device), training)
    args.gamma.copy_(torch.tensor([0.0, 1.0, 1e-7, -1e-30, 1.0, 2e-4]))
    args.beta.copy_(torch.tensor([0.0, 0.5, 1.0, 1.0, 0.0, 3.0]))
    kept = check(args, name)
    wanted = {0, 2, 3, 5} if dtype != torch.float64 else {0, 3}
    assert wanted <= set(kept.tolist())
    if name != "elu":
        assert not {1, 4} & set(kept.tolist())


def test_elu_that_saturates_is_kept(device: str) -> None:
    """z near -30 gives -1 exactly: nothing says how near."""
    args = arguments(torch.randn(4, 2, 30, device=device), True)
    args.gamma.copy_(torch.tensor([1.0, 12.0]))
    assert check(args, "elu").tolist() == [1]


@pytest.mark.parametrize("alpha", [1.0, 1e-2, 1e-3, 2e-4, 1e-4, 5e-5, 2e-5, 1e-5])
def test_elu_of_a_small_slope(device: str, dtype: torch.dtype, alpha: float) -> None:
    """Of negative values slope * (exp(z) - 1) is left: in channels that reach down to -0.25, -0.5 ... -25."""
    low = -torch.arange(0.25, 25.1, 0.25, dtype=torch.float64, device=device)
    z = (low[None, :, None] * torch.linspace(0, 1, 2001, dtype=torch.float64, device=device)).to(dtype)
    kind = dtype if dtype == torch.float64 else torch.float32
    vectors = [torch.full_like(low, value, dtype=kind) for value in (1.0, 0.0, 0.0, 1.0)]
    image = z.clone()
    kept = ops.batchnorm_act_apply_(image, *vectors, "elu", alpha)
    recovered = ops.batchnorm_act_recover(image, *kept, *vectors, "elu", alpha)
    error = (recovered.double() - z.double()).abs()
    bound = ALLOWED[dtype] + 4 * unit_roundoff(dtype) * z.double().abs()
    assert bool((error <= bound).all()), f"{(error / bound).amax((0, 2)).max()} of the bound"
    if dtype != torch.float16:
        assert 0 < len(kept[0]) < len(low)


def test_gamma_without_a_reciprocal_is_kept(device: str) -> None:
    """1 / gamma would be infinite, or 1 / (gamma * invstd)."""
    args = arguments(torch.randn(4, 2, 30, device=device), True)
    args.gamma.copy_(torch.tensor([1.0, 1e-39]))
    args.beta.zero_()
    assert check(args, "leaky_relu").tolist() == [1]
    args = arguments(1e12 * torch.randn(4, 2, 30, device=device), True)
    args.gamma.copy_(torch.tensor([1.0, 1e-30]))
    args.beta.zero_()
    _, grads, kept = run(args, "leaky_relu", torch.randn_like(args.input))
    assert kept.tolist() == [1]
    assert all(bool(gradient.isfinite().all()) for gradient in grads)


@pytest.mark.parametrize("wide", [torch.float32, torch.float64], ids=str)
def test_inverse_of_elu(device: str, wide: torch.dtype) -> None:
    """In eval mode with a value a channel, the gradient of gamma is dz * z: z as exact as ln(1 + y) can be."""
    y = torch.cat([-torch.logspace(-30, 0, 5000, dtype=torch.float64), 1 - torch.logspace(-6, 0, 5000).double()])
    y = torch.cat([y, y[:5000].mul(7), torch.tensor([0.0, -0.5, -0.2928932, -0.25])]).clamp(min=-1 + 2**-20)
    y = y.to(wide).to(device).view(1, -1, 1)
    channels = y.shape[1]
    zero, one = torch.zeros(channels, dtype=wide, device=device), torch.ones(channels, dtype=wide, device=device)
    none = (torch.empty(0, dtype=torch.int64, device=device), y[:, :0])
    _, dgamma, dbeta = ops.batchnorm_act_backward_from_output(
        torch.ones_like(y), y, *none, one, zero, zero, one, False, "elu", 1.0, [False, True, True]
    )
    values = y.double().flatten()
    z = torch.where(values > 0, values, values.log1p())
    assert torch.equal(dbeta, torch.where(values > 0, 1.0, (values + 1).to(wide).double()).to(wide))
    assert bool(((dgamma.double() / dbeta.double() - z).abs() <= 4 * torch.finfo(wide).eps * z.abs()).all())


def test_kept_in_any_order(device: str) -> None:
    """All channels kept, some, and in another order than the operator keeps them."""
    x, dy = (torch.randn(4, 5, 3, 2, dtype=torch.float64, device=device) for _ in range(2))
    gamma, beta = torch.rand(5, dtype=torch.float64, device=device) + 0.5, torch.randn(5, device=device).double()
    y = x.clone()
    mean, invstd, _, _ = ops.batchnorm_act_forward_(y, gamma, beta, None, None, True, 0.1, EPS, "elu", 0.7)
    want = ops.batchnorm_act_backward(
        dy, x, None, None, gamma, beta, mean, invstd, True, "elu", 0.7, [True, False, True, True]
    )
    for order in ([], [3], [4, 0, 2], [0, 1, 2, 3, 4], [2, 0, 1, 4, 3]):
        kept = torch.tensor(order, dtype=torch.int64, device=device)
        got = ops.batchnorm_act_backward_from_output(
            dy, y, kept, x.index_select(1, kept), gamma, beta, mean, invstd, True, "elu", 0.7, [True] * 3
        )
        for a, b in zip(got, (want[0], *want[2:]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", INVERTIBLE)
def test_backward_pass_of_other_devices(dtype: torch.dtype, training: bool, name: str, layout: str) -> None:
    """Where a device has none of its own: on the CPU both are there, and agree."""
    args = arguments(arrange(activations((4, 6, 5, 7), dtype, "cpu"), layout), training)
    args.gamma[0] = 0.0
    y, dy = args.input.clone(), torch.randn_like(args.input)
    act = (name, SLOPES[name])
    mean, invstd, *kept = ops.batchnorm_act_forward_(y, *args.values()[1:8], *act)
    given = (dy, y, *kept, args.gamma, args.beta, mean, invstd, training, *act, [True] * 3)
    operator = ops.batchnorm_act_backward_from_output.default
    with torch._C._AutoDispatchBelowAutograd():
        other = operator._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *given)
    rounding = torch.finfo(dtype).eps
    for got, want in zip(other, operator(*given), strict=True):
        torch.testing.assert_close(got, want, rtol=40 * rounding, atol=40 * rounding * float(want.abs().max()))


def test_backward_pass_makes_no_copies() -> None:
    """Beyond its result it takes less than an image."""
    x = torch.randn(8, 16, 32, 32)
    image = x.mul(1)
    given = ops.batchnorm_act_forward_(image, None, None, None, None, True, 0.1, EPS, "leaky_relu", 0.1)

    def backward() -> object:
        return ops.batchnorm_act_backward_from_output(
            x, image, *given[2:], None, None, *given[:2], True, "leaky_relu", 0.1, [True] * 3
        )

    assert x.nbytes <= memory.of(backward, torch.device("cpu")).peak < 1.5 * x.nbytes


def test_kept_channels_hold_the_input(device: str) -> None:
    x = torch.randn(4, 3, 5, device=device)
    gamma = torch.tensor([1.0, 0.0, 1.0], device=device)
    image = x.clone()
    _, _, kept, kept_input = ops.batchnorm_act_forward_(
        image, gamma, None, None, None, True, 0.1, EPS, "leaky_relu", 0.01
    )
    assert kept.tolist() == [1]
    assert bit_equal(kept_input, x[:, 1:2])


@pytest.mark.parametrize("shape", EMPTY, ids=str)
def test_empty(device: str, training: bool, shape: tuple[int, ...]) -> None:
    args = arguments(torch.empty(shape, device=device), training)
    _, grads, _ = run(args, "elu", torch.empty(shape, device=device))
    assert [g.shape for g in grads] == [args.input.shape, args.gamma.shape, args.beta.shape]
    assert not any(g.any() for g in grads)


def forward_(image: Tensor, name: str = "leaky_relu", slope: float = 0.1) -> None:
    ops.batchnorm_act_forward_(image, None, None, None, None, True, 0.1, EPS, name, slope)


def test_leaf_that_requires_grad_is_refused(device: str) -> None:
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad is being used in an in-place operation"):
        forward_(torch.randn(4, 3, 5, device=device, requires_grad=True))


def test_changes_of_the_buffer_are_detected(device: str) -> None:
    image = torch.randn(4, 3, 5, device=device, requires_grad=True).mul(1)
    forward_(image)
    loss = image.sum()
    with torch.no_grad():
        image.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_who_needs_the_input_is_told(device: str) -> None:
    x = torch.randn(4, 3, 5, device=device, requires_grad=True)
    image = x.mul(1)
    product = image * image
    forward_(image)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_view_of_a_larger_tensor(device: str) -> None:
    """The rest of the base keeps its gradient."""
    x = torch.randn(4, 6, 5, dtype=torch.float64, device=device, requires_grad=True)
    dy = torch.randn_like(x)
    base = x.mul(1)
    forward_(base[:, :3])
    (got,) = torch.autograd.grad(base, x, dy)
    whole = ops.batchnorm_act_forward(x[:, :3], None, None, None, None, None, True, 0.1, EPS, "leaky_relu", 0.1)[0]
    (want,) = torch.autograd.grad(torch.cat([whole, x[:, 3:]], 1), x, dy)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_derivatives_beyond_the_first_are_refused(device: str) -> None:
    x = torch.randn(4, 3, 5, device=device, requires_grad=True)
    image = x.mul(1)
    forward_(image)
    (first,) = torch.autograd.grad(image.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="only the first derivative"):
        first.sum().backward()
    with pytest.raises(NotImplementedError, match="only the first derivative"):
        torch.func.jvp(lambda x: forward_(x.mul(1)), (x.detach(),), (x.detach(),))


@pytest.mark.parametrize(("name", "slope"), [("relu", 0.0), ("silu", 0.0), ("gelu_tanh", 0.0), ("leaky_relu", 0.0)])
def test_activation_without_inverse_is_refused(device: str, name: str, slope: float) -> None:
    message = r"expected an activation with an inverse \(identity, leaky_relu or elu with slope > 0\), got " + name
    x = torch.randn(4, 3, 5, device=device)
    for image in (x, x.to("meta")):
        with pytest.raises(ValueError, match="batchnorm_act_forward_: " + message):
            forward_(image, name, slope)
    with pytest.raises(ValueError, match="InPlaceBatchNormAct2d: " + message):
        my_ops.InPlaceBatchNormAct2d(3, activation=name, slope=slope)


def test_expanded_input_is_refused(device: str) -> None:
    with pytest.raises(RuntimeError, match="expected input with memory for each value"):
        forward_(torch.randn(1, 3, 5, device=device).expand(4, 3, 5))


def test_meta() -> None:
    image = torch.empty(4, 3, 5, device="meta")
    mean, _, kept, kept_input = ops.batchnorm_act_forward_(image, None, None, None, None, True, 0.1, EPS, "elu", 1.0)
    assert (mean.shape, kept.shape, kept_input.shape) == ((3,), (0,), (4, 0, 5))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("gamma_dtype", [None, torch.float32, torch.bfloat16])
def test_meta_of_the_backward_pass(device: str, layout: str, gamma_dtype: torch.dtype | None) -> None:
    """Sizes, strides and dtypes of the gradients, and which are there."""
    y = arrange(activations((4, 6, 5, 7), torch.bfloat16, device), layout)
    gamma = None if gamma_dtype is None else torch.rand(6, dtype=gamma_dtype, device=device) + 0.5
    mean, invstd, kept, kept_input = ops.batchnorm_act_forward_(
        y, gamma, None, None, None, True, 0.1, EPS, "leaky_relu", 0.01
    )
    given = (torch.randn_like(y), y, kept, kept_input, gamma, None, mean, invstd)
    shadows = [None if tensor is None else tensor.to("meta") for tensor in given]
    for mask in ([True, True, True], [True, False, True], [False, True, False]):
        real = ops.batchnorm_act_backward_from_output(*given, True, "leaky_relu", 0.01, mask)
        meta = ops.batchnorm_act_backward_from_output(*shadows, True, "leaky_relu", 0.01, mask)
        for got, want in zip(meta, real, strict=True):
            assert (got is None) == (want is None)
            if want is not None:
                facts = [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in (got, want)]
                assert got.is_meta and facts[0] == facts[1]


# ---- in phases ----


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("name", INVERTIBLE)
def test_phases(device: str, dtype: torch.dtype, name: str, layout: str) -> None:
    """From given statistics: the output of the whole operator, and what it was made of."""
    args = arguments(arrange(activations((4, 6, 5, 7), dtype, device), layout), True)
    args.gamma[0] = 0.0
    act = (name, SLOPES[name])
    whole, image = args.input.clone(), args.input.clone()
    mean, invstd, kept, kept_input = ops.batchnorm_act_forward_(whole, *args.values()[1:8], *act)
    got = ops.batchnorm_act_apply_(image, args.gamma, args.beta, mean, invstd, *act)
    torch.testing.assert_close(image, whole)
    assert all(bit_equal(*pair) for pair in zip(got, (kept, kept_input), strict=True))
    centered = ops.batchnorm_act_recover(image, *got, args.gamma, args.beta, mean, invstd, *act)
    exact = upcast(args.input) - reference.per_channel(mean.double().cpu(), args.input)
    xhat = exact * reference.per_channel(invstd.double().cpu(), exact)
    error = (upcast(centered) - exact).abs() * reference.per_channel(invstd.double().cpu(), exact)
    assert bool((error <= 2 * ALLOWED[dtype] + 4 * torch.finfo(dtype).eps * (1 + xhat.abs())).all())
    assert centered.dtype == dtype


def test_phases_have_no_derivatives(device: str) -> None:
    image = torch.randn(4, 3, 5, device=device, requires_grad=True).mul(1)
    mean, invstd = torch.zeros(3, device=device), torch.ones(3, device=device)
    with pytest.raises(NotImplementedError, match="batchnorm_act_apply_: expected no argument that requires grad"):
        ops.batchnorm_act_apply_(image, None, None, mean, invstd, "elu", 1.0)
    kept = (torch.empty(0, dtype=torch.int64, device=device), torch.empty(4, 0, 5, device=device))
    with pytest.raises(NotImplementedError, match="batchnorm_act_recover: expected no argument that requires grad"):
        ops.batchnorm_act_recover(image, *kept, None, None, mean, invstd, "elu", 1.0)


def test_opcheck_of_phases(device: str) -> None:
    """Meta tensors, without data, keep no channel: none is kept here."""
    image = torch.randn(4, 3, 5, device=device)
    mean, invstd = torch.zeros(3, device=device), torch.ones(3, device=device)
    act = ("leaky_relu", 0.1)
    torch.library.opcheck(ops.batchnorm_act_apply_.default, (image, invstd, mean, mean, invstd, *act))
    kept = ops.batchnorm_act_apply_(image, invstd, mean, mean, invstd, *act)
    torch.library.opcheck(ops.batchnorm_act_recover.default, (image, *kept, invstd, mean, mean, invstd, *act))


# ---- the modules ----


@pytest.mark.parametrize("name", INVERTIBLE)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_module(name: str, rank: int) -> None:
    """Behind a convolution: values, gradients and state of torch's modules, from their checkpoint."""
    behind = {"identity": nn.Identity(), "leaky_relu": nn.LeakyReLU(0.2), "elu": nn.ELU(0.7)}[name]
    slope = {"leaky_relu": 0.2, "elu": 0.7}.get(name)
    convolution = getattr(nn, f"Conv{rank}d")(3, 5, 3)
    ours = getattr(my_ops, f"InPlaceBatchNormAct{rank}d")(5, activation=name, slope=slope)
    theirs = getattr(nn, f"BatchNorm{rank}d")(5)
    for tensor in (*theirs.parameters(), theirs.running_mean, theirs.running_var):
        nn.init.uniform_(tensor, 0.5, 1.5)
    ours.load_state_dict(theirs.state_dict())
    assert isinstance(ours, getattr(my_ops, f"BatchNorm{rank}d"))
    x = torch.randn(4, 3, *[6] * rank, requires_grad=True)
    for step in range(3):
        ours.train(step < 2)
        theirs.train(step < 2)
        want = behind(theirs(convolution(x)))
        got = ours(convolution(x))
        torch.testing.assert_close(got, want)
        dy = torch.randn_like(want)
        leaves = [(*module.parameters(), *convolution.parameters(), x) for module in (ours, theirs)]
        grads = [torch.autograd.grad(y, w, dy) for y, w in zip((got, want), leaves, strict=True)]
        torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_module_under_compile() -> None:
    module, eager = my_ops.InPlaceBatchNormAct1d(3), my_ops.BatchNormAct1d(3, activation="leaky_relu")
    x = torch.randn(4, 3, 5)
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), eager(x))


def _saved_bytes(net: nn.Module, x: Tensor) -> int:
    """Memory that the graph of net(x) keeps alive: each storage once."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net(x)
    return sum(storages.values())


def test_saved_memory_halves() -> None:
    """Convolution, batch norm, activation: torch keeps both inputs of each pair, ours the convolutions' alone."""

    def net(norm: type[nn.Module]) -> nn.Module:
        layers: list[nn.Module] = []
        for _ in range(6):
            layers += [nn.Conv2d(8, 8, 3, padding=1, bias=False), norm(8)]
            layers += [nn.LeakyReLU(inplace=True)] if norm is nn.BatchNorm2d else []
        return nn.Sequential(*layers)

    x = torch.randn(4, 8, 32, 32)
    image = x.nbytes
    native, ours = (_saved_bytes(net(norm), x) for norm in (nn.BatchNorm2d, my_ops.InPlaceBatchNormAct2d))
    assert native > 11.9 * image
    assert ours < 7.2 * image
