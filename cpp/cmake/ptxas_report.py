"""Prints registers, shared memory and spills of every kernel from the output of `nvcc -Xptxas -v`; fails on spills.

Usage: python ptxas_report.py LOG...
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")


@dataclass
class Kernel:
    name: str
    target: str
    stack: int = 0
    spilled: int = 0
    registers: int = 0


def kernels(log: str) -> Iterator[Kernel]:
    """The entry functions of one log, in its order; functions that they call have no "Used" line."""
    current: Kernel | None = None
    own_frame = False
    for line in log.splitlines():
        if found := _ENTRY.search(line):
            current = Kernel(found[1], found[2])
        elif "Function properties for" in line:
            own_frame = current is not None and line.endswith(current.name)
        elif current and (found := _FRAME.search(line)):
            if own_frame:
                current.stack = int(found[1])
            current.spilled += int(found[2]) + int(found[3])
        elif current and (found := _USED.search(line)):
            current.registers = int(found[1])
            yield current
            current = None


def readable(names: list[str]) -> list[str]:
    """Demangled, without what all kernels share."""
    plain = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    short = re.sub(r"my_ops::(cuda|math)::|\(anonymous namespace\)::|\(int\)|__nv_|^void ", "", plain, flags=re.M)
    short = short.replace("__half", "float16")
    return [re.sub(r"\(.*", "", name) for name in short.splitlines()]


def main(paths: list[str]) -> int:
    found = [kernel for path in paths for kernel in kernels(Path(path).read_text())]
    if not found:
        print("no kernel in", *paths)
        return 1
    print(f"{'target':8} {'registers':>9} {'stack':>6} {'spilled':>8}  kernel")
    rows = zip(found, readable([kernel.name for kernel in found]), strict=True)
    for kernel, name in sorted(rows, key=lambda row: (row[0].target, row[1])):
        print(f"{kernel.target:8} {kernel.registers:9} {kernel.stack:6} {kernel.spilled:8}  {name}")
    spilling = [kernel for kernel in found if kernel.spilled]
    print(f"{len(found)} kernels, {len(spilling)} with spills")
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
