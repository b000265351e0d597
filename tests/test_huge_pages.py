"""For large results the operators ask for huge pages. Whether the system has any left is its own affair."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from checks import ops

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MAPPINGS = Path("/proc/self/smaps")
SHAPE = (16, 64, 128, 128)  # 64 MiB of float32, for which malloc maps fresh pages
VECTORS = (torch.ones(64), torch.zeros(64), torch.zeros(64), torch.ones(64))

OPERATORS: dict[str, Callable[[Tensor], object]] = {
    "forward": lambda x: ops.batchnorm_forward(x, *VECTORS, True, 0.1, 1e-5),
    "inference": lambda x: ops.batchnorm_forward(x, *VECTORS, False, 0.1, 1e-5),
    "backward": lambda x: ops.batchnorm_backward(x, x, *VECTORS[:3]),
    "activation": lambda x: ops.batchnorm_act_forward(x, None, *VECTORS, True, 0.1, 1e-5, "relu"),
    "instance": lambda x: ops.instancenorm_forward(x, *VECTORS, 0.1, 1e-5),
}


def asked(tensor: Tensor) -> bool:
    """Whether the tensor's memory is marked for huge pages: `hg` among its mapping's flags, see proc_pid_smaps(5)."""
    middle = tensor.data_ptr() + tensor.nbytes // 2
    within = False
    for line in MAPPINGS.read_text().splitlines():
        name, *rest = line.split()
        if name == "VmFlags:" and within:
            return "hg" in rest
        if not name.endswith(":"):  # the first line of a mapping: its addresses
            begin, end = (int(address, 16) for address in name.split("-"))
            within = begin <= middle < end
    raise LookupError(f"no mapping holds {middle:#x}")


@pytest.mark.skipif(not (SETTING.exists() and MAPPINGS.exists()), reason="needs Linux with transparent huge pages")
@pytest.mark.parametrize("name", OPERATORS)
def test_asks_for_huge_pages(name: str) -> None:
    result = OPERATORS[name](torch.zeros(SHAPE))
    assert isinstance(result, tuple)
    assert asked(result[0])
