"""What timing on a GPU takes: tensors that are not in its cache, no host in between, and the names of what ran."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from profiling.measure.workloads import Case

_MOST_COPIES = 64
_MARK = "peer: "

Call = Callable[[], object]


def copies(case: Case) -> list[Case]:
    """The case and as many copies as exceed the L2 cache twice, 64 at most: in turns, each is read from memory."""
    cache = int(torch.cuda.get_device_properties(case.input.device).L2_cache_size)
    count = max(1, min(_MOST_COPIES, -(-2 * cache // (case.input.numel() * case.input.element_size()))))
    more = (replace(case, input=case.input.clone(), grad_output=case.grad_output.clone()) for _ in range(count - 1))
    return [case, *more]


def graph(calls: Sequence[Call]) -> Call:
    """A call that runs all of ``calls``, captured as one graph. Their outputs are kept: each has memory of its own.

    Without torch.cuda.graph, which empties torch's memory cache every time.
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    captured = torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
        torch.cuda.synchronize()
        captured.capture_begin()
        try:
            outputs = [call() for call in calls]
        finally:
            captured.capture_end()
    torch.cuda.current_stream().wait_stream(side)

    def replay() -> object:
        captured.replay()
        return outputs

    return replay


def kernels(calls: Mapping[str, Call]) -> dict[str, list[str]]:
    """The names of the GPU kernels that each call launches: they tell which library it is."""
    for call in calls.values():
        call()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        for name, call in calls.items():
            with record_function(_MARK + name):
                call()
        torch.cuda.synchronize()
    found: dict[str, set[str]] = {name: set() for name in calls}
    for event in recorded.events() or ():
        owner = event
        while owner is not None and not owner.name.startswith(_MARK):
            owner = owner.cpu_parent
        if owner is not None:
            found[owner.name.removeprefix(_MARK)].update(kernel.name for kernel in event.kernels)
    return {name: sorted(names) for name, names in found.items()}
