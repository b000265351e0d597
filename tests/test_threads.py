"""Many Python threads on shared modules, and processes forked after use. C++ threads: tests/cpp/test_threads.cpp."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import my_ops

THREADS = 8
CALLS = 10


def shared_modules() -> nn.ModuleDict:
    modules = {
        "batch_norm": my_ops.BatchNorm2d(32),
        "act": my_ops.BatchNormAct2d(32, activation="silu"),
        "conv": my_ops.ConvBatchNorm2d(32, 8, 1, activation="relu"),
        "instance_norm": my_ops.InstanceNorm2d(32, affine=True),
        "frozen": my_ops.FrozenBatchNorm2d(32),
    }
    model = nn.ModuleDict(modules)
    for module in model.values():
        module(torch.randn(4, 32, 8, 8))  # running statistics of their own
    return model.eval()


def output_and_gradient(module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    leaf = x.detach().clone().requires_grad_()
    y = module(leaf)
    return y.detach(), *torch.autograd.grad(y.square().sum(), leaf)


@pytest.mark.parametrize("name", shared_modules().keys())
def test_threads_share_a_module_in_eval(name: str, restore_threads: None) -> None:
    """Each thread has inputs of its own, some with several cores; no result differs by a bit from a single thread's."""
    torch.set_num_threads(1)  # as the convolution rounds differently with another number
    module = shared_modules()[name]
    inputs = [torch.randn(4, 32, 24, 24) for _ in range(THREADS)]
    wanted = [output_and_gradient(module, x) for x in inputs]
    before = {key: value.clone() for key, value in module.state_dict().items()}

    def work(number: int) -> int:
        torch.set_num_threads(1 if name == "conv" else 1 + number % 3)
        results = [output_and_gradient(module, inputs[(number + call) % THREADS]) for call in range(CALLS)]
        pairs = [(result, wanted[(number + call) % THREADS]) for call, result in enumerate(results)]
        return sum(not torch.equal(a, b) for result, want in pairs for a, b in zip(result, want, strict=True))

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(work, range(THREADS))) == [0] * THREADS
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


class Normalized(Dataset[tuple[Tensor, ...]]):
    """Items that a worker process makes with the operators, forwards and backwards."""

    def __init__(self, make: Callable[[int], tuple[Tensor, ...]]) -> None:
        self.make = make

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return self.make(index)


@pytest.mark.parametrize("workers", [1, 2])
def test_data_loaders_fork_after_use(workers: int, restore_threads: None) -> None:
    torch.set_num_threads(4)
    norm = my_ops.BatchNorm2d(32)
    inputs = torch.randn(6, 8, 32, 24, 24)

    def make(index: int) -> tuple[Tensor, ...]:
        return output_and_gradient(norm, inputs[index])

    wanted = [make(index) for index in range(len(inputs))]  # all threads of this process have worked by now
    loader = DataLoader(Normalized(make), batch_size=None, num_workers=workers, multiprocessing_context="fork")
    for want, got in zip(wanted, loader, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(make(0), wanted[0], strict=True)), "the parent works on"
