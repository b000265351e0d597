"""Large results come in huge pages, where the system gives those that ask for them."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from checks import ops

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MADVISE = "transparent huge pages for those that ask, and none for others"
SHAPE = (16, 64, 128, 128)  # 64 MiB of float32, for which malloc maps fresh pages
VECTORS = (torch.ones(64), torch.zeros(64), torch.zeros(64), torch.ones(64))

OPERATORS: dict[str, Callable[[Tensor], object]] = {
    "forward": lambda x: ops.batchnorm_forward(x, *VECTORS, True, 0.1, 1e-5),
    "inference": lambda x: ops.batchnorm_forward(x, *VECTORS, False, 0.1, 1e-5),
    "backward": lambda x: ops.batchnorm_backward(x, x, *VECTORS[:3]),
    "activation": lambda x: ops.batchnorm_act_forward(x, None, *VECTORS, True, 0.1, 1e-5, "relu"),
    "instance": lambda x: ops.instancenorm_forward(x, *VECTORS, 0.1, 1e-5),
}


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.mark.skipif(not SETTING.exists() or "[madvise]" not in SETTING.read_text(), reason=f"needs {MADVISE}")
@pytest.mark.parametrize("name", OPERATORS)
def test_few_page_faults(name: str) -> None:
    """In pages of 4 KiB the result alone would take 16,384; a good half must be huge, however scarce they are."""
    x = torch.zeros(SHAPE)
    OPERATORS[name](x)
    before = page_faults()
    result = OPERATORS[name](x)
    faults = page_faults() - before
    assert isinstance(result, tuple)
    small_pages = result[0].nbytes // resource.getpagesize()
    assert faults < small_pages / 2, f"{faults} page faults for {small_pages} pages"
