"""convert_batchnorm(fuse=True) and fuse_conv_bn: what is found, what is left alone, and that nothing else changes."""

from __future__ import annotations

import copy
import operator
import pickle
import random
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import my_ops
from checks import activations, bit_equal
from profiling.measure.networks import MobileNetV2, ResNet

CHANNELS = 6


def images(samples: int = 3, size: int = 9, channels: int = CHANNELS) -> Tensor:
    return activations((samples, channels, size, size), torch.float32, "cpu")


def fused(model: nn.Module) -> list[str]:
    """Names of the batch norms that have an activation."""
    kinds = (my_ops.BatchNormAct1d, my_ops.BatchNormAct2d, my_ops.BatchNormAct3d)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def assert_same_training(got: nn.Module, want: nn.Module, input: Tensor, **tolerance: float) -> None:
    """Outputs, every gradient and every buffer of two steps and of inference, `want` in float64."""
    tolerance = tolerance or {"rtol": 1e-4, "atol": 1e-4}
    want = copy.deepcopy(want).double()
    assert [*got.state_dict()] == [*want.state_dict()]
    for training in (True, True, False):
        results = []
        for model in (got, want):
            model.train(training).zero_grad()
            x = input.to(next(model.parameters()).dtype).clone().requires_grad_()
            output = model(x)
            output.square().mean().backward()
            state = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            state |= {"output": output, "input": x.grad, **dict(model.named_buffers())}
            results.append({name: tensor.detach().double() for name, tensor in state.items()})
        torch.testing.assert_close(*results, **tolerance)


def randomize(model: nn.Module) -> None:
    """Statistics and parameters that are not those of fresh batch norms."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.running_mean)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)


class Body(nn.Module):
    """A module around one expression of a batch norm and of what is around it."""

    def __init__(self, function: Callable[[Body, Tensor], Tensor], activation: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.side = nn.BatchNorm2d(CHANNELS)
        self.act = activation or nn.ReLU()
        self.scale = 2.0
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


ACTIVATIONS = {
    "relu": (nn.ReLU(), "relu"),
    "relu_inplace": (nn.ReLU(inplace=True), "relu"),
    "leaky_relu": (nn.LeakyReLU(0.2), "leaky_relu"),
    "relu6": (nn.ReLU6(), "relu6"),
    "elu": (nn.ELU(0.7), "elu"),
    "silu": (nn.SiLU(), "silu"),
    "gelu_tanh": (nn.GELU(approximate="tanh"), "gelu_tanh"),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_modules(name: str) -> None:
    activation, kind = ACTIVATIONS[name]
    for function in (lambda m, x: m.act(m.norm(m.conv(x))), lambda m, x: m.act(m.norm(m.conv(x)) + x)):
        model = Body(function, copy.deepcopy(activation))
        plain = copy.deepcopy(model)
        assert my_ops.convert_batchnorm(model, fuse=True) is model
        assert fused(model) == ["norm"]
        assert model.norm.activation == kind
        assert type(model.side) is my_ops.BatchNorm2d
        assert_same_training(model, plain, images())


FUNCTIONS: dict[str, Callable[[Body, Tensor], Tensor]] = {
    "F.relu": lambda m, x: F.relu(m.norm(x)),
    "F.relu_inplace": lambda m, x: F.relu(m.norm(x), inplace=True),
    "torch.relu": lambda m, x: torch.relu(m.norm(x)),
    "relu_": lambda m, x: torch.relu_(m.norm(x)),
    "method": lambda m, x: m.norm(x).relu(),
    "method_": lambda m, x: m.norm(x).relu_(),
    "leaky_relu": lambda m, x: F.leaky_relu(m.norm(x), 0.3),
    "relu6": lambda m, x: F.relu6(m.norm(x)),
    "leaky_relu_default": lambda m, x: F.leaky_relu(m.norm(x)),
    "elu": lambda m, x: F.elu(m.norm(x), alpha=0.5),
    "silu": lambda m, x: F.silu(m.norm(x)),
    "gelu": lambda m, x: F.gelu(m.norm(x), approximate="tanh"),
    "add": lambda m, x: F.relu(m.norm(m.conv(x)) + x),
    "add_from_the_left": lambda m, x: F.relu(x + m.norm(m.conv(x))),
    "torch.add": lambda m, x: F.relu(torch.add(m.norm(m.conv(x)), x)),
    "operator.add": lambda m, x: F.relu(operator.add(m.norm(m.conv(x)), x)),
    "add_method": lambda m, x: F.silu(m.norm(m.conv(x)).add(x)),
    "add_in_place": lambda m, x: F.relu(m.norm(m.conv(x)).add_(x)),
    "iadd": lambda m, x: F.relu(operator.iadd(m.norm(m.conv(x)), x)),
    "residual_after": lambda m, x: F.elu(operator.iadd(m.norm(m.conv(x)), m.scale * x)),
    "two_norms": lambda m, x: F.relu(m.norm(m.conv(x)) + m.side(x)),
    "more_behind": lambda m, x: F.max_pool2d(F.relu(m.norm(x)), 2) * m.scale,
    "used_twice_behind": lambda m, x: (lambda y: y + y.sigmoid())(F.relu(m.norm(x))),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    model = Body(FUNCTIONS[name])
    plain = copy.deepcopy(model)
    my_ops.convert_batchnorm(model, fuse=True)
    assert fused(model) == ["norm"]
    assert isinstance(model, Body)
    again = copy.deepcopy(model)
    assert_same_training(model, plain, images())
    my_ops.revert_batchnorm(again)
    assert [type(m) for m in again.modules()] == [type(m) for m in plain.modules()]
    assert_same_training(again, plain, images())


def with_hook(model: Body, part: str) -> Body:
    getattr(model, part).register_forward_hook(lambda module, inputs, output: None)
    return model


def hooked_between() -> Body:
    model = Body(lambda m, x: m.act(m.between(m.norm(x))))
    model.between = nn.Identity()
    return with_hook(model, "between")


class Optional(Body):
    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return F.relu(self.norm(x)) if scale is None else F.relu(self.norm(x) * scale)


class KeepsIt(Body):
    def forward(self, x: Tensor) -> Tensor:
        self.last = self.norm(x)
        return F.relu(self.last)


class WithoutGradients(Body):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.norm(x)
        return F.relu(y) + self.side(x)


class Decorated(Body):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(x))


class AsksForType(Body):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(x if isinstance(x, Tensor) else x[0]))


class CountsCalls(Body):
    def __init__(self, function: Callable[[Body, Tensor], Tensor]) -> None:
        super().__init__(function)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return F.relu(self.norm(x))


class Inherited(nn.BatchNorm2d):
    pass


def inherited(model: Body) -> Body:
    model.norm = Inherited(CHANNELS)
    return model


def add_into_the_residual(m: Body, x: Tensor) -> Tensor:
    y = x * 2
    y += m.norm(m.conv(x))
    return F.relu(y) + y


LEFT_ALONE: dict[str, Callable[[], Body]] = {
    "another_activation": lambda: Body(lambda m, x: torch.tanh(m.norm(x))),
    "exact_gelu": lambda: Body(lambda m, x: F.gelu(m.norm(x))),
    "output_used_elsewhere": lambda: Body(lambda m, x: (lambda y: F.relu(y) + y)(m.norm(x))),
    "sum_used_elsewhere": lambda: Body(lambda m, x: (lambda y: F.relu(y) + y)(m.norm(m.conv(x)) + x)),
    "called_twice": lambda: Body(lambda m, x: F.relu(m.norm(F.relu(m.norm(x))))),
    "added_to_itself": lambda: Body(lambda m, x: (lambda y: F.relu(y + y))(m.norm(m.conv(x)))),
    "added_number": lambda: Body(lambda m, x: F.relu(m.norm(m.conv(x)) + 1.0)),
    "weighted_sum": lambda: Body(lambda m, x: F.relu(torch.add(m.norm(m.conv(x)), x, alpha=2))),
    "into_the_residual": lambda: Body(add_into_the_residual),
    "hook_on_the_norm": lambda: with_hook(Body(lambda m, x: m.act(m.norm(x))), "norm"),
    "hook_between": lambda: hooked_between(),
    "hook_on_the_activation": lambda: with_hook(Body(lambda m, x: m.act(m.norm(x))), "act"),
    "subclass": lambda: inherited(Body(lambda m, x: F.relu(m.norm(x)))),
    "depends_on_values": lambda: Body(lambda m, x: F.relu(m.norm(x)) if x.sum() > -1e9 else x),
    "depends_on_mode": lambda: Body(lambda m, x: F.dropout(F.relu(m.norm(x)), 0.0, m.training)),
    "optional_arguments": lambda: Optional(lambda m, x: x),
    "keeps_values": lambda: KeepsIt(lambda m, x: x),
    "without_gradients": lambda: WithoutGradients(lambda m, x: x),
    "counts_calls": lambda: CountsCalls(lambda m, x: x),
    "by_chance": lambda: Body(lambda m, x: F.relu(m.norm(x)) if random.random() < 2 else x),
    "decorated": lambda: Decorated(lambda m, x: x),
    "asks_for_type": lambda: AsksForType(lambda m, x: x),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_left_alone(name: str) -> None:
    """Plain conversion, and the attributes that a traced forward may have set are as before."""
    model = LEFT_ALONE[name]()
    attributes = [set(vars(m)) for m in model.modules()]
    plain = copy.deepcopy(model)
    my_ops.convert_batchnorm(model, fuse=True)
    assert fused(model) == []
    assert type(model) is type(plain)
    assert type(model.side) is my_ops.BatchNorm2d
    assert [set(vars(m)) for m in model.modules()] == attributes
    assert all(type(tensor) is Tensor for tensor in model.buffers())
    if name != "decorated":
        assert_same_training(model, plain, images())


def test_hooks_see_what_they_saw() -> None:
    """Modules around a pair are called as before. A later hook of a fused norm sees the activation's output."""
    seen: list[str] = []
    inner = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Sequential(nn.BatchNorm2d(CHANNELS), nn.ReLU()))
    model = nn.Sequential(inner, nn.Flatten())
    for name, module in (("inner", inner), ("conv", inner[0]), ("pair", inner[1]), ("flatten", model[1])):
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
    my_ops.convert_batchnorm(model, fuse=True)
    assert fused(model) == ["0.1.0"]
    outputs: list[Tensor] = []
    inner[1][0].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model(images())
    assert seen == ["conv", "pair", "inner", "flatten"]
    assert float(outputs[0].detach().min()) == 0.0


def test_shared_modules() -> None:
    """An activation in several places: in each place, unless it is also somewhere else. A block that is used twice."""
    relu = nn.ReLU()
    block = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.BatchNorm2d(CHANNELS), relu)
    model = nn.Sequential(block, block, nn.BatchNorm2d(CHANNELS), relu, nn.Conv2d(CHANNELS, 2, 1), relu)
    plain = copy.deepcopy(model)
    my_ops.convert_batchnorm(model, fuse=True)
    assert fused(model) == ["0.1", "2"]
    assert type(relu) is nn.ReLU
    assert_same_training(model, plain, images())

    norm = nn.BatchNorm2d(CHANNELS)
    model = nn.Sequential(nn.Sequential(norm, nn.ReLU()), nn.Sequential(norm, nn.SiLU()))
    my_ops.convert_batchnorm(model, fuse=True)
    assert fused(model) == []


def test_untraceable_part_does_no_harm() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.BatchNorm2d(CHANNELS), nn.ReLU()),
        Body(lambda m, x: m.act(m.norm(x)) if x.sum() > -1e9 else x),
        nn.Sequential(nn.BatchNorm2d(CHANNELS), nn.ReLU()),
    )
    my_ops.convert_batchnorm(model, fuse=True)
    assert fused(model) == ["0.0", "2.0"]


def counted(model: nn.Module) -> tuple[int, int]:
    """Fused and plain batch norms of ours."""
    fused = sum(isinstance(m, my_ops.BatchNormAct2d) for m in model.modules())
    return fused, sum(type(m) is my_ops.BatchNorm2d for m in model.modules())


class Taps(nn.Module):
    """Calls the parts of another module past it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.BatchNorm2d(CHANNELS), nn.ReLU())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        taps = []
        for layer in self.features:
            x = layer(x)
            taps.append(x)
        return tuple(taps)


class BorrowsTheActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.BatchNorm2d(CHANNELS), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.features(self.features[2](x) - x)


def test_parts_that_are_called_past_their_module() -> None:
    """See and give what they did."""
    for model, found in ((Taps(), []), (BorrowsTheActivation(), ["features.1"])):
        x, plain = images(), copy.deepcopy(model)
        my_ops.convert_batchnorm(model, fuse=True)
        assert fused(model) == found
        torch.testing.assert_close(model(x), plain(x))
    model = infer(Taps())
    plain = copy.deepcopy(model)
    my_ops.fuse_conv_bn(model)
    torch.testing.assert_close(model(x), plain(x))


def test_every_pair_of_the_networks_is_found() -> None:
    """ResNet-50: 33 activations and 16 sums of 53, the other 4 are shortcuts. MobileNetV2: 17 of 52 are linear."""
    with torch.device("meta"):
        resnet, mobilenet = ResNet(), MobileNetV2()
    assert counted(my_ops.convert_batchnorm(resnet, fuse=True)) == (49, 4)
    assert counted(my_ops.convert_batchnorm(mobilenet, fuse=True)) == (35, 17)


def test_transformers_resnet_50() -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.ResNetForImageClassification(transformers.ResNetConfig())
    assert counted(my_ops.convert_batchnorm(model, fuse=True)) == (49, 4)
    assert isinstance(model, transformers.ResNetForImageClassification)
    my_ops.revert_batchnorm(model)
    assert not any(type(m).__module__.startswith("my_ops") for m in model.modules())


@pytest.mark.parametrize("network", ["resnet", "mobilenet"])
def test_networks_train_as_before(network: str) -> None:
    if network == "resnet":
        model: nn.Module = ResNet((1, 2), 4)
    else:
        model = MobileNetV2(((1, 8, 1, 1), (2, 8, 2, 2)), 8, 16)
    randomize(model)
    plain = copy.deepcopy(model)
    my_ops.convert_batchnorm(model, fuse=True)
    assert_same_training(model, plain, images(4, 32, 3), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_copies(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = my_ops.convert_batchnorm(ResNet((1, 1), 4), fuse=True)
    twin = copied(model)
    assert type(twin.stages[0][0]).__name__ == "Bottleneck"
    assert counted(twin) == counted(model) == (7, 2)
    x = images(4, 32, 3)
    assert bit_equal(twin(x), model(x))
    assert not bit_equal(twin.bn1.running_mean, ResNet((1, 1), 4).bn1.running_mean)
    assert twin.bn1.running_mean is not model.bn1.running_mean
    my_ops.revert_batchnorm(twin)
    assert counted(twin) == (0, 0)
    assert counted(model) == (7, 2)


def test_compiles_into_one_graph() -> None:
    torch._dynamo.reset()
    model = my_ops.convert_batchnorm(ResNet((1,), 4), fuse=True)
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    x = images(4, 32, 3)
    for training in (True, False):
        torch.testing.assert_close(compiled.train(training)(x), model.train(training)(x))
    torch._dynamo.reset()


class Sum(nn.Module):
    """With a residual that is given."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.activation = activation

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)) + residual)


@pytest.mark.parametrize("activation", [F.relu, F.silu, partial(F.elu, alpha=0.5), F.leaky_relu])
def test_residuals_that_do_not_fit(activation: Callable[[Tensor], Tensor]) -> None:
    """Of another shape or dtype: then the sum and the activation are torch's."""
    model = Sum(activation)
    plain = copy.deepcopy(model)
    my_ops.convert_batchnorm(model, fuse=True)
    assert fused(model) == ["norm"]
    for residual in (torch.randn(1, CHANNELS, 1, 1), torch.randn(3, CHANNELS, 9, 9).double()):
        x = images()
        torch.testing.assert_close(model(x, residual), plain(x, residual), rtol=1e-5, atol=1e-5)


class SumInPlace(Sum):
    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        y += residual
        return self.activation(y)


def test_residuals_that_are_added_in_place() -> None:
    """Dtype and shape are those of what is added to."""
    model = SumInPlace(F.relu)
    plain = copy.deepcopy(model)
    my_ops.convert_batchnorm(model, fuse=True)
    assert fused(model) == ["norm"]
    x = images()
    residual = torch.randn(1, CHANNELS, 1, 1, dtype=torch.float64, requires_grad=True)
    got, want = (m(x, residual) for m in (model, plain))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    grads = (torch.autograd.grad(y.sum(), (residual, m.norm.weight)) for y, m in ((got, model), (want, plain)))
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
    larger = torch.randn(2, *x.shape)
    for m in (model, plain):
        with pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
            m(x, larger)


# fuse_conv_bn


def infer(model: nn.Module) -> nn.Module:
    randomize(model)
    return model.eval()


FOLDED = {
    "conv1d": (nn.Conv1d(CHANNELS, 4, 3), nn.BatchNorm1d(4), (2, CHANNELS, 7)),
    "conv2d": (nn.Conv2d(CHANNELS, 4, 3, bias=False), nn.BatchNorm2d(4), (2, CHANNELS, 7, 7)),
    "grouped": (nn.Conv2d(CHANNELS, 4, 3, 2, 1, groups=2), nn.BatchNorm2d(4, affine=False), (2, CHANNELS, 7, 7)),
    "conv3d": (nn.Conv3d(CHANNELS, 4, 3), nn.BatchNorm3d(4), (2, CHANNELS, 4, 5, 4)),
    "transposed": (nn.ConvTranspose2d(CHANNELS, 4, 3, 2), nn.BatchNorm2d(4), (2, CHANNELS, 5, 5)),
    "linear": (nn.Linear(CHANNELS, 4), nn.BatchNorm1d(4), (5, CHANNELS)),
}


@pytest.mark.parametrize("ours", [False, True], ids=["native", "my_ops"])
@pytest.mark.parametrize("name", FOLDED)
def test_folds(name: str, ours: bool) -> None:
    linear, norm, shape = FOLDED[name]
    model = infer(copy.deepcopy(nn.Sequential(linear, nn.Sequential(norm))))
    if ours:
        my_ops.convert_batchnorm(model)
    wide = copy.deepcopy(my_ops.revert_batchnorm(copy.deepcopy(model))).double()
    weight = wide[0].weight
    scale = (wide[1][0].running_var + norm.eps).rsqrt() * (1 if norm.weight is None else wide[1][0].weight)
    along = [1, -1] if name == "transposed" else [-1, 1]
    exact = weight * scale.reshape(along + [1] * (weight.dim() - 2))

    assert my_ops.fuse_conv_bn(model) is model
    assert type(model[1][0]) is nn.Identity
    assert bit_equal(model[0].weight, exact.float())  # rounded once
    assert list(model.state_dict()) == ["0.weight", "0.bias"]
    x = activations(shape, torch.float32, "cpu")
    torch.testing.assert_close(model(x).double(), wide(x.double()), rtol=1e-5, atol=1e-5)


NOT_FOLDED: dict[str, Callable[[], nn.Module]] = {
    "output_used_elsewhere": lambda: Body(lambda m, x: (lambda y: m.norm(y) + y)(m.conv(x))),
    "norm_called_twice": lambda: Body(lambda m, x: m.norm(m.norm(m.conv(x)))),
    "conv_called_twice": lambda: Body(lambda m, x: m.norm(m.conv(m.conv(x)))),
    "function_between": lambda: Body(lambda m, x: m.norm(F.relu(m.conv(x)))),
    "hook": lambda: with_hook(Body(lambda m, x: m.norm(m.conv(x))), "conv"),
    "untraceable": lambda: Body(lambda m, x: m.norm(m.conv(x)) if x.sum() > -1e9 else x),
    "grouped_transposed": lambda: nn.Sequential(nn.ConvTranspose2d(CHANNELS, 4, 3, groups=2), nn.BatchNorm2d(4)),
    "without_statistics": lambda: nn.Sequential(
        nn.Conv2d(CHANNELS, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)
    ),
}


@pytest.mark.parametrize("name", NOT_FOLDED)
def test_does_not_fold(name: str) -> None:
    model = NOT_FOLDED[name]().eval()
    twin = copy.deepcopy(model)
    my_ops.fuse_conv_bn(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in twin.modules()]
    for key, value in twin.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_shared_modules_are_not_folded() -> None:
    conv = nn.Conv2d(CHANNELS, CHANNELS, 1)
    tied = nn.Conv2d(CHANNELS, CHANNELS, 1)
    tied.weight = conv.weight
    norms = [nn.BatchNorm2d(CHANNELS) for _ in range(3)]
    model = infer(nn.Sequential(nn.Sequential(conv, norms[0]), nn.Sequential(conv, norms[1]), tied, norms[2]))
    x = images()
    want = model(x)
    my_ops.fuse_conv_bn(model)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 3
    assert torch.equal(model(x), want)


def test_untraceable_parts_are_left_as_they_are() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.BatchNorm2d(CHANNELS)),
        Body(lambda m, x: m.norm(m.conv(x)) if x.sum() > -1e9 else x),
    )
    my_ops.fuse_conv_bn(infer(model))
    assert type(model[0][1]) is nn.Identity
    assert type(model[1].norm) is nn.BatchNorm2d


@pytest.mark.parametrize("converted", ["native", "my_ops", "fused"])
def test_folds_a_whole_resnet(converted: str) -> None:
    model = infer(ResNet((1, 2), 4))
    x = images(2, 32, 3)
    want = copy.deepcopy(model).double()(x.double())
    if converted != "native":
        my_ops.convert_batchnorm(model, fuse=converted == "fused")
    my_ops.fuse_conv_bn(model)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    assert type(model.stages[0][0]).__name__ == "Bottleneck"
    torch.testing.assert_close(model(x).double(), want, rtol=1e-4, atol=1e-4)


def test_folds_all_53_of_resnet_50() -> None:
    """transformers', whose outer modules cannot be traced."""
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.ResNetForImageClassification(transformers.ResNetConfig()).eval()
    my_ops.fuse_conv_bn(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize(("activation", "becomes"), [("identity", nn.Identity), ("elu", nn.ELU)])
def test_folds_modules_of_ours(activation: str, becomes: type[nn.Module]) -> None:
    one = my_ops.ConvBatchNorm2d(CHANNELS, 4, 3, bias=True, activation=activation, slope=0.5)
    other = my_ops.BatchNormAct2d(5, activation=activation, slope=0.5)
    model = infer(nn.Sequential(one, nn.Conv2d(4, 5, 1), other))
    x = images()
    want = copy.deepcopy(model).double()(x.double())
    my_ops.fuse_conv_bn(model)
    assert [*model.state_dict()] == ["0.conv.weight", "0.conv.bias", "1.weight", "1.bias"]
    assert type(model[0].norm) is type(model[2]) is becomes
    torch.testing.assert_close(model(x).double(), want, rtol=1e-5, atol=1e-5)


def test_hooks_around_a_convolution_with_batch_norm_stay() -> None:
    model = infer(nn.Sequential(my_ops.ConvBatchNorm2d(CHANNELS, 4, 3)))
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    my_ops.fuse_conv_bn(model)
    y = model(images())
    assert type(model[0].norm) is nn.Identity
    assert torch.equal(seen[0], y)


def test_norm_with_a_residual_is_not_folded() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(CHANNELS, CHANNELS, 1), my_ops.BatchNormAct2d(CHANNELS)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x), residual=x)

    model = my_ops.fuse_conv_bn(infer(Residual()))
    assert type(model.norm) is my_ops.BatchNormAct2d


def test_training_mode_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match="fuse_conv_bn: expected a model in eval mode, got 1 in training mode"):
        my_ops.fuse_conv_bn(model)
    assert type(model[1]) is nn.BatchNorm2d
