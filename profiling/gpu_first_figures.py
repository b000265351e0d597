"""First figures of a new GPU: a copy, our operators and native ones on the same shapes, by graph replay.

Usage: python profiling/gpu_first_figures.py FILE.json. Times are medians of replays of a graph that walks through as
many tensors as exceed the L2 cache twice, so every read comes from memory. The names of the kernels that each peer ran
are recorded with its times: they tell whether "native" was cuDNN.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import my_ops  # noqa: F401

Case = tuple[Tensor, ...]
SHAPES = [
    (32, 64, 112, 112),
    (32, 256, 56, 56),
    (32, 512, 28, 28),
    (32, 1024, 14, 14),
    (32, 2048, 7, 7),
    (8, 64, 28, 28),
]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
REPLAYS = 15


def rotation(bytes_of_case: int) -> int:
    cache = int(torch.cuda.get_device_properties(0).L2_cache_size)
    return max(1, min(64, -(-2 * cache // bytes_of_case)))


def seconds(calls: list[Callable[[], object]]) -> float:
    """Per call."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(float(begin.elapsed_time(end)) / 1e3)
    return statistics.median(times) / len(calls)


def kernel_names(call: Callable[[], object]) -> list[str]:
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        call()
        torch.cuda.synchronize()
    return sorted({event.key for event in recorded.key_averages()})


def peers(x: Tensor, dy: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    """Forward and backward in training of ours and of native, beside the copy."""
    vectors = [torch.rand(x.shape[1], device="cuda") + 0.5 for _ in range(4)]
    ours = (x, *vectors, True, 0.1, 1e-5)
    native = torch.ops.aten._batch_norm_with_update.default
    _, mean, invstd, reserve = native(x, *vectors, 0.1, 1e-5)
    back = torch.ops.aten.batch_norm_backward.default
    mask = [True, True, True]
    ops = torch.ops.my_ops
    _, our_mean, our_invstd = ops.batchnorm_forward(*ours)
    return {
        "copy": lambda: y.copy_(x),
        "forward ours": lambda: ops.batchnorm_forward(*ours),
        "forward native": lambda: native(x, *vectors, 0.1, 1e-5),
        "backward ours": lambda: ops.batchnorm_backward(dy, x, vectors[0], our_mean, our_invstd),
        "backward native": lambda: back(
            dy, x, vectors[0], vectors[2], vectors[3], mean, invstd, True, 1e-5, mask, reserve
        ),
        "inference ours": lambda: ops.batchnorm_forward(x, *vectors, False, 0.1, 1e-5),
        "inference native": lambda: torch.nn.functional.batch_norm(x, vectors[2], vectors[3], vectors[0], vectors[1]),
    }


def measure(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format) -> dict[str, object]:
    size = torch.Size(shape).numel() * dtype.itemsize

    def image() -> Tensor:
        return torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=layout)

    sets = [peers(image(), image(), image()) for _ in range(rotation(size))]
    rows = {}
    for name in sets[0]:
        try:
            time = seconds([each[name] for each in sets])
            rows[name] = {"microseconds": time * 1e6, "kernels": kernel_names(sets[0][name])}
        except RuntimeError as error:
            rows[name] = {"error": str(error).splitlines()[0]}
        print(shape, dtype, layout, name, rows[name], flush=True)
    return {"shape": shape, "dtype": str(dtype), "layout": str(layout), "megabytes": size / 1e6, "peers": rows}


def main(path: Path) -> None:
    properties = torch.cuda.get_device_properties(0)
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    content: dict[str, object] = {"gpu": properties.name, "torch": torch.__version__, "cudnn": cudnn}
    rows: list[dict[str, object]] = []
    for layout, dtype, shape in product((torch.contiguous_format, torch.channels_last), DTYPES, SHAPES):
        rows.append(measure(shape, dtype, layout))
        path.write_text(json.dumps(content | {"rows": rows}, indent=1))  # kept even if a later case fails


if __name__ == "__main__":
    main(Path(sys.argv[1]))
