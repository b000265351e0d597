"""Processes that run a check together, each as one rank of a group: over Gloo on the CPU, or over NCCL, each on a GPU
of its own.

Importing torch takes seconds, so that the processes are started once and serve every check, which gets a process group
of its own: an error of one check is unknown to the next. A process that died is replaced.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

TIMEOUT = 60.0  # seconds that a collective may take, on a machine that is busy


@dataclass(frozen=True)
class Outcome:
    """What a check returned on one rank, or how it ended there: `error` is the type's name, "died" without one."""

    value: Any = None
    error: str | None = None
    message: str = ""
    trace: str = ""


@dataclass(frozen=True)
class _Job:
    check: Callable[..., Any]
    args: tuple[Any, ...]
    rank: int
    size: int
    store: str
    timeout: float
    backend: str


def join(rank: int, size: int, init_method: str, timeout: float = TIMEOUT, backend: str = "gloo") -> None:
    dist.init_process_group(
        backend, init_method=init_method, rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
    )


def _perform(job: _Job) -> Outcome:
    torch.manual_seed(20240607)  # every rank makes the same batch
    try:
        join(job.rank, job.size, f"file://{job.store}", job.timeout, job.backend)
        value = job.check(*job.args)
        dist.barrier()  # nobody hangs up while another one still reads
        return Outcome(value)
    except Exception as error:
        return Outcome(None, type(error).__name__, str(error), traceback.format_exc())
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _serve(connection: Connection, rank: int, backend: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import my_ops  # noqa: F401

    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(rank)
        torch.set_default_device(f"cuda:{rank}")
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(_perform(job))


class Ranks:
    """The processes; `folder` is for the files by which they find each other."""

    def __init__(self, folder: Path, backend: str) -> None:
        self._folder = folder
        self._backend = backend
        self._jobs = 0
        self._workers: list[tuple[BaseProcess, Connection]] = []

    def outcomes(self, size: int, check: Callable[..., Any], *args: Any, timeout: float = TIMEOUT) -> list[Outcome]:
        """Runs `check(*args)` on ranks 0 to size - 1."""
        if self._backend == "nccl" and size > torch.cuda.device_count():
            pytest.skip(f"needs {size} GPUs")
        self._start(size)
        self._jobs += 1
        store = str(self._folder / f"store-{self._jobs}")
        workers = self._workers[:size]
        for rank, (_, connection) in enumerate(workers):
            connection.send(_Job(check, args, rank, size, store, timeout, self._backend))
        return [self._receive(connection) for _, connection in workers]

    def run(self, size: int, check: Callable[..., Any], *args: Any) -> list[Any]:
        """The same, where every rank must succeed: what it returned on each."""
        outcomes = self.outcomes(size, check, *args)
        for rank, outcome in enumerate(outcomes):
            assert outcome.error is None, f"rank {rank} of {size}: {outcome.trace or outcome.error}"
        return [outcome.value for outcome in outcomes]

    def close(self) -> None:
        """They end by themselves, as coverage wants it; but for one that hangs."""
        for _, connection in self._workers:
            connection.close()
        for process, _ in self._workers:
            process.join(10)
            process.kill()
            process.join()

    def _start(self, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        for rank in range(size):
            if rank < len(self._workers) and self._workers[rank][0].is_alive():
                continue
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, self._backend), daemon=True)
            process.start()
            theirs.close()
            self._workers[rank : rank + 1] = [(process, ours)]

    @staticmethod
    def _receive(connection: Connection) -> Outcome:
        if not connection.poll(3 * TIMEOUT):
            return Outcome(error="no answer")
        try:
            return connection.recv()
        except EOFError:
            return Outcome(error="died")
