"""my_ops.ConvBatchNorm*: what the two modules compute one after the other, with half of the memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import my_ops
import reference
from checks import activations, bit_equal, ops
from layouts import assert_layout
from tolerances import accumulation_dtype

Options = dict[str, object]

FUSED = {1: my_ops.ConvBatchNorm1d, 2: my_ops.ConvBatchNorm2d, 3: my_ops.ConvBatchNorm3d}
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
OURS = {1: my_ops.BatchNorm1d, 2: my_ops.BatchNorm2d, 3: my_ops.BatchNorm3d}
NATIVE = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SHAPES = {1: (4, 6, 11), 2: (3, 6, 8, 7), 3: (2, 6, 5, 4, 6)}
CHANNELS = 8  # that come out; 6 go in

CONVOLUTIONS: dict[str, Options] = {
    "plain": {"kernel_size": 3},
    "pointwise": {"kernel_size": 1, "bias": True},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": 2, "dilation": 3, "padding": 2, "bias": True},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2, "bias": True},
    "same": {"kernel_size": 3, "padding": "same"},
    "same_uneven": {"kernel_size": 2, "padding": "same"},
    "valid": {"kernel_size": 2, "padding": "valid"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
}
NORMS: dict[str, Options] = {
    "default": {},
    "cumulative": {"momentum": None, "eps": 0.5},
    "no_affine": {"affine": False},
    "no_statistics": {"track_running_stats": False, "momentum": 0.3},
}


def twins(
    rank: int, norms: dict[int, type], dtype: torch.dtype, device: str, options: Options
) -> tuple[nn.Module, ...]:
    """Ours, and the two modules one after the other with the same values in `dtype`."""
    ours = FUSED[rank](6, CHANNELS, device=device, **options)
    if ours.norm.affine:
        nn.init.uniform_(ours.norm.weight, 0.5, 1.5)
        nn.init.normal_(ours.norm.bias)
    pair = nn.Sequential(ours.conv, norms[rank](CHANNELS, ours.norm.eps, ours.norm.momentum, ours.norm.affine))
    if not ours.norm.track_running_stats:
        pair[1] = norms[rank](CHANNELS, ours.norm.eps, ours.norm.momentum, track_running_stats=False)
    pair[1].load_state_dict(ours.norm.state_dict())
    return ours, copy.deepcopy(pair).to(device, dtype)


def step(model: nn.Module, input: Tensor, grad_output: Tensor) -> dict[str, Tensor]:
    """Everything that one step computes."""
    model.zero_grad()
    x = input.clone().requires_grad_()
    output = model(x)
    output.backward(grad_output.to(output.dtype))
    found = {"output": output.detach(), "input": x.grad}
    found |= {f"gradient {i}": p.grad for i, p in enumerate(model.parameters())}
    return found | {f"buffer {i}": b.clone() for i, b in enumerate(model.buffers())}


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Bit for bit on the CPU, where a convolution that is run twice gives the same bits."""
    for (name, mine), theirs in zip(got.items(), want.values(), strict=True):
        if mine.device.type == "cpu":
            assert bit_equal(mine, theirs), name
        else:
            torch.testing.assert_close(mine, theirs, msg=f"{name}: {{}}".format)


@contextmanager
def saved_bytes(parameters: object) -> Iterator[Callable[[], int]]:
    """Bytes that autograd keeps for the backward pass, each memory once, parameters aside."""
    own = {p.untyped_storage().data_ptr() for p in parameters}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: sum(sizes.values())


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_as_the_two_modules(rank: int, convolution: str, device: str) -> None:
    ours, pair = twins(rank, OURS, torch.float32, device, CONVOLUTIONS[convolution])
    for training in (True, True, False, True):
        input = activations(SHAPES[rank], torch.float32, device)
        grad_output = torch.randn_like(pair.eval()(input))
        assert_same(*(step(model.train(training), input, grad_output) for model in (ours, pair)))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("norm", NORMS)
def test_batch_norms(rank: int, norm: str, device: str) -> None:
    ours, pair = twins(rank, OURS, torch.float32, device, {"kernel_size": 3, "bias": True, **NORMS[norm]})
    for training in (True, True, False, True):
        input = activations(SHAPES[rank], torch.float32, device)
        grad_output = torch.randn_like(pair(input))
        ours(input)  # as often as the other
        assert_same(*(step(model.train(training), input, grad_output) for model in (ours, pair)))
    assert len(ours.state_dict()) == len(pair.state_dict())


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.2),
    "relu6": F.relu6,
    "elu": partial(F.elu, alpha=0.2),
    "silu": F.silu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str, training: bool, device: str) -> None:
    """As the two modules, bit for bit, and as torch's in float64; nothing more is saved than without."""
    options = {"kernel_size": 3, "padding": 1, "groups": 2}
    plain, pair = twins(2, NATIVE, torch.float64, device, options)
    ours = my_ops.ConvBatchNorm2d(6, CHANNELS, device=device, **options, activation=activation, slope=0.2)
    ours.load_state_dict(plain.state_dict())
    norm = my_ops.BatchNormAct2d(CHANNELS, device=device, activation=activation, slope=0.2)
    norm.load_state_dict(plain.norm.state_dict())
    apart = nn.Sequential(copy.deepcopy(ours.conv), norm)
    input = activations(SHAPES[2], torch.float32, device)
    with saved_bytes(ours.parameters()) as bytes_kept:
        grad_output = torch.randn_like(ours.train()(input))
    assert bytes_kept() <= input.numel() * 4 + 2 * CHANNELS * 4
    apart.train()(input)
    pair.train()(input.double())
    got = step(ours.train(training), input, grad_output)
    assert_same(got, step(apart.train(training), input, grad_output))

    wide = input.double().requires_grad_()
    want = ACTIVATIONS[activation](pair.train(training)(wide))
    want.backward(grad_output.double())
    for mine, theirs in ((got["output"], want), (got["input"], wide.grad), (got["gradient 0"], pair[0].weight.grad)):
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=3e-6 * float(theirs.abs().max()))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("norm", NORMS)
def test_float64_reference(rank: int, norm: str, device: str, training: bool) -> None:
    """Against torch's modules in float64. The bias of the convolution has no gradient in training, but rounding."""
    options = {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 2, "bias": True, **NORMS[norm]}
    ours, pair = twins(rank, NATIVE, torch.float64, device, options)
    for _ in range(2):
        input = activations(SHAPES[rank], torch.float32, device)
        grad_output = torch.randn_like(pair(input.double()))
        ours(input)
        got = step(ours.train(training), input, grad_output)
        want = step(pair.train(training), input.double(), grad_output)
        for (name, mine), theirs in zip(got.items(), want.values(), strict=True):
            scale = max(float(theirs.abs().max()), float(grad_output.abs().sum()) * (name == "gradient 1"))
            torch.testing.assert_close(mine.to(theirs.dtype), theirs, rtol=0, atol=2e-6 * scale, msg=name)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_dtypes_and_layouts(layout: str, dtype: torch.dtype, training: bool, device: str) -> None:
    """Parameters of batch norm in the input's dtype, or as in mixed precision."""
    for wide in (False, True):
        ours, pair = twins(2, OURS, torch.float32, device, {"kernel_size": 3, "padding": 1, "bias": True})
        for module in (ours, pair):
            module.to(dtype).train(training)
        for norm in (ours.norm, pair[1]):
            norm.to(accumulation_dtype(dtype) if wide else dtype)
        input = activations(SHAPES[2], dtype, device)
        if layout == "channels_last":
            input = input.to(memory_format=torch.channels_last)
        if layout == "strided":
            input = activations((3, 6, 8, 14), dtype, device)[..., ::2]
        grad_output = torch.randn(3, CHANNELS, 8, 7, device=device).to(dtype)
        got, want = (step(model, input, grad_output) for model in (ours, pair))
        assert_same(got, want)
        assert_layout(got["output"], want["output"], "output")
        assert_layout(got["input"], want["input"], "gradient of the input")


def test_saves_half_of_the_memory(device: str) -> None:
    """Four layers: the input of each is kept, not what is between convolution and batch norm."""
    layers = [my_ops.ConvBatchNorm2d(16, 16, 3, padding=1, device=device) for _ in range(4)]
    fused = nn.Sequential(*layers)
    pairs = nn.Sequential(*(module for layer in layers for module in (layer.conv, layer.norm)))
    image = torch.randn(8, 16, 32, 32, device=device)
    kept = {}
    for name, model in (("fused", fused), ("pairs", pairs), ("compiled", torch.compile(fused, backend="aot_eager"))):
        with saved_bytes(model.parameters()) as bytes_kept:
            output = model(image.clone().requires_grad_())
        kept[name] = bytes_kept() / (image.numel() * image.element_size())
        assert output.requires_grad
    torch._dynamo.reset()
    assert kept["pairs"] == pytest.approx(8, abs=0.01)  # and a few vectors
    assert kept["fused"] == pytest.approx(4, abs=0.01)
    assert kept["compiled"] == pytest.approx(4, abs=0.01)


def problem(rank: int, device: str, **options: object) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The operator as a function of (input, weight, bias, gamma, beta), in float64."""
    training = options.get("training", True)
    sizes = {1: (2, 2, 2), 2: (2, 2, 3, 4)}[rank]
    shapes = (sizes, (2, 1, *[2] * rank), (2,), (2,), (2,))
    random = [torch.randn(shape, dtype=torch.float64, device=device) for shape in shapes]
    mean, var = (None, None) if training else (random[3] * 0.1, random[4].abs() + 0.5)

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        results = ops.conv_batchnorm_forward(
            *(*tensors, mean, var, [1] * rank, [1] * rank, [1] * rank, 2, training, 0.1, 1e-2),
            activation=options.get("activation", "identity"),
        )
        return results if training else results[0]

    return call, [tensor.requires_grad_() for tensor in random]


def test_derivatives(training: bool, device: str) -> None:
    """First and second, in both modes, of the saved statistics too."""
    call, tensors = problem(1, device, training=training, activation="silu")
    torch.autograd.gradcheck(call, tensors, check_forward_ad=True, check_undefined_grad=True, fast_mode=True)
    torch.autograd.gradgradcheck(call, tensors, check_fwd_over_rev=True, fast_mode=True)
    call, tensors = problem(1, device, training=training)
    torch.autograd.gradcheck(call, tensors, check_forward_ad=True, check_undefined_grad=True)
    torch.autograd.gradgradcheck(call, tensors, check_fwd_over_rev=True, fast_mode=True)


def test_second_derivatives_are_those_of_the_two_operators(training: bool, device: str) -> None:
    call, tensors = problem(2, device, training=training)

    def pair(x: Tensor, w: Tensor, b: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        z = torch.conv2d(x, w, b, padding=1, groups=2)
        mean, var = (None, None) if training else (tensors[3].detach() * 0.1, tensors[4].detach().abs() + 0.5)
        return reference.differentiable(z, gamma, beta, mean, var, training, 1e-2)

    def both(function: Callable[..., Tensor]) -> list[Tensor]:
        output = function(*tensors)
        output = output if isinstance(output, Tensor) else output[0]
        torch.manual_seed(1)
        first = torch.autograd.grad(output, tensors, torch.randn_like(output), create_graph=True)
        weighted = sum((g * torch.randn_like(g)).sum() for g in first)
        second = torch.autograd.grad(weighted, tensors, create_graph=True, materialize_grads=True)
        third = torch.autograd.grad(sum(g.square().sum() for g in second), tensors[:2])
        return [*first, *second, *third]

    for got, want in zip(both(call), both(pair), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_only_wanted_gradients(device: str) -> None:
    ours, pair = twins(2, OURS, torch.float32, device, {"kernel_size": 3, "bias": True})
    input = activations(SHAPES[2], torch.float32, device)
    for frozen in (("conv.weight", "conv.bias"), ("norm.weight",), ("conv.weight", "conv.bias", "norm.bias")):
        for (name, mine), theirs in zip(ours.named_parameters(), pair.parameters(), strict=True):
            mine.requires_grad_(name not in frozen)
            theirs.requires_grad_(name not in frozen)
        results = []
        for model in (ours, pair):
            model.zero_grad()
            model(input).square().sum().backward()
            results.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
            assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
        assert_same(*results)


def test_opcheck(training: bool, device: str) -> None:
    tensors = [t.detach().float().requires_grad_() for t in problem(2, device)[1]]
    state = [torch.zeros(2, device=device), torch.ones(2, device=device)]
    conv = ([1, 1], [1, 1], [1, 1], 2)
    counter = torch.tensor(3, device=device)
    forward = (*tensors, *state, *conv, training, None, 1e-3, counter)
    torch.library.opcheck(ops.conv_batchnorm_forward.default, forward)
    output, mean, invstd = ops.conv_batchnorm_forward(*forward)
    dy = torch.randn_like(output).requires_grad_()
    backward = (dy, *tensors, mean.detach(), invstd.detach(), *conv, training)
    torch.library.opcheck(ops.conv_batchnorm_backward.default, backward)
    torch.library.opcheck(
        ops.conv_batchnorm_backward.default, (*backward, "elu", 0.5, [False, True, False, False, True])
    )


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_into_one_graph(backend: str, training: bool, device: str) -> None:
    torch._dynamo.reset()
    options = {"kernel_size": 3, "bias": True, "momentum": None, "activation": "relu"}
    eager, _ = twins(2, OURS, torch.float32, device, options)
    captured = copy.deepcopy(eager)
    compiled = torch.compile(captured, fullgraph=True, backend=backend, dynamic=True)
    for samples in (3, 5):
        input = activations((samples, *SHAPES[2][1:]), torch.float32, device)
        grad_output = torch.randn_like(eager(input))
        captured(input)
        got, want = (step(m.train(training), input, grad_output) for m in (compiled, eager))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()


def test_exports(device: str) -> None:
    module, _ = twins(2, OURS, torch.float32, device, {"kernel_size": 3, "padding": "same"})
    input = activations(SHAPES[2], torch.float32, device)
    module(input)
    module.eval()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(module, (input,), dynamic_shapes=({0: batch},))
    assert "my_ops.conv_batchnorm_forward" in str(program.graph)
    larger = activations((7, *SHAPES[2][1:]), torch.float32, device)
    assert bit_equal(program.module()(larger), module(larger))


def test_compiled_autograd(device: str) -> None:
    options = {"kernel_size": 3, "bias": True, "activation": "elu", "slope": 0.3}
    ours, _ = twins(2, OURS, torch.float32, device, options)
    input = activations(SHAPES[2], torch.float32, device)
    output = ours(input)
    grad_output = torch.randn_like(output)
    want = torch.autograd.grad(output, list(ours.parameters()), grad_output, retain_graph=True)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        output.backward(grad_output)
    for parameter, gradient in zip(ours.parameters(), want, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    torch._dynamo.reset()


def test_transforms(device: str) -> None:
    """An ensemble with running statistics of its own, and gradients per sample, against a loop."""
    models = [my_ops.ConvBatchNorm2d(6, 4, 3, device=device) for _ in range(3)]
    images = activations((3, *SHAPES[2]), torch.float32, device)
    singles = copy.deepcopy(models)
    parameters, buffers = torch.func.stack_module_state(models)

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(models[0], (parameters, buffers), (x,)).square().mean()

    gradients = torch.vmap(torch.func.grad(loss))(parameters, buffers, images)
    for i, single in enumerate(singles):
        single(images[i]).square().mean().backward()
        for name, parameter in single.named_parameters():
            torch.testing.assert_close(gradients[name][i], parameter.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(buffers["norm.running_var"][i], single.norm.running_var)

    model = models[0].eval()

    def of_one(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (x[None],)).square().sum()

    per_sample = torch.vmap(torch.func.grad(of_one), (None, 0))(dict(model.named_parameters()), images[0])
    for i, x in enumerate(images[0]):
        want = torch.autograd.grad(model(x[None]).square().sum(), list(model.parameters()))
        for gradient, single in zip(per_sample.values(), want, strict=True):
            torch.testing.assert_close(gradient[i], single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backward_too", [False, True])
def test_autocast(backward_too: bool, device: str) -> None:
    """The convolution in bfloat16 both times, whether the backward pass is under autocast or not."""
    ours, pair = twins(2, OURS, torch.float32, device, {"kernel_size": 3, "bias": True})
    input = activations(SHAPES[2], torch.float32, device)
    results = []
    for model in (ours, pair):
        x = input.clone().requires_grad_()
        with torch.autocast(device, torch.bfloat16):
            output = model(x)
            if backward_too:
                output.square().sum().backward()
        if not backward_too:
            output.square().sum().backward()
        assert output.dtype == torch.bfloat16
        results.append({"output": output, "input": x.grad, **{n: p.grad for n, p in model.named_parameters()}})
    assert_same(*results)


@pytest.mark.parametrize("shape", [(0, 6, 8, 7)])
def test_empty_batch(shape: tuple[int, ...], device: str) -> None:
    ours, _ = twins(2, OURS, torch.float32, device, {"kernel_size": 3})
    x = torch.empty(shape, device=device, requires_grad=True)
    output = ours(x)
    output.sum().backward()
    assert output.shape == (0, CHANNELS, 6, 5)
    assert x.grad.shape == shape
    assert all(not parameter.grad.any() for parameter in ours.parameters())
    assert int(ours.norm.num_batches_tracked) == 0
    assert torch.equal(ours.norm.running_var, torch.ones(CHANNELS, device=device))


def test_of_two_modules(device: str) -> None:
    for norm in (my_ops.BatchNorm2d, nn.BatchNorm2d):
        pair = nn.Sequential(nn.Conv2d(6, 4, 3), norm(4)).to(device)
        ours = my_ops.ConvBatchNorm2d.of(*pair)
        assert ours.conv.weight is pair[0].weight
        assert list(ours.state_dict()) == [n.replace("0.", "conv.").replace("1.", "norm.") for n in pair.state_dict()]
        ours(activations(SHAPES[2], torch.float32, device))
        assert int(pair[1].num_batches_tracked) == 1
        assert not my_ops.ConvBatchNorm2d.of(pair[0], pair[1].eval()).training
        twin = copy.deepcopy(ours).eval()
        assert twin.conv.weight is not ours.conv.weight
    wrong = r"ConvBatchNorm2d.of: expected Conv2d and BatchNorm2d, got Conv1d and BatchNorm2d"
    with pytest.raises(TypeError, match=wrong):
        my_ops.ConvBatchNorm2d.of(nn.Conv1d(6, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match=r"expected norm of 4 features, got 5"):
        my_ops.ConvBatchNorm2d.of(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(5))


ERRORS = [
    ({"weight": torch.ones(4, 6, 3)}, r"expected weight of rank 4, got shape \[4, 6, 3\]"),
    ({"weight": torch.ones(4, 5, 3, 3)}, r"expected input of 5 channels, got shape \[2, 6, 5, 5\]"),
    ({"weight": torch.ones(4, 6, 3, 3).double()}, r"expected weight of dtype float32, got float64"),
    ({"weight": torch.ones(4, 6, 3, 3, device="meta")}, r"expected weight on device cpu, got meta"),
    ({"bias": torch.ones(3)}, r"expected bias of shape \[4\], got \[3\]"),
    ({"stride": [1]}, r"expected stride of 2 numbers, each 1 or more, got \[1\]"),
    ({"dilation": [0, 1]}, r"expected dilation of 2 numbers, each 1 or more, got \[0, 1\]"),
    ({"padding": [-1, 0]}, r"expected padding of 2 numbers, each 0 or more, got \[-1, 0\]"),
    ({"groups": 3}, r"expected groups that divide the 4 output channels, got 3"),
    ({"input": torch.ones(6, 5)}, r"expected input of rank 3, 4 or 5, got shape \[6, 5\]"),
    (
        {"activation": "tanh"},
        r"expected activation identity, relu, leaky_relu, .* or gelu_tanh, got tanh",
    ),
    ({"gamma": torch.ones(3)}, r"batchnorm_forward: expected gamma of shape \[4\], got \[3\]"),
    ({"running_mean": torch.ones(4, requires_grad=True)}, r"expected running_mean not to require grad"),
]


@pytest.mark.parametrize(("changes", "message"), ERRORS, ids=[message for _, message in ERRORS])
def test_errors(changes: dict[str, object], message: str) -> None:
    """One sentence each, and nothing is written."""
    state = {"running_mean": torch.zeros(4), "running_var": torch.ones(4)}
    arguments: dict[str, object] = {"input": torch.ones(2, 6, 5, 5), "weight": torch.ones(4, 6, 3, 3), "bias": None}
    arguments |= {"gamma": None, "beta": None, **state, "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1]}
    arguments |= {"groups": 1, "training": True, "momentum": 0.1, "eps": 1e-5}
    with pytest.raises((RuntimeError, ValueError), match=message):
        ops.conv_batchnorm_forward(**arguments | changes)
    assert not state["running_mean"].any()


def test_wrong_rank_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"expected 4D input \(got 3D input\)"):
        my_ops.ConvBatchNorm2d(6, 4, 3)(torch.ones(6, 5, 5))
