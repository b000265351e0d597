"""How much memory a call needs, beyond what was there before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors: the most at once during a call, and what its result holds when it is over."""

    peak: int
    held: int


def of(call: Callable[[], object], device: torch.device) -> Memory:
    """The memory of ``call``, after one that warms up.

    On a CPU it is what PyTorch's allocator reports to the profiler; scratch memory of oneDNN is not in it.
    """
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        held = torch.cuda.memory_allocated(device) - before
        del result
        return Memory(torch.cuda.max_memory_allocated(device) - before, held)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = call()
    del result
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    changes = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return Memory(peak, held)
