"""update_bn: the statistics of a whole data set, as if each layer had seen its values in one batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.optim import swa_utils

import my_ops
from checks import bit_equal

SIZES = (7, 1, 3, 12)  # a data set of uneven batches


def data(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Batches whose means differ, which the mean of their variances does not see."""
    return [torch.randn(size, 3, 4, 5, dtype=torch.float64).add(i).to(dtype) for i, size in enumerate(SIZES)]


def network() -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), my_ops.BatchNorm2d(4)).double()


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@contextmanager
def state_unchanged(model: nn.Module) -> Iterator[None]:
    before = state(model), [module.training for module in model.modules()]
    tracked = [getattr(module, "track_running_stats", None) for module in model.modules()]
    momenta = [getattr(module, "momentum", None) for module in model.modules()]
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    yield
    assert all(bit_equal(tensor, before[0][name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == before[1]
    assert [getattr(module, "track_running_stats", None) for module in model.modules()] == tracked
    assert [getattr(module, "momentum", None) for module in model.modules()] == momenta
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks


def inputs_of_last(model: nn.Sequential, batches: list[Tensor]) -> Tensor:
    """What the last layer sees in training mode, all batches together."""
    other = copy.deepcopy(model).train()
    with torch.no_grad():
        return torch.cat([other[:-1](batch) for batch in batches])


def assert_statistics(module: nn.Module, values: Tensor) -> None:
    torch.testing.assert_close(module.running_mean, values.mean((0, 2, 3)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(module.running_var, values.var((0, 2, 3)), rtol=1e-12, atol=1e-12)


def test_statistics_are_those_of_all_values() -> None:
    model, batches = network(), data()
    second = inputs_of_last(model, batches)
    my_ops.update_bn(batches, model)
    assert_statistics(model[0], torch.cat(batches))
    assert_statistics(model[3], second)
    assert int(model[0].num_batches_tracked) == int(model[3].num_batches_tracked) == len(batches)


def test_torchs_helper_does_not_have_them() -> None:
    model, batches = network(), data()
    swa_utils.update_bn(batches, model)
    values = torch.cat(batches)
    assert (model[0].running_mean - values.mean((0, 2, 3))).abs().max() > 0.1
    assert (model[0].running_var - values.var((0, 2, 3))).abs().max() > 0.1


@pytest.mark.parametrize("options", [{}, {"padding": 1, "padding_mode": "reflect"}, {"activation": "relu"}], ids=str)
def test_convolution_and_batch_norm_in_one(options: dict[str, object]) -> None:
    """Which does not call its batch norm."""
    both = my_ops.ConvBatchNorm2d(3, 4, 3, bias=True, **options)
    apart = nn.Sequential(copy.deepcopy(both.conv), nn.BatchNorm2d(4))
    batches = [torch.randn(n, 3, 6, 6) for n in (5, 2)]
    for model in (both, apart):
        my_ops.update_bn(batches, model)
    values = torch.cat([apart[0](batch) for batch in batches]).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(both.norm.running_mean.double(), values.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(both.norm.running_var.double(), values.var(1), rtol=1e-6, atol=1e-6)
    assert both.norm.num_batches_tracked == apart[1].num_batches_tracked == 2


def test_many_batches_are_joined_as_they_come() -> None:
    batches = [torch.randn(2, 3, 1, 2, dtype=torch.float64) + 1000 for _ in range(200)]
    model = nn.Sequential(nn.BatchNorm2d(3).double())
    my_ops.update_bn(batches, model)
    assert_statistics(model[0], torch.cat(batches))
    assert int(model[0].num_batches_tracked) == 200


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_statistics_of_narrow_types(kind: torch.dtype) -> None:
    batches = data(kind)
    model = nn.Sequential(my_ops.BatchNorm2d(3))
    my_ops.update_bn(batches, model)
    values = torch.cat(batches).double()
    torch.testing.assert_close(model[0].running_mean.double(), values.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model[0].running_var.double(), values.var((0, 2, 3)), rtol=1e-6, atol=1e-6)


def test_loaders_as_torch_takes_them() -> None:
    batches = data()
    want = network()
    start = state(want)
    my_ops.update_bn(batches, want)
    labels = torch.zeros(1)
    for loader in ([[batch, labels] for batch in batches], ((batch, labels) for batch in batches), iter(batches)):
        model = network()
        model.load_state_dict(start)
        my_ops.update_bn(loader, model, device="cpu")
        for name, tensor in want.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], tensor)
    dataset = torch.utils.data.TensorDataset(torch.cat(batches))
    model = network()
    my_ops.update_bn(torch.utils.data.DataLoader(dataset, batch_size=5), model, torch.device("cpu"))
    assert_statistics(model[0], torch.cat(batches))


def test_flags_of_every_module_are_restored() -> None:
    model = network().eval()
    model[0].train()
    flags = [module.training for module in model.modules()]
    my_ops.update_bn(data(), model)
    assert [module.training for module in model.modules()] == flags
    assert all(module.track_running_stats for module in (model[0], model[3]))
    assert model[0].momentum == 0.1


def test_layers_run_in_training_mode() -> None:
    seen = []
    model = network().eval()
    model[3].register_forward_hook(lambda module, args, output: seen.append((module.training, output)))
    my_ops.update_bn(data(), model)
    assert len(seen) == len(SIZES)
    for training, output in seen:
        assert training
        torch.testing.assert_close(output.mean((0, 2, 3)), torch.zeros(4, dtype=torch.float64))


def test_an_error_in_the_model_restores_everything() -> None:
    model = network()
    model[0].eval()
    with state_unchanged(model), pytest.raises(RuntimeError, match="5 elements not 3"):
        my_ops.update_bn([*data(), torch.randn(2, 5, 4, 5).double()], model)


def test_an_error_in_the_loader_restores_everything() -> None:
    def broken() -> Iterator[Tensor]:
        yield from data()
        raise OSError("disk")

    model = network()
    with state_unchanged(model), pytest.raises(OSError, match="disk"):
        my_ops.update_bn(broken(), model)


def test_no_batch_is_an_error() -> None:
    model = network()
    with state_unchanged(model), pytest.raises(ValueError, match="update_bn: expected at least one batch in loader"):
        my_ops.update_bn([], model)


def test_shared_and_unused_layers() -> None:
    """All values of a layer that is called twice count; one that is not called stays as it is."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.unused = nn.BatchNorm2d(3).double(), nn.BatchNorm2d(3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(self.shared(x) + 1)

    model, batches = Twice(), data()
    with state_unchanged(model.unused):
        my_ops.update_bn(batches, model)
    with torch.no_grad():
        plain = nn.BatchNorm2d(3).double()
        both = [values for batch in batches for values in (batch, plain(batch) + 1)]
    assert_statistics(model.shared, torch.cat(both))
    assert int(model.shared.num_batches_tracked) == 2 * len(batches)


def test_models_without_running_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU()).double()
    with state_unchanged(model):
        my_ops.update_bn(data(), model)


def test_a_compiled_model() -> None:
    model, batches = network(), data()
    compiled = torch.compile(model, backend="aot_eager")
    compiled(batches[0])
    my_ops.update_bn(batches, compiled)
    assert_statistics(model[0], torch.cat(batches))


def test_a_ghost_batch_norm_sees_its_whole_input() -> None:
    model, batches = nn.Sequential(my_ops.GhostBatchNorm2d(3, 2)).double(), data()
    my_ops.update_bn(batches, model)
    assert_statistics(model[0], torch.cat(batches))
