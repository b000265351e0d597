"""A floor for batch norm on this machine: its passes over memory without its channels (bare_passes.cpp)."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from profiling.measure.peers import Call
from profiling.measure.workloads import Case

_SLICE_BYTES = 512 * 1024  # of all tensors that are read twice: what any L2 cache of today holds
_UNIT = 4096  # values that slices are multiples of
_VECTORS = 32  # values that pieces of slices are multiples of
_FLAGS = {
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"],
}


def obstacle(device: torch.device, dtypes: Iterable[torch.dtype]) -> str | None:
    """Why they cannot be measured here, if so."""
    from torch.utils import cpp_extension

    if device.type != "cpu":
        return f"expected device cpu, got {device.type}"
    if torch.float64 in dtypes:
        return "expected dtypes float32, bfloat16, float16, got float64"
    if _capability() not in _FLAGS:
        return f"expected a CPU with AVX2 or AVX512, got {_capability()}"
    return None if cpp_extension.is_ninja_available() else "expected ninja on the PATH, found none"


class BarePasses:
    """Not a batch norm, but the floor of those that make the same passes, whose name tells when data is read again:

    sliced      slice by slice, from the L2 cache: as if a channel's values all lay side by side, and were few
    by channel  channel by channel, or a few at once that fit the L2 cache: from where a channel's values are in a
                contiguous batch of images, and where a channel then is
    whole       when all has been read: as a channels-last batch of images has to be
    """

    def __init__(self, name: str, pieces: int, values: Callable[[int], int]) -> None:
        """``values(tensors)``: of each of a slice's ``pieces`` where ``tensors`` are read."""
        self.name = f"bare, {name}"
        self._pieces = pieces
        self._values = values

    def forward(self, case: Case, training: bool) -> Call:
        return self._call(None, case.input, reduces=training)

    def backward(self, case: Case) -> Call:
        return self._call(case.grad_output, case.input, reduces=True)

    def _call(self, grad_output: Tensor | None, x: Tensor, reduces: bool) -> Call:
        read = 1 if grad_output is None else 2
        streams = (read + 1) * x.nbytes > _cached_bytes()
        return partial(_operator(), grad_output, x, self._values(read), self._pieces, reduces, streams)


def of(case: Case) -> list[BarePasses]:
    """Those that stand for a batch norm of ``case``."""
    x = case.input
    n, c, *_ = x.shape
    s = x.numel() // (n * c)

    def slice_(tensors: int) -> int:
        return _SLICE_BYTES // (tensors * x.element_size())

    def channels(tensors: int) -> int:
        unit = _VECTORS // math.gcd(s, _VECTORS)
        return max(slice_(tensors) // (n * s) // unit, 1) * unit * s

    passes = [BarePasses("sliced", 1, lambda tensors: slice_(tensors) // _UNIT * _UNIT)]
    if n > 1 and c * s % _VECTORS == 0 and x.is_contiguous():
        passes.append(BarePasses("by channel", n, channels))
    return [*passes, BarePasses("whole", 1, lambda _: x.numel())]


@functools.cache
def _cached_bytes() -> int:
    """What a pass may touch before its result is written past the cache, as in my_ops."""
    return int(json.loads(torch.ops.my_ops.build_info())["cached_bytes"])


def _capability() -> str:
    return torch.backends.cpu.get_cpu_capability()


@functools.cache
def _operator() -> Callable[..., Tensor]:
    """Compiled when first asked for, which takes half a minute."""
    from torch.utils import cpp_extension

    capability = _capability()
    defines = (f"-DCPU_CAPABILITY={capability}", f"-DCPU_CAPABILITY_{capability}")
    cpp_extension.load(
        "my_ops_bare_passes",
        [str(Path(__file__).with_name("bare_passes.cpp"))],
        extra_cflags=["-O3", "-std=c++20", "-fopenmp", *defines, *_FLAGS[capability]],
        is_python_module=False,
    )
    operator: Callable[..., Tensor] = torch.ops.my_ops_profiling.bare_passes.default
    return operator
