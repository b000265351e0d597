"""Run as a program: every operator that moves state, in a process that may take no more memory. Prints JSON by name:
the error, whether the state is as it was, and whether the same call succeeds once there is memory again."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import my_ops

ops = torch.ops.my_ops
CHANNELS = 64
SPARE = 8 << 20  # bytes: enough for vectors and messages, not for an image of 64 MiB


def calls(x: Tensor, mean: Tensor, var: Tensor, count: Tensor) -> dict[str, Callable[[], Any]]:
    gamma = torch.ones(CHANNELS)
    leaf = x.detach().requires_grad_()
    module = my_ops.BatchNorm2d(CHANNELS, momentum=None)
    module.running_mean, module.running_var, module.num_batches_tracked = mean, var, count
    forward = (mean, var, True, None, 1e-5)
    return {
        "forward": lambda: ops.batchnorm_forward(x, gamma, gamma, *forward, count),
        "forward_with_graph": lambda: ops.batchnorm_forward(leaf, gamma, gamma, *forward, count),
        "module": lambda: module(x),
        "forward_of_strided": lambda: ops.batchnorm_forward(x.mT, gamma, gamma, *forward, count),
        "act_forward": lambda: ops.batchnorm_act_forward(x, x, gamma, gamma, *forward, "relu", 0.0, count),
        "in_place_of_strided": lambda: ops.batchnorm_act_forward_(x.mT, gamma, gamma, *forward, "elu", 1.0, count),
        "instancenorm": lambda: ops.instancenorm_forward(x, gamma, gamma, mean, var, 0.1, 1e-5),
        "out_of_other_layout": lambda: ops.batchnorm_forward.out(
            x[0:1], gamma, gamma, *forward, count, output=x[1:2].mT, save_mean=mean.new(0), save_invstd=mean.new(0)
        ),
        "backward": lambda: ops.batchnorm_backward(x, x, gamma, gamma, gamma),
    }


def mapped() -> int:
    """Bytes of address space in use."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def attempt(name: str) -> dict[str, object]:
    state = [torch.zeros(CHANNELS), torch.ones(CHANNELS), torch.zeros((), dtype=torch.int64)]
    call = calls(torch.randn(4, CHANNELS, 256, 256), *state)[name]
    resource.setrlimit(resource.RLIMIT_AS, (mapped() + SPARE, resource.RLIM_INFINITY))
    error = None
    try:
        call()
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    untouched = not state[0].any() and bool((state[1] == 1).all()) and state[2].item() == 0
    call()
    return {"error": error, "untouched": untouched, "moves_afterwards": bool(state[0].any())}


if __name__ == "__main__":
    ops.batchnorm_forward(torch.randn(4, CHANNELS, 256, 256), None, None, None, None, True, 0.1, 1e-5)
    names = calls(torch.zeros(2, CHANNELS, 2, 2), *(torch.zeros(CHANNELS) for _ in range(3)))
    print(json.dumps({name: attempt(name) for name in names}))
