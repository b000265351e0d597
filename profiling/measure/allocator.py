"""One setting of glibc's malloc for everything that is compared.

By default glibc serves blocks above 32 MB with mmap and returns them at once, so a call that allocates a large output
pays a page fault for every 4 KiB of it: several times the work of batch norm itself, and the same for every peer.
``keep`` makes malloc keep freed blocks for the next call, as the allocators of long-running programs do.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum

_KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}


class Allocator(StrEnum):
    KEEP = "keep"
    DEFAULT = "default"


def run_under(allocator: Allocator) -> None:
    """Returns if this process already runs under ``allocator``, else starts the same command anew under it.

    glibc reads these variables only when a process starts. Without glibc they mean nothing and nothing is done.
    """
    if not _is_glibc():
        return
    others = {name: value for name, value in os.environ.items() if name not in _KEEP}
    wanted = others | (_KEEP if allocator is Allocator.KEEP else {})
    if wanted != dict(os.environ):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)


def describe() -> str:
    """The setting this process runs under, in words."""
    if not _is_glibc():
        return "not glibc: as it comes"
    found = {name: os.environ[name] for name in _KEEP if name in os.environ}
    if not found:
        return "glibc's default (blocks above 32 MB are returned to the system at every call)"
    return "glibc with " + " ".join(f"{name}={value}" for name, value in found.items())


def _is_glibc() -> bool:
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (AttributeError, OSError, ValueError):
        return False
