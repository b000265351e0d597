"""The fused variants synchronized: real processes over Gloo against one process with the whole batch.

The checks themselves are in sync_fused_checks.py; this is the list of them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import my_ops
import sync_fused_checks as sync
from checks import EPS, ops
from ranks import Ranks
from sync_checks import Split

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

SPLITS = [(3, 5), (4, 0, 2)]  # unevenly; a rank with nothing
INVERTIBLE = ("identity", "leaky_relu", "elu")
MODULES = [("act", "relu", False), ("act", "silu", True), ("in place", "leaky_relu", False), ("conv", "elu", False)]
MODULES += [("conv", "identity", False)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Over Gloo alone: the checks make their batches in a CPU's memory."""
    ranks = Ranks(tmp_path_factory.mktemp("ranks"), "gloo")
    yield ranks
    ranks.close()


# Values and gradients


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_every_activation(ranks: Ranks, split: Split, dtype: torch.dtype) -> None:
    ranks.run(len(split), sync.act_steps, split, dtype)


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize(("kind", "name", "with_residual"), MODULES)
def test_modules(ranks: Ranks, split: Split, kind: str, name: str, with_residual: bool) -> None:
    ranks.run(len(split), sync.module_steps, split, kind, name, with_residual)


@pytest.mark.parametrize("options", [{"affine": False}, {"momentum": None}, {"track_running_stats": False}], ids=str)
@pytest.mark.parametrize(("kind", "name"), [("act", "relu"), ("in place", "elu"), ("conv", "gelu_tanh")])
def test_options(ranks: Ranks, kind: str, name: str, options: dict[str, Any]) -> None:
    ranks.run(2, partial(sync.module_steps, **options), (3, 5), kind, name)


def test_autocast(ranks: Ranks) -> None:
    ranks.run(2, sync.autocast, (3, 5))


# Communication and memory


@pytest.mark.parametrize(("kind", "name", "with_residual"), MODULES)
def test_messages_are_those_of_sync_batch_norm(ranks: Ranks, kind: str, name: str, with_residual: bool) -> None:
    """Of 6 channels in float64: mean, M2 and a count of 64 bits; back, two sums."""
    for phases in ranks.run(2, sync.messages, kind, name, with_residual):
        assert phases["forward"] == [("all_gather_into_tensor", 2 * 6 + 1)]
        assert phases["backward"] == [("all_gather_into_tensor", 2 * 6)]


def test_saved_memory(ranks: Ranks) -> None:
    """Of what is behind the convolution nothing is kept; in place only the output, which takes the input's memory."""
    image = 8 * 6 * 16 * 16 * 4
    for kind, name in (("conv", "elu"), ("in place", "leaky_relu")):
        for saved in ranks.run(2, sync.saved_bytes, kind, name):
            assert saved < image


@pytest.mark.parametrize(("kind", "name"), [("act", "relu"), ("in place", "elu"), ("conv", "identity")])
def test_eval_needs_nobody(ranks: Ranks, kind: str, name: str) -> None:
    ranks.run(2, sync.without_communication, kind, name)


# Derivatives and compilers


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize(
    ("kind", "name", "with_residual"),
    [("act", "silu", True), ("act", "leaky_relu", True), ("conv", "elu", False), ("conv", "identity", False)],
)
def test_higher_derivatives(ranks: Ranks, split: Split, kind: str, name: str, with_residual: bool) -> None:
    ranks.run(len(split), sync.higher_derivatives, split, kind, name, with_residual)


def test_no_second_derivative_in_place(ranks: Ranks) -> None:
    ranks.run(2, sync.no_second_derivative)


@pytest.mark.parametrize(
    ("kind", "name", "backend"),
    [("act", "relu", "aot_eager"), ("in place", "elu", "aot_eager"), ("conv", "relu", "inductor")],
)
def test_compiles_into_one_graph(ranks: Ranks, kind: str, name: str, backend: str) -> None:
    ranks.run(2, sync.compiled, (3, 5), kind, name, backend)


def test_opcheck(ranks: Ranks) -> None:
    ranks.run(2, sync.opcheck)


# Networks and conversion


@pytest.mark.parametrize("sync_first", [False, True])
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_fused_network_trains_as_one_process(ranks: Ranks, split: Split, sync_first: bool) -> None:
    ranks.run(len(split), sync.fused_network, split, sync_first)


def test_conversion_keeps_the_kind() -> None:
    model = nn.ModuleDict(
        {
            "act": my_ops.BatchNormAct1d(3, activation="elu", slope=0.3),
            "in_place": my_ops.InPlaceBatchNormAct3d(3),
            "conv": my_ops.ConvBatchNorm2d(3, 4, 1),
            "conv_act": my_ops.ConvBatchNorm1d(3, 4, 1, activation="relu"),
            "plain": nn.BatchNorm2d(3),
            "torchs": nn.SyncBatchNorm(3),
        }
    )
    model["act"].weight.requires_grad_(False)
    calls: list[str] = []
    model["act"].register_forward_hook(lambda *_: calls.append("hook"))
    before = [(type(each), id(each)) for each in model.modules()]
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    group = object()
    assert my_ops.convert_sync_batchnorm(model, group) is model
    kinds = {
        "act": my_ops.SyncBatchNormAct,
        "in_place": my_ops.SyncInPlaceBatchNormAct,
        "conv.norm": my_ops.SyncBatchNorm,
        "conv_act.norm": my_ops.SyncBatchNormAct,
        "plain": my_ops.SyncBatchNorm,
        "torchs": my_ops.SyncBatchNorm,
    }
    for name, kind in kinds.items():
        module = model.get_submodule(name)
        assert type(module) is kind
        assert module.process_group is group
    assert (model["act"].activation, model["act"].slope) == ("elu", 0.3)
    assert not model["act"].weight.requires_grad
    my_ops.convert_sync_batchnorm(model)  # again, which changes nothing
    assert model["plain"].process_group is group
    model["act"](torch.randn(4, 3))  # nobody to talk to
    assert calls == ["hook"]
    again = copy.deepcopy(model["in_place"])
    assert type(my_ops.revert_batchnorm(again)) is my_ops.InPlaceBatchNormAct3d

    my_ops.revert_batchnorm(model)
    plain = {my_ops.BatchNorm2d: nn.BatchNorm2d}
    assert [(type(e), id(e)) for e in model.modules()] == [(plain.get(kind, kind), name) for kind, name in before]
    for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        assert tensor is tensors[name]
    left = {"process_group", "unsynchronized", "_agreed"}
    assert all(not left & vars(each).keys() for name, each in model.named_modules() if name != "torchs")


def test_revert_of_a_module_made_synchronized() -> None:
    assert type(my_ops.revert_batchnorm(my_ops.SyncBatchNorm(3))) is nn.SyncBatchNorm


def test_constructors() -> None:
    module = my_ops.SyncBatchNormAct(5, 1e-3, None, False, activation="leaky_relu", slope=0.5, device="meta")
    assert (module.eps, module.momentum, module.affine) == (1e-3, None, False)
    assert (module.activation, module.slope, module.process_group) == ("leaky_relu", 0.5, None)
    group = object()
    assert my_ops.SyncInPlaceBatchNormAct(5, process_group=group, dtype=torch.float64).process_group is group
    with pytest.raises(ValueError, match=r"SyncBatchNormAct: expected activation identity, .*, got tanh"):
        my_ops.SyncBatchNormAct(5, activation="tanh")
    with pytest.raises(ValueError, match="SyncInPlaceBatchNormAct: expected an activation with an inverse"):
        my_ops.SyncInPlaceBatchNormAct(5, activation="relu")


# Errors, before anything is sent: there is no group at all, so that a message would be another error.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"residual": torch.zeros(4, 2)}, "expected residual of shape [4, 3], got [4, 2]"),
        ({"residual": torch.zeros(4, 3).double()}, "expected residual of dtype float32, got float64"),
        (
            {"activation": "tanh"},
            "expected activation identity, relu, leaky_relu, relu6, elu, silu or gelu_tanh, got tanh",
        ),
        ({"gamma": torch.zeros(2)}, "expected gamma of shape [3], got [2]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments_with_an_activation_are_checked(changes: dict[str, Any], message: str) -> None:
    names = ("gamma", "beta", "running_mean", "running_var", "num_batches_tracked", "residual")
    arguments = {"input": torch.zeros(4, 3), **dict.fromkeys(names), "momentum": 0.1, "eps": EPS, "activation": "relu"}
    arguments |= {"group_size": 2, "group_name": "none"} | changes
    with pytest.raises((ValueError, RuntimeError), match=re.escape("sync_batchnorm_forward: " + message)):
        ops.sync_batchnorm_forward(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "relu"}, "expected an activation with an inverse"),
        ({"input": torch.zeros(1, 3).expand(4, 3)}, "expected input with memory for each value"),
        ({"beta": torch.zeros(2)}, "expected beta of shape [3], got [2]"),
        ({"group_size": 0}, "expected group_size > 0, got 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments_in_place_are_checked(changes: dict[str, Any], message: str) -> None:
    names = ("gamma", "beta", "running_mean", "running_var", "num_batches_tracked")
    arguments = {"input": torch.zeros(4, 3), **dict.fromkeys(names), "momentum": 0.1, "eps": EPS, "slope": 0.1}
    arguments |= {"activation": "leaky_relu", "group_size": 2, "group_name": "none"} | changes
    with pytest.raises((ValueError, RuntimeError), match=re.escape("sync_batchnorm_act_forward_: " + message)):
        ops.sync_batchnorm_act_forward_(**arguments)


def test_arguments_behind_a_convolution_are_checked() -> None:
    x, weight = torch.zeros(4, 3, 5), torch.zeros(2, 3, 1)

    def run(weight: torch.Tensor, gamma: torch.Tensor | None, activation: str) -> None:
        conv = ([1], [0], [1], 1)
        ops.sync_conv_batchnorm_forward(
            x, weight, None, gamma, *[None] * 3, *conv, 0.1, EPS, None, activation, 0.0, 2, "none"
        )

    with pytest.raises(RuntimeError, match="sync_conv_batchnorm_forward: expected gamma of shape"):
        run(weight, torch.zeros(3), "relu")
    with pytest.raises(ValueError, match="sync_conv_batchnorm_forward: expected activation identity"):
        run(weight, None, "tanh")
    with pytest.raises(RuntimeError, match="sync_conv_batchnorm_forward: expected"):
        run(weight[0], None, "relu")
