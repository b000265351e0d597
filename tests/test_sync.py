"""SyncBatchNorm and convert_sync_batchnorm: real processes over Gloo against one process with the whole batch.

The checks themselves are in sync_checks.py; this is the list of them.
"""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import my_ops
import sync_checks as sync
from checks import bit_equal
from conftest import devices
from ranks import Ranks

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

# Evenly, unevenly, a rank with one sample, a rank with none.
SPLITS = [(4, 4), (1, 7), (0, 8), (5, 1, 2), (3, 0, 5), (2, 2, 2, 2), (1, 0, 6, 1)]
FEW = [(3, 5), (4, 0, 2)]


BACKENDS = ["gloo"] + ["nccl"] * (torch.cuda.device_count() > 1 and "cuda" in devices())


@pytest.fixture(scope="module", params=BACKENDS)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    ranks = Ranks(tmp_path_factory.mktemp("ranks"), request.param)
    yield ranks
    ranks.close()


# The operator


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_equals_one_large_batch(ranks: Ranks, split: sync.Split, dtype: torch.dtype) -> None:
    """Every rank and every run has the same bits."""
    first, *others = ranks.run(len(split), sync.steps, split, dtype)
    assert first
    for other in others:
        assert all(map(bit_equal, first, other))


@pytest.mark.parametrize("split", FEW, ids=str)
def test_mean_far_from_zero(ranks: Ranks, split: sync.Split) -> None:
    ranks.run(len(split), sync.far_from_zero, split)


def test_counts_beyond_float32(ranks: Ranks) -> None:
    ranks.run(2, sync.large_counts)


# Communication


@pytest.mark.parametrize(("kind", "size"), [(torch.float32, 4), (torch.float64, 8), (torch.bfloat16, 4)], ids=str)
@pytest.mark.parametrize("channels", [1, 64])
def test_one_collective_each_way_and_no_byte_too_many(
    ranks: Ranks, channels: int, kind: torch.dtype, size: int
) -> None:
    """Two statistics per channel and a count of 64 bits; back, two sums per channel; nothing for a first layer."""
    for phases in ranks.run(2, sync.messages, channels, kind):
        assert phases["forward"] == [("all_gather_into_tensor", 2 * channels * size + 8)]
        assert phases["backward"] == [("all_gather_into_tensor", 2 * channels * size)]
        assert phases["first layer"] == phases["forward"]


def test_local_work_while_messages_travel(ranks: Ranks) -> None:
    for names in ranks.run(2, sync.overlap):
        start, end = names.index("all_gather_into_tensor"), names.index("wait_tensor")
        assert names.index("batchnorm_backward_reduce") < start
        assert names[start + 1 : end].count("_to_copy") == 2, names  # the gradients of weight and bias
        assert names.index("batchnorm_backward_apply") > end


@pytest.mark.parametrize("check", [sync.without_communication, sync.group_of_one], ids=lambda check: check.__name__)
def test_plain_batch_norm_where_nobody_else_is(ranks: Ranks, check: Callable[[], None]) -> None:
    ranks.run(2, check)


def test_process_groups(ranks: Ranks) -> None:
    ranks.run(4, sync.process_groups)


def test_not_initialized() -> None:
    input = torch.randn(4, 3, 5, dtype=torch.float64)
    module, plain = my_ops.SyncBatchNorm(3, dtype=torch.float64), nn.BatchNorm1d(3, dtype=torch.float64)
    torch.testing.assert_close(module(input), plain(input))
    torch.testing.assert_close(module.running_var, plain.running_var)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        module(input[:1, :, 0])


# Derivatives and compilers


DERIVATIVES = [sync.double_backward, sync.third_derivative, sync.forward_mode, sync.functional_transforms]


@pytest.mark.parametrize("split", FEW, ids=str)
@pytest.mark.parametrize("check", DERIVATIVES, ids=lambda check: check.__name__)
def test_derivatives(ranks: Ranks, check: Callable[[sync.Split], None], split: sync.Split) -> None:
    ranks.run(len(split), check, split)


@pytest.mark.parametrize(("split", "backend"), [((3, 5), "aot_eager"), ((3, 5), "inductor"), ((2, 4, 3), "aot_eager")])
def test_compiles_into_one_graph(ranks: Ranks, split: sync.Split, backend: str) -> None:
    ranks.run(len(split), sync.compiled, split, backend)


def test_compiles_with_cumulative_average(ranks: Ranks) -> None:
    ranks.run(2, sync.compiled_cumulative)


# DistributedDataParallel, FSDP


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "no affine"])
@pytest.mark.parametrize("split", [(2, 2), (2, 3, 4), (5, 0, 2)], ids=str)
def test_ddp_trains_as_one_process(ranks: Ranks, split: sync.Split, affine: bool) -> None:
    ranks.run(len(split), sync.ddp, split, affine)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    "check",
    [sync.ddp_matrix, sync.ddp_channels_last, sync.ddp_running_statistics],
    ids=lambda check: check.__name__,
)
def test_ddp(ranks: Ranks, check: Callable[[], None], size: int) -> None:
    ranks.run(size, check)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_ddp_of_16_bits(ranks: Ranks, half: torch.dtype) -> None:
    ranks.run(2, sync.ddp_half, half)


@pytest.mark.parametrize("broadcast_buffers", [True, False])
def test_ddp_with_two_forwards_before_a_backward(ranks: Ranks, broadcast_buffers: bool) -> None:
    ranks.run(2, sync.two_forwards, broadcast_buffers)


def test_fsdp(ranks: Ranks) -> None:
    ranks.run(2, sync.fsdp)


# What goes wrong


@pytest.mark.parametrize("size", [2, 3])
def test_different_channels_are_an_error_on_every_rank(ranks: Ranks, size: int) -> None:
    got = ", ".join(["3 in float32"] + ["4 in float32"] * (size - 1))
    for outcome in ranks.outcomes(size, sync.different_channels):
        assert outcome.error == "RuntimeError", outcome
        assert outcome.message == (
            f"SyncBatchNorm: expected channels and statistics dtype of all ranks alike, got {got}; {size} ranks here"
        )


def test_different_dtypes_are_an_error_on_every_rank(ranks: Ranks) -> None:
    for outcome in ranks.outcomes(2, sync.different_dtypes):
        assert "alike, got 3 in float32, 3 in float64" in outcome.message


def test_one_value_in_all(ranks: Ranks) -> None:
    for outcome in ranks.outcomes(2, sync.one_value):
        assert outcome.error == "ValueError"
        assert "expected more than 1 value per channel when training, got 1 in all parts" in outcome.message


def test_no_values_at_all(ranks: Ranks) -> None:
    ranks.run(2, sync.nothing)


@pytest.mark.parametrize("split", FEW, ids=str)
def test_a_rank_without_gradient_answers(ranks: Ranks, split: sync.Split) -> None:
    ranks.run(len(split), sync.unused_output, split)


@pytest.mark.parametrize("size", [2, 3])
def test_killed_rank_ends_the_others(ranks: Ranks, size: int) -> None:
    *others, victim = ranks.outcomes(size, sync.killed, size - 1)
    assert victim.error == "died"
    for outcome in others:
        assert re.match(
            rf"sync_batchnorm: expected an answer of all {size} ranks of process group '\w+', got: ", outcome.message
        ), outcome


def test_absent_rank_ends_the_others_after_the_time_out(ranks: Ranks) -> None:
    first, late = ranks.outcomes(2, sync.late, 1, timeout=2.0)
    assert first.error == "DistBackendError"
    assert first.message.startswith("sync_batchnorm: expected an answer of all 2 ranks")
    assert (late.error, late.message) == ("ValueError", "a bug of its own")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": torch.zeros(4)}, "expected input of rank 2 or more, got shape [4]"),
        ({"input": torch.zeros(4, 3, dtype=torch.int64)}, "got int64"),
        ({"gamma": torch.zeros(4)}, "expected gamma of shape [3], got [4]"),
        ({"beta": torch.zeros(3, dtype=torch.float64)}, "expected beta of dtype float32, got float64"),
        ({"running_mean": torch.zeros(2)}, "expected running_mean of shape [3], got [2]"),
        ({"running_var": torch.ones(3, requires_grad=True)}, "expected running_var not to require grad"),
        ({"momentum": None, "running_var": torch.ones(3)}, "expected num_batches_tracked when momentum is None"),
        ({"eps": 0.0}, "expected eps > 0 when training, got 0"),
        ({"group_size": 0}, "expected group_size > 0, got 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments_are_checked_before_anything_is_sent(changes: dict[str, Any], message: str) -> None:
    """There is no group at all, so that a message would be another error."""
    names = ("gamma", "beta", "running_mean", "running_var", "num_batches_tracked")
    arguments = {"input": torch.zeros(4, 3), **dict.fromkeys(names), "momentum": 0.1, "eps": 1e-5}
    arguments |= {"group_size": 2, "group_name": "none"} | changes
    error = ValueError if "eps" in changes else RuntimeError
    with pytest.raises(error, match=re.escape("sync_batchnorm_forward: ") + ".*" + re.escape(message)):
        torch.ops.my_ops.sync_batchnorm_forward(**arguments)


def test_input_that_does_not_fit_the_module() -> None:
    module = my_ops.SyncBatchNorm(3)
    with pytest.raises(ValueError, match=re.escape("SyncBatchNorm: expected input of rank 2 or more, got shape [3]")):
        module(torch.randn(3))


# Conversion


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, momentum=None),
        my_ops.BatchNorm2d(4, eps=0.5),
        nn.Sequential(nn.SyncBatchNorm(4, affine=False), nn.ReLU()),
        nn.Flatten(),
        nn.BatchNorm1d(144, track_running_stats=False),
    )


def test_conversion_keeps_everything_but_the_class() -> None:
    model = network().double()
    model[1].eval()
    model[1].weight.requires_grad_(False)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    modules = dict(model.named_modules())
    values = copy.deepcopy(model.state_dict())
    assert my_ops.convert_sync_batchnorm(model) is model
    assert [type(m) for m in model.modules()].count(my_ops.SyncBatchNorm) == 4
    assert {name: id(m) for name, m in model.named_modules()} == {name: id(m) for name, m in modules.items()}
    for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        assert tensor is tensors[name]
    assert list(model.state_dict()) == list(values)
    assert [model[1].training, model[2].training] == [False, True]
    assert not model[1].weight.requires_grad
    assert [model[1].momentum, model[2].eps] == [None, 0.5]
    input = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    want = network().double()
    want.load_state_dict(values)
    want[1].eval()
    torch.testing.assert_close(model(input), want(input))  # nobody to talk to: plain batch norm


def test_conversion_keeps_hooks() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    calls: list[str] = []
    model[0].register_forward_pre_hook(lambda *_: calls.append("before"))
    model[0].register_forward_hook(lambda *_: calls.append("after"))
    model[0].register_full_backward_hook(lambda *_: calls.append("backward"))
    my_ops.convert_sync_batchnorm(model)
    model(torch.randn(2, 3, 4, 4, requires_grad=True)).sum().backward()
    assert calls == ["before", "after", "backward"]


def test_conversion_of_process_groups() -> None:
    """Only its identity matters here; a group of torch's own module is kept unless another one is given."""
    group, other = object(), object()
    model = nn.Sequential(nn.BatchNorm1d(3), nn.SyncBatchNorm(3, process_group=group))
    my_ops.convert_sync_batchnorm(model)
    assert [each.process_group for each in model] == [None, group]
    my_ops.convert_sync_batchnorm(model, other)
    assert [each.process_group for each in model] == [other, other]


def test_modules_that_are_not_converted() -> None:
    class WithActivation(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).relu()

    model = nn.Sequential(WithActivation(3), nn.InstanceNorm2d(3, affine=True), nn.GroupNorm(1, 3))
    before = [type(m) for m in model.modules()]
    with pytest.warns(UserWarning, match="convert_sync_batchnorm: left .*WithActivation alone"):
        my_ops.convert_sync_batchnorm(model)
    assert [type(m) for m in model.modules()] == before
    with pytest.raises(ValueError, match="expected modules that know their channels, got LazyBatchNorm2d"):
        my_ops.convert_sync_batchnorm(nn.Sequential(nn.LazyBatchNorm2d()))


def test_constructor_is_that_of_torchs_module() -> None:
    arguments: dict[str, Any] = {"eps": 1e-3, "momentum": None, "affine": False, "track_running_stats": False}
    ours, theirs = (each(5, **arguments) for each in (my_ops.SyncBatchNorm, nn.SyncBatchNorm))
    assert ours.extra_repr() == theirs.extra_repr()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours, theirs = (each(5, dtype=torch.float64, device="meta") for each in (my_ops.SyncBatchNorm, nn.SyncBatchNorm))
    for name, value in theirs.state_dict().items():
        assert (ours.state_dict()[name].dtype, ours.state_dict()[name].device) == (value.dtype, value.device)
    assert copy.deepcopy(my_ops.SyncBatchNorm(5)).num_features == 5


# Programs


def test_example_has_the_losses_of_one_process() -> None:
    """examples/train_ddp.py on two processes, whose parts of the batch differ in size."""
    pytest.importorskip("sklearn", reason="the example trains on scikit-learn's digits")
    program = Path(__file__).parent.parent / "examples" / "train_ddp.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    done = subprocess.run(
        [*launch, "--steps", "6", "--batch", "33"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    losses = re.findall(r"loss of 2 processes ([\d.]+)   of one ([\d.]+)", done.stdout)
    assert len(losses) == 6
    assert len({alone for _, alone in losses}) == 6  # it trains
    for together, alone in losses:
        assert abs(float(together) - float(alone)) < 1e-6
