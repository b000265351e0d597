"""PyTorch's own tests of batch norm, with its own harness, on our operators and modules.

Every sample that torch keeps for its batch norm functions (op_db) and modules (module_db), in every mode that torch
declares for them: results against torch's in float64, first and second derivatives in reverse and forward mode, vmap,
non-contiguous, negated and copy-on-write tensors, `out=`; construction, copies, saved state and memory formats of
modules. conftest.py prints how many samples ran in which mode.

Left out, with reason:
- F.batch_norm of a tensor of shape [0], which torch returns as it is: it has no channels, and ours names that error.
- num_batches_tracked of an empty batch, which torch counts: ours leaves all running state alone.
- error inputs of functions: torch keeps none for batch norm.
- torch's tests of its own conversions (JIT, CUDA transfer, MPS) and of in-place variants, which batch norm has not.
"""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import my_ops
import reference
from checks import Arguments, bit_equal, ops
from conftest import devices
from layouts import assert_layout
from tolerances import TOLERANCES, assert_within

pytest.importorskip("expecttest", reason="torch.testing._internal needs it")

from torch.testing._internal import common_modules
from torch.testing._internal.common_device_type import instantiate_device_type_tests
from torch.testing._internal.common_device_type import ops as for_operators
from torch.testing._internal.common_methods_invocations import OpInfo, op_db
from torch.testing._internal.common_modules import ModuleInfo, module_db
from torch.testing._internal.common_modules import modules as for_modules
from torch.testing._internal.common_utils import (
    TestCase,
    TestGradients,
    freeze_rng_state,
    gradcheck,
    gradgradcheck,
    noncontiguous_like,
)
from torch.testing._internal.opinfo.core import SampleInput

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DOUBLE = (torch.float64,)
FLOAT = (torch.float32,)
COUNTS: Counter[str] = Counter()  # mode -> samples that ran


# ---- functions: torch's signatures, our operators ----


def _functional(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    return Arguments(input, weight, bias, running_mean, running_var, training, momentum, eps)


def _native(input, weight, bias, running_mean, running_var, training, momentum, eps):
    return Arguments(input, weight, bias, running_mean, running_var, training, momentum, eps)


def _legit(input, weight, bias, *rest):
    return _native(input, weight, bias, *(rest if len(rest) == 5 else (None, None, *rest)))


def _with_update(input, weight, bias, running_mean, running_var, momentum, eps):
    return _native(input, weight, bias, running_mean, running_var, True, momentum, eps)


Signature = Callable[..., Arguments]
SIGNATURES: dict[str, Signature] = {
    "nn.functional.batch_norm": _functional,
    "native_batch_norm": _native,
    "_native_batch_norm_legit": _legit,
    "_batch_norm_with_update": _with_update,
}


def _ours(signature: Signature) -> Callable[..., Tensor | tuple[Tensor, ...]]:
    def call(*args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
        given = signature(*args, **kwargs)
        results = ops.batchnorm_forward(*given.values())
        return results[0] if signature is _functional else results

    return call


def _copy_of(info: OpInfo) -> OpInfo:
    """torch's entry with our operator, and without any skip or tolerance of torch's."""
    twin = copy.copy(info)
    twin.theirs = info.op
    twin.op = _ours(SIGNATURES[info.name])
    twin.decorators = ()
    return twin


def _entries() -> list[OpInfo]:
    entries = [info for info in op_db if info.name in SIGNATURES and info.dtypes]
    assert sorted(info.name for info in entries) == sorted(SIGNATURES)
    return [_copy_of(info) for info in entries]


OPERATORS = _entries()


def _arguments(info: OpInfo, sample: SampleInput) -> Arguments:
    return SIGNATURES[info.name](sample.input, *sample.args, **sample.kwargs)


def _has_channels(sample: SampleInput) -> bool:
    return sample.input.dim() >= 2


def _samples(info: OpInfo, device: str, dtype: torch.dtype, mode: str, grad: bool = False) -> Iterator[SampleInput]:
    samples = [s for s in info.sample_inputs(device, dtype, requires_grad=grad) if _has_channels(s)]
    assert len(samples) >= 9  # as many as the shortest list of torch 2.13 has
    for sample in samples:
        yield sample
        COUNTS[mode] += 1


def _tensors(given: Arguments) -> dict[str, Tensor]:
    return {name: value for name, value in vars(given).items() if isinstance(value, Tensor)}


def _with_copies(given: Arguments, change: Callable[[Tensor], Tensor] = torch.clone) -> Arguments:
    """Tensors of its own, each the image of the original under `change`."""
    return Arguments(**(vars(given) | {name: change(value) for name, value in _tensors(given).items()}))


def _call(given: Arguments) -> tuple[Tensor, ...]:
    return ops.batchnorm_forward(*given.values())


class TestFunctions(TestCase):
    @for_operators(OPERATORS, allowed_dtypes=DTYPES)
    def test_forward(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        """Ours in `dtype`, torch's in float64 and the reference agree, running statistics included."""
        for sample in _samples(op, device, dtype, "forward"):
            given = _arguments(op, sample)
            exact = sample.transform(lambda v: v.to(torch.float64, copy=True) if isinstance(v, Tensor) else v)
            want = reference.forward(*given.values())
            theirs = op.theirs(exact.input, *exact.args, **exact.kwargs)
            output, mean, invstd = _call(given)
            self.assertEqual((theirs if isinstance(theirs, Tensor) else theirs[0]).cpu(), want.output.value)
            self.assertEqual(output.dtype, dtype)
            assert_within(output, want.output, TOLERANCES[dtype].forward, "output")
            assert_within(mean, want.mean, TOLERANCES[dtype].statistics, "save_mean")
            assert_within(invstd, want.invstd, TOLERANCES[dtype].statistics, "save_invstd")
            torchs = _arguments(op, exact)
            for name in ("running_mean", "running_var"):
                if getattr(given, name) is not None:
                    assert_within(getattr(given, name), getattr(want, name), TOLERANCES[dtype].statistics, name)
                    self.assertEqual(getattr(torchs, name).cpu(), getattr(want, name).value)

    @for_operators(OPERATORS, allowed_dtypes=DTYPES)
    def test_noncontiguous(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        """Values, gradients and running statistics are those of contiguous arguments, to the bit."""
        for sample in _samples(op, device, dtype, "non-contiguous", grad=True):
            plain = _arguments(op, sample)
            strided = _arguments(op, sample.noncontiguous())
            want, got = _call(plain), _call(strided)
            for left, right in zip(got, want, strict=True):
                self.assertEqual(left, right)
            leaves = [[t for t in _tensors(given).values() if t.requires_grad] for given in (plain, strided)]
            gradient = torch.randn_like(want[0])
            for left, right in zip(
                torch.autograd.grad(got[0], leaves[1], noncontiguous_like(gradient)),
                torch.autograd.grad(want[0], leaves[0], gradient),
                strict=True,
            ):
                self.assertEqual(left, right)
            for name in ("running_mean", "running_var"):
                self.assertEqual(getattr(plain, name), getattr(strided, name))

    @for_operators(OPERATORS, allowed_dtypes=DTYPES)
    def test_negated_view(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        """Tensors that torch negates when they are read; written ones it allows for in-place operators only."""
        for sample in _samples(op, device, dtype, "negated view"):
            plain = _arguments(op, sample)
            changed = {n: torch._neg_view(-t) for n, t in _tensors(plain).items() if "running" not in n}
            negated = Arguments(**(vars(_with_copies(plain)) | changed))
            self.assertEqual(_call(negated), _call(plain))
            self.assertEqual(negated.running_mean, plain.running_mean)
            self.assertEqual(negated.running_var, plain.running_var)

    @for_operators(OPERATORS, allowed_dtypes=FLOAT)
    def test_copy_on_write(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        """Reading, forward and backward, copies nothing; writing copies, and spares the tensor that is shared."""
        for sample in _samples(op, device, dtype, "copy-on-write", grad=True):
            plain = _arguments(op, sample)
            lazy = _with_copies(plain, lambda t: torch._lazy_clone(t.detach()).requires_grad_(t.requires_grad))
            before = {name: value.detach().clone() for name, value in _tensors(plain).items()}
            output = _call(lazy)[0]
            gradient = torch._lazy_clone(torch.randn_like(output))
            torch.autograd.grad(output, [t for t in _tensors(lazy).values() if t.requires_grad], gradient)
            self.assertTrue(torch._C._is_cow_tensor(gradient))
            for name, value in _tensors(lazy).items():
                written = plain.training and name.startswith("running")
                self.assertEqual(torch._C._is_cow_tensor(value), not written, name)
                self.assertTrue(bit_equal(getattr(plain, name), before[name]), name)

    @for_operators([info for info in OPERATORS if info.supports_out], allowed_dtypes=DTYPES)
    def test_out(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        """The same bits in tensors that are given; those without elements get the sizes of the results."""
        for sample in _samples(op, device, dtype, "out="):
            given = _arguments(op, sample)
            want = _call(_with_copies(given))
            for targets in ([torch.full_like(r, torch.nan) for r in want], [r.new_empty(0) for r in want]):
                names = ("output", "save_mean", "save_invstd")
                again = _with_copies(given)
                got = ops.batchnorm_forward.out(*again.values(), **dict(zip(names, targets, strict=True)))
                for left, right, target in zip(got, want, targets, strict=True):
                    self.assertIs(left, target)
                    self.assertTrue(bit_equal(left, right))

    @for_operators(OPERATORS, allowed_dtypes=DOUBLE)
    def test_vmap(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        """Over every subset of tensors that may be batched, in front and behind, against one call after the other."""
        for sample in _samples(op, device, dtype, "vmap"):
            given = _arguments(op, sample)
            tensors = _tensors(given)
            written = [name for name in tensors if name.startswith("running") and given.training]
            others = [name for name in tensors if name not in written]
            subsets = itertools.chain.from_iterable(
                itertools.combinations(others, size) for size in range(1, len(others) + 1)
            )
            for subset, dim in itertools.product(subsets, (0, -1)):
                self._check_vmap(given, {*subset, *written}, dim)

    def _check_vmap(self, given: Arguments, batched: set[str], dim: int, size: int = 2) -> None:
        tensors = _tensors(given)
        stacks = {name: torch.stack([tensors[name] * (1 + 0.3 * i) for i in range(size)], dim) for name in batched}
        plain = {name: value for name, value in tensors.items() if name not in batched}

        def call(stacks: dict[str, Tensor]) -> tuple[Tensor, ...]:
            return _call(Arguments(**(vars(given) | plain | stacks)))

        singles = [{name: stack.select(dim, i).clone() for name, stack in stacks.items()} for i in range(size)]
        want = [call(single) for single in singles]
        got = torch.vmap(call, in_dims=(dict.fromkeys(stacks, dim),))(stacks)
        # A result that no batched argument reaches may be the same for all.
        self.assertEqual(list(got), [torch.stack(results) for results in zip(*want, strict=True)])
        for name, stack in stacks.items():
            self.assertEqual(stack, torch.stack([single[name] for single in singles], dim))

    @for_operators([info for info in OPERATORS if info.name == "nn.functional.batch_norm"], allowed_dtypes=FLOAT)
    def test_no_channels(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        """What torch accepts and ours does not (see above): the error says why."""
        samples = [s for s in op.sample_inputs(device, dtype) if not _has_channels(s)]
        self.assertEqual([tuple(sample.input.shape) for sample in samples], [(0,), (0,)])
        for sample in samples:
            with self.assertRaisesRegex(RuntimeError, r"expected input of rank 2 or more, got shape \[0\]"):
                _call(_arguments(op, sample))


class TestDerivatives(TestGradients):
    """Against finite differences, by torch's own helpers: undefined and batched gradients and dtypes included."""

    def _restricted(self, op: OpInfo, device: str, dtype: torch.dtype, mode: str) -> OpInfo:
        """An entry whose samples have channels, and are counted."""
        twin = copy.copy(op)
        twin.sample_inputs_func = lambda info, device, dtype, requires_grad, **_: _samples(
            op, device, dtype, mode, grad=requires_grad
        )
        return twin

    @for_operators(OPERATORS, allowed_dtypes=DOUBLE)
    def test_gradient(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        op = self._restricted(op, device, dtype, "gradient, vmap of it")
        self._grad_test_helper(device, dtype, op, op.get_op())

    @for_operators(OPERATORS, allowed_dtypes=DOUBLE)
    def test_second_derivative(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        self.assertTrue(op.supports_gradgrad)
        op = self._restricted(op, device, dtype, "second derivative, reverse over reverse")
        self._check_helper(device, dtype, op, op.get_op(), "bwgrad_bwgrad")

    @for_operators(OPERATORS, allowed_dtypes=DOUBLE)
    def test_forward_mode(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        self.assertTrue(op.supports_forward_ad)
        op = self._restricted(op, device, dtype, "forward mode, vmap of it")
        self._grad_test_helper(
            device,
            dtype,
            op,
            op.get_op(),
            check_forward_ad=True,
            check_backward_ad=False,
            check_batched_grad=False,
            check_batched_forward_grad=op.check_batched_forward_grad,
        )

    @for_operators(OPERATORS, allowed_dtypes=DOUBLE)
    def test_forward_over_reverse(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        self.assertTrue(op.supports_fwgrad_bwgrad)
        op = self._restricted(op, device, dtype, "second derivative, forward over reverse")
        self._check_helper(device, dtype, op, op.get_op(), "fwgrad_bwgrad")


# ---- modules ----

REPLACED = {
    nn.BatchNorm1d: my_ops.BatchNorm1d,
    nn.BatchNorm2d: my_ops.BatchNorm2d,
    nn.BatchNorm3d: my_ops.BatchNorm3d,
}


def _module_entry(info: ModuleInfo) -> ModuleInfo:
    """torch's entry with our module; torch's input functions ask their own entry for the class."""

    def inputs(function: Callable[..., Any], _: ModuleInfo, *args: Any, **kwargs: Any) -> Any:
        return function(info, *args, **kwargs)

    twin = ModuleInfo(
        REPLACED[info.module_cls],
        module_inputs_func=partial(inputs, info.module_inputs_func),
        dtypes=DTYPES,
        supports_gradgrad=info.supports_gradgrad,
        module_memformat_affects_out=info.module_memformat_affects_out,
        train_and_eval_differ=info.train_and_eval_differ,
        module_error_inputs_func=info.module_error_inputs_func and partial(inputs, info.module_error_inputs_func),
    )
    twin.theirs = info.module_cls
    return twin


MODULES = [_module_entry(info) for info in module_db if info.module_cls in REPLACED]
ANY_MODE = partial(for_modules, MODULES)


class TestModules(TestCase):
    def _cases(
        self, info: ModuleInfo, device: str, dtype: torch.dtype, training: bool, mode: str, grad: bool = False
    ) -> Iterator[tuple[nn.Module, Tensor, Callable[..., nn.Module]]]:
        """(module, input, constructor of torch's module and of ours) for every sample."""
        samples = info.module_inputs_func(info, device=device, dtype=dtype, requires_grad=grad, training=training)
        self.assertGreaterEqual(len(samples), 6)  # torch 2.13 has 7 or 8
        for sample in samples:
            args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs

            def make(
                cls: type[nn.Module] = info.module_cls, args: Any = args, kwargs: Any = kwargs, **more: Any
            ) -> Any:
                module = cls(*args, **({"device": device, "dtype": dtype} | kwargs | more)).train(training)
                for parameter in module.parameters():
                    if not parameter.is_meta:
                        nn.init.normal_(parameter)
                return module

            (input,) = sample.forward_input.args
            yield make(), input, make
            COUNTS[f"modules: {mode}"] += 1

    @ANY_MODE(allowed_dtypes=DTYPES)
    def test_forward(self, device: str, dtype: torch.dtype, training: bool, module_info: ModuleInfo) -> None:
        """Two steps beside torch's module in float64: outputs within torch's tolerances, and buffers."""
        for module, input, make in self._cases(module_info, device, dtype, training, "forward"):
            theirs = make(module_info.theirs, dtype=torch.float64)
            self.assertIsInstance(module, module_info.theirs)
            theirs.load_state_dict(module.state_dict())
            for _ in range(2):
                got = module(input)
                self.assertEqual(got.dtype, dtype)
                self.assertEqual(got, theirs(input.double()).to(dtype))
            if input.numel() == 0:  # which torch counts as a batch
                self.assertEqual(module.num_batches_tracked, 0)
                theirs.num_batches_tracked.zero_()
            self.assertEqual(module.state_dict(), theirs.state_dict(), exact_dtype=False)

    @ANY_MODE(allowed_dtypes=DTYPES)
    def test_factory_arguments(self, device: str, dtype: torch.dtype, training: bool, module_info: ModuleInfo) -> None:
        for _, _, make in self._cases(module_info, device, dtype, training, "factory arguments"):
            for place in (device, "meta"):
                module = make(device=place)
                for tensor in [*module.parameters(), *module.buffers()]:
                    self.assertEqual(tensor.device.type, torch.device(place).type)
                    if tensor.is_floating_point():
                        self.assertEqual(tensor.dtype, dtype)
            with torch.device("meta"):
                self.assertTrue(all(tensor.is_meta for tensor in make(device=None).state_dict().values()))

    @ANY_MODE(allowed_dtypes=FLOAT)
    def test_repr_and_pickle(self, device: str, dtype: torch.dtype, training: bool, module_info: ModuleInfo) -> None:
        for module, input, make in self._cases(module_info, device, dtype, training, "repr, pickle, copy"):
            self.assertEqual(str(module), str(make(module_info.theirs)))
            for twin in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
                self.assertIs(type(twin), type(module))
                self.assertEqual(twin(input), copy.deepcopy(module)(input))
                twin(input)

    @ANY_MODE(allowed_dtypes=DTYPES)
    def test_saved_state(self, device: str, dtype: torch.dtype, training: bool, module_info: ModuleInfo) -> None:
        """State travels through a file, both ways between ours and torch's."""
        for module, input, make in self._cases(module_info, device, dtype, training, "saved state"):
            module(input)
            file = io.BytesIO()
            torch.save(module.state_dict(), file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
            twin, theirs = make(), make(module_info.theirs)
            theirs.load_state_dict(state)
            twin.load_state_dict(theirs.state_dict())
            self.assertEqual(list(module.state_dict()), list(theirs.state_dict()))
            self.assertEqual(twin(input), module(input))
            self.assertEqual(twin.state_dict(), module.state_dict())

    @ANY_MODE(allowed_dtypes=DTYPES)
    def test_noncontiguous(self, device: str, dtype: torch.dtype, training: bool, module_info: ModuleInfo) -> None:
        for module, input, _ in self._cases(module_info, device, dtype, training, "non-contiguous", grad=True):
            twin, strided = copy.deepcopy(module), noncontiguous_like(input.detach()).requires_grad_()
            got, want = twin(strided), module(input)
            gradient = torch.randn_like(want)
            got.backward(noncontiguous_like(gradient))
            want.backward(gradient)
            self.assertEqual(got, want)
            self.assertEqual(strided.grad, input.grad)
            self.assertEqual(twin.state_dict(), module.state_dict())
            for left, right in zip(twin.parameters(), module.parameters(), strict=True):
                self.assertEqual(left.grad, right.grad)

    @ANY_MODE(allowed_dtypes=FLOAT)
    def test_memory_format(self, device: str, dtype: torch.dtype, training: bool, module_info: ModuleInfo) -> None:
        """The input's format is the output's and the gradient's; values do not depend on it."""
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        for module, input, _ in self._cases(module_info, device, dtype, training, "memory format"):
            for format in (torch.contiguous_format, formats.get(input.dim(), torch.contiguous_format)):
                twin = copy.deepcopy(module).to(memory_format=format)
                laid_out = input.clone(memory_format=format).requires_grad_()
                output = twin(laid_out)
                self.assertEqual(output, copy.deepcopy(module)(input))
                assert_layout(output, laid_out, "output")
                output.sum().backward()
                assert_layout(laid_out.grad, laid_out, "gradient")

    @ANY_MODE(allowed_dtypes=FLOAT)
    def test_to_empty_and_meta(self, device: str, dtype: torch.dtype, training: bool, module_info: ModuleInfo) -> None:
        """Built on meta, run there, given memory and a state."""
        for module, input, make in self._cases(module_info, device, dtype, training, "meta device, to_empty"):
            ghost = make(device="meta")
            shadow = ghost(input.to("meta"))
            self.assertTrue(shadow.is_meta)
            self.assertEqual((shadow.shape, shadow.stride(), shadow.dtype), (input.shape, input.stride(), dtype))
            real = ghost.to_empty(device=device)
            self.assertEqual({v.device.type for v in real.state_dict().values()} - {torch.device(device).type}, set())
            real.load_state_dict(module.state_dict())
            self.assertEqual(real(input), module(input))

    @ANY_MODE(allowed_dtypes=DTYPES)
    def test_change_of_dtype(self, device: str, dtype: torch.dtype, training: bool, module_info: ModuleInfo) -> None:
        for module, input, make in self._cases(module_info, device, torch.float32, training, "change of dtype"):
            want = make(module_info.theirs, dtype=torch.float64)
            want.load_state_dict(module.to(dtype).state_dict())
            x = input.to(dtype)
            self.assertEqual(module(x), want(x.double()).to(dtype))

    @for_modules([info for info in MODULES if info.train_and_eval_differ], allowed_dtypes=FLOAT)
    def test_modes_differ(self, device: str, dtype: torch.dtype, training: bool, module_info: ModuleInfo) -> None:
        for module, input, _ in self._cases(module_info, device, dtype, training, "train and eval differ"):
            module(input)
            outputs = [module.train(mode)(input) for mode in (True, False)]
            same = input.numel() == 0 or module.running_mean is None
            self.assertEqual(torch.equal(*outputs), same)

    @ANY_MODE(allowed_dtypes=DOUBLE)
    def test_derivatives(self, device: str, dtype: torch.dtype, training: bool, module_info: ModuleInfo) -> None:
        """First and second order, in reverse and forward mode, with respect to the input and all parameters."""
        self.assertTrue(module_info.supports_gradgrad)
        for module, input, _ in self._cases(module_info, device, dtype, training, "all derivatives", grad=True):
            names = [name for name, _ in module.named_parameters()]

            def call(x: Tensor, *values: Tensor, module: nn.Module = module, names: list[str] = names) -> Tensor:
                with freeze_rng_state():
                    return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

            inputs = (input, *module.parameters())
            self.assertTrue(gradcheck(call, inputs, check_forward_ad=True, check_batched_grad=True))
            self.assertTrue(gradgradcheck(call, inputs, check_fwd_over_rev=True))

    @ANY_MODE(allowed_dtypes=FLOAT)
    def test_errors(self, device: str, dtype: torch.dtype, training: bool, module_info: ModuleInfo) -> None:
        """torch's error inputs: an eps that is not positive. torch raises in both modes, ours in eval below 0 only."""
        if module_info.module_error_inputs_func is None:
            self.skipTest("this torch keeps no error inputs for batch norm")
        errors = module_info.module_error_inputs_func(
            module_info, device=device, dtype=dtype, requires_grad=False, training=training
        )
        self.assertEqual(len(errors), 2)
        for error in errors:
            self.assertEqual(error.error_on, common_modules.ModuleErrorEnum.FORWARD_ERROR)
            made, given = error.module_error_input.constructor_input, error.module_error_input.forward_input
            module = module_info.module_cls(*made.args, **made.kwargs, device=device, dtype=dtype).train(training)
            if not training and module.eps == 0:
                self.assertEqual(module(*given.args), given.args[0])
            else:
                with self.assertRaisesRegex(error.error_type, r"batchnorm_forward: expected eps >=? 0 when training"):
                    module(*given.args)
            COUNTS["modules: errors"] += 1


for _case in (TestFunctions, TestDerivatives, TestModules):
    instantiate_device_type_tests(_case, globals(), only_for=devices())
del _case
