"""Gradients whose memory becomes that of a result: the operator, and when a backward pass does so by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import my_ops
from activations import MASKED, SLOPES, act_arguments
from checks import EPS, Arguments, activations, arguments, bit_equal, ops, unchanged
from layouts import arrange

NAMES = list(SLOPES)
C = 3


# ---- the operator ----


def saved_by_forward(args: Arguments, name: str, residual: Tensor | None) -> tuple[Any, ...]:
    """What the backward operators take behind grad_output, up to slope."""
    fresh = Arguments(*args.values()[:5], training=args.training)
    _, mean, invstd, mask = ops.batchnorm_act_forward(*act_arguments(fresh, name, residual))
    kept = None if name in MASKED else residual
    return args.input, kept, mask, args.gamma, args.beta, mean, invstd, args.training, name, SLOPES[name]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_the_plain_operator(
    device: str, dtype: torch.dtype, training: bool, name: str, with_residual: bool, layout: str
) -> None:
    """Bit by bit, in runs (S >= 256) and in rows, also where grad_output lies otherwise than the input."""
    for shape in ((3, 5, 17, 17), (5, 7, 6, 7)):
        args = arguments(arrange(activations(shape, dtype, device), layout), training)
        residual = torch.randn(shape, device=device).to(dtype) if with_residual else None
        saved = saved_by_forward(args, name, residual)
        for dy_layout in ("contiguous", "channels_last"):
            dy = arrange(torch.randn(shape, device=device).to(dtype), dy_layout)
            for wanted in ([True] * 4, [True, False, True, True], [False, True, False, False], [False] * 4):
                want = ops.batchnorm_act_backward(dy, *saved, wanted)
                taken = dy.clone(memory_format=torch.preserve_format)
                with unchanged(*(tensor for tensor in saved if isinstance(tensor, Tensor))):
                    got = ops.batchnorm_act_backward_(taken, *saved, wanted)
                image = 1 if wanted[1] else 0
                pairs = {
                    0: None if image == 0 else got[0],
                    2: got[1],
                    3: got[2],
                    image: taken if wanted[image] else None,
                }
                for index, result in pairs.items():
                    assert (result is None) == (want[index] is None), index
                    assert result is None or bit_equal(result, want[index]), f"{index} of {wanted}"
                if not wanted[image]:
                    assert bit_equal(taken, dy)


@pytest.mark.parametrize("with_residual", [False, True])
def test_other_devices(training: bool, with_residual: bool) -> None:
    """What a device without a kernel of its own takes."""
    args = arguments(activations((4, 3, 5, 5), torch.float32, "cpu"), training)
    residual = torch.randn(args.input.shape) if with_residual else None
    saved = saved_by_forward(args, "silu", residual)
    wanted = [True, with_residual, True, True]
    dy = torch.randn(args.input.shape)
    own, composed = dy.clone(), dy.clone()
    operator = ops.batchnorm_act_backward_.default
    want = operator(own, *saved, wanted)
    got = operator._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, composed, *saved, wanted)
    assert bit_equal(composed, own)
    for one, other in zip(got, want, strict=True):
        assert (one is None) == (other is None)
        assert one is None or bit_equal(one, other)


def test_large_images(device: str) -> None:
    """Above what a cache holds, where results of their own are written past it."""
    x = torch.randn(2, C, 2048, 1024, device=device)
    args = arguments(x, True)
    saved, dy = saved_by_forward(args, "relu", None), torch.randn_like(x)
    wanted = [True, False, True, True]
    want = ops.batchnorm_act_backward(dy, *saved, wanted)
    got = ops.batchnorm_act_backward_(dy, *saved, wanted)
    assert bit_equal(dy, want[0])
    assert bit_equal(got[1], want[2])
    assert bit_equal(got[2], want[3])


def _arguments() -> dict[str, Any]:
    x, vector = torch.randn(4, C, 5, 5), torch.ones(C)
    statistics = {"save_mean": torch.zeros(C), "save_invstd": torch.ones(C)}
    return {
        "grad_output": torch.randn_like(x),
        "input": x,
        "residual": torch.randn_like(x),
        "mask": None,
        "gamma": vector,
        "beta": torch.zeros(C),
        **statistics,
        "training": True,
        "activation": "silu",
    }


def _refused(given: dict[str, Any], message: str, error: type[Exception] = RuntimeError) -> None:
    tensors = [tensor for tensor in given.values() if isinstance(tensor, Tensor)]
    with unchanged(*tensors), pytest.raises(error) as caught:
        ops.batchnorm_act_backward_(**given)
    assert str(caught.value).splitlines()[0] == f"batchnorm_act_backward_: {message}"


@pytest.mark.parametrize("other", ["input", "residual", "gamma", "save_mean"])
def test_memory_that_something_else_has(other: str) -> None:
    given = _arguments()
    dy = given["grad_output"]
    given[other] = dy if given[other].dim() > 1 else dy.flatten()[:C]
    _refused(given, f"expected grad_output to have memory of its own, but it overlaps {other}")


def test_memory_for_each_value() -> None:
    given = _arguments()
    given["grad_output"] = torch.randn(1, C, 5, 5).expand(4, C, 5, 5)
    _refused(given, "expected grad_output with memory for each value, got strides [0, 25, 5, 1]")


@pytest.mark.parametrize("name", ["grad_output", "input", "residual", "gamma", "beta", "save_mean"])
def test_no_derivatives(name: str) -> None:
    given = _arguments()
    given[name] = given[name].clone().requires_grad_()
    message = "expected arguments without derivatives: use batchnorm_act_backward for others"
    _refused(given, message, NotImplementedError)


def test_an_inference_tensor() -> None:
    given = _arguments()
    with torch.inference_mode():
        given["grad_output"] = torch.randn(4, C, 5, 5)
    _refused(given, "expected grad_output to be a normal tensor outside of inference mode, got an inference tensor")


def test_a_saved_tensor_notices() -> None:
    given = _arguments()
    weight = torch.ones((), requires_grad=True)
    product = weight * given["grad_output"]
    ops.batchnorm_act_backward_(**given)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_opcheck(device: str) -> None:
    given = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in _arguments().items()}
    torch.library.opcheck(ops.batchnorm_act_backward_.default, tuple(given.values()))


# ---- backward passes ----

IMAGE = (8, C, 128, 128)  # 1.5 MiB
SMALL = (8, C, 16, 16)


Norm = Callable[[Tensor, Tensor | None], Tensor]
NORMS: dict[str, tuple[Norm, bool]] = {  # and whether they have a residual
    "plain": (lambda x, _: my_ops.functional.batch_norm(x, None, None, *_vectors(), training=True, eps=EPS), False),
    "eval": (lambda x, _: my_ops.functional.batch_norm(x, *(v.detach().abs() for v in _vectors() * 2)), False),
    "relu": (lambda x, _: _with_activation(x, None, "relu"), False),
    "silu": (lambda x, _: _with_activation(x, None, "silu"), False),
    "residual, relu": (lambda x, r: _with_activation(x, r, "relu"), True),
    "residual, silu": (lambda x, r: _with_activation(x, r, "silu"), True),
}


def _vectors() -> tuple[Tensor, Tensor]:
    return torch.linspace(0.5, 1.5, C).requires_grad_(), torch.linspace(-0.2, 0.3, C).requires_grad_()


def _with_activation(x: Tensor, residual: Tensor | None, name: str) -> Tensor:
    return ops.batchnorm_act_forward(x, residual, *_vectors(), None, None, True, 0.1, EPS, name, SLOPES[name])[0]


class _Pass:
    """Forward and backward pass of a norm, to which `gradient` comes in a tensor of torch's that nobody else holds."""

    def __init__(self, norm: Norm, with_residual: bool, shape: tuple[int, ...] = IMAGE) -> None:
        torch.manual_seed(7)
        self.x = torch.randn(shape, requires_grad=True)
        self.residual = torch.randn(shape, requires_grad=True) if with_residual else None
        self.gradient = torch.randn(shape)
        self.images = [image for image in (self.x, self.residual) if image is not None]
        self.y = norm(self.x, self.residual)
        self.allocated = 0

    def backward(self, y: Tensor | None = None, **options: Any) -> tuple[Tensor, ...]:
        """Counts the images that are allocated, the incoming gradient apart."""
        end = ((self.y if y is None else y) * self.gradient).sum()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            grads = torch.autograd.grad(end, self.images, **options)
        events = profiler.profiler.kineto_results.events()
        sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
        self.allocated = sum(size >= self.x.nbytes for size in sizes) - 1
        return grads


@pytest.fixture(params=NORMS.values(), ids=NORMS.keys())
def norm(request: pytest.FixtureRequest) -> tuple[Norm, bool]:
    return request.param


@pytest.fixture
def want(norm: tuple[Norm, bool]) -> Iterator[tuple[Tensor, ...]]:
    """The gradients where the incoming one is the caller's, who finds it as it was."""
    one = _Pass(*norm)
    with unchanged(one.gradient):
        yield torch.autograd.grad(one.y, one.images, one.gradient)


def _same(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> bool:
    return all(bit_equal(one, other) for one, other in zip(got, want, strict=True))


def test_a_gradient_that_nobody_else_holds(norm: tuple[Norm, bool], want: tuple[Tensor, ...]) -> None:
    """One of the results has its memory."""
    one = _Pass(*norm)
    assert _same(one.backward(), want)
    assert one.allocated == len(one.images) - 1


def test_a_gradient_that_a_hook_has_kept(norm: tuple[Norm, bool], want: tuple[Tensor, ...]) -> None:
    one, kept = _Pass(*norm), []
    one.y.register_hook(lambda gradient: kept.append(gradient))
    assert _same(one.backward(), want)
    assert bit_equal(kept[0], one.gradient)
    assert one.allocated == len(one.images)


def test_a_gradient_of_which_a_view_is_kept(norm: tuple[Norm, bool], want: tuple[Tensor, ...]) -> None:
    one, kept = _Pass(*norm), []
    one.y.register_hook(lambda gradient: kept.append(gradient[1:, 1]))
    assert _same(one.backward(), want)
    assert bit_equal(kept[0], one.gradient[1:, 1])


def test_a_gradient_that_is_retained(norm: tuple[Norm, bool], want: tuple[Tensor, ...]) -> None:
    one = _Pass(*norm)
    one.y.retain_grad()
    (one.y * one.gradient).sum().backward()
    assert _same(tuple(image.grad for image in one.images), want)  # type: ignore[misc]
    assert bit_equal(one.y.grad, one.gradient)


def test_a_gradient_that_goes_two_ways(norm: tuple[Norm, bool], want: tuple[Tensor, ...]) -> None:
    """The sum passes the same tensor to both of its arguments."""
    one = _Pass(*norm)
    other = torch.zeros_like(one.y, requires_grad=True)
    one.images.append(other)
    *grads, passed_on = one.backward(one.y + other)
    assert _same(tuple(grads), want)
    assert bit_equal(passed_on, one.gradient)
    assert one.allocated == len(grads)


def test_a_gradient_of_which_a_view_went_another_way(norm: tuple[Norm, bool], want: tuple[Tensor, ...]) -> None:
    """By a node that runs before the norm's."""
    one = _Pass(*norm)
    other = torch.zeros(one.y.numel(), requires_grad=True)
    one.images.append(other)
    *grads, passed_on = one.backward(one.y + other.view(IMAGE))
    assert _same(tuple(grads), want)
    assert bit_equal(passed_on, one.gradient)
    assert one.allocated == len(grads)


def test_a_graph_of_the_gradients(norm: tuple[Norm, bool], want: tuple[Tensor, ...]) -> None:
    one = _Pass(*norm)
    got = one.backward(create_graph=True)
    for grad, exact in zip(got, want, strict=True):
        torch.testing.assert_close(grad.detach(), exact)


def test_twice_through_one_graph(norm: tuple[Norm, bool], want: tuple[Tensor, ...]) -> None:
    one = _Pass(*norm)
    first, second = one.backward(retain_graph=True), one.backward()
    assert _same(first, want)
    assert _same(second, want)


def test_a_small_gradient(norm: tuple[Norm, bool]) -> None:
    one = _Pass(*norm, shape=SMALL)
    one.backward()
    assert one.allocated == len(one.images)


@pytest.mark.parametrize("strides", ["expanded", "channels_last"])
def test_a_gradient_with_other_strides(norm: tuple[Norm, bool], strides: str) -> None:
    """As that of a mean over the image, whose elements share memory."""
    one, other = _Pass(*norm), _Pass(*norm)
    laid_out = {
        "expanded": lambda t: t[:, :, :1, :1].expand(t.shape),
        "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    }[strides]

    class Laid(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, y: Tensor) -> Tensor:
            return y.clone()

        @staticmethod
        def backward(ctx: Any, *_: Tensor) -> Tensor:
            return laid_out(one.gradient.clone())

    got = torch.autograd.grad(Laid.apply(one.y).sum(), one.images)
    assert _same(got, torch.autograd.grad(other.y, other.images, laid_out(one.gradient).contiguous()))


def test_a_step_of_a_network() -> None:
    """Hooks that keep every gradient change none of them."""

    def step(hooks: bool) -> list[Tensor | None]:
        torch.manual_seed(3)
        layers = [nn.Conv2d(3, 8, 3, bias=False), my_ops.BatchNormAct2d(8), nn.Conv2d(8, 8, 3, bias=False)]
        model = nn.Sequential(*layers, my_ops.BatchNorm2d(8), nn.ReLU(inplace=True))
        x, kept = torch.randn(4, 3, 128, 128), []
        for layer in model:
            x = layer(x)
            if hooks:
                x.register_hook(lambda gradient: kept.append(gradient))
        x.mean().backward()
        return [parameter.grad for parameter in model.parameters()]

    for one, other in zip(step(hooks=False), step(hooks=True), strict=True):
        assert one is not None and other is not None
        assert bit_equal(one, other)
