"""What a run ran on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from profiling.measure import allocator

_REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Machine:
    """Facts beside the figures; ``gpu``, ``cuda`` and ``cudnn`` are None where the run used no GPU."""

    date: str  # UTC, ISO 8601
    commit: str | None  # of the source tree, with "+" if it had changes
    cpu: str
    cores: int  # that this process may use
    threads: int  # of torch's intra-op pool
    caches: dict[str, str]  # of core 0, e.g. {"L2": "1280K"}
    memory_gib: float | None
    system: str
    python: str
    torch: str
    torch_cpu_capability: str
    my_ops: str
    my_ops_cpu_capability: str
    my_ops_compiler: str
    allocator: str
    gpu: str | None
    cuda: str | None
    cudnn: int | None


def describe(device: torch.device) -> Machine:
    """The machine as the current process sees it; call it after the number of threads is set."""
    build = json.loads(torch.ops.my_ops.build_info())
    on_gpu = device.type == "cuda"
    return Machine(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=_commit(),
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        caches=_caches(),
        memory_gib=_memory_gib(),
        system=platform.platform(),
        python=platform.python_version(),
        torch=torch.__version__,
        torch_cpu_capability=torch.backends.cpu.get_cpu_capability(),
        my_ops=build["version"],
        my_ops_cpu_capability=build["cpu_capability"],
        my_ops_compiler=build["compiler"],
        allocator=allocator.describe(),
        gpu=torch.cuda.get_device_name(device) if on_gpu else None,
        cuda=torch.version.cuda if on_gpu else None,
        cudnn=torch.backends.cudnn.version() if on_gpu else None,  # type: ignore[no-untyped-call]
    )


def choose_device(wanted: str) -> torch.device:
    """``cpu``, ``cuda``, or ``auto``: the GPU if there is one and my_ops was built for it, else the CPU.

    Raises ValueError for any other name, and for ``cuda`` where it cannot be used.
    """
    if wanted not in ("auto", "cpu", "cuda"):
        raise ValueError(f"expected device auto, cpu or cuda, got {wanted}")
    built_for_cuda = json.loads(torch.ops.my_ops.build_info())["cuda"] is not None
    usable = built_for_cuda and torch.cuda.is_available()
    if wanted == "cuda" and not usable:
        reason = "no GPU in sight" if built_for_cuda else "my_ops was built without CUDA"
        raise ValueError(f"expected a usable device, got cuda: {reason}")
    return torch.device("cuda" if usable and wanted != "cpu" else "cpu")


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(_REPOSITORY), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _caches() -> dict[str, str]:
    """{"L1d": "48K", "L2": ...} as Linux tells it; empty elsewhere."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind = (index / "type").read_text().strip()
        level = (index / "level").read_text().strip()
        if kind != "Instruction":
            found[f"L{level}" + ("d" if kind == "Data" else "")] = (index / "size").read_text().strip()
    return found


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None
