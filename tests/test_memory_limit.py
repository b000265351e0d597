"""A process that runs out of memory in the middle of an operator: a clear error, the state as it was, and life goes on.

tests/cpp/test_faults.cpp lets every single allocation fail; here the system itself refuses, by RLIMIT_AS.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

NAMES = (
    "forward",
    "forward_with_graph",
    "module",
    "forward_of_strided",
    "act_forward",
    "in_place_of_strided",
    "instancenorm",
    "out_of_other_layout",
    "backward",
)


@cache
def results() -> dict[str, dict[str, object]]:
    command = [sys.executable, str(Path(__file__).with_name("memory_limit.py"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict) and set(found) == set(NAMES)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_out_of_memory(name: str) -> None:
    result = results()[name]
    error = result["error"]
    assert isinstance(error, str) and error.startswith("RuntimeError: ") and "can't allocate memory" in error
    assert result["untouched"]
    assert result["moves_afterwards"] == (name != "backward")
