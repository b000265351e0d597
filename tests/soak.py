"""`make soak MINUTES=10`: mixed random work on several threads, to see what only time shows.

Each thread draws operators, shapes, dtypes and layouts; one call in eight is held against the float64 reference, and
what every call leaves behind (counters, shared constants) is checked at the end. Memory is read every second: after a
quarter of the time, when all buffers have their sizes, it may not grow by more than ALLOWED. Exit code 1 if it does, or
if a check fails.

Usage: python tests/soak.py MINUTES [THREADS] [SEED]
"""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

import my_ops
from activations import SLOPES, away_from_kink, check_act_backward, check_act_forward
from checks import Arguments, activations, arguments, check_backward, check_forward, ops
from layouts import arrange

ALLOWED = 32 << 20  # bytes: what the allocator's arenas move by
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SIZES = (1, 2, 3, 7, 8, 15, 16, 17, 33, 64, 65)
LAYOUTS = ("contiguous", "channels_last", "chunk", "offset")
MOST = 200_000  # values
CHECKED = 8  # one call in so many


def resident() -> int:
    """Bytes of memory in use by the process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Worker:
    """One thread's random work. Its modules count batches; the one in `constants` belongs to all threads."""

    seed: int
    constants: my_ops.BatchNorm2d
    done: Counter[str] = field(default_factory=Counter)
    steps: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.module = my_ops.BatchNorm2d(16)
        self.fused = my_ops.BatchNormAct2d(16, activation="silu")
        self.cumulative = my_ops.BatchNorm1d(16, momentum=None)

    def input(self) -> Tensor:
        rank = self.random.choice((3, 4, 5))
        while True:
            shape = tuple(self.random.choice(SIZES) for _ in range(rank))
            values = torch.Size(shape).numel()
            if shape[1] < values <= MOST:
                dtype = self.random.choice(DTYPES)
                return arrange(activations(shape, dtype, "cpu"), self.random.choice(LAYOUTS))

    def arguments(self) -> Arguments:
        args = arguments(self.input(), self.random.random() < 0.7)
        return replace(args, num_batches_tracked=torch.tensor(self.random.randrange(1000)))

    def plain(self, checked: bool) -> None:
        args = self.arguments()
        if checked:
            check_forward(args)
            check_backward(torch.randn(args.input.shape).to(args.input.dtype), args)
        else:
            _, mean, invstd = ops.batchnorm_forward(*args.values())
            ops.batchnorm_backward(args.input, args.input, args.gamma, mean, invstd, args.training)

    def activation(self, checked: bool) -> None:
        args, name = self.arguments(), self.random.choice(list(SLOPES))
        residual = torch.randn(args.input.shape).to(args.input.dtype) if self.random.random() < 0.5 else None
        if checked:
            check_act_forward(args, name, residual)
            gradient = away_from_kink(torch.randn(args.input.shape).to(args.input.dtype), args, residual)
            check_act_backward(gradient, args, name, residual)
        else:
            values = args.values()
            ops.batchnorm_act_forward(values[0], residual, *values[1:8], name, SLOPES[name], values[8])

    def phases(self, checked: bool) -> None:
        x = self.input()
        mean, m2, count = ops.batchnorm_stats(x)
        mean, invstd, count = ops.batchnorm_gather_stats(mean[None], m2[None], count, None, None, 0.1, 1e-5)
        y = ops.batchnorm_apply(x, None, None, mean, invstd)
        sums = ops.batchnorm_backward_reduce(y, x, mean, invstd)
        ops.batchnorm_backward_apply(y, x, None, mean, invstd, *sums, count)

    def refused(self, checked: bool) -> None:
        """Errors leave nothing behind either."""
        args = self.arguments()
        try:
            ops.batchnorm_forward(*replace(args, gamma=torch.zeros(args.input.shape[1] + 1)).values())
        except RuntimeError as error:
            assert "expected gamma of " in str(error)
        else:
            raise AssertionError("a gamma of the wrong size was accepted")

    def training_step(self, checked: bool) -> None:
        """Modules with autograd, a second derivative now and then."""
        x = torch.randn(4, 16, 9, 9, requires_grad=True)
        y = self.fused(self.module(x), residual=x)
        z = self.cumulative(y.flatten(2))
        (gradient,) = torch.autograd.grad(z.square().sum(), x, create_graph=checked)
        if checked:
            gradient.square().sum().backward()
        self.steps += 1

    def inference(self, checked: bool) -> None:
        x = torch.randn(2, 16, 12, 12)
        with torch.no_grad():
            y = self.constants(x)
        if checked:
            native = torch.nn.functional.batch_norm(x, self.constants.running_mean, self.constants.running_var)
            torch.testing.assert_close(y, native, rtol=1e-5, atol=1e-5)

    def work(self, until: float, failures: list[BaseException]) -> None:
        kinds: tuple[Callable[[bool], None], ...] = (
            self.plain,
            self.activation,
            self.phases,
            self.refused,
            self.training_step,
            self.inference,
        )
        try:
            while time.monotonic() < until and not failures:
                kind = self.random.choice(kinds)
                kind(self.random.randrange(CHECKED) == 0)
                self.done[kind.__name__] += 1
            for module in (self.module, self.fused, self.cumulative):
                assert int(module.num_batches_tracked) == self.steps, "a batch was not counted, or twice"
        except BaseException as error:
            failures.append(error)


def main(minutes: float, threads: int, seed: int) -> int:
    torch.manual_seed(seed)
    torch.set_num_threads(2)
    constants = my_ops.BatchNorm2d(16).eval()
    before = {name: value.clone() for name, value in constants.state_dict().items()}
    begin = time.monotonic()
    end = begin + 60 * minutes
    failures: list[BaseException] = []
    workers = [Worker(seed + number, constants) for number in range(threads)]
    running = [threading.Thread(target=worker.work, args=(end, failures)) for worker in workers]
    for thread in running:
        thread.start()
    settled = 0
    highest = 0
    while any(thread.is_alive() for thread in running):
        time.sleep(1)
        if time.monotonic() < begin + 15 * minutes:
            settled = max(settled, resident())
        else:
            highest = max(highest, resident())
    gc.collect()
    done = sum((worker.done for worker in workers), Counter())
    growth = max(highest - settled, 0)
    print(f"soak: {sum(done.values())} calls in {minutes:g} min on {threads} threads, seed {seed}: {dict(done)}")
    print(f"soak: {settled / 2**20:.0f} MiB after a quarter of the time, {growth / 2**20:.1f} MiB more later")
    if failures:
        raise failures[0]
    unchanged = all(torch.equal(value, before[name]) for name, value in constants.state_dict().items())
    if not unchanged or growth > ALLOWED:
        print("soak: FAILED", "constants were written" if not unchanged else "memory grew")
        return 1
    print("soak: passed")
    return 0


if __name__ == "__main__":
    numbers = [float(text) for text in sys.argv[1:]] + [10.0, 4, 1][len(sys.argv) - 1 :]
    sys.exit(main(numbers[0], int(numbers[1]), int(numbers[2])))
