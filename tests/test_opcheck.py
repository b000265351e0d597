"""torch.library.opcheck of every operator: schema, autograd registration, fake tensors, AOT dispatch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from checks import EPS, activations, arguments, ops
from layouts import arrange

Call = tuple[torch._ops.OpOverload, tuple[object, ...]]

SHAPES = {"matrix": (6, 3), "contiguous": (4, 3, 5, 2), "channels_last": (4, 3, 5, 2), "strided": (4, 3, 5, 2)}
FLOAT, HALF = torch.float32, torch.bfloat16


def _image(layout: str, dtype: torch.dtype, device: str, requires_grad: bool = True) -> torch.Tensor:
    values = activations(SHAPES[layout], dtype, device)
    return (values if layout == "matrix" else arrange(values, layout)).requires_grad_(requires_grad)


def _forward(layout: str, dtype: torch.dtype, device: str, training: bool, *names: str, **changes: object) -> Call:
    args = arguments(_image(layout, dtype, device), training).only(names)
    for parameter in (args.gamma, args.beta):
        if parameter is not None:
            parameter.requires_grad_()
    counter = torch.tensor(2, device=device) if "counter" in names else None
    return ops.batchnorm_forward.default, replace(args, num_batches_tracked=counter, **changes).values()


ALL = ("gamma", "beta", "running_mean", "running_var", "counter")
FORWARD: dict[str, Callable[[str], Call]] = {
    "training": lambda device: _forward("contiguous", FLOAT, device, True, *ALL),
    "training_channels_last": lambda device: _forward("channels_last", HALF, device, True, *ALL),
    "training_strided": lambda device: _forward("strided", FLOAT, device, True, *ALL),
    "training_matrix": lambda device: _forward("matrix", HALF, device, True, *ALL),
    "training_cumulative": lambda device: _forward("contiguous", FLOAT, device, True, *ALL, momentum=None),
    "training_without_counter": lambda device: _forward("contiguous", FLOAT, device, True, *ALL[:4]),
    "training_without_parameters": lambda device: _forward("contiguous", FLOAT, device, True, *ALL[2:]),
    "training_without_statistics": lambda device: _forward("contiguous", FLOAT, device, True, *ALL[:2]),
    "training_with_nothing": lambda device: _forward("contiguous", FLOAT, device, True),
    "eval": lambda device: _forward("contiguous", FLOAT, device, False, *ALL[:4]),
    "eval_channels_last": lambda device: _forward("channels_last", HALF, device, False, *ALL),
    "eval_without_parameters": lambda device: _forward("matrix", FLOAT, device, False, *ALL[2:4]),
}


def _vectors(count: int, device: str) -> list[torch.Tensor]:
    return [(0.5 + torch.rand(3, device=device)).requires_grad_() for _ in range(count)]


def _backward(layout: str, dtype: torch.dtype, device: str, *rest: object, gamma: bool = True) -> Call:
    images = (_image(layout, dtype, device), _image(layout, dtype, device))
    weight = torch.randn(3, device=device).to(dtype).requires_grad_() if gamma else None
    return ops.batchnorm_backward.default, (*images, weight, *_vectors(2, device), *rest)


def _phase(name: str, images: int, vectors: int, device: str, gamma: bool = False, count: bool = False) -> Call:
    tensors = [_image("channels_last", FLOAT, device) for _ in range(images)] + _vectors(vectors, device)
    counts = [torch.tensor([90], device=device)] if count else []
    weight = _vectors(1, device) if gamma else []
    return getattr(ops, name).default, (*tensors[:images], *weight, *tensors[images:], *counts)


def _gather(device: str, running: bool, momentum: float | None) -> Call:
    parts = [(0.5 + torch.rand(2, 3, device=device)).requires_grad_() for _ in range(2)]
    statistics = [torch.zeros(3, device=device), torch.ones(3, device=device), torch.tensor(2, device=device)]
    mean, var, counter = statistics if running else (None,) * 3
    counts = torch.tensor([3, 8], device=device)
    return ops.batchnorm_gather_stats.default, (*parts, counts, mean, var, momentum, EPS, counter)


OTHERS: dict[str, Callable[[str], Call]] = {
    "backward": lambda device: _backward("contiguous", FLOAT, device),
    "backward_channels_last": lambda device: _backward("channels_last", HALF, device, True),
    "backward_strided": lambda device: _backward("strided", FLOAT, device, True),
    "backward_eval": lambda device: _backward("matrix", FLOAT, device, False),
    "backward_without_gamma": lambda device: _backward("contiguous", HALF, device, True, gamma=False),
    "backward_masked": lambda device: _backward("contiguous", FLOAT, device, True, [True, False, True]),
    "stats": lambda device: _phase("batchnorm_stats", 1, 0, device),
    "gather": lambda device: _gather(device, False, None),
    "gather_running": lambda device: _gather(device, True, 0.1),
    "gather_cumulative": lambda device: _gather(device, True, None),
    "apply": lambda device: _phase("batchnorm_apply", 1, 3, device, gamma=True),
    "backward_reduce": lambda device: _phase("batchnorm_backward_reduce", 2, 2, device),
    "backward_apply": lambda device: _phase("batchnorm_backward_apply", 2, 4, device, gamma=True, count=True),
}


def _out(call: Call, *names: str, layout: str | None = None) -> tuple[Call, dict[str, torch.Tensor]]:
    """The `out` overload of a call, with targets for its results; images in `layout`.

    The targets hold a number: what a call leaves alone is compared with itself, which fails where that is NaN.
    """
    op, args = call
    detached = tuple(arg.detach() if isinstance(arg, torch.Tensor) else arg for arg in args)
    copies = [arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in detached]
    results = op(*copies)
    results = results if isinstance(results, tuple) else (results,)
    targets = [torch.full((3,), 7.0) if result is None else torch.full_like(result, 7.0) for result in results]
    if layout:
        targets[0] = arrange(targets[0].contiguous(), layout)
    overload = getattr(ops, op.overloadpacket.__name__).out
    return (overload, detached), dict(zip(names, targets, strict=True))


FORWARD_RESULTS = ("output", "save_mean", "save_invstd")
BACKWARD_RESULTS = ("grad_input", "grad_gamma", "grad_beta")
OUT: dict[str, Callable[[str], tuple[Call, dict[str, torch.Tensor]]]] = {
    "training": lambda device: _out(FORWARD["training"](device), *FORWARD_RESULTS),
    "training_cumulative": lambda device: _out(FORWARD["training_cumulative"](device), *FORWARD_RESULTS),
    "training_with_nothing": lambda device: _out(FORWARD["training_with_nothing"](device), *FORWARD_RESULTS),
    "eval_channels_last": lambda device: _out(FORWARD["eval_channels_last"](device), *FORWARD_RESULTS),
    "eval_strided": lambda device: _out(FORWARD["eval"](device), *FORWARD_RESULTS, layout="strided"),
    "backward": lambda device: _out(OTHERS["backward"](device), *BACKWARD_RESULTS),
    "backward_channels_last": lambda device: _out(OTHERS["backward_channels_last"](device), *BACKWARD_RESULTS),
    "backward_masked": lambda device: _out(OTHERS["backward_masked"](device), *BACKWARD_RESULTS),
    "apply": lambda device: _out(OTHERS["apply"](device), "out"),
    "apply_channels_last": lambda device: _out(OTHERS["apply"](device), "out", layout="contiguous"),
    "backward_apply": lambda device: _out(OTHERS["backward_apply"](device), "out"),
}


def test_every_overload_has_a_case() -> None:
    """But those with an activation, which are checked in test_act.py."""
    names = re.compile("my_ops::batchnorm(?!_act)")
    schemas = [schema for schema in torch._C._jit_get_all_schemas() if names.match(schema.name)]
    cases = [case("cpu") for case in (FORWARD | OTHERS).values()] + [case("cpu")[0] for case in OUT.values()]
    checked = {(op._schema.name, op._schema.overload_name) for op, _ in cases}
    assert checked == {(schema.name, schema.overload_name) for schema in schemas}
    assert len(checked) == 11


@pytest.mark.parametrize("case", OUT)
def test_opcheck_of_out(device: str, case: str) -> None:
    (op, args), targets = OUT[case](device)
    torch.library.opcheck(op, args, targets)


@pytest.mark.parametrize("case", OUT)
def test_meta_tensors_of_out_are_resized_like_real_ones(device: str, case: str) -> None:
    (op, args), targets = OUT[case](device)
    empty = {name: target.new_empty(0) for name, target in targets.items()}
    meta = {name: target.to("meta") for name, target in empty.items()}
    shadows: list[Any] = [arg.to("meta") if isinstance(arg, torch.Tensor) else arg for arg in args]
    op(*args, **empty)
    op(*shadows, **meta)
    for name, target in empty.items():
        assert meta[name].is_meta
        assert (meta[name].shape, meta[name].stride()) == (target.shape, target.stride()), name


@pytest.mark.parametrize("case", [*FORWARD, *OTHERS])
def test_opcheck(device: str, case: str) -> None:
    op, args = (FORWARD | OTHERS)[case](device)
    torch.library.opcheck(op, args)
    without_grad = [arg.detach() if isinstance(arg, torch.Tensor) else arg for arg in args]
    torch.library.opcheck(op, tuple(without_grad), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("case", [*FORWARD, *OTHERS])
def test_meta_tensors_have_what_real_ones_have(device: str, case: str) -> None:
    """Sizes, strides and dtypes of every result, on the meta device."""
    op, args = (FORWARD | OTHERS)[case](device)
    detached = [arg.detach() if isinstance(arg, torch.Tensor) else arg for arg in args]
    meta = [arg.to("meta") if isinstance(arg, torch.Tensor) else arg for arg in detached]
    real, shadow = (result if isinstance(result, tuple) else (result,) for result in (op(*detached), op(*meta)))
    for got, want in zip(shadow, real, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            assert got.is_meta
            assert (got.shape, got.stride(), got.dtype) == (want.shape, want.stride(), want.dtype)


@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0), (2, 0, 4)], ids=str)
def test_empty_input(device: str, training: bool, shape: tuple[int, ...]) -> None:
    args = arguments(torch.empty(shape, device=device), training)
    torch.library.opcheck(ops.batchnorm_forward.default, args.values(), test_utils=("test_schema", "test_faketensor"))
