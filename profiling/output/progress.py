"""One look for all progress bars."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


def bar(progress: Progress, what: str, total: int) -> Callable[[], None]:
    """A new bar; the call it returns advances it by one."""
    task = progress.add_task(what, total=total)
    return lambda: progress.advance(task)
