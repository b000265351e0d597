"""my_ops.BatchNorm*: each behaves as the torch module that it replaces, which runs beside it in float64."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn

import my_ops
from checks import activations
from tolerances import CLASSIC_CASE, accumulation_dtype

MODULES = [
    pytest.param(my_ops.BatchNorm1d, nn.BatchNorm1d, (9, 6), id="1d-NC"),
    pytest.param(my_ops.BatchNorm1d, nn.BatchNorm1d, (4, 6, 5), id="1d-NCL"),
    pytest.param(my_ops.BatchNorm2d, nn.BatchNorm2d, (3, 6, 5, 4), id="2d"),
    pytest.param(my_ops.BatchNorm3d, nn.BatchNorm3d, (2, 6, 3, 4, 5), id="3d"),
]
LAZY = [
    pytest.param(my_ops.LazyBatchNorm1d, my_ops.BatchNorm1d, nn.LazyBatchNorm1d, (9, 6), id="1d"),
    pytest.param(my_ops.LazyBatchNorm2d, my_ops.BatchNorm2d, nn.LazyBatchNorm2d, (3, 6, 5, 4), id="2d"),
    pytest.param(my_ops.LazyBatchNorm3d, my_ops.BatchNorm3d, nn.LazyBatchNorm3d, (2, 6, 3, 4, 5), id="3d"),
]
OPTIONS = [
    pytest.param({}, id="default"),
    pytest.param({"momentum": 0.25, "eps": 0.5}, id="momentum-eps"),
    pytest.param({"momentum": None}, id="cumulative"),
    pytest.param({"affine": False}, id="no-affine"),
    pytest.param({"track_running_stats": False, "eps": 0.5}, id="no-statistics"),
]
if "bias" in inspect.signature(nn.BatchNorm2d).parameters:  # from torch 2.13 on
    OPTIONS.append(pytest.param({"bias": False}, id="no-bias"))
KINDS = pytest.mark.parametrize(("ours", "torchs", "shape"), MODULES)
CHANNELS = 6

Module = type[nn.modules.batchnorm._BatchNorm]


def twins(ours: Module, torchs: Module, device: str, **options: object) -> tuple[nn.Module, nn.Module]:
    """Our module in float32 and torch's in float64, with the same random parameters."""
    mine = ours(CHANNELS, device=device, **options)
    for parameter in mine.parameters():
        nn.init.normal_(parameter)
    theirs = torchs(CHANNELS, device=device, dtype=torch.float64, **options)
    theirs.load_state_dict(mine.state_dict())
    return mine, theirs


def assert_alike(got: Tensor | None, want: Tensor | None, what: str) -> None:
    if want is None:
        assert got is None, what
    else:
        message = f"{what}: {{}}".format
        torch.testing.assert_close(got.to(want.dtype), want, rtol=CLASSIC_CASE, atol=CLASSIC_CASE, msg=message)


def step_alike(mine: nn.Module, theirs: nn.Module, input: Tensor) -> None:
    """One forward and backward pass of both: outputs, gradients and buffers agree."""
    grad_output = torch.randn_like(input)
    inputs = [input.clone().requires_grad_(), input.double().requires_grad_()]
    mine.zero_grad()
    theirs.zero_grad()
    outputs = [module(x) for module, x in zip((mine, theirs), inputs, strict=True)]
    assert_alike(*outputs, "output")
    for output in outputs:
        output.backward(grad_output.to(output.dtype))
    assert_alike(inputs[0].grad, inputs[1].grad, "gradient of the input")
    for (name, got), want in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        assert_alike(got.grad, want.grad, f"gradient of {name}")
    for (name, got), want in zip(mine.named_buffers(), theirs.buffers(), strict=True):
        assert_alike(got, want, name)


@KINDS
@pytest.mark.parametrize("options", OPTIONS)
def test_trains_and_infers_as_torchs(
    ours: Module, torchs: Module, shape: tuple[int, ...], options: dict[str, object], device: str
) -> None:
    mine, theirs = twins(ours, torchs, device, **options)
    for training in (True, True, True, False, True, False):
        mine.train(training)
        theirs.train(training)
        step_alike(mine, theirs, activations(shape, torch.float32, device))


@KINDS
def test_counts_batches_in_training_only(ours: Module, torchs: Module, shape: tuple[int, ...], device: str) -> None:
    module = ours(CHANNELS, device=device)
    for training in (True, False, True):
        module.train(training)
        module(torch.randn(shape, device=device))
    assert int(module.num_batches_tracked) == 2


def test_dropped_statistics_mean_those_of_the_batch(device: str) -> None:
    """Without running statistics, eval normalises with the batch, which does not count as one trained on."""
    mine, theirs = twins(my_ops.BatchNorm2d, nn.BatchNorm2d, device)
    for module in (mine, theirs):
        module.running_mean = module.running_var = None
    for training in (True, False):
        mine.train(training)
        theirs.train(training)
        step_alike(mine, theirs, activations((3, CHANNELS, 5, 4), torch.float32, device))
    assert int(mine.num_batches_tracked) == 1


def test_statistics_that_are_not_tracked_stay_as_they_are(device: str) -> None:
    """track_running_stats=False with statistics set by hand: training leaves them alone, eval normalises with them."""
    mine, theirs = twins(my_ops.BatchNorm2d, nn.BatchNorm2d, device, track_running_stats=False)
    for module in (mine, theirs):
        dtype = module.weight.dtype
        module.running_mean = torch.linspace(-1, 1, CHANNELS, dtype=dtype, device=device)
        module.running_var = torch.linspace(1, 2, CHANNELS, dtype=dtype, device=device)
    before = mine.running_mean.clone(), mine.running_var.clone()
    for training in (True, False):
        mine.train(training)
        theirs.train(training)
        step_alike(mine, theirs, activations((3, CHANNELS, 5, 4), torch.float32, device))
    assert torch.equal(mine.running_mean, before[0])
    assert torch.equal(mine.running_var, before[1])


@KINDS
@pytest.mark.parametrize("options", OPTIONS)
def test_same_face_as_torchs(ours: Module, torchs: Module, shape: tuple[int, ...], options: dict[str, object]) -> None:
    mine, theirs = ours(CHANNELS, **options), torchs(CHANNELS, **options)
    assert isinstance(mine, torchs)
    assert isinstance(mine, nn.modules.batchnorm._BatchNorm)
    assert inspect.signature(ours) == inspect.signature(torchs)
    assert repr(mine) == repr(theirs)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    assert [name for name, _ in mine.named_parameters()] == [name for name, _ in theirs.named_parameters()]


@KINDS
def test_checkpoints_go_both_ways(ours: Module, torchs: Module, shape: tuple[int, ...], device: str) -> None:
    mine, theirs = ours(CHANNELS, device=device), torchs(CHANNELS, device=device)
    theirs(activations(shape, torch.float32, device))
    mine.load_state_dict(theirs.state_dict())
    assert int(mine.num_batches_tracked) == 1
    assert torch.equal(mine.running_var, theirs.running_var)
    mine(activations(shape, torch.float32, device))
    theirs.load_state_dict(mine.state_dict())
    assert int(theirs.num_batches_tracked) == 2
    assert torch.equal(theirs.running_var, mine.running_var)


@KINDS
def test_wrong_rank_is_a_value_error(ours: Module, torchs: Module, shape: tuple[int, ...], device: str) -> None:
    input = torch.randn(2, CHANNELS, *[2] * 5, device=device)
    messages = []
    for module in (ours, torchs):
        with pytest.raises(ValueError) as error:
            module(CHANNELS, device=device)(input)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_failed_call_changes_no_state(device: str) -> None:
    module = my_ops.BatchNorm2d(CHANNELS, device=device)
    with pytest.raises(ValueError, match="expected more than 1 value per channel"):
        module(torch.randn(1, CHANNELS, 1, 1, device=device))
    assert int(module.num_batches_tracked) == 0
    assert torch.equal(module.running_mean, torch.zeros(CHANNELS, device=device))


@pytest.mark.parametrize(("lazy", "becomes", "torchs", "shape"), LAZY)
def test_lazy_modules(lazy: type, becomes: Module, torchs: type, shape: tuple[int, ...], device: str) -> None:
    mine, theirs = lazy(device=device, eps=0.5), torchs(device=device, dtype=torch.float64, eps=0.5)
    assert isinstance(mine, torchs)
    assert repr(mine) == repr(theirs)
    input = activations(shape, torch.float32, device)
    assert_alike(mine(input), theirs(input.double()), "output")
    assert type(mine) is becomes
    assert int(mine.num_batches_tracked) == 1
    assert repr(mine) == repr(theirs)


def test_lazy_module_takes_the_checkpoint_of_a_ready_one() -> None:
    ready, lazy = my_ops.BatchNorm2d(CHANNELS), my_ops.LazyBatchNorm2d()
    ready(torch.randn(3, CHANNELS, 2, 2))
    lazy.load_state_dict(ready.state_dict())
    input = torch.randn(3, CHANNELS, 2, 2)
    assert torch.equal(lazy.eval()(input), ready.eval()(input))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["deepcopy", "pickle"]
)
def test_copies_have_state_of_their_own(copied: object) -> None:
    module = my_ops.BatchNorm2d(CHANNELS, momentum=None)
    module(torch.randn(3, CHANNELS, 2, 2))
    twin = copied(module)
    assert type(twin) is my_ops.BatchNorm2d
    before = {name: value.clone() for name, value in module.state_dict().items()}
    input = torch.randn(3, CHANNELS, 2, 2)
    output = twin(input)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(output, module(input))
    assert torch.equal(twin.running_mean, module.running_mean)


@KINDS
@pytest.mark.parametrize("options", OPTIONS)
def test_torchscript_saved_and_loaded(
    ours: Module, torchs: Module, shape: tuple[int, ...], options: dict[str, object], device: str
) -> None:
    eager, _ = twins(ours, torchs, device, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(eager), buffer)
        buffer.seek(0)
        scripted = torch.jit.load(buffer)
    for training in (True, True, False):
        eager.train(training)
        scripted.train(training)
        input = activations(shape, torch.float32, device)
        assert torch.equal(scripted(input), eager(input))
    for (name, got), want in zip(scripted.named_buffers(), eager.buffers(), strict=True):
        assert torch.equal(got, want), name


@pytest.mark.parametrize("options", OPTIONS)
def test_compiles_into_one_graph(options: dict[str, object], device: str, training: bool) -> None:
    """Outputs, gradients and buffers of the captured graph are those of eager mode, bit for bit."""
    torch.compiler.reset()
    eager = my_ops.BatchNorm2d(CHANNELS, device=device, **options).train(training)
    captured = copy.deepcopy(eager)
    compiled = torch.compile(captured, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        input = activations((3, CHANNELS, 5, 4), torch.float32, device)
        grad_output = torch.randn_like(input)
        results = []
        for module in (eager, compiled):
            x = input.clone().requires_grad_()
            output = module(x)
            results.append((output, *torch.autograd.grad(output, [x, *module.parameters()], grad_output)))
        for got, want in zip(*results, strict=True):
            assert torch.equal(got, want)
    for (name, got), want in zip(captured.named_buffers(), eager.buffers(), strict=True):
        assert torch.equal(got, want), name


@pytest.mark.parametrize("mixed", [False, True], ids=["own-parameters", "wide-parameters"])
def test_input_dtypes(dtype: torch.dtype, mixed: bool, device: str) -> None:
    """Half precision input with parameters of its own type or, as under autocast, of the accumulation type."""
    module = my_ops.BatchNorm2d(CHANNELS, device=device, dtype=accumulation_dtype(dtype) if mixed else dtype)
    assert module.num_batches_tracked.dtype == torch.int64
    input = activations((3, CHANNELS, 5, 4), dtype, device)
    output = module(input)
    assert output.dtype == dtype
    want = nn.BatchNorm2d(CHANNELS, device=device, dtype=torch.float64)(input.double())
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), want, rtol=rounding, atol=4 * rounding)


def test_meta_device() -> None:
    module = my_ops.BatchNorm2d(CHANNELS, device="meta")
    output = module(torch.empty(3, CHANNELS, 5, 4, device="meta"))
    assert output.is_meta
    assert output.shape == (3, CHANNELS, 5, 4)


def test_reset_brings_the_fresh_module_back() -> None:
    module = my_ops.BatchNorm2d(CHANNELS)
    fresh = copy.deepcopy(module.state_dict())
    module(torch.randn(3, CHANNELS, 2, 2))
    nn.init.normal_(module.weight)
    module.reset_parameters()
    for name, value in module.state_dict().items():
        assert torch.equal(value, fresh[name]), name


def test_tools_for_torchs_modules_accept_ours() -> None:
    """Weight averaging renews the statistics of every _BatchNorm; SyncBatchNorm replaces every _BatchNorm."""
    model = nn.Sequential(my_ops.BatchNorm1d(CHANNELS))
    batches = [activations((8, CHANNELS), torch.float32, "cpu") for _ in range(3)]
    torch.optim.swa_utils.update_bn(batches, model)
    assert_alike(model[0].running_mean, torch.stack(batches).double().mean((0, 1)), "running_mean")
    assert model[0].momentum == 0.1
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(model)[0], nn.SyncBatchNorm)
