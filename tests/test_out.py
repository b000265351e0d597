"""The `out` overloads: the same bits as the plain operators, in memory that the caller chose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import my_ops
import reference
from checks import EPS, activations, arguments, bit_equal, ops, unchanged
from layouts import SHAPES, arrange, assert_layout
from sizes import past_the_cache

IMAGE = SHAPES[4]
C = IMAGE[1]
LARGE = past_the_cache(4)
LAYOUTS = ("contiguous", "channels_last", "chunk", "offset_channels_last", "strided")
IMAGES = ("output", "grad_input", "out")


@dataclass(frozen=True)
class Call:
    """An operator with its arguments by name; `images` are those of the input's shape."""

    name: str
    arguments: dict[str, Any]
    images: tuple[str, ...]
    results: tuple[str, ...]

    def plain(self) -> tuple[Tensor, ...]:
        """Running statistics are copied: the call may be made again."""
        given = {name: value.clone() if name in WRITTEN and value is not None else value for name, value in self._items}
        results = getattr(ops, self.name)(**given)
        return (results,) if isinstance(results, Tensor) else results

    def out(self, *targets: Tensor) -> tuple[Tensor, ...]:
        got = getattr(ops, self.name).out(**self.arguments, **dict(zip(self.results, targets, strict=True)))
        return (got,) if isinstance(got, Tensor) else got

    def fresh(self) -> list[Tensor]:
        """Targets like the results, filled with what no result is."""
        return [torch.full_like(result, torch.nan) for result in self.plain()]

    @property
    def _items(self) -> list[tuple[str, Any]]:
        return list(self.arguments.items())


WRITTEN = ("running_mean", "running_var", "num_batches_tracked")


def forward(input: Tensor, training: bool) -> Call:
    args = arguments(input, training)
    counter = torch.tensor(3, device=input.device)
    given = dict(vars(replace(args, num_batches_tracked=counter)))
    return Call("batchnorm_forward", given, ("input",), ("output", "save_mean", "save_invstd"))


def _saved(input: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    _, mean, invstd = ops.batchnorm_forward(input, None, None, None, None, True, 0.1, EPS)
    return torch.randn(input.shape[1], device=input.device).to(input.dtype), mean, invstd


def backward(input: Tensor, training: bool) -> Call:
    gamma, mean, invstd = _saved(input)
    given = {"grad_output": torch.randn_like(input), "input": input, "gamma": gamma}
    given |= {"save_mean": mean, "save_invstd": invstd, "training": training}
    results = ("grad_input", "grad_gamma", "grad_beta")
    return Call("batchnorm_backward", given, ("grad_output", "input"), results)


def apply(input: Tensor, training: bool) -> Call:
    gamma, mean, invstd = _saved(input)
    given = {"input": input, "gamma": gamma, "beta": None, "mean": mean, "invstd": invstd}
    return Call("batchnorm_apply", given, ("input",), ("out",))


def backward_apply(input: Tensor, training: bool) -> Call:
    gamma, mean, invstd = _saved(input)
    given = {"grad_output": torch.randn_like(input), "input": input, "gamma": gamma, "mean": mean, "invstd": invstd}
    given |= {"sum_dy": torch.randn_like(mean), "sum_dy_xhat": torch.randn_like(mean)}
    given |= {"count": torch.tensor([reference.values_per_channel(input)], device=input.device)}
    return Call("batchnorm_backward_apply", given, ("grad_output", "input"), ("out",))


CALLS = {
    "forward": lambda input: forward(input, True),
    "forward_eval": lambda input: forward(input, False),
    "backward": lambda input: backward(input, True),
    "backward_eval": lambda input: backward(input, False),
    "apply": lambda input: apply(input, True),
    "backward_apply": lambda input: backward_apply(input, True),
}
Maker = Callable[[Tensor], Call]


@pytest.fixture(params=CALLS.values(), ids=CALLS.keys())
def make(request: pytest.FixtureRequest) -> Maker:
    return request.param


def assert_same(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    for left, right in zip(got, want, strict=True):
        assert left.shape == right.shape
        assert bit_equal(left, right)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("target_layout", LAYOUTS)
def test_values_and_strides(make: Maker, device: str, layout: str, target_layout: str) -> None:
    """Whatever the layouts, results are those of the plain operator, and `out` keeps its strides."""
    call = make(arrange(activations(IMAGE, torch.float32, device), layout))
    targets = [arrange(target, target_layout) if target.dim() > 1 else target for target in call.fresh()]
    strides = [target.stride() for target in targets]
    want = call.plain()
    read = [value for name, value in call.arguments.items() if isinstance(value, Tensor) and name not in WRITTEN]
    with unchanged(*read):
        got = call.out(*targets)
    assert all(left is right for left, right in zip(got, targets, strict=True))
    assert [target.stride() for target in targets] == strides
    assert_same(got, want)


def test_dtypes(make: Maker, device: str, dtype: torch.dtype) -> None:
    call = make(activations((6, 5), dtype, device))
    assert_same(call.out(*call.fresh()), call.plain())


def test_running_statistics_are_written_as_well(device: str) -> None:
    call = forward(activations(IMAGE, torch.float32, device), True)
    other = replace(call, arguments={n: v.clone() if isinstance(v, Tensor) else v for n, v in call.arguments.items()})
    call.out(*call.fresh())
    ops.batchnorm_forward(**other.arguments)
    for name in WRITTEN:
        assert torch.equal(call.arguments[name], other.arguments[name])
    assert int(call.arguments["num_batches_tracked"]) == 4


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_large_results_in_place(make: Maker, device: str, layout: str) -> None:
    """The image that is read may be the one that is written, on every path of the kernels, streaming included."""
    for shape in (IMAGE, (64, 300), (2, 3, 40, 41), LARGE):
        values = activations(shape, torch.float32, device)
        if len(shape) == 2 and layout == "channels_last":
            continue
        call = make(arrange(values, layout))
        want = call.plain()
        for image in call.images:
            copy = call.arguments[image].clone()
            again = replace(call, arguments=call.arguments | {image: copy})
            if "running_mean" in call.arguments:
                again.arguments.update({name: call.arguments[name].clone() for name in WRITTEN})
            targets = [copy, *call.fresh()[1:]]
            assert_same(again.out(*targets), want)


def test_in_place_of_a_part(make: Maker, device: str, dtype: torch.dtype) -> None:
    """Neither of the two layouts, and in place all the same."""
    call = make(arrange(activations(IMAGE, dtype, device), "chunk"))
    want = call.plain()
    targets = [call.arguments["input"], *call.fresh()[1:]]
    assert_same(call.out(*targets), want)


def test_neighbours_in_one_tensor(make: Maker, device: str) -> None:
    """The other half of the channels, as where features are concatenated in place."""
    whole = activations((4, 2 * C, 5, 7), torch.float32, device)
    call = make(whole[:, :C])
    want = call.plain()
    assert_same(call.out(whole[:, C:], *call.fresh()[1:]), want)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "spatial_swapped"])
def test_targets_without_elements_are_resized(make: Maker, device: str, layout: str) -> None:
    call = make(arrange(activations(IMAGE, torch.float32, device), layout))
    targets = [result.new_empty(0) for result in call.plain()]
    got = call.out(*targets)
    assert_same(got, call.plain())
    assert_layout(got[0], call.arguments["input"], "result")
    assert targets[0].data_ptr() == got[0].data_ptr()


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0), (5, 0)], ids=str)
def test_empty_input(make: Maker, device: str, shape: tuple[int, ...]) -> None:
    call = make(torch.empty(shape, device=device))
    assert_same(call.out(*call.fresh()), call.plain())


def test_masked_gradients_are_left_alone(device: str) -> None:
    call = backward(activations(IMAGE, torch.float32, device), True)
    want = call.plain()
    for kept in range(3):
        mask = [index == kept for index in range(3)]
        masked = replace(call, arguments=call.arguments | {"output_mask": mask})
        targets = call.fresh()
        rest = [target for target, wanted in zip(targets, mask, strict=True) if not wanted]
        with unchanged(*rest):
            got = masked.out(*targets)
        assert bit_equal(got[kept], want[kept])
        masked.out(*[target if wanted else target.new_empty(0) for target, wanted in zip(targets, mask, strict=True)])


@pytest.mark.parametrize("gamma", [torch.float32, torch.bfloat16], ids=str)
def test_parameter_gradients_have_gammas_dtype(device: str, gamma: torch.dtype) -> None:
    call = backward(activations(IMAGE, torch.bfloat16, device), True)
    call.arguments["gamma"] = call.arguments["gamma"].to(gamma)
    got = call.out(*call.fresh())
    assert got[1].dtype == got[2].dtype == gamma
    assert_same(got, call.plain())


def test_vectors_with_strides(device: str) -> None:
    """Columns of one matrix, which interleave."""
    call = forward(activations(IMAGE, torch.float32, device), True)
    statistics = torch.zeros(C, 2, device=device)
    want = call.plain()
    got = call.out(call.fresh()[0], statistics[:, 0], statistics[:, 1])
    assert_same(got, want)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nothing_is_allocated_for_an_image(make: Maker, device: str, layout: str) -> None:
    """A target of the input's layout is filled itself: no allocation is as large as it."""
    call = make(arrange(activations((4, 6, 50, 50), torch.float32, device), layout))
    targets = call.fresh()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA][: 1 + (device != "cpu")]
    sizes = []
    for function in (lambda: call.out(*targets), call.plain):
        with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
            function()
        events = profiler.profiler.kineto_results.events()
        sizes.append(max((event.nbytes() for event in events if event.name() == "[memory]"), default=0))
    assert sizes[0] < targets[0].nbytes <= sizes[1]


# ---- errors: before anything is written ----


def check_error(call: Call, targets: list[Tensor], message: str, error: type[Exception] = RuntimeError) -> None:
    tensors = [value for value in (*call.arguments.values(), *targets) if isinstance(value, Tensor)]
    with_values = [tensor for tensor in tensors if tensor.layout == torch.strided and not tensor.is_meta]
    with unchanged(*with_values), pytest.raises(error) as caught:
        call.out(*targets)
    assert str(caught.value).splitlines()[0] == f"{call.name}: {message}"


def _image_of(call: Call) -> Tensor:
    return call.arguments["input"]


@pytest.mark.parametrize("on", ["device", "meta"])
def test_a_target_that_does_not_fit(make: Maker, device: str, on: str) -> None:
    call = make(activations(IMAGE, torch.float32, device))
    if on == "meta":
        moved = {name: v.to("meta") if isinstance(v, Tensor) else v for name, v in call.arguments.items()}
        call = replace(call, arguments=moved)
    targets = call.fresh()
    shapes = [list(target.shape) for target in targets]
    place = _image_of(call).device
    for index, name in enumerate(call.results):

        def but(bad: Tensor, index: int = index) -> list[Tensor]:
            return [*targets[:index], bad, *targets[index + 1 :]]

        wider = torch.zeros(2, *shapes[index], device=place)
        check_error(
            call, but(wider), f"expected {name} of shape {shapes[index]} or without elements, got {list(wider.shape)}"
        )
        half = targets[index].half()
        check_error(call, but(half), f"expected {name} of dtype float32, got float16")
        elsewhere = torch.zeros(shapes[index], device="cpu" if on == "meta" else "meta")
        got = "cpu" if on == "meta" else "meta"
        check_error(call, but(elsewhere), f"expected {name} on device {place}, got {got}")


def test_a_target_that_shares_memory(make: Maker, device: str) -> None:
    values = activations((IMAGE[0] + 1, *IMAGE[1:]), torch.float32, device)
    call = make(values[:-1])
    targets = call.fresh()
    own = "to have memory of its own, but it overlaps"
    for image in call.images:
        moved = replace(call, arguments=call.arguments | {image: values[:-1]})
        shifted = [values[1:], *targets[1:]]
        first = next(name for name in call.arguments if moved.arguments[name] is moved.arguments[image])
        check_error(moved, shifted, f"expected {call.results[0]} {own} {first}")
    repeated = targets[0][:1].expand(IMAGE)
    message = f"expected {call.results[0]} with memory for each value, got strides {list(repeated.stride())}"
    check_error(call, [repeated, *targets[1:]], message)
    for name, vector in call.arguments.items():
        if isinstance(vector, Tensor) and vector.shape == (C,) and len(targets) > 1:
            check_error(call, [targets[0], vector, targets[2]], f"expected {call.results[1]} {own} {name}")
    if len(targets) > 1:
        check_error(call, [targets[0], targets[1], targets[1]], f"expected {call.results[2]} {own} {call.results[1]}")


def test_overlap_is_told_element_by_element(device: str) -> None:
    """Parts of one tensor whose address ranges interleave: an error exactly where an element is shared."""
    whole = torch.randn(3, 8, 4, 6, device=device)
    source = (slice(None), slice(2, 5), slice(1, 3), slice(0, 3))
    starts = [(c, h, w) for c in (0, 2, 4, 5) for h in (0, 1, 2) for w in (0, 1, 3)]
    for c, h, w in starts:
        call = apply(whole[source], True)
        target = whole[:, c : c + 3, h : h + 2, w : w + 3]
        marks = torch.zeros_like(whole)
        marks[source] += 1
        marks[:, c : c + 3, h : h + 2, w : w + 3] += 1
        shared = int((marks == 2).sum())
        if shared in (0, call.arguments["input"].numel()):
            copy = call.arguments["input"].clone()
            want = replace(call, arguments=call.arguments | {"input": copy}).plain()
            assert_same(call.out(target), want)
        else:
            check_error(call, [target], "expected out to have memory of its own, but it overlaps input")


def test_no_derivatives(make: Maker, device: str) -> None:
    call = make(activations(IMAGE, torch.float32, device))
    message = rf"{call.name}\(\): functions with out=... arguments don't support automatic differentiation"
    for name, value in call.arguments.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        changed = replace(call, arguments=call.arguments | {name: value.clone().requires_grad_()})
        with pytest.raises(RuntimeError, match=message):
            changed.out(*call.fresh())
        with torch.no_grad():
            assert_same(changed.out(*call.fresh()), call.plain()) if name not in WRITTEN else None
    with pytest.raises(RuntimeError, match=message):
        call.out(*[target.requires_grad_() for target in call.fresh()])


def test_no_tangents(make: Maker, device: str) -> None:
    call = make(activations(IMAGE, torch.float32, device))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(call.arguments["input"], torch.ones(IMAGE, device=device))
        changed = replace(call, arguments=call.arguments | {"input": dual})
        with pytest.raises(NotImplementedError, match="don't support forward-mode derivatives"):
            changed.out(*call.fresh())


def test_no_vmap(make: Maker, device: str) -> None:
    """torch has no batching rule for the `out` form of any operator, its own included."""
    call = make(activations((2, *IMAGE), torch.float32, device)[0])
    images = {name: call.arguments[name].expand(2, *IMAGE) for name in call.images}
    rest = {name: value for name, value in call.arguments.items() if name not in images}

    def batched(images: dict[str, Tensor]) -> Tensor:
        return replace(call, arguments=rest | images).out(*targets)[0]

    targets = call.fresh()
    with pytest.raises(RuntimeError, match="Batching rule not implemented"):
        torch.vmap(batched)(images)


def test_a_saved_tensor_notices(make: Maker, device: str) -> None:
    """Autograd refuses to use a tensor that was overwritten after it was saved."""
    call = make(activations(IMAGE, torch.float32, device))
    targets = [target.nan_to_num() for target in call.fresh()]
    for index, target in enumerate(targets):
        factor = torch.ones_like(target).requires_grad_()
        product = (factor * target).sum()
        call.out(*targets)
        assert target._version > 0, call.results[index]
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.backward()


# ---- the Python function ----


def test_function(device: str, training: bool, dtype: torch.dtype) -> None:
    args = arguments(activations(IMAGE, dtype, device), training)
    given = (args.input, args.running_mean, args.running_var, args.gamma, args.beta, training)
    statistics = [args.running_mean.clone(), args.running_var.clone()]
    want = my_ops.functional.batch_norm(args.input, *statistics, *given[3:])
    out = torch.empty(0, dtype=dtype, device=device)
    assert my_ops.functional.batch_norm(*given, out=out) is out
    assert bit_equal(out, want)
    assert bit_equal(args.running_mean, statistics[0])


def test_function_in_place(device: str) -> None:
    args = arguments(activations(IMAGE, torch.float32, device), training=False)
    given = (args.running_mean, args.running_var, args.gamma, args.beta)
    want = my_ops.functional.batch_norm(args.input, *given)
    my_ops.functional.batch_norm(args.input, *given, out=args.input)
    assert bit_equal(args.input, want)
