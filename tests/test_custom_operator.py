"""The worked example of docs/custom_operator.md, and the three traps of such exercises."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import my_ops
from checks import unchanged

PAGE = Path(__file__).parents[1] / "docs" / "custom_operator.md"


def pair(training: bool = True) -> tuple[my_ops.BatchNormCustom, nn.BatchNorm2d]:
    """Ours and torch's in float64, with the same random state."""
    native = nn.BatchNorm2d(3, eps=1e-3, momentum=0.3).double().train(training)
    for tensor in (native.weight, native.bias, native.running_mean, native.running_var):
        assert tensor is not None
        nn.init.uniform_(tensor, 0.5, 1.5)
    custom = my_ops.BatchNormCustom(3, eps=1e-3, momentum=0.3).double().train(training)
    custom.load_state_dict(native.state_dict())
    return custom, native


def images() -> Tensor:
    return torch.randn(4, 3, 5, 6, dtype=torch.float64) * 2 + 1


def results(module: nn.Module, x: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    return [y, *torch.autograd.grad(y.sin().sum(), [leaf, *module.parameters()])]


def test_equals_batch_norm_2d(training: bool) -> None:
    custom, native = pair(training)
    for _ in range(3):
        x = images()
        for ours, torchs in zip(results(custom, x), results(native, x), strict=True):
            torch.testing.assert_close(ours, torchs)
    assert custom.state_dict().keys() == native.state_dict().keys()
    for name, tensor in native.state_dict().items():
        torch.testing.assert_close(custom.state_dict()[name], tensor)
    assert int(custom.num_batches_tracked) == (3 if training else 0)


def test_trap_backward_in_eval_is_not_guessed_from_the_data() -> None:
    """A backward that takes "saved mean = batch mean" for training is wrong in eval where the running mean is the
    batch's by chance: there dx = gamma * invstd * dy, although every mean agrees."""
    custom, native = pair(training=False)
    x = images()
    with torch.no_grad():
        for module in (custom, native):
            module.running_mean.copy_(x.mean((0, 2, 3)))
            module.running_var.copy_(x.var((0, 2, 3), correction=0))
    ours, torchs = results(custom, x), results(native, x)
    torch.testing.assert_close(ours, torchs)
    guessed = results(copy.deepcopy(custom).train(), x)
    torch.testing.assert_close(guessed[0], ours[0])  # the same output,
    assert (guessed[1] - ours[1]).abs().max() > 0.01  # another gradient


def test_trap_saved_mean_is_that_of_the_batch() -> None:
    """Not the running one, in which the batch has a share of `momentum`."""
    custom, _ = pair()
    x = images()
    _, mean, invstd = torch.ops.my_ops.batchnorm_forward(
        x, None, None, custom.running_mean, custom.running_var, True, 0.3, 1e-3
    )
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(invstd, (x.var((0, 2, 3), correction=0) + 1e-3).rsqrt())
    assert (mean - custom.running_mean).abs().min() > 1e-3
    assert (invstd - (custom.running_var + 1e-3).rsqrt()).abs().min() > 1e-3


def test_trap_running_variance_is_unbiased_but_the_output_uses_the_biased_one() -> None:
    custom, _ = pair()
    x, before = images()[:1, :, :2, :2], custom.running_var.clone()  # 4 values: a factor of 4/3
    y = custom(x)
    biased, unbiased = (x.var((0, 2, 3), correction=correction) for correction in (0, 1))
    torch.testing.assert_close(custom.running_var, 0.7 * before + 0.3 * unbiased)
    assert (custom.running_var - (0.7 * before + 0.3 * biased)).abs().min() > 1e-3
    xhat = (x - x.mean((0, 2, 3), keepdim=True)) * (biased + 1e-3).rsqrt().view(1, 3, 1, 1)
    torch.testing.assert_close(y, xhat * custom.weight.view(1, 3, 1, 1) + custom.bias.view(1, 3, 1, 1))


def test_eval_writes_nothing() -> None:
    custom, _ = pair(training=False)
    with unchanged(*custom.buffers()):
        custom(images())


def test_compiles_and_exports() -> None:
    custom = my_ops.BatchNormCustom(3)
    x = torch.randn(4, 3, 5, 6)
    compiled = torch.compile(copy.deepcopy(custom), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), custom(x), rtol=0, atol=0)
    program = torch.export.export(custom.eval(), (x,))
    torch.testing.assert_close(program.module()(x), custom(x), rtol=0, atol=0)


def test_second_derivatives() -> None:
    custom, _ = pair()
    x = images()[:2, :, :2, :2].clone().requires_grad_()
    frozen = copy.deepcopy(custom).requires_grad_(False)

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(frozen, {"weight": weight, "bias": bias}, (x,))

    torch.autograd.gradgradcheck(call, (x, custom.weight, custom.bias))


def test_wrong_rank() -> None:
    with pytest.raises(ValueError, match=r"BatchNormCustom: expected input of rank 4, got shape \[2, 3\]"):
        my_ops.BatchNormCustom(3)(torch.randn(2, 3))


def test_python_of_the_page_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) >= 3
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)


def test_files_of_the_page_exist() -> None:
    names = re.findall(r"\]\(\.\./([^)#]+)\)", PAGE.read_text())
    assert len(names) >= 8
    missing = [name for name in names if not (PAGE.parents[1] / name).exists()]
    assert not missing
