"""The CPU kernels for every instruction set that this machine has, not only the best one, which all other tests use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CAPABILITIES = ["default", "avx2", "avx512"]
TESTS = Path(__file__).parent
# Where vectors begin and end, both ways through memory, conversions, and where sums are hard.
FILES = ["test_forward.py", "test_backward.py", "test_numerics.py", "test_act.py"]
CHOICE = "sizes_around_vectors or test_layouts or hard_data or nan_and_infinity or mask_of_every_shape or accuracy_of"


def _weaker_ones() -> list[str]:
    return CAPABILITIES[: CAPABILITIES.index(torch.ops.my_ops.cpu_capability())]


@pytest.mark.parametrize("capability", CAPABILITIES[:-1])
def test_weaker_instruction_sets(capability: str) -> None:
    if capability not in _weaker_ones():
        pytest.skip(f"this run uses {torch.ops.my_ops.cpu_capability()} itself")
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-k", f"cpu and ({CHOICE})"]
    command += [str(TESTS / name) for name in FILES]
    environment = os.environ | {"MY_OPS_CPU_CAPABILITY": capability}
    run = subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert f'"cpu_capability": "{capability}"' in run.stdout
