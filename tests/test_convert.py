"""convert_batchnorm and revert_batchnorm: everything but the class stays."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import my_ops
from checks import activations
from tolerances import CLASSIC_CASE

PAIRS = [
    (nn.BatchNorm1d, my_ops.BatchNorm1d),
    (nn.BatchNorm2d, my_ops.BatchNorm2d),
    (nn.BatchNorm3d, my_ops.BatchNorm3d),
]
LAZY = [
    (nn.LazyBatchNorm1d, my_ops.LazyBatchNorm1d, my_ops.BatchNorm1d, (4, 6)),
    (nn.LazyBatchNorm2d, my_ops.LazyBatchNorm2d, my_ops.BatchNorm2d, (4, 6, 2, 2)),
    (nn.LazyBatchNorm3d, my_ops.LazyBatchNorm3d, my_ops.BatchNorm3d, (4, 6, 2, 2, 2)),
]


class Residual(nn.Module):
    """A block whose batch norm is used twice and is registered under two names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.alias = self.norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.alias(self.conv(self.norm(x))))


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8, momentum=None),
        Residual(8),
        nn.Flatten(),
        nn.LazyLinear(6),
        nn.BatchNorm1d(6, affine=False),
    )


def ready_network() -> nn.Sequential:
    model = network()
    model(images())
    return model


def images() -> torch.Tensor:
    return activations((4, 3, 8, 8), torch.float32, "cpu")


def counts(model: nn.Module) -> dict[str, int]:
    """How many modules of each batch norm class the model has, by full class name."""
    names = [f"{type(m).__module__.split('.')[0]}.{type(m).__name__}" for m in model.modules()]
    return {name: names.count(name) for name in names if "BatchNorm" in name}


@pytest.mark.parametrize(("torchs", "ours"), PAIRS, ids=["1d", "2d", "3d"])
def test_class_there_and_back(torchs: type, ours: type) -> None:
    module = torchs(3)
    assert my_ops.convert_batchnorm(module) is module
    assert type(module) is ours
    assert my_ops.convert_batchnorm(module) is module
    assert type(module) is ours
    assert my_ops.revert_batchnorm(module) is module
    assert type(module) is torchs


@pytest.mark.parametrize(("torchs", "ours", "becomes", "shape"), LAZY, ids=["1d", "2d", "3d"])
def test_lazy_class_there_and_back(torchs: type, ours: type, becomes: type, shape: tuple[int, ...]) -> None:
    module = torchs()
    assert type(my_ops.convert_batchnorm(module)) is ours
    assert type(my_ops.revert_batchnorm(module)) is torchs
    my_ops.convert_batchnorm(module)(torch.randn(shape))
    assert type(module) is becomes
    assert module.num_features == shape[1]


def test_whole_network() -> None:
    model = ready_network()
    assert counts(model) == {"torch.BatchNorm2d": 2, "torch.BatchNorm1d": 1}
    assert my_ops.convert_batchnorm(model) is model
    assert counts(model) == {"my_ops.BatchNorm2d": 2, "my_ops.BatchNorm1d": 1}
    assert my_ops.revert_batchnorm(model) is model
    assert counts(model) == {"torch.BatchNorm2d": 2, "torch.BatchNorm1d": 1}


def test_everything_but_the_class_stays() -> None:
    model = ready_network().double()
    model[1].eval()
    model[1].weight.requires_grad_(False)
    modules = dict(model.named_modules())
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = copy.deepcopy(model.state_dict())

    my_ops.convert_batchnorm(model)
    assert {name: id(m) for name, m in model.named_modules()} == {name: id(m) for name, m in modules.items()}
    for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        assert tensor is tensors[name], name
    assert list(model.state_dict()) == list(values)
    for name, value in model.state_dict().items():
        assert value.dtype == values[name].dtype
        assert torch.equal(value, values[name]), name
    assert model[2].alias is model[2].norm
    assert not model[1].training
    assert model[5].training
    assert not model[1].weight.requires_grad
    assert model[1].momentum is None


def test_hooks_stay() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    calls: list[str] = []
    model[0].register_forward_pre_hook(lambda *_: calls.append("before"))
    model[0].register_forward_hook(lambda *_: calls.append("after"))
    model[0].register_full_backward_hook(lambda *_: calls.append("backward"))
    my_ops.convert_batchnorm(model)
    model(torch.randn(2, 3, 4, 4, requires_grad=True)).sum().backward()
    assert calls == ["before", "after", "backward"]


def test_trains_as_before() -> None:
    """Same losses, step by step, with an optimizer that was made before the conversion."""
    native = ready_network()
    converted = copy.deepcopy(native)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (native, converted)]
    my_ops.convert_batchnorm(converted)
    for _ in range(5):
        input, target = images(), torch.randn(4, 6)
        losses = []
        for model, optimizer in zip((native, converted), optimizers, strict=True):
            optimizer.zero_grad()
            loss = (model(input) - target).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=0)
    my_ops.revert_batchnorm(converted)
    for name, value in native.state_dict().items():
        torch.testing.assert_close(converted.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert int(converted[2].norm.num_batches_tracked) == 12  # used twice in each of six steps


def test_converted_network_infers_as_before() -> None:
    model = ready_network().eval()
    input = images()
    want = copy.deepcopy(model).double()(input.double())
    got = my_ops.convert_batchnorm(model)(input)
    torch.testing.assert_close(got.double(), want, rtol=5 * CLASSIC_CASE, atol=5 * CLASSIC_CASE)


def test_other_modules_are_left_alone() -> None:
    class Own(nn.BatchNorm2d):
        pass

    parametrized = nn.BatchNorm2d(3)
    nn.utils.parametrize.register_parametrization(parametrized, "weight", nn.Softplus())
    model = nn.Sequential(Own(3), nn.SyncBatchNorm(3), parametrized, nn.InstanceNorm2d(3), nn.GroupNorm(1, 3))
    before = [type(m) for m in model.modules()]
    my_ops.convert_batchnorm(model)
    assert [type(m) for m in model.modules()] == before
    my_ops.revert_batchnorm(model)
    assert [type(m) for m in model.modules()] == before
