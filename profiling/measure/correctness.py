"""Every result of a batch norm call against float64, on the tensors of that call.

A result that is a sum of terms cannot be better than a few roundings of those terms, and need not be worse. So each
quantity has a scale, per channel: the largest sum of absolute terms in it. Errors are judged against

    bound = ROUNDINGS * u * scale + one rounding into the result's dtype,      u = 2^-24 (2^-53 for float64)

and a result passes when its error is within the bound in every channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from profiling.measure.peers import Implementation
from profiling.measure.workloads import Case

# (x - mean) * (gamma * invstd) + beta: sums of the statistics 4, sqrt and quotient 2, difference, products and sum 4;
# backward the same again on its own sums. Most never align; a wrong formula is thousands of roundings off.
ROUNDINGS = 16

QUANTITIES = {
    "output": "output, training",
    "inference": "output, inference",
    "grad_input": "gradient of the input",
    "grad_gamma": "gradient of gamma",
    "grad_beta": "gradient of beta",
    "mean": "batch mean",
    "invstd": "batch 1/std",
    "running_mean": "running mean",
    "running_var": "running variance",
}

_BLOCK = 2**20  # values of the input per step of the reference: its float64 temporaries stay in cache


@dataclass(frozen=True)
class Finding:
    """The largest errors in one quantity of one case, by implementation."""

    case: str
    shape: tuple[int, ...]
    layout: str
    quantity: str
    largest_value: float  # max |float64 result|
    errors: dict[str, float]  # max |result - float64 result|
    shares: dict[str, float]  # max over channels of error / bound; NaN or infinite results give infinity
    difference: float  # max |first implementation - last implementation|

    def passes(self, name: str) -> bool:
        return self.shares[name] <= 1


@dataclass(frozen=True)
class Exact:
    """A quantity of some channels in float64."""

    value: Tensor  # [N, channels, ...] or [channels]
    scale: Tensor  # [channels]


def check(case: Case, implementations: Sequence[Implementation], layout: str) -> list[Finding]:
    """Runs every implementation on ``case``, arranged in ``layout``, and compares all it returns and updates."""
    arranged = case.arranged(layout)
    results = {each.name: run(each, arranged) for each in implementations}
    blocks: dict[str, list[_Errors]] = {quantity: [] for quantity in QUANTITIES}
    for block in _blocks(case):
        for quantity, exact in reference(case.channels(block)).items():
            got = {name: _channels(result[quantity], block) for name, result in results.items()}
            blocks[quantity].append(_errors(got, exact))
    return [
        Finding(
            *(case.name, case.shape, layout, quantity),
            largest_value=max(block.largest_value for block in found),
            errors={name: max(block.errors[name] for block in found) for name in results},
            shares={name: max(block.shares[name] for block in found) for name in results},
            difference=max(block.difference for block in found),
        )
        for quantity, found in blocks.items()
    ]


@dataclass(frozen=True)
class _Errors:
    """What a finding says, of some channels."""

    largest_value: float
    errors: dict[str, float]
    shares: dict[str, float]
    difference: float


def _errors(got: dict[str, Tensor], exact: Exact) -> _Errors:
    values = list(got.values())
    largest = _largest(exact.value)
    errors = {name: _largest(value.to(torch.float64, copy=True).sub_(exact.value)) for name, value in got.items()}
    bounds = {name: _bound(value.dtype, exact.scale, largest) for name, value in got.items()}
    shares = {name: torch.where(error == 0, 0.0, error / bounds[name]) for name, error in errors.items()}
    return _Errors(
        float(largest.max()),
        {name: float(error.max()) for name, error in errors.items()},
        {name: float(share.nan_to_num(nan=torch.inf).max()) for name, share in shares.items()},
        float(_largest(values[0] - values[-1]).max()),
    )


def run(implementation: Implementation, case: Case) -> dict[str, Tensor]:
    """Everything batch norm computes for ``case``, by quantity."""
    private = case.private()
    output, mean, invstd = _dense(implementation.forward(private, training=True)())[:3]
    gradients = _dense(implementation.backward(case)())
    return {
        "output": output,
        "inference": _dense(implementation.forward(case, training=False)())[0],
        **dict(zip(("grad_input", "grad_gamma", "grad_beta"), gradients, strict=True)),
        "mean": mean,
        "invstd": invstd,
        "running_mean": private.running_mean,
        "running_var": private.running_var,
    }


def reference(case: Case) -> dict[str, Exact]:
    """Batch norm by definition, in float64 and two passes, with the scale of every quantity."""
    dims = [d for d in range(case.input.dim()) if d != 1]
    x, dy = case.input.double(), case.grad_output.double()
    gamma, beta = case.gamma.double(), case.beta.double()
    count = x.numel() // max(x.shape[1], 1)

    mean = x.mean(dims)
    centred = x - _spread(mean, x)
    var = centred.square().mean(dims)
    invstd = (var + case.eps).rsqrt()
    xhat = centred * _spread(invstd, x)
    # x is read as |x - mean| + |mean|. A mean that is off by a rounding moves the variance by the square of that.
    mean_scale = _sum_of_sizes(x) / count
    var_scale = var + 2.0**-24 * mean_scale.square()
    offset = mean.abs() * invstd
    xhat_scale = _largest(xhat) + offset

    terms = dy * xhat
    sum_dy, sum_dy_xhat = dy.sum(dims), terms.sum(dims)
    sum_dy_scale = _sum_of_sizes(dy)
    sum_dy_xhat_scale = _sum_of_sizes(terms) + offset * sum_dy_scale
    inner = dy - _spread(sum_dy / count, x) - xhat * _spread(sum_dy_xhat / count, x)
    inner_scale = _largest(dy) + sum_dy_scale / count + xhat_scale * sum_dy_xhat_scale / count

    old_mean, old_var = case.running_mean.double(), case.running_var.double()
    old_invstd = (old_var + case.eps).rsqrt()
    old_xhat = (x - _spread(old_mean, x)) * _spread(old_invstd, x)
    old_xhat_scale = _largest(old_xhat) + old_mean.abs() * old_invstd
    keep, take = 1 - case.momentum, case.momentum
    unbiased = count / max(count - 1, 1)
    gain = gamma.abs()
    return {
        "output": Exact(xhat * _spread(gamma, x) + _spread(beta, x), xhat_scale * gain + beta.abs()),
        "inference": Exact(old_xhat * _spread(gamma, x) + _spread(beta, x), old_xhat_scale * gain + beta.abs()),
        "grad_input": Exact(inner * _spread(gamma * invstd, x), inner_scale * gain * invstd),
        "grad_gamma": Exact(sum_dy_xhat, sum_dy_xhat_scale),
        "grad_beta": Exact(sum_dy, sum_dy_scale),
        "mean": Exact(mean, mean_scale),
        "invstd": Exact(invstd, invstd * (var_scale + case.eps) / (var + case.eps)),
        "running_mean": Exact(keep * old_mean + take * mean, keep * old_mean.abs() + take * mean_scale),
        "running_var": Exact(keep * old_var + take * var * unbiased, keep * old_var + take * var_scale * unbiased),
    }


def _bound(dtype: torch.dtype, scale: Tensor, largest: Tensor) -> Tensor:
    """How far a result of ``dtype`` may be from the exact one, per channel."""
    accumulation = torch.float64 if dtype == torch.float64 else torch.float32
    return ROUNDINGS * _roundoff(accumulation) * scale + _roundoff(dtype) * largest


def _spread(vector: Tensor, like: Tensor) -> Tensor:
    """A [C] vector as [1, C, 1, ...]."""
    return vector.reshape([1, -1] + [1] * (like.dim() - 2))


def _largest(values: Tensor) -> Tensor:
    """max |value| of each channel; infinite where a value is no number."""
    if values.dim() == 1:
        return values.abs().nan_to_num(nan=torch.inf)
    dims = [d for d in range(values.dim()) if d != 1]
    return torch.maximum(values.amax(dims), -values.amin(dims)).nan_to_num(nan=torch.inf)


def _sum_of_sizes(values: Tensor) -> Tensor:
    """sum |value| of each channel."""
    sums: Tensor = torch.linalg.vector_norm(values, 1, [d for d in range(values.dim()) if d != 1])
    return sums


def _roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def _channels(result: Tensor, block: slice) -> Tensor:
    return result[block] if result.dim() == 1 else result[:, block]


def _dense(results: Sequence[Tensor]) -> list[Tensor]:
    """oneDNN's tensors in an ordinary layout."""
    return [each.to_dense() if each.layout == torch._mkldnn else each for each in results]  # type: ignore[attr-defined]


def _blocks(case: Case) -> Iterator[slice]:
    channels = case.shape[1]
    step = max(1, _BLOCK * channels // case.input.numel())
    return (slice(first, first + step) for first in range(0, channels, step))
