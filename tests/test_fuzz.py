"""Fuzzing: calls that nobody wrote down, through every door. Each gives what the float64 reference gives, or one error
that names operator and argument, with nothing written.

500 cases, the same every time; `make fuzz CASES=10000` for others. A failure prints what it could be reduced to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("hypothesis", reason="fuzzing needs hypothesis")

from hypothesis import strategies as st
from torch import Tensor

import fuzz
import my_ops
import test_in_place
import test_instance_norm
import test_phases
from activations import SLOPES, away_from_kink, check_act_backward, check_act_forward
from checks import Arguments, bit_equal, check_backward, check_forward, ops, unchanged

DEVICES = ["cpu"]
# Not constant: where one value repeats, so does its rounding, and sums are off by more than the tolerances count on.
GRADIENTS = ("normal", "zero", "integers", "outlier")
MODULES = {2: my_ops.BatchNorm1d, 3: my_ops.BatchNorm1d, 4: my_ops.BatchNorm2d, 5: my_ops.BatchNorm3d}


@torch.jit.script
def scripted(
    input: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    num_batches_tracked: Tensor | None,
) -> Tensor:
    return torch.ops.my_ops.batchnorm_forward(
        input, gamma, beta, running_mean, running_var, training, momentum, eps, num_batches_tracked
    )[0]


def functional(args: Arguments) -> Tensor:
    x, gamma, beta, mean, var, training, momentum, eps, counter = args.values()
    return my_ops.functional.batch_norm(x, mean, var, gamma, beta, training, momentum, eps, num_batches_tracked=counter)


def module(args: Arguments) -> Tensor:
    """The vectors themselves become parameters and buffers."""
    tracks = args.running_mean is not None
    norm = MODULES[args.input.dim()](
        args.input.shape[1], args.eps, args.momentum, args.gamma is not None, track_running_stats=tracks
    )
    if args.gamma is not None and args.beta is not None:
        norm.weight, norm.bias = (torch.nn.Parameter(vector) for vector in (args.gamma, args.beta))
    if tracks:
        norm.running_mean, norm.running_var = args.running_mean, args.running_var
        norm.num_batches_tracked = args.num_batches_tracked
    with torch.no_grad():
        return norm.train(args.training)(args.input)


def fits_a_module(args: Arguments) -> bool:
    affine = (args.gamma is None) == (args.beta is None)
    tracks = (args.running_mean is None) == (args.running_var is None) == (args.num_batches_tracked is None)
    return affine and tracks and args.input.dim() in MODULES


DOORS: dict[str, Callable[[Arguments], Tensor]] = {
    "functional": functional,
    "TorchScript": lambda args: scripted(*args.values()),
    "module": module,
}


@fuzz.fuzz(0.24, st.data())
def test_forward(data: st.DataObject) -> None:
    """The operator against the reference; another door, and the `out` overload, against the operator."""
    args = data.draw(fuzz.arguments())
    through, into = fuzz.copied(args), fuzz.copied(args)
    results = check_forward(args)

    doors = [door for door in DOORS if door != "module" or fits_a_module(args)]
    assert bit_equal(DOORS[data.draw(st.sampled_from(doors))](through), results[0])
    targets = [data.draw(_targets(result)) for result in results]
    ops.batchnorm_forward.out(*into.values(), output=targets[0], save_mean=targets[1], save_invstd=targets[2])
    for target, result in zip(targets, results, strict=True):
        assert bit_equal(target, result)
    for other in (through, into):
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            left, right = getattr(args, name), getattr(other, name)
            assert left is None or bit_equal(left, right), name


@st.composite
def _targets(draw: st.DrawFn, like: Tensor) -> Tensor:
    """For a result: memory of any kind, or none yet."""
    if draw(st.integers(0, 3)) == 0:
        return like.new_empty(0)
    return draw(fuzz.memories(tuple(like.shape), shared=False)).hold(torch.full_like(like, 7.0))


@fuzz.fuzz(0.18, st.data())
def test_backward(data: st.DataObject) -> None:
    args = data.draw(fuzz.arguments())
    shape, dtype = tuple(args.input.shape), args.input.dtype
    grad_output = data.draw(fuzz.images(shape, dtype, GRADIENTS))
    mask = data.draw(st.tuples(*[st.booleans()] * 3))
    x, gamma, saved = args.input, args.gamma, ops.batchnorm_forward(*fuzz.copied(args).values())[1:]
    grads = check_backward(grad_output, args, mask)
    targets = [torch.empty(0) if grad is None else data.draw(_targets(grad)) for grad in grads]
    names = ("grad_input", "grad_gamma", "grad_beta")
    ops.batchnorm_backward.out(
        grad_output, x, gamma, *saved, args.training, mask, **dict(zip(names, targets, strict=True))
    )
    for target, grad in zip(targets, grads, strict=True):
        assert target.numel() == 0 if grad is None else bit_equal(target, grad)


@fuzz.fuzz(0.1, st.data())
def test_phases_one_by_one(data: st.DataObject) -> None:
    shape = data.draw(fuzz.shapes())
    dtype = data.draw(st.sampled_from(fuzz.DTYPES))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    kinds = ("normal", "far", "constant", "zero", "integers")
    test_phases.check_phases(*(data.draw(fuzz.images(shape, dtype, given)) for given in (kinds, GRADIENTS)))


@fuzz.fuzz(0.12, st.data())
def test_activations(data: st.DataObject) -> None:
    args = data.draw(fuzz.arguments(kinds=("normal", "constant", "integers", "zero")))
    shape, dtype = tuple(args.input.shape), args.input.dtype
    name = data.draw(st.sampled_from(list(SLOPES)))
    residual = data.draw(st.none() | fuzz.images(shape, dtype, ("normal", "integers")))
    check_act_forward(fuzz.copied(args), name, residual)
    grad_output = away_from_kink(data.draw(fuzz.images(shape, dtype, ("normal", "integers"))), args, residual)
    check_act_backward(grad_output, args, name, residual, data.draw(st.tuples(*[st.booleans()] * 4)))


@fuzz.fuzz(0.06, st.data())
def test_in_place_operator(data: st.DataObject) -> None:
    args = data.draw(fuzz.arguments(kinds=("normal",), shared=False, affine=True))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    test_in_place.check(args, data.draw(st.sampled_from(test_in_place.INVERTIBLE)))


@fuzz.fuzz(0.08, st.data())
def test_instances(data: st.DataObject) -> None:
    shape = fuzz.shapes((3, 4, 5), empty=False).map(lambda s: s if math.prod(s[2:]) > 1 else (*s[:-1], 2))
    args = data.draw(fuzz.arguments(shape, ("normal", "far", "constant", "integers"), training=True))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    test_instance_norm.check(args.input, args.gamma, args.beta, args.running_mean, args.running_var, 0.3)


@fuzz.fuzz(0.04, st.data())
def test_convolutions(data: st.DataObject) -> None:
    """The same bits as a convolution and batch normalization, one after the other."""
    rank = data.draw(st.sampled_from([3, 4, 5]))
    groups = data.draw(st.sampled_from([1, 1, 2]))
    n, per_group, out = (data.draw(st.integers(1, 3)) for _ in range(3))
    kernel, stride, padding, dilation = (
        [data.draw(st.integers(least, most)) for _ in range(rank - 2)]
        for least, most in ((1, 3), (1, 2), (0, 2), (1, 2))
    )
    spatial = [1 + d * (k - 1) + data.draw(st.integers(1, 4)) for k, d in zip(kernel, dilation, strict=True)]
    channels = out * groups
    x = data.draw(fuzz.images((n, per_group * groups, *spatial), torch.float32, ("normal",)))
    weight = data.draw(fuzz.images((channels, per_group, *kernel), torch.float32, ("normal",)))
    bias, gamma, beta = (data.draw(st.none() | fuzz.vectors(channels, torch.float32)) for _ in range(3))
    statistics = [data.draw(fuzz.vectors(channels, torch.float32, kind, True)) for kind in ("signed", "positive")]
    copies = [statistic.clone() for statistic in statistics]
    between = torch.ops.aten.convolution(x, weight, bias, stride, padding, dilation, False, [0] * (rank - 2), groups)
    training = data.draw(st.booleans()) and between.numel() > channels
    rest = (training, 0.1, 1e-3)
    want = ops.batchnorm_forward(between, gamma, beta, *copies, *rest)
    got = ops.conv_batchnorm_forward(
        x, weight, bias, gamma, beta, *statistics, stride, padding, dilation, groups, *rest
    )
    for left, right in zip([*got, *statistics], [*want, *copies], strict=True):
        assert bit_equal(left, right)


POISON = (math.nan, math.inf, -math.inf)


@fuzz.fuzz(0.06, st.data())
def test_what_is_not_finite_stays_in_its_channel(data: st.DataObject) -> None:
    """The other channels have the same bits as without it; in its own nothing looks healthy."""
    args = data.draw(fuzz.arguments(fuzz.shapes(empty=False), ("normal", "huge"), shared=False, training=True))
    place = tuple(data.draw(st.integers(0, size - 1)) for size in args.input.shape)
    clean, poisoned = fuzz.copied(args), fuzz.copied(args)
    grad_output = data.draw(fuzz.images(tuple(args.input.shape), args.input.dtype, ("normal",)))

    def everything(args: Arguments) -> list[Tensor]:
        forward = ops.batchnorm_forward(*args.values())
        backward = ops.batchnorm_backward(grad_output, args.input, args.gamma, *forward[1:])
        statistics = [tensor for tensor in (args.running_mean, args.running_var) if tensor is not None]
        return [*forward, *backward, *statistics]

    want = everything(clean)
    poisoned.input[place] = data.draw(st.sampled_from(POISON))
    got = everything(poisoned)
    others = [channel for channel in range(args.input.shape[1]) if channel != place[1]]
    for index, (left, right) in enumerate(zip(got, want, strict=True)):
        dim = 1 if left.dim() > 1 else 0
        assert bit_equal(left.select(dim, place[1]), right.select(dim, place[1])) is False or index == 5
        picked = torch.tensor(others, dtype=torch.int64)
        assert bit_equal(left.index_select(dim, picked), right.index_select(dim, picked)), f"result {index}"
    assert not got[0].select(1, place[1]).isfinite().any()


# ---- bad arguments ----


def calls(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """Arguments that every operator accepts, by name."""
    channels, wide = shape[1], torch.float64 if dtype == torch.float64 else torch.float32
    x, dy, residual = (torch.randn(shape).to(dtype) for _ in range(3))
    vectors = {name: torch.rand(channels).to(dtype) for name in ("gamma", "beta", "running_mean", "running_var")}
    affine = {name: vectors[name] for name in ("gamma", "beta")}
    count = torch.tensor([x.numel() // channels])
    state = vectors | {"num_batches_tracked": torch.tensor(3)}
    training = {"training": True, "momentum": 0.1, "eps": 1e-3}
    given = {name: torch.rand(channels).to(wide) for name in ("mean", "invstd")}
    saved = {f"save_{name}": vector for name, vector in given.items()}
    sums = {name: torch.rand(channels).to(wide) for name in ("sum_dy", "sum_dy_xhat")} | {"count": count}
    both = {"grad_output": dy, "input": x}
    one = {"gamma": vectors["gamma"]}
    elu = {"activation": "elu", "slope": 1.0}
    images = {f"save_{name}": torch.rand(shape[:2]).to(wide) for name in given}
    parts = {"mean": torch.rand(2, channels).to(wide), "m2": torch.rand(2, channels).to(wide)}
    statistics = {name: vectors[name] for name in ("running_mean", "running_var")}
    mask = {"residual": residual, "mask": torch.zeros((x.numel() + 7) // 8, dtype=torch.uint8)}
    relu = {"activation": "relu", "slope": 0.0}
    return {
        "batchnorm_forward": {"input": x} | state | training,
        "batchnorm_forward.out": {"input": x}
        | state
        | training
        | {"output": torch.zeros_like(x), **{name: torch.zeros_like(vector) for name, vector in saved.items()}},
        "batchnorm_backward": both | one | saved,
        "batchnorm_backward.out": both
        | one
        | saved
        | {"grad_input": torch.zeros_like(x)}
        | {name: torch.zeros_like(vectors["gamma"]) for name in ("grad_gamma", "grad_beta")},
        "batchnorm_stats": {"input": x},
        "batchnorm_gather_stats": parts
        | {"count": torch.tensor([4, 5]), "momentum": 0.1, "eps": 1e-3}
        | {name: vector.to(wide) for name, vector in statistics.items()},
        "batchnorm_apply": {"input": x} | affine | given,
        "batchnorm_apply.out": {"input": x} | affine | given | {"out": torch.zeros_like(x)},
        "batchnorm_backward_reduce": both | given,
        "batchnorm_backward_apply": both | one | given | sums,
        "batchnorm_backward_apply.out": both | one | given | sums | {"out": torch.zeros_like(x)},
        "instancenorm_forward": {"input": x} | vectors | {"momentum": 0.1, "eps": 1e-3},
        "instancenorm_backward": both | one | images,
        "batchnorm_act_forward": {"input": x, "residual": residual} | state | training | elu,
        "batchnorm_act_backward": both | mask | affine | saved | {"training": True} | relu,
        "batchnorm_act_backward_": both | mask | affine | saved | {"training": True} | relu,
        "batchnorm_act_forward_": {"input": x} | state | training | elu,
        "batchnorm_act_backward_from_output": {"grad_output": dy, "output": x}
        | {"kept": torch.tensor([0]), "kept_input": x[:, :1].clone()}
        | affine
        | saved
        | {"training": True}
        | elu,
        "batchnorm_act_apply": {"input": x, "residual": residual} | affine | given | elu,
        "batchnorm_act_backward_reduce": both | mask | affine | given | relu,
        "batchnorm_act_backward_apply": both | mask | affine | given | relu | sums,
    }


OPERATORS = list(calls((2, 3, 4), torch.float32))
STATE = ("running_mean", "running_var", "num_batches_tracked")
RESULTS = ("output", "out", "grad_input", "grad_gamma", "grad_beta")
LEADING = ("input", "output", "mean")  # the others must go with the first of these that there is


def call(operator: str, arguments: dict[str, Any]) -> Any:
    name, _, overload = operator.partition(".")
    return getattr(getattr(ops, name), overload or "default")(**arguments)


def longer(tensor: Tensor) -> Tensor:
    return torch.zeros((*tensor.shape[:-1], tensor.shape[-1] + 1), dtype=tensor.dtype)


def misaligned(tensor: Tensor) -> Tensor:
    memory = bytearray(tensor.nbytes + 16)
    beyond = 1 + torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % tensor.element_size()
    offset = (tensor.element_size() - beyond + 2) % tensor.element_size() or 1
    flat = torch.frombuffer(memory, dtype=tensor.dtype, offset=offset, count=tensor.numel())
    return flat.view(tensor.shape)


SPOILERS: dict[str, Callable[[Tensor], Tensor]] = {
    "longer": lambda tensor: longer(tensor) if tensor.dim() else tensor.new_zeros(1),
    "another rank": lambda tensor: tensor.unsqueeze(0),
    "flat": lambda tensor: tensor.new_zeros(tensor.numel() + 1),
    "another dtype": lambda tensor: tensor.to(torch.int32),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "elsewhere": lambda tensor: tensor.to("meta"),
    "misaligned": misaligned,
}


def spoilers(name: str, tensor: Tensor, leading: str) -> list[str]:
    """Those that no operator can accept for this argument."""
    shapes = ["longer", "another rank", "flat"]
    if name == leading:  # what does not fit it may be blamed
        return ["another dtype", "complex", *["misaligned"] * (tensor.element_size() > 1)]
    if tensor.dim() == 1 and name not in ("mask", "kept"):
        shapes = ["longer", "another rank"]
    usable = ["another dtype", "complex", "elsewhere", *(["longer"] if tensor.dim() == 0 else shapes)]
    if name == "kept":
        usable = ["another dtype", "complex", "elsewhere", "another rank"]
    return usable + ["misaligned"] * (tensor.element_size() > 1)


def assert_refused(operator: str, arguments: dict[str, Any], blamed: str) -> None:
    """One error that begins with the operator, and names the argument; nothing is written."""
    tensors = [value for value in arguments.values() if isinstance(value, Tensor) and not value.is_meta]
    with unchanged(*tensors), pytest.raises((RuntimeError, ValueError)) as caught:
        call(operator, arguments)
    message = str(caught.value).splitlines()[0]
    assert message.startswith(operator.partition(".")[0] + ": expected "), message
    assert blamed in message, message


@fuzz.fuzz(0.09, st.data())
def test_bad_arguments(data: st.DataObject) -> None:
    operator = data.draw(st.sampled_from(OPERATORS))
    shape = data.draw(st.sampled_from([(2, 3, 4), (3, 1, 5), (4, 17, 3, 2), (2, 2, 2, 2, 2)]))
    arguments = calls(shape, data.draw(st.sampled_from(fuzz.DTYPES)))[operator]
    leading = next(name for name in LEADING if name in arguments)
    names = [name for name, value in arguments.items() if isinstance(value, Tensor)]
    name = data.draw(st.sampled_from(names))
    spoiler = data.draw(st.sampled_from(spoilers(name, arguments[name], leading)))
    assert_refused(operator, arguments | {name: SPOILERS[spoiler](arguments[name])}, name)


@pytest.mark.parametrize("operator", OPERATORS)
def test_what_is_spoiled_was_accepted(operator: str) -> None:
    call(operator, calls((2, 3, 4), torch.float32)[operator])
