"""Every operator on the GPU at sizes that fit no vector and no tile, against float64; small enough for a sanitizer.

Usage: python profiling/gpu_odd_sizes.py [DEVICE [few]], with "few" a quarter of them. Exit code 1 if a result is wrong.
The environment variable MY_OPS_CUDA_FAMILY (stream, cta, cluster, grid) chooses the kernels.
"""

from __future__ import annotations

import os
import sys
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

import my_ops  # noqa: F401

ops = torch.ops.my_ops
DEVICE = sys.argv[1] if len(sys.argv) > 1 else "cuda"
EPS = 1e-3
SIZES = [
    (1, 1, 49),
    (1, 65, 7),
    (2, 3, 49),
    (3, 65, 1),
    (9, 8, 49),
    (4, 16, 196),
    (5, 3, 784),
    (2, 2, 4099),
    (67, 65, 4),
]
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def _channel(vector: Tensor) -> Tensor:
    return vector[:, None]


def _image(shape: tuple[int, int, int], dtype: torch.dtype, channels_last: bool) -> Tensor:
    image = torch.randn(shape, device=DEVICE).to(dtype)
    return image.transpose(1, 2).contiguous().transpose(1, 2) if channels_last else image


def _activated(
    name: str, x: Tensor, dy: Tensor, residual: Tensor | None, gamma: Tensor, beta: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Results of act(batchnorm(x) + residual) and exact ones."""
    exact_x, *affine = (t.double().requires_grad_() for t in (x, gamma, beta))
    added = [] if residual is None else [residual.double().requires_grad_()]
    z = sum(added, F.batch_norm(exact_x, None, None, affine[0], affine[1], training=True, eps=EPS))
    exact = getattr(F, name)(z)
    dy = dy.masked_fill(z.abs() < 1e-4, 0.0)  # where the derivative of relu may be that of either side
    gradients = torch.autograd.grad(exact, [exact_x, *added, *affine], dy.double())

    output, mean, invstd, mask = ops.batchnorm_act_forward(x, residual, gamma, beta, None, None, True, 0.1, EPS, name)
    saved = (x, None if name == "relu" else residual, mask, gamma, beta, mean, invstd)
    wanted = [True, residual is not None, True, True]
    got = [t for t in ops.batchnorm_act_backward(dy, *saved, True, name, 0.0, wanted) if t is not None]
    what = name if residual is None else f"add + {name}"
    return {f"{what}: output": (output, exact.detach())} | {
        f"{what}: gradient {i}": pair for i, pair in enumerate(zip(got, gradients, strict=True))
    }


def errors(shape: tuple[int, int, int], dtype: torch.dtype, channels_last: bool) -> dict[str, float]:
    """Largest error of each result, divided by the largest value (at least 1) of the exact one."""
    x, dy = (_image(shape, dtype, channels_last) for _ in range(2))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    gamma, beta, mean_r, var_r = (torch.rand(shape[1], device=DEVICE, dtype=wide) + 0.5 for _ in range(4))
    counter = torch.tensor(0, device=DEVICE)
    exact_x, exact_dy = x.double(), dy.double()
    mean = exact_x.mean((0, 2))
    var = exact_x.var((0, 2), correction=0)
    invstd = (var + EPS).rsqrt()
    xhat = (exact_x - _channel(mean)) * _channel(invstd)
    count = shape[0] * shape[2]
    sums = exact_dy.sum((0, 2)), (exact_dy * xhat).sum((0, 2))
    scale = _channel(gamma.double() * invstd)
    dx = scale * (exact_dy - _channel(sums[0]) / count - xhat * _channel(sums[1]) / count)
    y = xhat * _channel(gamma.double()) + _channel(beta.double())

    forward = ops.batchnorm_forward(x, gamma, beta, mean_r, var_r, True, None, EPS, counter)
    backward = ops.batchnorm_backward(dy, x, gamma, *forward[1:])
    stats = ops.batchnorm_stats(x)
    gathered = ops.batchnorm_gather_stats(stats[0][None], stats[1][None], stats[2], None, None, None, EPS)
    applied = ops.batchnorm_apply(x, gamma, beta, *gathered[:2])
    reduced = ops.batchnorm_backward_reduce(dy, x, *gathered[:2])
    given = ops.batchnorm_backward_apply(dy, x, gamma, *gathered[:2], *reduced, stats[2])
    frozen = ops.batchnorm_forward(x, gamma, beta, forward[1], var.to(wide), False, 0.1, EPS)
    frozen_grads = ops.batchnorm_backward(dy, x, gamma, *forward[1:], False)
    eval_dx = ops.batchnorm_backward(dy, x, gamma, *forward[1:], False, [True, False, False])[0]
    residual = _image(shape, dtype, channels_last)
    pairs = {
        "output": (forward[0], y),
        "mean": (forward[1], mean),
        "invstd": (forward[2], invstd),
        "grad_input": (backward[0], dx),
        "grad_gamma": (backward[1], sums[1]),
        "grad_beta": (backward[2], sums[0]),
        "gathered invstd": (gathered[1], invstd),
        "apply": (applied, y),
        "sum_dy_xhat": (reduced[1], sums[1]),
        "backward_apply": (given, dx),
        "inference": (frozen[0], y),
        "eval grad_input": (frozen_grads[0], scale * exact_dy),
        "eval grad_gamma": (frozen_grads[1], sums[1]),
        "eval grad_input alone": (eval_dx, scale * exact_dy),
        "counter": (counter.double(), torch.ones((), device=DEVICE, dtype=torch.float64)),
        "running_mean": (mean_r, mean),
    }
    pairs |= _activated("relu", x, dy, None, gamma, beta) | _activated("silu", x, dy, residual, gamma, beta)
    pairs |= _activated("relu", x, dy, residual, gamma, beta)
    return {
        name: float((got.double() - want).abs().max() / want.abs().max().clamp(min=1))
        for name, (got, want) in pairs.items()
    }


def main() -> int:
    torch.manual_seed(20240607)
    wrong = 0
    few = len(sys.argv) > 2
    dtypes = [torch.float32, torch.bfloat16] if few else list(TOLERANCE)
    for shape, dtype, channels_last in product(SIZES[::2] if few else SIZES, dtypes, (False, True)):
        if shape[0] * shape[2] == 1:
            continue
        found = {
            name: error for name, error in errors(shape, dtype, channels_last).items() if not error < TOLERANCE[dtype]
        }
        wrong += bool(found)
        if found:
            print("wrong:", shape, dtype, "channels last" if channels_last else "contiguous", found)
    print(os.environ.get("MY_OPS_CUDA_FAMILY", "all families"), "-", wrong, "cases wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
