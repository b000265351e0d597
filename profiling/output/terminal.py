"""What all commands share: options, the terminal, the library."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from profiling.measure.allocator import Allocator

if TYPE_CHECKING:
    import torch

Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads (default: torch's choice)")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Malloc = Annotated[Allocator, typer.Option(help="keep: malloc keeps freed blocks; default: glibc as it comes")]


def load_my_ops(threads: int | None, device: str) -> torch.device:
    """Loads torch and my_ops, sets the number of threads, and returns the device to run on."""
    for name, level in (("KINETO_LOG_LEVEL", "6"), ("TORCH_CPP_LOG_LEVEL", "ERROR")):
        os.environ.setdefault(name, level)  # else the profiler writes into the progress bars
    import torch

    try:
        import my_ops  # noqa: F401
    except ImportError as error:
        mend = "" if "run " in str(error) else ": run 'make build'"  # the package names the mend itself
        Console(stderr=True).print(f"[bold red]my_ops cannot be imported:[/] {error}{mend}", soft_wrap=True)
        raise typer.Exit(2) from error

    from profiling.measure import machine

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        return machine.choose_device(device)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--device") from error


def console() -> Console:
    """The terminal; a file or a pipe has no width of its own and gets one that the tables fit in."""
    found = Console()
    return found if found.is_terminal else Console(width=150)


def now() -> str:
    return datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
