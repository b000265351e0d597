"""A floor for batch norm on this machine: its passes over memory without its channels (bare_passes.cpp)."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from profiling.measure.peers import Call
from profiling.measure.workloads import Case

_SLICE_BYTES = 512 * 1024  # of all tensors that are read twice: what any L2 cache of today holds
_UNIT = 4096  # values that slices are multiples of
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
    """Not a batch norm, but the floor of those that make the same passes.

    ``sliced``: every slice is read again from the L2 cache. A batch norm can do so where a channel, or a few side by
    side, make up a slice; in a channels-last image only by columns, in short pieces. Else all is read, then read again.
    """

    def __init__(self, sliced: bool) -> None:
        self.name = "bare, sliced" if sliced else "bare, whole"
        self._sliced = sliced

    def forward(self, case: Case, training: bool) -> Call:
        return self._call(None, case.input, reduces=training)

    def backward(self, case: Case) -> Call:
        return self._call(case.grad_output, case.input, reduces=True)

    def _call(self, grad_output: Tensor | None, x: Tensor, reduces: bool) -> Call:
        read = 1 if grad_output is None else 2
        slice_ = _SLICE_BYTES // (read * x.element_size()) // _UNIT * _UNIT if self._sliced else x.numel()
        return partial(_operator(), grad_output, x, slice_, reduces, x.nbytes > _last_level_cache() / 4)


@functools.cache
def _last_level_cache() -> int:
    """Bytes, as my_ops finds them."""
    return int(json.loads(torch.ops.my_ops.build_info())["last_level_cache"])


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
