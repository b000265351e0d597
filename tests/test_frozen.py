"""Frozen batch norm: constant buffers, one multiply-add, and a backward pass without input and statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import my_ops
import reference
from checks import activations, arguments, unchanged
from layouts import RANKED_LAYOUTS, SHAPES, arrange, assert_layout
from tolerances import TOLERANCES, assert_within

CLASSES = {
    1: (my_ops.FrozenBatchNorm1d, nn.BatchNorm1d, (5, 3, 7)),
    2: (my_ops.FrozenBatchNorm2d, nn.BatchNorm2d, (5, 3, 4, 6)),
    3: (my_ops.FrozenBatchNorm3d, nn.BatchNorm3d, (5, 3, 2, 4, 3)),
}
EPS = 1e-3


def frozen_with(args: object, dtype: torch.dtype) -> my_ops.FrozenBatchNorm:
    module = my_ops.FrozenBatchNorm(args.input.shape[1], EPS, args.input.device, dtype)
    for name, value in zip(("weight", "bias"), (args.gamma, args.beta), strict=True):
        getattr(module, name).copy_(value)
    module.running_mean.copy_(args.running_mean)
    module.running_var.copy_(args.running_var)
    return module


def trained(kind: type[nn.modules.batchnorm._BatchNorm], **settings: object) -> nn.modules.batchnorm._BatchNorm:
    module = kind(3, **settings)
    for tensor in (*module.parameters(), module.running_mean, module.running_var):
        nn.init.uniform_(tensor, 0.5, 1.5)
    return module


class Saved:
    """Counts the bytes that autograd keeps."""

    def __init__(self) -> None:
        self.bytes = 0

    def __enter__(self) -> Saved:
        self._hooks = saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> Tensor:
        self.bytes += tensor.nbytes
        return tensor


@pytest.mark.parametrize(("rank", "layout"), RANKED_LAYOUTS)
def test_every_layout_and_dtype(device: str, rank: int, layout: str, dtype: torch.dtype, training: bool) -> None:
    args = arguments(arrange(activations(SHAPES[rank], dtype, device), layout), training=False)
    module = frozen_with(args, dtype).train(training)
    x = args.input.detach().requires_grad_()
    want = reference.forward(*args.values()[:7], EPS)
    dy = torch.empty_like(x).copy_(torch.randn(x.shape))
    with unchanged(args.input, *module.buffers()):
        y = module(x)
        (dx,) = torch.autograd.grad(y, x, dy)
    assert_layout(y, args.input, "output")
    assert_within(y, want.output, TOLERANCES[dtype].forward, "output")
    gradient = reference.backward(dy, args.input, args.gamma, want.mean.value, want.invstd.value, training=False)
    assert_layout(dx, args.input, "grad_input")
    assert_within(dx, gradient.grad_input, TOLERANCES[dtype].backward, "grad_input")


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_float32_buffers_beside_half_input(kind: torch.dtype) -> None:
    args = arguments(activations((4, 3, 5, 6), kind, "cpu"), training=False, dtypes=(torch.float32,) * 4)
    want = reference.forward(*args.values()[:7], EPS)
    y = frozen_with(args, torch.float32)(args.input)
    assert y.dtype == kind
    assert_within(y, want.output, TOLERANCES[kind].forward, "output")


def test_nothing_is_learned_and_the_input_is_not_saved() -> None:
    module = my_ops.FrozenBatchNorm2d(3)
    assert not list(module.parameters())
    x = torch.randn(8, 3, 16, 16, requires_grad=True)
    with Saved() as saved:
        module(x).sum().backward()
    assert saved.bytes < x.nbytes / 100
    with Saved() as native:
        nn.BatchNorm2d(3).eval().requires_grad_(False)(x)
    assert native.bytes >= x.nbytes


def test_eval_batch_norm_with_a_gamma_that_is_learned_saves_the_input() -> None:
    """Its gradient needs it."""
    module = my_ops.BatchNorm2d(3).eval()
    x = torch.randn(8, 3, 16, 16)
    with Saved() as saved:
        y = module(x)
    assert saved.bytes >= x.nbytes
    y.sin().sum().backward()
    want = nn.BatchNorm2d(3).eval()
    want(x).sin().sum().backward()
    torch.testing.assert_close(module.weight.grad, want.weight.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradient_of_another_layout(layout: str) -> None:
    """The input is not there to tell, but its layout is kept."""
    module = frozen_with(arguments(torch.randn(4, 3, 5, 6), training=False), torch.float32)
    x = arrange(torch.randn(4, 3, 5, 6), layout).requires_grad_()
    dy = torch.randn(4, 6, 5, 3).transpose(1, 3)
    (dx,) = torch.autograd.grad(module(x), x, dy)
    assert_layout(dx, x, "grad_input")
    scale = module.weight * (module.running_var + EPS).rsqrt()
    torch.testing.assert_close(dx, dy * reference.per_channel(scale, dy))


@pytest.mark.parametrize("dimensions", CLASSES)
def test_loads_the_state_of_a_batch_norm(dimensions: int) -> None:
    kind, plain, shape = CLASSES[dimensions]
    native = trained(plain).eval()
    model = nn.Sequential(kind(3))
    model.load_state_dict({f"0.{name}": tensor for name, tensor in native.state_dict().items()}, strict=True)
    x = torch.randn(shape)
    torch.testing.assert_close(model(x), native(x))
    again = nn.Sequential(kind(3))
    again.load_state_dict(model.state_dict(), strict=True)
    assert "0.num_batches_tracked" not in model.state_dict()
    with pytest.raises(RuntimeError, match=r"Missing key.*running_var"):
        kind(3).load_state_dict({name: tensor for name, tensor in native.state_dict().items() if "var" not in name})


@pytest.mark.parametrize("dimensions", CLASSES)
def test_freezing_a_model(dimensions: int) -> None:
    kind, plain, shape = CLASSES[dimensions]
    ours = {1: my_ops.BatchNorm1d, 2: my_ops.BatchNorm2d, 3: my_ops.BatchNorm3d}[dimensions]
    shared = trained(plain)
    model = nn.Sequential(trained(plain, eps=1e-4), nn.ReLU(), trained(ours), nn.Sequential(shared, shared))
    want = copy.deepcopy(model).eval()
    before = list(model.modules())
    assert my_ops.freeze_batchnorm(model) is model
    assert [id(module) for module in model.modules()] == [id(module) for module in before]
    assert not list(model.parameters())
    assert type(model[0]) is type(model[2]) is kind
    x = torch.randn(shape)
    with unchanged(*model.buffers()):
        torch.testing.assert_close(model.train()(x), want(x))
    assert repr(model[0]) == f"{kind.__name__}(3, eps=0.0001)"


def test_freezing_a_convolution_with_its_batch_norm() -> None:
    model = nn.Sequential(my_ops.ConvBatchNorm2d(3, 4, 3, padding=1, padding_mode="circular"))
    for tensor in (*model[0].norm.parameters(), model[0].norm.running_mean, model[0].norm.running_var):
        nn.init.uniform_(tensor, 0.5, 1.5)
    x = torch.randn(2, 3, 5, 6)
    want, keys = copy.deepcopy(model).eval()(x), set(model.state_dict()) - {"0.norm.num_batches_tracked"}
    my_ops.freeze_batchnorm(model)
    with unchanged(*model.buffers()):
        torch.testing.assert_close(model.train()(x), want)
    assert [name for name, _ in model.named_parameters()] == ["0.conv.weight"]
    assert set(model.state_dict()) == keys


def test_freezing_without_affine_and_a_single_module() -> None:
    native = nn.BatchNorm2d(3, affine=False)
    x = torch.randn(4, 3, 5, 6)
    native(x)
    want = copy.deepcopy(native).eval()(x)
    frozen = my_ops.freeze_batchnorm(native)
    assert isinstance(frozen, my_ops.FrozenBatchNorm2d)
    torch.testing.assert_close(frozen(x), want)
    for kind in (nn.SyncBatchNorm, my_ops.SyncBatchNorm):
        sync = my_ops.freeze_batchnorm(kind(3))
        torch.testing.assert_close(sync(x), nn.BatchNorm2d(3).eval()(x))


def test_freezing_without_statistics_changes_nothing() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(ValueError, match=r"^freeze_batchnorm: expected running statistics in every .*, got none in 1$"):
        my_ops.freeze_batchnorm(model)
    assert all(type(module) is nn.BatchNorm2d for module in model)


def test_freezing_with_an_activation_changes_nothing() -> None:
    """It would go on learning, unnoticed."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    my_ops.convert_batchnorm(model, fuse=True)
    with pytest.raises(ValueError, match=r"without an activation, got FusedBatchNorm2d in 2"):
        my_ops.freeze_batchnorm(model)
    assert type(model[0]) is my_ops.BatchNorm2d
    my_ops.freeze_batchnorm(my_ops.revert_batchnorm(model))
    assert [type(part).__name__ for part in model] == ["FrozenBatchNorm2d", "Conv2d", "FrozenBatchNorm2d", "ReLU"]


def test_subclasses_are_left_alone() -> None:
    class Special(nn.BatchNorm2d):
        pass

    model = my_ops.freeze_batchnorm(nn.Sequential(Special(3)))
    assert type(model[0]) is Special


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_derivatives(layout: str) -> None:
    module = frozen_with(arguments(torch.randn(2, 3, 2, 2, dtype=torch.float64), training=False), torch.float64)
    x = arrange(torch.randn(2, 3, 2, 2, dtype=torch.float64), layout).requires_grad_()
    torch.autograd.gradcheck(module, (x,), check_forward_ad=True)
    torch.autograd.gradgradcheck(lambda x: module(x).sin(), (x,), check_fwd_over_rev=True)
    by_batches = torch.func.vmap(module)(x.detach()[None])
    torch.testing.assert_close(by_batches[0], module(x).detach())


def test_compiles_and_exports() -> None:
    module = frozen_with(arguments(torch.randn(2, 3, 4, 4), training=False), torch.float32)
    x = torch.randn(4, 3, 5, 6, requires_grad=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    y = compiled(x)
    torch.testing.assert_close(y, module(x), rtol=0, atol=0)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x), torch.autograd.grad(module(x).sum(), x))
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), module(x), rtol=0, atol=0)


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match=r"FrozenBatchNorm2d: expected input of rank 4, got shape \[2, 3\]"):
        my_ops.FrozenBatchNorm2d(3)(torch.randn(2, 3))
    with pytest.raises(ValueError, match=r"FrozenBatchNorm1d: expected input of rank 2 or 3, got shape \[3\]"):
        my_ops.FrozenBatchNorm1d(3)(torch.randn(3))
    with pytest.raises(RuntimeError, match=r"expected gamma of shape \[4\], got \[3\]"):
        my_ops.FrozenBatchNorm2d(3)(torch.randn(2, 4, 5, 5))
